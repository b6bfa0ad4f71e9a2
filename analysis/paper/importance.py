"""Head importance: the map, and the sorted scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, SMALL, Figure, canvas, entry, name_legend, style
from analysis.paper.maps import maps
from kernels.errors import MidusError

_SUFFIX = 15.0  # ems of what a legend says of a model beside its name


def importance_map(
    before: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    width: float | None = None,
    force: bool = False,
) -> Figure:
    """Layer x head importance; with `after`, two panels on the same rows and the same colours.

    Raises MidusError on a table without the needed columns, IncomparableTables on two tables of
    different metric, baseline or documents unless `force`.
    """
    data.require_pair(before, after, "importance_map", force)
    first = data.grid(before)
    rows, old, new = data.aligned(first, None if after is None else data.grid(after))
    colours = data.colour_range(old, new)
    notes = [data.mark_note(colours.limit), data.noise_note(before, after), colours.note]
    text = data.caption(before, after, title="Head importance", intervals=False, notes=notes)
    panels = [(data.model_name(before, "before"), old)]
    if after is not None and new is not None:
        panels.append((data.model_name(after, "after"), new))
    head = data.head_word(before)
    return maps(panels, rows, colours, data.score_label(before), text, width, head=head)


def importance_curves(
    before: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    scale: str = "auto",
    width: float = COLUMN,
    force: bool = False,
) -> Figure:
    """Sorted scores with their intervals, most important first, both models on one axis.

    `scale`: "linear", "symlog", or "auto": symlog where a few heads tower over the rest.
    """
    if scale not in ("auto", "linear", "symlog"):
        raise MidusError(f'scale must be "auto", "linear" or "symlog"; got {scale!r}')
    data.require_pair(before, after, "importance_curves", force)
    tables = [(before, data.BEFORE, "o")]
    if after is not None:
        tables.append((after, data.AFTER, "s"))
    threshold = _threshold([t for t, _, _ in tables])
    log = scale == "symlog" or (scale == "auto" and threshold is not None)
    note = f"axis linear within ±{threshold or 1e-4:.1g}, logarithmic beyond" if log else ""
    notes = [data.together_note(before, after), note]
    text = data.caption(before, after, title="Head importance, sorted", notes=notes)
    with style():
        figure = canvas(width, 2.3, text)
        ax = figure.subplots()
        ax.axhline(0, color="#888888", linewidth=0.5, zorder=0)
        names = [
            data.model_name(t, side)
            for (t, _, _), side in zip(tables, ("before", "after"), strict=False)
        ]
        shown = data.labels(names, (width - 0.4) * 72 / SMALL - _SUFFIX)
        for name, (table, colour, marker) in zip(names, tables, strict=True):
            _curve(ax, data.sorted_scores(table), colour, marker, entry(shown[name]))
        if log:
            ax.set_yscale("symlog", linthresh=threshold or 1e-4, linscale=0.6)
        ax.set(xlabel=f"{data.head_word(before)} rank", ylabel=data.score_label(before))
        ax.margins(x=0.02)
        name_legend(figure, ax, ax.get_legend_handles_labels()[1], handlelength=1.6)
    return figure


def _threshold(tables: Sequence[pd.DataFrame]) -> float | None:
    """Where a symlog axis turns linear, or None where a linear axis shows the curve well enough."""
    sizes = np.abs(np.concatenate([t["score"].dropna().to_numpy(float) for t in tables]))
    median = float(np.median(sizes))
    if median == 0 or sizes.max() < 40 * median:
        return None
    return 10.0 ** np.floor(np.log10(median))


def _curve(ax: Axes, table: pd.DataFrame, colour: str, marker: str, name: str) -> None:
    """One model's sorted scores: marked heads up to 100 of them, else a band and a rug."""
    rank, score, every = table["rank"], table["score"], data.together(table)
    inserted = rank[table["inserted"]]
    few = len(table) <= 100
    label = f"{name}, base heads" if few and len(inserted) else name
    style: dict[str, Any] = {"marker": marker, "ms": 2.6, "mew": 0} if few else {}
    ax.plot(rank, score, color=colour, lw=0.8, label=label, gid="scores", **style)
    if few:
        ax.vlines(rank, table["ci_low"], table["ci_high"], color=colour, alpha=0.4, lw=1.4)
        ax.vlines(every["rank"], every["ci_low"], every["ci_high"], color=colour, alpha=0.5, lw=0.4)
    else:
        for part in (every, table):
            ends = part["ci_low"], part["ci_high"]
            ax.fill_between(part["rank"], *ends, color=colour, alpha=0.2, lw=0)
    if few and len(inserted):
        diamond: dict[str, Any] = {
            "marker": "D",
            "ms": 3.2,
            "mfc": "white",
            "mec": colour,
            "mew": 0.7,
            "ls": "",
        }
        ax.plot(inserted, score[table["inserted"]], label=f"{name}, inserted heads", **diamond)
    elif len(inserted):
        ax.plot(
            inserted,
            np.full(len(inserted), 0.03),
            "|",
            color=colour,
            ms=4,
            mew=0.3,
            alpha=0.7,
            transform=ax.get_xaxis_transform(),
            label=f"{name}, ranks of inserted heads",
        )
