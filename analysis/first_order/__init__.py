"""Methods that stand in for exact ablation at the cost of a few backward passes, a file each.

A file of this folder registers itself: its name is the method's, its `METHOD` says what it does.
`METHODS` of `analysis.methods`, captions, the command line and the app read this list.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from analysis.engine import Batch, Replacement
    from analysis.gates import Gated

    # Of a view, a batch, its baseline and the clean run's final states (where the metric wants
    # them): effects [G, W], positive where the head helps, and the windows' clean values [W].
    Effects = Callable[
        [Gated, Batch, Replacement, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
    ]

REGISTERED = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@dataclass(frozen=True)
class FirstOrder:
    """A registered method.

    words: as a caption names it; effects: what it measures; passes: about what a window costs, in
    forward passes of a model; signed: whether its scores tell what helps from what harms.
    """

    words: str
    effects: Effects
    passes: Callable[[Any], float]
    signed: bool = True


def registered(name: str) -> FirstOrder:
    """The method of that name."""
    return import_module(f"{__name__}.{name}").METHOD
