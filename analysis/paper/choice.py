"""Memory for chosen heads, random heads or all: every trained model, and the arms' differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, FULL, Figure, canvas, style
from analysis.paper.lanes import rule_lanes


def choice(
    choice: pd.DataFrame, contrast: pd.DataFrame | None = None, *, width: float | None = None
) -> Figure:
    """Left, a dot a trained model by arm, and the arms' means; a line of panels a measure.

    With `contrast`, differences of arms on the right, with the interval over documents (thick) and
    over seeds (thin). Raises MidusError on another table.
    """
    panels = data.choice_panels(choice, contrast, "choice")
    columns = 1 if contrast is None else 2
    width = width or (COLUMN if contrast is None else FULL)
    with style():
        height = len(panels) * (0.45 + 0.19 * len(panels[0].arms)) + 0.1
        text = data.choice_caption(choice, panels, contrast is not None)
        figure = canvas(width, height, text)
        axes = figure.subplots(len(panels), columns, squeeze=False)
        for row, panel in zip(axes, panels, strict=True):
            _models(row[0], panel)
            if contrast is not None:
                _differences(row[1], panel)
    return figure


def _models(ax: Axes, panel: data.ChoicePanel) -> None:
    """A dot a trained model, lines between those of a seed, and a tick at each arm's mean."""
    y = np.arange(len(panel.arms))
    for values in panel.values:
        ax.plot(values, y, color="#b4bbc1", lw=0.6, zorder=1)
    for place, arm in enumerate(panel.arms):
        kind, values = data.ARMS[arm], panel.values[:, place]
        ax.plot(
            values,
            np.full(len(values), place),
            kind.marker,
            color=kind.colour,
            ms=3.4,
            mec="white",
            mew=0.4,
            gid="models",
        )
    ax.vlines(panel.means, y - 0.32, y + 0.32, color="black", lw=1.1, zorder=3, gid="means")
    ax.set_yticks(y, panel.names)
    ax.set(ylim=(len(y) - 0.4, -0.6), xlabel=panel.label)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _differences(ax: Axes, panel: data.ChoicePanel) -> None:
    """Differences of arms, the interval over seeds thin, over documents thick."""
    rows = panel.rows
    if rows.empty:
        ax.set_axis_off()
        return
    ax.axvline(0, color="#888888", lw=0.6, zorder=0)
    ax.hlines(rows["y"], rows["seed_low"], rows["seed_high"], color="#202020", lw=0.7, gid="seeds")
    ax.hlines(
        rows["y"], rows["ci_low"], rows["ci_high"], color=data.BEFORE, lw=2.6, gid="documents"
    )
    ax.plot(
        rows["difference"],
        rows["y"],
        "o",
        color="white",
        mec="#202020",
        mew=0.8,
        ms=3.8,
        gid="differences",
    )
    lanes = data.lanes(list(rows["name"]))
    rule_lanes(ax, lanes)
    ax.set_yticks(rows["y"], rows["name"])
    ax.set(ylim=lanes.limits, xlabel=f"difference of {panel.label}")
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))
