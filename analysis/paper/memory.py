"""How memory heads use their slots."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, FULL, Figure, canvas, style
from analysis.paper.maps import SEQUENTIAL, cells, colour_bar, row_labels


def slot_usage(usage: pd.DataFrame, *, width: float = FULL) -> Figure:
    """Coverage and effective number of slots of every memory head, a row a block."""
    usage = data.require(usage, data.USAGE_COLUMNS, "slot_usage", "analysis.memory_usage()")
    slots = sorted({int(n) for n in usage["slots"]})
    note = f"slots a head: {', '.join(f'{n:,}' for n in slots)}"
    text = data.usage_caption(
        usage,
        "Memory use: coverage = share of slots hit at least once; effective slots = "
        "exp(entropy of weight over slots)",
        [note],
    )
    grids = [data.grid(usage.assign(coverage=100 * usage["coverage"]), "coverage")]
    grids.append(data.grid(usage, "effective_slots"))
    rows = grids[0].rows
    pitch = float(np.clip(1.2 / len(rows), 0.125, 0.26))
    with style():
        figure = canvas(width, max(0.65 + pitch * len(rows), 1.3), text)
        axes = figure.subplots(1, 2, sharey=True)
        tops = (100.0, float(np.nanmax(grids[1].values)))
        labels = ("coverage (% of slots)", "effective slots (number)")
        for ax, grid, top, label in zip(axes, grids, tops, labels, strict=True):
            norm = Normalize(0, top)
            cells(ax, grid, norm, SEQUENTIAL, 12)
            if grid.heads <= 12:
                _numbers(ax, grid.values, top)
            colour_bar(figure, ax, norm, SEQUENTIAL, "")
            ax.set_title(label, pad=3)
        row_labels(axes[0], rows)
    return figure


def _numbers(ax: Axes, values: np.ndarray, top: float) -> None:
    for (row, head), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(
                head,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                size=6.0,
                color=data.ink(value / top),
            )


def slot_histogram(
    usage_slots: pd.DataFrame, *, slots: int | None = None, width: float = COLUMN
) -> Figure:
    """Hits of one head's slots from the most to the least hit; `slots`: how many the bank has."""
    hits, count = data.slot_hits(usage_slots, slots, "slot_histogram")
    total = float(hits["hits"].sum())
    title = data.slots_title(usage_slots)
    known = [f"{len(hits):,} of {count:,} slots hit"] if count else [f"{len(hits):,} slots hit"]
    text = data.usage_caption(usage_slots, title, [*known, f"{int(total):,} hits"])
    with style():
        figure = canvas(width, 2.0, text)
        ax = figure.subplots()
        ax.step(
            hits["rank"],
            hits["hits"],
            where="mid",
            color=data.BEFORE,
            lw=1,
            gid="hits",
            label="measured",
        )
        if count:
            ax.hlines(
                total / count,
                1,
                count,
                color=data.AFTER,
                lw=1,
                ls="--",
                label="if all slots were hit alike",
            )
            ax.legend(loc="upper right", borderaxespad=0.1)
        ax.set(
            yscale="log",
            xlabel="slot rank",
            ylabel="hits (number)",
            xlim=(-0.02 * (count or len(hits)), 1.02 * (count or len(hits))),
        )
        ax.set_ylim(bottom=0.7 * min(1.0, total / (count or total)))
    return figure


def slot_grid(slots: pd.DataFrame, *, side: int, width: float = COLUMN) -> Figure:
    """One head's hits on its grid of row keys by column keys, [side, side], on a logarithmic scale.

    Raises MidusError where a slot lies outside the grid, or on another table.
    """
    hits = data.slot_square(slots, side, "slot_grid")
    with style():
        figure = canvas(width, 0.85 * width, data.square_caption(slots, hits))
        ax = figure.subplots()
        ax.set_facecolor("#d9d9d9")
        top = max(float(np.nanmax(hits, initial=2.0)), 2.0)
        image = ax.imshow(
            hits, cmap=SEQUENTIAL, norm=LogNorm(1, top), interpolation="nearest", gid="hits"
        )
        ax.set(xlabel="column key", ylabel="row key")
        figure.colorbar(image, ax=ax, label="hits (number)", fraction=0.046, pad=0.03)
    return figure
