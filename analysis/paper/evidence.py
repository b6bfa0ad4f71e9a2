"""Evidence for a ranking: prune curves, and how far methods and data sets agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, CURVE, Figure, canvas, style
from analysis.paper.maps import DIVERGING, colour_bar


def prune_curves(table: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """The metric as heads are ablated best first, worst first and at random, from `prune_curve`.

    Random orders show as their mean and, thin, each by itself. Raises MidusError on another table.
    """
    curves = data.curves_of(table, "prune_curves")
    with style():
        figure = canvas(width, 2.4, data.prune_caption(table, curves))
        ax = figure.subplots()
        for curve in curves:
            colour, marker, _ = data.PRUNE_ORDERS[curve.order]
            if len(curve.draws) > 1:
                ax.plot(curve.removed, curve.draws.T, color=colour, lw=0.5, alpha=0.5, gid="draws")
            else:
                ax.fill_between(
                    curve.removed, curve.low, curve.high, color=colour, alpha=0.22, lw=0
                )
            ax.plot(
                curve.removed,
                curve.score,
                marker=marker,
                color=colour,
                **CURVE,
                label=curve.label,
                gid="scores",
            )
        ax.set_xticks(*data.prune_ticks(curves))
        ax.set(
            xlabel=f"{data.head_word(table)}s removed, and their share of all",
            ylabel=data.prune_label(table),
        )
        ax.margins(x=0.02)
        figure.legend(
            loc="outside upper center", ncols=3, handlelength=1.5, columnspacing=1.1, borderpad=0
        )
    return figure


def method_agreement(table: pd.DataFrame, *, width: float | None = None) -> Figure:
    """Rank correlation and top-set overlap of every two methods, from `evidence`.

    Below, where the table has them, the first method on other data sets. Raises MidusError on
    another table.
    """
    agreement = data.agreement_of(table, "method_agreement")
    count, others = len(agreement.methods), agreement.other_data
    labels = 0.1 + 0.057 * max(map(len, [*agreement.names, *agreement.data_labels]))
    width = width or max(COLUMN, labels + 0.75 + 0.46 * count)
    side = min(width - labels - 0.75, 0.5 * count)
    low = 0.42 + 0.2 * len(others) if len(others) else 0.0
    with style():
        figure = canvas(width, side + 0.75 + low, data.agreement_caption(table, agreement))
        axes = figure.subplots(
            2 if low else 1, 1, squeeze=False, height_ratios=[side, low - 0.3] if low else None
        )[:, 0]
        _matrix(axes[0], agreement)
        norm = Normalize(-1, 1)
        colour_bar(figure, axes[0], norm, DIVERGING, "Spearman's ρ")
        if low:
            _stability(axes[1], agreement)
    return figure


def _matrix(ax: Axes, agreement: data.Agreement) -> None:
    """Lower triangle with its numbers; a dash where a method's reliability is not known."""
    count = len(agreement.methods)
    edges = np.arange(count + 1) - 0.5
    mesh = ax.pcolormesh(
        edges,
        edges,
        np.ma.masked_invalid(agreement.spearman),
        norm=Normalize(-1, 1),
        cmap=DIVERGING,
        edgecolors="white",
        linewidth=0.6,
    )
    mesh.set_gid("cells")
    for row in range(count):
        for column in range(row + 1):
            value = agreement.spearman[row, column]
            lines = agreement.cell(row, column)
            ax.text(
                column,
                row,
                "\n".join(lines) or "–",
                ha="center",
                va="center",
                size=6.5,
                linespacing=1.15,
                color=data.ink(value) if lines else "#666666",
            )
    ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    ax.set_xticks(range(count), agreement.names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(count), agreement.names)
    ax.tick_params(length=0, pad=2)
    ax.spines[["left", "bottom"]].set_visible(False)


def _stability(ax: Axes, agreement: data.Agreement) -> None:
    """The first method against itself on other data: a dot and an interval a data set."""
    rows = agreement.other_data
    y = np.arange(len(rows))
    ax.hlines(y, rows["ci_low"], rows["ci_high"], color=data.BEFORE, lw=0.9)
    ax.plot(rows["spearman"], y, "o", color=data.BEFORE, ms=3.5, mew=0, gid="data")
    reliability = agreement.spearman[0, 0]
    if np.isfinite(reliability):
        ax.axvline(reliability, color="#666666", lw=0.7, ls="--")
    ax.set_yticks(y, agreement.data_labels)
    least = min(float(rows["ci_low"].min()), 0.0)
    ax.set(xlim=(max(-1.0, 1.1 * least), 1.02), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel("Spearman's ρ with other data")
