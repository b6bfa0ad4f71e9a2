"""Rows of dots with intervals, as vector art."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis import figure_data as data
from analysis.paper.canvas import at_edge, limit

_MOST = 6.2  # inches that many rows share


def lanes_height(lanes: data.Lanes, pitch: float = 0.145) -> float:
    """Inches that the rows take, less each where there are many."""
    return min(pitch * lanes.height, max(_MOST, 0.012 * lanes.height))


def name_lanes(ax: Axes, lanes: data.Lanes) -> None:
    """Rows' names, headings in bold, and a faint line along every row."""
    ax.set_yticks(lanes.places, lanes.labels)
    ax.set_ylim(*lanes.limits)
    ax.tick_params(axis="y", length=0)
    for tick, heading in zip(ax.get_yticklabels(), lanes.headings, strict=True):
        tick.set_fontweight("bold" if heading else "normal")
    rule_lanes(ax, lanes)


def rule_lanes(ax: Axes, lanes: data.Lanes) -> None:
    """A faint line along every named row."""
    if len(lanes.y) <= data.MOST_NAMED:
        for y in lanes.y:
            ax.axhline(y, color="#e3e6e8", lw=0.5, zorder=0)


def dots(
    ax: Axes,
    rows: pd.DataFrame,
    colour: str,
    marker: str = "o",
    size: float = 3.4,
    bar: float = 0.9,
) -> None:
    """Scores of rows (y, score, ci_low, ci_high, sure) with their intervals.

    Filled where the interval leaves out zero.
    """
    ax.hlines(rows["y"], rows["ci_low"], rows["ci_high"], color=colour, lw=bar)
    for certain, face in ((True, colour), (False, "white")):
        part = rows[rows["sure"] == certain]
        if len(part):
            ax.plot(
                part["score"],
                part["y"],
                marker,
                color=colour,
                mfc=face,
                mew=0.8,
                ms=size,
                gid="scores",
            )


def score_axis(ax: Axes, axis: data.IntervalAxis, label: str, ticks: int = 5) -> None:
    """Limits, a zero line, and the numbers of what lies beyond."""
    ax.axvline(0, color="#888888", lw=0.6, zorder=1)
    for y, text in axis.beyond:
        at_edge(ax, y, text)
    limit(ax, axis.limits, ticks)
    ax.set_xlabel(label)
