"""The arms of an experiment: how each is named and drawn, alike in every figure."""

from __future__ import annotations

from typing import NamedTuple

from analysis.figure_data.colours import AFTER, BEFORE, NEUTRAL
from kernels.errors import MidusError


class ArmStyle(NamedTuple):
    """An arm's name in a legend, its colour, matplotlib's marker and plotly's."""

    name: str
    colour: str
    marker: str
    symbol: str


ARMS = {
    "chosen": ArmStyle("chosen heads", AFTER, "s", "square"),
    "random": ArmStyle("random heads", NEUTRAL, "^", "triangle-up"),
    "matched_norm": ArmStyle("random direction, same norm", BEFORE, "o", "circle"),
    "all": ArmStyle("all heads", BEFORE, "o", "circle"),
}


def arms_of(found: list[str], figure: str, maker: str) -> list[str]:
    """The arms in the order of ARMS; MidusError where there is one of another name."""
    unknown = [name for name in dict.fromkeys(found) if name not in ARMS]
    if unknown:
        raise MidusError(
            f"{figure} knows the arms {', '.join(ARMS)}; the table has {', '.join(unknown)}. "
            f"A table from {maker} has the right ones"
        )
    return [arm for arm in ARMS if arm in found]
