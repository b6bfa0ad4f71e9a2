"""Intervals that hold for all heads of a table together, beside each head's own."""

from __future__ import annotations

import pandas as pd

TOGETHER = "thick: each head for itself, thin or pale: all heads together"


def together(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with `ci_low` and `ci_high` of the intervals that hold together.

    No rows where the table has none: older ones, and those whose method makes its own.
    """
    if not {"ci_low_all", "ci_high_all"} <= set(table.columns):
        return table.iloc[:0]
    known = table[table["ci_low_all"].notna() & table["ci_high_all"].notna()]
    return known.assign(ci_low=known["ci_low_all"], ci_high=known["ci_high_all"])


def together_note(*tables: pd.DataFrame | None) -> str:
    """What a caption says of the thin lines; "" where there are none."""
    return TOGETHER if any(t is not None and len(together(t)) for t in tables) else ""


def clear(table: pd.DataFrame) -> pd.Series:
    """Which rows' intervals leave out zero: those that hold together, where there are some."""
    ends = table[["ci_low", "ci_high"]].astype(float).copy()
    known = together(table)
    ends.loc[known.index] = known[["ci_low", "ci_high"]]
    return (ends["ci_low"] > 0) | (ends["ci_high"] < 0)
