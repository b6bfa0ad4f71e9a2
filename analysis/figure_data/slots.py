"""How memory heads share their slots out, and which slot each token reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.grids import Grid, block_rows, grid
from analysis.figure_data.memory import USAGE_COLUMNS, usage_caption
from kernels.errors import MidusError

VIEW_COLUMNS = ("block", "head", "position", "token", "slot", "weight")
# column -> label of its panel; all are shown in per cent
MAP_PANELS = {
    "coverage": "coverage (% of slots)",
    "effective_slots": "effective slots (% of slots)",
    "collisions": "shared with other heads (% of weight)",
    "read_ratio": "read ratio (% of the stream's norm)",
}
_MAP_NOTES = {
    "coverage": "coverage: slots hit at least once",
    "effective_slots": "effective slots: exp(entropy of weight over slots)",
    "collisions": "shared: mean overlap of a head's weight over slots with the other heads'",
    "read_ratio": "read ratio: what a head writes over what it is added to, mean over tokens",
}
_LONGEST = 12  # characters of a token
_SIGNS = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


# --- the map --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapPanel:
    """One measure over block x head, in per cent; colours run from 0 to `top`."""

    column: str
    label: str
    grid: Grid
    top: float

    def text(self, value: float) -> str:
        """A cell's number: one decimal where no cell reaches 10%."""
        return f"{value:.0f}" if self.top >= 10 else f"{value:.1f}"


def map_panels(usage: Any, figure: str) -> tuple[list[MapPanel], pd.DataFrame]:
    """The panels of the measures that the table has, and the table with these in per cent.

    Collisions and the read ratio are left out of tables that were made before they were measured.
    """
    usage = require(usage, USAGE_COLUMNS, figure, "analysis.memory_usage()")
    columns = [column for column in MAP_PANELS if column in usage.columns]
    shown = usage.assign(effective_slots=usage["effective_slots"] / usage["slots"])
    shown = shown.assign(**{column: 100.0 * shown[column] for column in columns})
    panels = []
    for column in columns:
        cells = grid(shown, column)
        largest = float(np.nanmax(cells.values, initial=0.0))
        top = 100.0 if column == "coverage" else largest or 1.0
        panels.append(MapPanel(column, MAP_PANELS[column], cells, top))
    return panels, shown


def map_caption(usage: pd.DataFrame, panels: list[MapPanel]) -> str:
    """What the panels show."""
    slots = ", ".join(f"{n:,}" for n in sorted({int(n) for n in usage["slots"]}))
    notes = [_MAP_NOTES[panel.column] for panel in panels]
    return usage_caption(usage, "Memory use by head", [*notes, f"slots a head: {slots}"])


# --- the view -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """The heaviest slot that each head of a block reads at each token.

    `slots` int [heads, tokens], -1 where the table has none, and its `weights` [heads, tokens];
    `tokens` as axes show them; `total`: how many positions the table has in this block.
    """

    block: int
    label: str
    heads: list[int]
    positions: list[int]
    tokens: list[str]
    slots: np.ndarray
    weights: np.ndarray
    total: int


def view_of(
    view: Any, block: int | None, first: int | None, tokens: int, figure: str
) -> tuple[View, pd.DataFrame]:
    """A stretch of a view of one block, and its rows: the heaviest of every position and head.

    Raises MidusError where the table has no such block, or no position from `first` on.
    """
    view = require(view, VIEW_COLUMNS, figure, "analysis.memory_view()")
    if tokens < 1:
        raise MidusError(f"{figure}: tokens must be at least 1; got {tokens}")
    blocks = sorted({int(b) for b in view["block"]})
    block = blocks[0] if block is None else block
    here = view[view["block"] == block]
    if here.empty:
        known_blocks = ", ".join(map(str, blocks))
        raise MidusError(f"{figure}: the table has no block {block!r}; it has {known_blocks}")
    known = sorted({int(p) for p in here["position"]})
    positions = [p for p in known if first is None or p >= first][:tokens]
    if not positions:
        raise MidusError(
            f"{figure}: first={first} is past the last position of block {block}, {known[-1]}"
        )
    here = here[here["position"].isin(positions)]
    best = here.loc[here.groupby(["head", "position"])["weight"].idxmax()].reset_index(drop=True)
    heads = sorted({int(h) for h in view.loc[view["block"] == block, "head"]})
    at = (
        [heads.index(int(h)) for h in best["head"]],
        [positions.index(int(p)) for p in best["position"]],
    )
    shape = (len(heads), len(positions))
    slots, weights = np.full(shape, -1), np.full(shape, np.nan)
    slots[at], weights[at] = best["slot"].to_numpy(int), best["weight"].to_numpy(float)
    words = best.drop_duplicates("position").set_index("position")
    shown = [_printed(words.loc[p].to_dict()) for p in positions]
    label = f"block {block}"
    if {"kind", "source_layer", "layer"} <= set(best.columns):
        label = block_rows(best)[0].label
    found = View(block, label, heads, positions, shown, slots, weights, len(known))
    return found, best


def _printed(row: Mapping[Any, Any]) -> str:
    """A token as an axis shows it: white space as signs, cut where long; its number if no text."""
    token = row["token"]
    text = token.translate(_SIGNS) if isinstance(token, str) else f"#{row.get('token_id', '?')}"
    text = text or "∅"
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def view_caption(table: pd.DataFrame, view: View) -> str:
    """Which block and tokens are shown, and what a cell says."""
    ends = f"{view.positions[0]} to {view.positions[-1]}"
    notes = [
        "each cell: the slot with most weight, by number where it fits; colour: its weight",
        f"tokens {ends} of {view.total}" if len(view.tokens) < view.total else "",
        "· space, ⏎ line break" if set("·⏎") & set("".join(view.tokens)) else "",
    ]
    return usage_caption(table, f"What each memory head of block {view.block} reads", notes)
