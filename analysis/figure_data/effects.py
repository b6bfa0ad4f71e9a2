"""What memory is worth: by part of it switched off, and by how its content reaches the heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.colours import SERIES
from analysis.figure_data.lanes import (
    SURE_NOTE,
    IntervalAxis,
    Lanes,
    interval_axis,
    lanes,
    sure,
)
from analysis.figure_data.words import caption, metric, score_label
from kernels.errors import MidusError

EFFECT_COLUMNS = ("block", "score", "ci_low", "ci_high")
REALISATION_COLUMNS = ("block", "realisation", "score", "ci_low", "ci_high")
MOST_SLOTS = 20
# of -> the columns that say which part a row is
_PARTS = {"heads": ("head",), "blocks": (), "all": (), "slots": ("slot",)}


# --- parts switched off ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """Parts of memory by block and, within it, by effect: `rows` has y, name and sure.

    `of`: heads, blocks, all or slots; `parts`: how many the table has.
    """

    of: str
    rows: pd.DataFrame
    lanes: Lanes
    axis: IntervalAxis
    parts: int


def effects_of(table: Any, figure: str) -> Effects:
    """The rows of a table of effects as they stand in a figure; of slots, the largest alone."""
    maker = "analysis.memory_effects()"
    table = require(table, EFFECT_COLUMNS, figure, maker)
    of = str(table.attrs.get("of") or _finest(table))
    if of not in _PARTS:
        raise MidusError(
            f"{figure} knows effects of {', '.join(_PARTS)}; the table is of {of!r}. "
            f"A table from {maker} says which in its attrs"
        )
    table = require(table, (*EFFECT_COLUMNS, *_PARTS[of]), figure, maker)
    rows = table.dropna(subset=["score"])
    if rows.empty:
        raise MidusError(f"{figure} was given a table whose scores are all missing (NaN)")
    if of == "slots" and len(rows) > MOST_SLOTS:
        sizes = rows["score"].abs().sort_values(ascending=False, kind="stable")
        rows = rows.loc[sizes.index[:MOST_SLOTS]]
    rows = rows.sort_values(
        ["block", "score"] if of in ("heads", "slots") else ["block"],
        ascending=[True, False] if of in ("heads", "slots") else [True],
        kind="stable",
        ignore_index=True,
    )
    records = rows.to_dict("records")
    names = [_part_name(of, record) for record in records]
    groups = [_block_name(r) for r in records] if of in ("heads", "slots") else None
    stand = lanes(names, groups)
    whole = [f"{g}, {n}" for g, n in zip(groups, names, strict=True)] if groups else names
    rows = rows.assign(y=stand.y, name=whole, sure=sure(rows))
    return Effects(of, rows, stand, interval_axis(rows), len(table))


def _finest(table: pd.DataFrame) -> str:
    """What a table is of that does not say so itself."""
    for of, column in (("slots", "slot"), ("heads", "head"), ("blocks", "block")):
        if column in table.columns and table[column].notna().any():
            return of
    return "all"


def _block_name(record: Mapping[Any, Any]) -> str:
    source = record.get("source_layer")
    words = f"block {int(record['block'])}"
    return words if source is None or pd.isna(source) else f"{words} (from {int(source)})"


def _part_name(of: str, record: Mapping[Any, Any]) -> str:
    if of == "all":
        return "all memory"
    if of == "blocks":
        return _block_name(record)
    head = record.get("head")
    reader = "" if head is None or pd.isna(head) else f"head {int(head)}"
    if of == "heads":
        return reader or "all heads"
    return ", ".join(filter(None, (f"slot {int(record['slot'])}", reader)))


def effect_label(table: pd.DataFrame) -> str:
    """The axis' label: effect, unit, and how to read its sign."""
    return f"{score_label(table, 'effect')}\npositive: memory helps"


def effects_caption(table: pd.DataFrame, effects: Effects) -> str:
    """What was switched, by how much, and how to read the sign."""
    gain = table.attrs.get("gain")
    what = "off" if not gain else f"to {float(gain):g} of itself"
    part = {"heads": "head by head", "blocks": "block by block", "all": "as a whole"}
    shown = len(effects.rows)
    notes = [
        "positive: this part of memory helps",
        SURE_NOTE,
        f"the {shown} slots of {effects.parts} with the largest effects"
        if effects.of == "slots" and shown < effects.parts
        else "",
        effects.axis.note,
    ]
    title = f"Memory scaled {what}, " if gain else "Memory switched off, "
    title += part.get(effects.of, "slot by slot")
    return caption(table, title=title, method=False, notes=notes)


# --- realisations ---------------------------------------------------------------------------------


class RealisationStyle(NamedTuple):
    """A realisation's name in a figure, its colour, matplotlib's marker and plotly's."""

    name: str
    colour: str
    marker: str
    symbol: str


REALISATIONS = {
    "shared": RealisationStyle("shared", SERIES[0], "o", "circle"),
    "shared_scaled": RealisationStyle("shared, scaled", SERIES[5], "v", "triangle-down"),
    "swapped": RealisationStyle("swapped", SERIES[3], "D", "diamond"),
    "averaged": RealisationStyle("averaged", SERIES[2], "^", "triangle-up"),
    "off": RealisationStyle("memory off", "#4D5B66", "s", "square"),
}
_CLEAN = "clean"


def realisation_rows(table: Any, figure: str) -> tuple[pd.DataFrame, Lanes, IntervalAxis]:
    """Rows by block, all blocks first, with y, name and sure; the clean model is the zero line."""
    maker = "analysis.memory_realisations()"
    table = require(table, REALISATION_COLUMNS, figure, maker)
    found = [str(name) for name in table["realisation"].unique()]
    unknown = [name for name in found if name not in REALISATIONS and name != _CLEAN]
    if unknown:
        raise MidusError(
            f"{figure} knows the realisations {', '.join((_CLEAN, *REALISATIONS))}; the table has "
            f"{', '.join(unknown)}. A table from {maker} has the right ones"
        )
    rows = table[table["realisation"] != _CLEAN].dropna(subset=["score"])
    if rows.empty:
        raise MidusError(f"{figure}: the table has no realisation but the clean one")
    order = list(REALISATIONS)
    rows = rows.assign(
        place=[-1 if str(b) == "all" else int(b) for b in rows["block"]],
        order=[order.index(name) for name in rows["realisation"]],
    ).sort_values(["place", "order"], kind="stable", ignore_index=True)
    groups = ["all memory blocks" if p < 0 else f"block {p}" for p in rows["place"]]
    names = [REALISATIONS[name].name for name in rows["realisation"]]
    stand = lanes(names, groups)
    whole = [f"{group}, {name}" for group, name in zip(groups, names, strict=True)]
    rows = rows.assign(y=stand.y, name=whole, sure=sure(rows))
    return rows, stand, interval_axis(rows)


def realisation_label(table: pd.DataFrame) -> str:
    """The axis' label: what a realisation costs, and the unit."""
    name = table.attrs.get("metric") or "loss"
    return score_label(table, "loss increase" if name == "loss" else f"cost in {metric(table)}")


def realisations_caption(table: pd.DataFrame, axis: IntervalAxis) -> str:
    """What was put in place of each head's own realisation of the bank."""
    words = {
        "shared": "shared: the heads' mean projection",
        "shared_scaled": "shared, scaled: the same at each head's own norm",
        "swapped": "swapped: another head's projection",
        "averaged": "averaged: each head's own projection of what all read, on average",
    }
    present = set(table["realisation"])
    notes = [
        *(text for name, text in words.items() if name in present),
        "zero: the clean model",
        "slots and weights held",
        SURE_NOTE,
        axis.note,
    ]
    title = "What other realisations of the memory cost"
    return caption(table, title=title, method=False, notes=notes)
