"""Dots with intervals in rows: where each stands, what it is called, and the axis they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.figure_data.grids import usual_range

MOST_NAMED = 64  # rows, above which only headings are named
_GAP = 0.35  # rows of space above a heading


@dataclass(frozen=True)
class Lanes:
    """Rows from the top down: `y` [rows] is where each stands, `height` how many rows in all.

    The axis is labelled at `places` with `labels`; `headings` says which of these are headings.
    """

    y: np.ndarray
    places: list[float]
    labels: list[str]
    headings: list[bool]
    height: float

    @property
    def limits(self) -> tuple[float, float]:
        """The axis' ends, bottom first."""
        return self.height - 0.4, -0.6


def lanes(labels: Sequence[str], groups: Sequence[str] | None = None) -> Lanes:
    """A row a label, in the order given, under a heading wherever the group changes."""
    named = len(labels) <= MOST_NAMED
    y: list[float] = []
    axis: list[tuple[float, str, bool]] = []
    at, last = 0.0, ""
    for label, group in zip(labels, groups or [""] * len(labels), strict=True):
        if group and group != last:
            at += _GAP if y else 0.0
            axis.append((at, group, True))
            at, last = at + 1, group
        if named:
            axis.append((at, label, False))
        y.append(at)
        at += 1
    return Lanes(
        np.array(y),
        [place for place, _, _ in axis],
        [text for _, text, _ in axis],
        [heading for _, _, heading in axis],
        at,
    )


def sure(table: pd.DataFrame) -> pd.Series:
    """Which rows' intervals leave out zero."""
    return (table["ci_low"] > 0) | (table["ci_high"] < 0)


SURE_NOTE = "filled: interval without zero"


@dataclass(frozen=True)
class IntervalAxis:
    """Limits of the axis of scores; rows that tower over the rest lie `beyond`: [(y, text)]."""

    limits: tuple[float, float]
    beyond: list[tuple[float, str]]

    @property
    def note(self) -> str:
        """What a caption says of what lies beyond."""
        return "numbers with an arrow: beyond the axis" if self.beyond else ""


def interval_axis(rows: pd.DataFrame, quantile: float = 0.9) -> IntervalAxis:
    """The axis for rows with `y`, `score`, `ci_low` and `ci_high`; zero is always on it."""
    ends = rows[["score", "ci_low", "ci_high"]].to_numpy(float)
    low, high = usual_range(ends, quantile)
    beyond = []
    for y, row in zip(rows["y"], ends, strict=True):
        text = in_words(*row)
        if np.nanmax(row) > high:
            beyond.append((float(y), f"{text} ▸"))
        elif np.nanmin(row) < low:
            beyond.append((float(y), f"◂ {text}"))
    return IntervalAxis((low, high), beyond)


def in_words(score: float, low: float, high: float) -> str:
    """A score with its interval, as text in a figure."""
    text = f"{score:#.2g}" + (f" [{low:#.2g}, {high:#.2g}]" if np.isfinite(low) else "")
    return text.replace("-", "−")


def lane_hover(row: pd.Series, name: str, units: str) -> str:
    """Hover text of one row: what it is, score and interval with units."""
    text = f"<b>{name}</b><br>{row['score']:.4g} {units}"
    if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
        text += f"<br>interval {row['ci_low']:.4g} to {row['ci_high']:.4g} {units}"
    return text
