"""Amplification: the map of changes, and the heads that changed most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, Figure, at_edge, canvas, limit, style
from analysis.paper.maps import maps

_HATCHES = {"own": "", "memory": "//////", "copy": "......"}


def amplification_map(
    table: pd.DataFrame, *, share: bool = False, width: float | None = None
) -> Figure:
    """Each base head's change, after minus before, over the base model's layers and heads.

    `share=True` shows the change of its share of the model's positive importance instead.
    """
    column = "share_score" if share else "score"
    grid = data.base_heads(table, column, "amplification_map")
    colours = data.colour_range(grid)
    label = "change of share" if share else data.score_label(table, "change")
    text = data.caption(
        table,
        title="Amplification (after minus before)",
        intervals=False,
        notes=[data.mark_note(colours.limit), colours.note],
    )
    return maps([("", grid)], grid.rows, colours, label, text, width, head=data.head_word(table))


def amplification(table: pd.DataFrame, top: int | None = 20, *, width: float = COLUMN) -> Figure:
    """After minus before of the `top` most changed heads, most amplified first.

    Bars split the change into the head's own and what inserted heads hold; dots are the sum with
    its paired interval. Chosen heads are named in bold.
    """
    heads = data.amplified(table, top, "amplification")
    notes = data.amplified_notes(heads, table)
    text = data.caption(table, title="Amplification (after minus before)", notes=notes)
    with style():
        figure = canvas(width, 0.75 + 0.145 * len(heads), text)
        ax = figure.subplots()
        _stack(ax, heads)
        y = np.arange(len(heads))
        _intervals(ax, heads)
        ax.plot(
            heads["score"],
            y,
            "o",
            color="black",
            mec="white",
            mew=0.5,
            ms=4,
            zorder=4,
            label="sum, with interval",
            gid="scores",
        )
        ax.axvline(0, color="#444444", linewidth=0.6, zorder=2)
        ax.set_yticks(y, heads["name"])
        ax.set(ylim=(len(heads) - 0.4, -0.6), xlabel=data.score_label(table, "change"))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        _bold(ax, heads)
        handles, labels = ax.get_legend_handles_labels()
        order = [*range(1, len(labels)), 0] if labels[0].startswith("sum") else range(len(labels))
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside upper center",
            ncols=2,
            handlelength=1.4,
            columnspacing=1.2,
        )
    return figure


def importance_change(table: pd.DataFrame, top: int | None = 20, *, width: float = 4.6) -> Figure:
    """Before, after, and the paired difference with its interval, of the `top` most changed heads.

    From a table of `analysis.amplification`. The two panels have one scale, so a difference is as
    long as the line between its before and after. Raises MidusError on another table.
    """
    heads = data.changed(table, top, "importance_change")
    axes = data.change_axes(heads)
    with style():
        figure = canvas(width, 0.85 + 0.145 * len(heads), data.change_caption(heads, table, axes))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=axes.widths)
        _before_and_after(left, heads)
        _differences(right, heads)
        for ax, limits, beyond, what in (
            (left, axes.values, axes.values_beyond, "importance"),
            (right, axes.change, axes.change_beyond, "change"),
        ):
            ax.axvline(0, color="#888888", lw=0.6, zorder=0)
            ax.set_xlabel(data.score_label(table, what))
            limit(ax, limits, 5 if ax is left else 4)
            ax.grid(axis="y", color="#e3e6e8", lw=0.5)
            ax.set_axisbelow(True)
            for row, text in beyond:
                at_edge(ax, row, text)
        right.tick_params(left=False)
        left.set_yticks(range(len(heads)), heads["name"])
        left.set_ylim(len(heads) - 0.4, -0.6)
        _bold(left, heads)
        figure.legend(loc="outside upper center", ncols=3, handlelength=1.4, columnspacing=1.2)
    return figure


def _before_and_after(ax: Axes, heads: pd.DataFrame) -> None:
    """A line from before to after for every head, and the two as open and filled dots."""
    y = np.arange(len(heads))
    ax.hlines(y, heads["before"], heads["after"], color=data.NEUTRAL, lw=1.0, zorder=1)
    for column, colour, face in (
        ("before", data.BEFORE, "white"),
        ("after", data.AFTER, data.AFTER),
    ):
        dots: dict[str, Any] = {"color": colour, "mfc": face, "mew": 0.9, "ms": 3.8}
        ax.plot(heads[column], y, "o", label=column, gid=column, **dots)


def _differences(ax: Axes, heads: pd.DataFrame) -> None:
    """Paired differences with their intervals, filled where the interval leaves out zero."""
    y = np.arange(len(heads))
    _intervals(ax, heads)
    sure = heads["sure"].to_numpy()
    for where, face in ((sure, "black"), (~sure, "white")):
        dots: dict[str, Any] = {"color": "black", "mfc": face, "mew": 0.8, "ms": 3.4}
        ax.plot(heads["score"][where], y[where], "D", gid="scores", **dots)
    ax.plot([], [], "D", color="black", ms=3.4, label="change, paired interval")


def _intervals(ax: Axes, heads: pd.DataFrame) -> None:
    """Each head's own interval thick, that of all heads together thin."""
    ax.hlines(range(len(heads)), heads["ci_low"], heads["ci_high"], color="black", lw=1.4, zorder=3)
    every = data.together(heads)
    ax.hlines(every.index, every["ci_low"], every["ci_high"], color="black", lw=0.5, zorder=3)


def _bold(ax: Axes, heads: pd.DataFrame) -> None:
    """Names of chosen heads in bold."""
    for tick, chosen in zip(ax.get_yticklabels(), heads["is_chosen"], strict=True):
        tick.set_fontweight("bold" if chosen else "normal")


def _stack(ax: Axes, heads: pd.DataFrame) -> None:
    """Parts of the change as bars that pile up away from zero, each sign on its own side."""
    up, down = np.zeros(len(heads)), np.zeros(len(heads))
    for part in data.shown_parts(heads):
        label, colour = data.PARTS[part]
        value = heads[part].to_numpy(float)
        ax.barh(
            np.arange(len(heads)),
            value,
            left=np.where(value >= 0, up, down),
            height=0.72,
            color=colour,
            hatch=_HATCHES[part],
            edgecolor="white",
            linewidth=0,
            label=label,
        )
        up, down = up + value.clip(min=0), down + value.clip(max=0)
