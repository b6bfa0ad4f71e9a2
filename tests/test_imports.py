"""What only reads tables starts without the heavy libraries, and lazy packages act like others."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "scipy", "matplotlib")
LIGHT = (
    "kernels", "kernels.errors", "analysis", "analysis.tables", "analysis.figures",
    "analysis.figure_data", "analysis.statistics", "workbench", "workbench.runs",
    "workbench.drawing",
)  # fmt: skip
MODULES = {"figures", "paper"}  # public names of `analysis` that are no functions


def fresh(code: str) -> str:
    """What a new interpreter prints for `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_reading_tables_needs_no_heavy_library() -> None:
    code = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module(name)
    print(*(f"{{name}} imports {{heavy}}" for heavy in {HEAVY} if heavy in sys.modules))
"""
    assert not fresh(code)


def test_a_function_is_never_hidden_by_its_module() -> None:
    """In the real packages, their modules being imported first."""
    code = """
import analysis.amplification, analysis.documents, kernels.latent_bag.naive
from analysis import amplification, documents
from analysis.amplification import amplification as same
import analysis, kernels
assert analysis.amplification is amplification is same and callable(same)
assert analysis.documents is documents and callable(documents)
assert callable(analysis.amplify) and callable(kernels.latent_bag)
print("right")
"""
    assert fresh(code) == "right"


@pytest.mark.parametrize("package", ["kernels", "analysis"])
def test_every_public_name_is_found(package: str) -> None:
    module = importlib.import_module(package)
    homes = module._homes
    assert set(homes) == set(module.__all__) - MODULES
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        found = getattr(module, name)
        assert isinstance(found, ModuleType) == (name in MODULES), name
        if name in homes:
            assert found is getattr(sys.modules[homes[name]], name)
            assert found.__module__.startswith(homes[name])


# ---------------------------------------------------------------- a package of one's own

FILES = {
    "__init__": """
from kernels.lazy import import_when_used
__all__ = ["costs", "tables", "total"]
import_when_used(__name__, {"lazy_house.costs": ("costs", "total")})
""",
    "costs": """
LIMIT = 3
def costs(): return "the function"
def total(): return "the total"
""",
    "tables": "from lazy_house.costs import LIMIT, costs",
    "broken": "import there_is_no_such_library",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lazy package `lazy_house`, none of it imported yet."""
    folder = tmp_path / "lazy_house"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lazy_house"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "order",
    [
        "import lazy_house; costs = lazy_house.costs",
        "import lazy_house.costs; costs = lazy_house.costs",
        "from lazy_house import costs",
        "from lazy_house.costs import costs",
        "import lazy_house.costs; from lazy_house import costs",
        "from lazy_house.costs import LIMIT; from lazy_house import costs",
        "from lazy_house import total; from lazy_house import costs",
        "import lazy_house.tables; costs = lazy_house.costs",
        "import lazy_house; costs = lazy_house.tables.costs",
        "from lazy_house import *",
    ],
)
def test_the_order_of_imports_does_not_matter(house: None, order: str) -> None:
    names: dict[str, object] = {}
    exec(order, names)
    lazy_house = importlib.import_module("lazy_house")
    assert names["costs"] is lazy_house.costs
    assert lazy_house.costs() == "the function" and lazy_house.total() == "the total"
    assert isinstance(lazy_house.tables, ModuleType)


def test_nothing_is_imported_before_it_is_asked_for(house: None) -> None:
    lazy_house = importlib.import_module("lazy_house")
    assert "total" in dir(lazy_house) and "lazy_house.costs" not in sys.modules
    assert lazy_house.total() == "the total"
    assert "lazy_house.costs" in sys.modules and "lazy_house.tables" not in sys.modules


def test_a_name_that_is_not_there(house: None) -> None:
    lazy_house = importlib.import_module("lazy_house")
    with pytest.raises(AttributeError, match="'lazy_house' has no attribute 'nothing'"):
        _ = lazy_house.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from lazy_house import nothing")
    assert not hasattr(lazy_house, "__version__")


def test_a_module_that_cannot_be_imported_says_why(house: None) -> None:
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_library"):
        exec("from lazy_house import broken")
