"""Heads by how much they changed, and what their change is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.colours import COPY, MEMORY, OWN
from analysis.figure_data.grids import Grid, grid, usual_range
from analysis.figure_data.together import clear, together, together_note
from analysis.figure_data.words import caption
from kernels.errors import MidusError

AMPLIFICATION_COLUMNS = (
    "layer",
    "head",
    "source_layer",
    "before",
    "after_base",
    "after_memory",
    "after_copy",
    "score",
    "ci_low",
    "ci_high",
)
PARTS = {
    "own": ("the head itself", OWN),
    "memory": ("inserted memory", MEMORY),
    "copy": ("copied attention", COPY),
}


def amplified(table: Any, top: int | None, figure: str) -> pd.DataFrame:
    """The `top` heads that changed most, from the most amplified to the most weakened.

    Adds `own` (the head's own change), `memory`, `copy` (what inserted heads hold; the three add
    up to the score), `name` and `is_chosen`.
    """
    table = require(table, AMPLIFICATION_COLUMNS, figure, "analysis.amplification()")
    if top is not None and top < 1:
        raise MidusError(f"{figure}: top must be at least 1, or None for every head; got {top}")
    chosen = {(int(b), int(h)) for b, h in table.attrs.get("chosen") or []}
    out = table.dropna(subset=["score"])
    if out.empty:
        raise MidusError(f"{figure} was given a table whose scores are all missing (NaN)")
    if top is not None:
        largest = out["score"].abs().sort_values(ascending=False, kind="stable").index[:top]
        out = out.loc[largest]
    out = out.sort_values(
        ["score", "layer", "head"], ascending=[False, True, True], ignore_index=True
    )
    pairs = list(zip(out["layer"].astype(int), out["head"].astype(int), strict=True))
    return out.assign(
        own=out["after_base"] - out["before"],
        memory=out["after_memory"].fillna(0.0),
        copy=out["after_copy"].fillna(0.0),
        name=[f"L{b} H{h}" for b, h in pairs],
        is_chosen=[pair in chosen for pair in pairs],
    )


def changed(table: Any, top: int | None, figure: str) -> pd.DataFrame:
    """`amplified`, with `after` (what the head and all that came from it hold) and `sure`, whether
    the paired interval of the change, of all heads together where there is one, leaves out zero."""
    heads = amplified(table, top, figure)
    return heads.assign(
        after=heads["after_base"].fillna(0.0) + heads["memory"] + heads["copy"],
        sure=clear(heads),
    )


@dataclass(frozen=True)
class ChangeAxes:
    """Limits of the axes of before and after (`values`) and of the change, one unit being as long
    on both when panels are as wide as their limits are apart.

    A few heads that tower over the rest lie `beyond` the limits; their numbers are written there,
    [(row, text)] for each axis.
    """

    values: tuple[float, float]
    change: tuple[float, float]
    values_beyond: list[tuple[int, str]]
    change_beyond: list[tuple[int, str]]

    @property
    def widths(self) -> list[float]:
        """What the widths of the two panels are to each other."""
        return [self.values[1] - self.values[0], self.change[1] - self.change[0]]

    @property
    def note(self) -> str:
        """What a caption says of heads beyond the axes."""
        beyond = self.values_beyond or self.change_beyond
        return "numbers with an arrow: heads beyond the axis" if beyond else ""


def change_axes(heads: pd.DataFrame) -> ChangeAxes:
    """The axes for `changed` heads."""
    values = heads[["before", "after"]].to_numpy(float)
    ends = heads[["score", "ci_low", "ci_high"]].to_numpy(float)
    every = together(heads)[["ci_low", "ci_high"]].to_numpy(float)
    reach = np.column_stack([ends, every]) if len(every) == len(ends) else ends
    parts = [values, reach]
    shown = [part for part in parts if np.nan_to_num(part).any()] or parts  # zeros have no scale
    spans = [
        list(usual_range(part, 0.9)) if any(part is one for one in shown) else [0.0, 0.0]
        for part in parts
    ]
    widths = [high - low for low, high in spans]
    for span, lack in zip(spans, (0.45 * max(widths) - width for width in widths), strict=True):
        if lack > 0:  # a narrow panel has no room for its label
            span[0], span[1] = span[0] - lack / 2, span[1] + lack / 2
    first, second = ((low, high) for low, high in spans)
    return ChangeAxes(
        first,
        second,
        _beyond(values, first, [f"{b:#.3g} → {a:#.3g}" for b, a in values]),
        _beyond(ends, second, [_with_interval(*row) for row in ends]),
    )


def _beyond(
    values: np.ndarray, limits: tuple[float, float], texts: Sequence[str]
) -> list[tuple[int, str]]:
    """Rows with a value outside the limits, and what is written at the edge for each."""
    out = []
    for row, (part, text) in enumerate(zip(values, texts, strict=True)):
        if np.nanmax(part) > limits[1]:
            out.append((row, f"{text} ▸"))
        elif np.nanmin(part) < limits[0]:
            out.append((row, f"◂ {text}"))
    return [(row, text.replace("-", "−")) for row, text in out]


def _with_interval(score: float, low: float, high: float) -> str:
    return f"{score:#.2g}" + (f" [{low:#.2g}, {high:#.2g}]" if np.isfinite(low) else "")


def change_caption(heads: pd.DataFrame, table: pd.DataFrame, axes: ChangeAxes) -> str:
    """The caption of before, after and change."""
    notes = [
        "both panels on one scale",
        "after: the head with all inserted heads that came from it",
        "filled diamonds: interval without zero"
        + (" for all heads together" if together_note(table) else ""),
        axes.note,
        *amplified_notes(heads, table),
    ]
    return caption(table, title="Importance before and after, and its change", notes=notes)


def amplified_notes(shown: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What a caption says of the heads left out and of those chosen for memory."""
    notes = [together_note(table)] if together_note(table) else []
    if len(shown) < len(table):
        notes.append(f"the {len(shown)} of {len(table)} heads that changed most")
    if table.attrs.get("chosen"):
        named = int(shown["is_chosen"].sum())
        notes.append(f"bold: chosen for memory ({named} of {len(table.attrs['chosen'])} shown)")
    return notes


def shown_parts(table: pd.DataFrame) -> list[str]:
    """The parts of a change that any head has; the head's own always stands."""
    return ["own", *(p for p in ("memory", "copy") if (table[p] != 0).any())]


def base_heads(table: Any, column: str, figure: str) -> Grid:
    """An amplification table's column over the base model's layer x head grid."""
    columns = tuple(dict.fromkeys(("layer", "head", "source_layer", column)))
    table = require(table, columns, figure, "analysis.amplification()")
    return grid(table.assign(kind="base"), column)
