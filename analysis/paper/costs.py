"""What models cost, by component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from analysis import figure_data as data
from analysis.paper.canvas import FULL, SMALL, Figure, canvas, style


def costs(*tables: pd.DataFrame, width: float = FULL) -> Figure:
    """Parameters, compute and bytes a token by component, a bar a model; latency where measured."""
    models = data.cost_tables(tables, "costs")
    times = data.latencies(models)
    panels = len(data.COST_PANELS) + len(times)
    columns = 2 if panels == 4 else 3
    lines = -(-panels // columns)
    names = data.labels(models, 0.2 * width * 72 / SMALL, 2)
    bar = 0.2 if data.lines_of(names.values()) == 1 else 0.27
    with style():
        height = lines * (0.62 + bar * len(models)) + 0.25
        figure = canvas(width, height, data.cost_caption(models))
        axes = figure.subplots(lines, columns, sharey=True).ravel()
        for ax, (column, (label, units)) in zip(axes, data.COST_PANELS.items(), strict=False):
            totals = _cost_bars(ax, models, column)
            factor, prefix = data.si_prefix(max(totals))
            units = "millions" if (units, prefix) == ("number", "M") else prefix + units
            _cost_axis(ax, totals, factor, f"{label} ({units})")
        for ax, (phase, by_model) in zip(
            axes[len(data.COST_PANELS) :], times.items(), strict=False
        ):
            values = [by_model[n] for n in models]
            ax.barh(range(len(models)), values, color=data.OWN, height=0.66)
            _cost_axis(ax, values, 1.0, f"{phase} latency (ms)")
        for ax in axes[panels:]:
            ax.set_axis_off()
        axes[0].set_yticks(range(len(models)), list(names.values()))
        axes[0].set_ylim(len(models) - 0.5, -0.5)
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=6,
            handlelength=1.0,
            columnspacing=1.2,
        )
    return figure


def _cost_bars(ax: Axes, models: Mapping[str, pd.DataFrame], column: str) -> list[float]:
    """Stacked bars, one a model; returns their lengths."""
    components = list(dict.fromkeys(c for t in models.values() for c in t.index))
    left = np.zeros(len(models))
    for component in components:
        value = np.array([float(t[column].get(component, 0.0)) for t in models.values()])
        ax.barh(
            range(len(models)),
            value,
            left=left,
            height=0.66,
            color=data.cost_colour(component),
            edgecolor="white",
            linewidth=0.4,
            label=component.replace("_", " "),
            hatch="//////" if component == "memory" else "",
        )
        left += value
    return left.tolist()


def _cost_axis(ax: Axes, totals: Sequence[float], factor: float, label: str) -> None:
    """Ticks in units of `factor`, and each bar's length written at its end."""
    top = max(totals) or 1.0
    for y, total in enumerate(totals):
        ax.text(total + 0.02 * top, y, data.three_digits(total / factor), va="center", size=SMALL)
    ax.set(xlim=(0, 1.22 * top), xlabel=label)
    ax.xaxis.set_major_locator(MultipleLocator(factor * _round_step(top / factor)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / factor:g}"))


def _round_step(top: float) -> float:
    """A tick step of 1, 2 or 5 times a power of ten that puts 2 to 5 ticks below `top`."""
    power = 10.0 ** np.floor(np.log10(top / 2))
    return float(power * max(m for m in (1, 2, 5) if m * power <= top / 2))
