"""How memory heads share their slots out, and which slot each token reads."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import FULL, SMALL, Figure, canvas, style
from analysis.paper.maps import SEQUENTIAL, cells, colour_bar, row_labels

_NUMBER = 6.0  # points
_DIGIT = 0.64 * _NUMBER / 72  # inches


def memory_map(usage: pd.DataFrame, *, width: float = FULL) -> Figure:
    """Coverage, effective slots, overlap with other heads and read ratio of every memory head.

    Block x head cells in per cent, with their numbers where they fit, from `memory_usage`. Tables
    made before overlap and read ratio were measured show the other two. Raises MidusError on
    another table.
    """
    panels, _ = data.map_panels(usage, "memory_map")
    rows, heads = panels[0].grid.rows, panels[0].grid.heads
    labels = 0.1 + 0.055 * max(len(row.label) for row in rows)
    columns = 2 if (width - labels - 0.9) / 2 / heads >= 3.4 * _DIGIT else 1
    room = (width - labels - 0.45 * columns) / columns / heads
    lines = -(-len(panels) // columns)
    pitch = float(np.clip(1.4 / len(rows), 0.13, 0.26))
    with style():
        height = lines * max(0.5 + pitch * len(rows), 0.9) + 0.1
        figure = canvas(width, height, data.map_caption(usage, panels))
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for ax, panel in zip(axes.ravel(), panels, strict=False):
            norm = Normalize(0, panel.top)
            cells(ax, panel.grid, norm, SEQUENTIAL, int(room * heads / 0.19))
            if room >= 3 * _DIGIT:
                _numbers(ax, panel)
            else:
                _bar(figure, ax, norm, pitch * len(rows))
            ax.set_title(panel.label, pad=3)
            ax.set_xlabel("")
        for ax in axes.ravel()[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("head")
        for ax in axes[:, 0]:
            row_labels(ax, rows)
    return figure


def _bar(figure: Figure, ax: Axes, norm: Normalize, height: float) -> None:
    """A bar 0.08 in wide beside one panel of that many inches."""
    mappable = ScalarMappable(norm, SEQUENTIAL)
    bar = figure.colorbar(mappable, ax=ax, aspect=height / 0.08, pad=0.01, fraction=0.03)
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(length=2)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()


def _numbers(ax: Axes, panel: data.MapPanel) -> None:
    for (row, head), value in np.ndenumerate(panel.grid.values):
        if np.isfinite(value):
            ax.text(
                head,
                row,
                panel.text(value),
                ha="center",
                va="center",
                size=_NUMBER,
                color=data.ink(value / panel.top),
                gid="numbers",
            )


def memory_view(
    view: pd.DataFrame,
    *,
    block: int | None = None,
    first: int | None = None,
    tokens: int = 24,
    width: float = FULL,
) -> Figure:
    """The heaviest slot that each head of a block reads at each token, from `memory_view`.

    Cells hold the slot's number, colour is its weight. `block`: by default the first of the table;
    `first`: the position to start at, `tokens`: how many are shown. Raises MidusError on another
    table, or where it has no such block or position.
    """
    shown, _ = data.view_of(view, block, first, tokens, "memory_view")
    heads, count = len(shown.heads), len(shown.tokens)
    longest = max(map(len, shown.tokens))
    with style():
        height = 0.45 + 0.075 * longest + max(0.15 * heads, 0.5)
        figure = canvas(width, height, data.view_caption(view, shown))
        ax = figure.subplots()
        top = float(np.nanmax(shown.weights)) or 1.0
        norm = Normalize(0, top)
        unknown = np.full_like(shown.weights, np.nan)
        grid = data.Grid([], shown.weights, unknown, unknown, unknown == 1)
        cells(ax, grid, norm, SEQUENTIAL, count)
        if (width - 1.0) / count >= max(len(str(n)) for n in shown.slots.ravel()) * _DIGIT:
            _slot_numbers(ax, shown, top)
        every = data.tick_step(count, int((width - 1.0) / (SMALL * 1.3 / 72)))
        ax.set_xticks(range(0, count, every), shown.tokens[::every], rotation=90, parse_math=False)
        ax.set_yticks(range(heads), [str(head) for head in shown.heads])
        ax.set(xlabel=f"tokens {shown.positions[0]} to {shown.positions[-1]}")
        ax.set_ylabel(f"head of {shown.label}", size=SMALL)
        colour_bar(figure, ax, norm, SEQUENTIAL, "weight of the slot")
    return figure


def _slot_numbers(ax: Axes, view: data.View, top: float) -> None:
    for (row, column), slot in np.ndenumerate(view.slots):
        if slot >= 0:
            ax.text(
                column,
                row,
                str(slot),
                ha="center",
                va="center",
                size=_NUMBER,
                color=data.ink(float(view.weights[row, column]) / top),
                gid="slots",
            )
