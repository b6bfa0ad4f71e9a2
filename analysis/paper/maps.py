"""Layer x head maps as vector cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, FULL, TEXT, Figure, canvas, style

DIVERGING = LinearSegmentedColormap.from_list("midus_diverging", data.diverging_stops(65))
SEQUENTIAL = LinearSegmentedColormap.from_list("midus_sequential", data.sequential_stops(65))


def maps(
    panels: Sequence[tuple[str, data.Grid]],
    rows: Sequence[data.Row],
    colours: data.ColourRange,
    label: str,
    caption: str,
    width: float | None,
    head: str = "head",
) -> Figure:
    """A panel a grid on shared rows and colours; `head` is what the columns count."""
    width = width or (FULL if len(panels) > 1 else COLUMN)
    pitch = float(np.clip(2.4 / len(rows), 0.115, 0.24))
    room = ((width - 1.4) / len(panels) - 0.1) * 72 / TEXT
    titles = data.labels([title for title, _ in panels], room, 2)
    extra = (data.lines_of(titles.values()) - 1) * TEXT * 1.25 / 72
    with style():
        figure = canvas(width, max(0.65 + pitch * len(rows), 2.0) + extra, caption)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        norm = Normalize(-colours.limit, colours.limit)
        for ax, (title, grid) in zip(axes, panels, strict=True):
            cells(ax, grid, norm, DIVERGING, int((width - 1.4) / len(panels) / 0.19))
            _signs(ax, grid, colours.limit)
            ax.set_title(titles[title], pad=3)
            ax.set_xlabel(head)
        row_labels(axes[0], rows)
        colour_bar(figure, axes, norm, DIVERGING, label, _extend(panels, colours.limit))
    return figure


def cells(ax: Axes, grid: data.Grid, norm: Normalize, cmap: Any, most_ticks: int) -> None:
    """The matrix as vector cells, first block on top; hatched where there is no such head."""
    height, width = grid.values.shape
    ax.patch.set(facecolor="white", edgecolor="#d3d7da", hatch="/////", linewidth=0)
    mesh = ax.pcolormesh(
        np.arange(width + 1) - 0.5,
        np.arange(height + 1) - 0.5,
        np.ma.masked_invalid(grid.values),
        norm=norm,
        cmap=cmap,
        edgecolors="white",
        linewidth=0.35,
    )
    mesh.set_gid("cells")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel="head")
    ticks = np.arange(0, width, data.tick_step(width, most_ticks))
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.tick_params(length=0, pad=2)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.5, color="#888888")


def _signs(ax: Axes, grid: data.Grid, limit: float) -> None:
    """A minus sign on each negative cell, half as wide as it; a cross where all is noise."""
    negative = data.marked(grid.values, limit) & ~grid.noise
    for gid, where, slopes in (("negative", negative, (0,)), ("noise", grid.noise, (-1, 1))):
        found = np.argwhere(where)
        if not len(found):
            continue
        strokes = [
            [(head - 0.22, row - 0.22 * slope), (head + 0.22, row + 0.22 * slope)]
            for row, head in found
            for slope in slopes
        ]
        ink = data.mark_ink if gid == "negative" else data.noise_ink
        colours = [ink(grid.values[row, head] / limit) for row, head in found]
        lines = LineCollection(
            strokes,
            colors=np.repeat(colours, len(slopes)),
            linewidths=0.8 if gid == "negative" else 0.6,
            capstyle="butt",
            gid=gid,
        )
        ax.add_collection(lines, autolim=False)


def row_labels(ax: Axes, rows: Sequence[data.Row]) -> None:
    """Each block's label at its row; inserted blocks in a colour of their own."""
    ax.set_yticks(range(len(rows)), [r.label for r in rows])
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        if row.inserted:
            tick.set_color(data.INSERTED_TEXT)


def _extend(panels: Sequence[tuple[str, data.Grid]], limit: float) -> str:
    values = np.concatenate([g.values.ravel() for _, g in panels])
    above, below = np.nanmax(values) > limit, np.nanmin(values) < -limit
    return {(True, True): "both", (True, False): "max", (False, True): "min"}.get(
        (bool(above), bool(below)), "neither"
    )


def colour_bar(
    figure: Figure, axes: Any, norm: Normalize, cmap: Any, label: str, extend: str = "neither"
) -> None:
    """A bar 0.1 in wide and as tall as its axes."""
    width, height = figure.get_size_inches()
    bar = figure.colorbar(
        ScalarMappable(norm, cmap),
        ax=axes,
        label=label,
        extend=extend,
        extendfrac=0.03,
        aspect=10 * height,
        fraction=0.2 / width,
        pad=0.012,
    )
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(length=2)
    bar.locator = MaxNLocator(5, symmetric=norm.vmin is not None and norm.vmin < 0)
    bar.update_ticks()
