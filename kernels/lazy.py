"""A package whose public names are imported when first asked for: torch and its like take seconds.

# package/__init__.py
import_when_used(__name__, {"package.costs": ("costs",)})
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that imports a name's module, or a submodule, when it is first asked for it.

    Where a function and its module share a name (`analysis.costs`), the package's attribute is the
    function, however the module came to be imported.
    """

    _homes: dict[str, str]  # public name -> the module that defines it

    def __getattr__(self, name: str) -> Any:
        place = f"{self.__name__}.{name}"
        if name in self._homes:
            value = getattr(import_module(self._homes[name]), name)
        elif not name.startswith("_") and find_spec(place):
            value = import_module(place)
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets every imported submodule on its package.
        if isinstance(value, ModuleType) and self._homes.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__dict__["__all__"]})


def import_when_used(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Make `package`, which is being imported, lazy in `names`: defining module -> public names."""
    module = sys.modules[package]
    homes = {name: home for home, inside in names.items() for name in inside}
    module.__dict__["_homes"] = homes
    module.__class__ = LazyPackage
