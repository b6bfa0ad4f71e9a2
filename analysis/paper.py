"""Figures for a paper: matplotlib, no browser, no pyplot, text as text, the same bytes every time.

Every function takes the tables of `analysis` and returns a `Figure`; `save` writes it as PDF, SVG
and PNG. `analysis.figures` holds the interactive twins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from analysis import figure_data as data
from analysis.paper_canvas import COLUMN, FULL, SMALL, Figure, canvas, save, style
from midus_model.errors import MidusError

__all__ = [
    "COLUMN",
    "FULL",
    "Figure",
    "amplification",
    "amplification_map",
    "costs",
    "importance_curves",
    "importance_map",
    "save",
    "slot_histogram",
    "slot_usage",
    "training_curves",
]

_DIVERGING = LinearSegmentedColormap.from_list("midus_diverging", data.diverging_stops(65))
_SEQUENTIAL = LinearSegmentedColormap.from_list("midus_sequential", data.sequential_stops(65))
_HATCHES = {"own": "", "memory": "//////", "copy": "......"}


# --- maps -----------------------------------------------------------------------------------------


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
    notes = [data.mark_note(colours.limit), colours.note]
    text = data.caption(before, after, title="Head importance", intervals=False, notes=notes)
    panels = [(data.model_name(before, "before"), old)]
    if after is not None and new is not None:
        panels.append((data.model_name(after, "after"), new))
    return _maps(panels, rows, colours, data.score_label(before), text, width)


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
    return _maps([("", grid)], grid.rows, colours, label, text, width)


def _maps(
    panels: Sequence[tuple[str, data.Grid]],
    rows: Sequence[data.Row],
    colours: data.ColourRange,
    label: str,
    caption: str,
    width: float | None,
) -> Figure:
    width = width or (FULL if len(panels) > 1 else COLUMN)
    pitch = float(np.clip(2.4 / len(rows), 0.115, 0.24))
    with style():
        figure = canvas(width, max(0.65 + pitch * len(rows), 2.0), caption)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        norm = Normalize(-colours.limit, colours.limit)
        for ax, (title, grid) in zip(axes, panels, strict=True):
            _cells(ax, grid, norm, _DIVERGING, int((width - 1.4) / len(panels) / 0.19))
            _signs(ax, grid.values, colours.limit)
            ax.set_title(title, pad=3)
        _row_labels(axes[0], rows)
        _colour_bar(figure, axes, norm, _DIVERGING, label, _extend(panels, colours.limit))
    return figure


def _cells(ax: Axes, grid: data.Grid, norm: Normalize, cmap: Any, most_ticks: int) -> None:
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


def _signs(ax: Axes, values: np.ndarray, limit: float) -> None:
    """A minus sign on each negative cell, as wide as half the cell."""
    rows, heads = np.nonzero(data.marked(values, limit))
    for row, head in zip(rows.tolist(), heads.tolist(), strict=True):
        colour = data.mark_ink(values[row, head] / limit)
        ax.plot(
            [head - 0.22, head + 0.22],
            [row, row],
            color=colour,
            linewidth=0.8,
            solid_capstyle="butt",
            gid="negative",
        )


def _row_labels(ax: Axes, rows: Sequence[data.Row]) -> None:
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


def _colour_bar(
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


# --- curves and bars ------------------------------------------------------------------------------


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
    text = data.caption(before, after, title="Head importance, sorted", notes=[note])
    with style():
        figure = canvas(width, 2.3, text)
        ax = figure.subplots()
        ax.axhline(0, color="#888888", linewidth=0.5, zorder=0)
        for i, (table, colour, marker) in enumerate(tables):
            name = data.model_name(table, ("before", "after")[i])
            _curve(ax, data.sorted_scores(table), colour, marker, name)
        if log:
            ax.set_yscale("symlog", linthresh=threshold or 1e-4, linscale=0.6)
        ax.set(xlabel="head rank", ylabel=data.score_label(before))
        ax.margins(x=0.02)
        ax.legend(loc="upper right", handlelength=1.6, borderaxespad=0.1)
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
    rank, score = table["rank"], table["score"]
    inserted = rank[table["inserted"]]
    few = len(table) <= 100
    label = f"{name}, base heads" if few and len(inserted) else name
    style: dict[str, Any] = {"marker": marker, "ms": 2.6, "mew": 0} if few else {}
    ax.plot(rank, score, color=colour, lw=0.8, label=label, gid="scores", **style)
    if few:
        ax.vlines(rank, table["ci_low"], table["ci_high"], color=colour, alpha=0.4, lw=0.9)
    else:
        ax.fill_between(rank, table["ci_low"], table["ci_high"], color=colour, alpha=0.25, lw=0)
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
        ax.hlines(y, heads["ci_low"], heads["ci_high"], color="black", lw=0.8, zorder=3)
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
        for tick, chosen in zip(ax.get_yticklabels(), heads["is_chosen"], strict=True):
            tick.set_fontweight("bold" if chosen else "normal")
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
            _cells(ax, grid, norm, _SEQUENTIAL, 12)
            if grid.heads <= 12:
                _numbers(ax, grid.values, top)
            _colour_bar(figure, ax, norm, _SEQUENTIAL, "")
            ax.set_title(label, pad=3)
        _row_labels(axes[0], rows)
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


def costs(*tables: pd.DataFrame, width: float = FULL) -> Figure:
    """Parameters, compute and bytes a token by component, a bar a model; latency where measured."""
    models = data.cost_tables(tables, "costs")
    times = data.latencies(models)
    panels = len(data.COST_PANELS) + len(times)
    columns = 2 if panels == 4 else 3
    lines = -(-panels // columns)
    with style():
        height = lines * (0.62 + 0.2 * len(models)) + 0.25
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
        axes[0].set_yticks(range(len(models)), list(models))
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
            hatch=_HATCHES["memory"] if component == "memory" else "",
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


def training_curves(
    runs: pd.DataFrame | Mapping[str, pd.DataFrame], *, width: float = COLUMN
) -> Figure:
    """Training and held-out loss by step, the learning rate below; one log or {name: log}."""
    logs = data.training_logs(runs, "training_curves")
    with style():
        figure = canvas(width, 2.7, data.training_caption(logs))
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for i, (name, log) in enumerate(logs.items()):
            colour = data.SERIES[i % len(data.SERIES)]
            held = log.dropna(subset=["eval_loss"])
            loss.plot(log["step"], log["loss"], color=colour, lw=0.5, alpha=0.45, gid="train")
            loss.plot(
                held["step"],
                held["eval_loss"],
                "osD^v>"[i % 6] + "-",
                color=colour,
                lw=1.1,
                ms=2.8,
                mec="white",
                mew=0.3,
                label=name,
                gid="eval",
            )
            dash = ("-", "--", ":", "-.")[i % 4]
            rate.plot(log["step"], log["learning_rate"], color=colour, lw=1, ls=dash)
        loss.set_ylabel("loss (nats/token)")
        loss.legend(loc="upper right", borderaxespad=0.1)
        rate.set(xlabel="optimiser step", ylabel="learning\nrate")
        peak = max(float(log["learning_rate"].max()) for log in logs.values()) or 1.0
        rate.set_ylim(0, 1.12 * peak)
        rate.set_yticks([0, peak], ["0", f"{peak:.2g}"])
        figure.align_ylabels()
    return figure
