"""Memory use, and one head's slots by hits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import HEAD_COLUMNS, require
from analysis.figure_data.words import data_words, model_name
from kernels.errors import MidusError

USAGE_COLUMNS = (*HEAD_COLUMNS, "slots", "coverage", "effective_slots")
SLOT_COLUMNS = ("slot", "hits", "weight")


def slot_hits(slots: Any, count: int | None, figure: str) -> tuple[pd.DataFrame, int | None]:
    """Slots by hits, most hit first, with `rank`, and how many slots the bank has, if known."""
    slots = require(slots, SLOT_COLUMNS, figure, "memory_usage().slots(block, head)")
    out = slots.sort_values(["hits", "slot"], ascending=[False, True], ignore_index=True)
    count = count if count is not None else slots.attrs.get("slots")
    if count is not None and count < len(out):
        raise MidusError(f"{figure}: {len(out)} slots were hit, but slots={count} says fewer exist")
    return out.assign(rank=np.arange(1, len(out) + 1)), None if count is None else int(count)


def slots_title(slots: pd.DataFrame) -> str:
    """Which head's slots these are, as far as the table says."""
    block, head = slots.attrs.get("block"), slots.attrs.get("head")
    if block is None or head is None:
        return "Hits of one memory head's slots, most hit first"
    return f"Hits of the slots of block {block}, head {head}, most hit first"


def slot_square(slots: Any, side: int, figure: str) -> np.ndarray:
    """Hits by row and column key, [side, side], NaN where a slot was never hit."""
    slots = require(slots, ("slot", "hits"), figure, "memory_usage().slots(block, head)")
    numbers = slots["slot"].to_numpy(int)
    if len(numbers) and numbers.max() >= side * side:
        raise MidusError(f"{figure}: slot {numbers.max()} is outside a grid of {side} x {side}")
    hits = np.full(side * side, np.nan)
    hits[numbers] = slots["hits"].to_numpy(float)
    return hits.reshape(side, side)


def square_caption(slots: pd.DataFrame, hits: np.ndarray) -> str:
    """What the grid of one head's slots shows."""
    block, head = slots.attrs.get("block"), slots.attrs.get("head")
    whose = "one memory head" if block is None or head is None else f"block {block}, head {head}"
    known = f"{int(np.isfinite(hits).sum()):,} of {hits.size:,} slots hit; grey ones never"
    return usage_caption(slots, f"Hits of {whose} by row key and column key", [known])


def usage_caption(table: pd.DataFrame, title: str, notes: Iterable[str] = ()) -> str:
    """The caption of memory figures, whose numbers have neither method nor baseline."""
    parts = [title, data_words(table.attrs), f"model {model_name(table, 'not recorded')}"]
    return "; ".join([*parts, *(n for n in notes if n)]) + "."
