"""Interactive figures: plotly twins of `analysis.paper`, same names, same tables, same numbers.

Backgrounds are transparent and greys are mid-grey, so a figure sits on a light or a dark page. Maps
carry their own width, because their square markers have a fixed size: show them unstretched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figure_page import FAINT, finish, save_html

__all__ = [
    "amplification",
    "amplification_map",
    "costs",
    "importance_curves",
    "importance_map",
    "save_html",
    "slot_histogram",
    "slot_usage",
    "training_curves",
]

_SYMBOLS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "triangle-right")
_PATTERNS = {"own": "", "memory": "/", "copy": "."}
_MANY = 100  # heads, above which a curve shows a band and ticks in place of bars and markers


# --- maps -----------------------------------------------------------------------------------------


def importance_map(
    before: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    width: float = 940,
    force: bool = False,
) -> go.Figure:
    """Layer x head importance as square markers, one colour range for before and after.

    Every marker's customdata is [layer, kind, head, source_layer]; `width` is the most the figure
    may take, in pixels. Errors as `analysis.paper.importance_map`.
    """
    data.require_pair(before, after, "importance_map", force)
    rows, old, new = data.aligned(data.grid(before), None if after is None else data.grid(after))
    colours = data.colour_range(old, new)
    text = data.caption(
        before,
        after,
        title="Head importance",
        intervals=False,
        notes=[data.mark_note(colours.limit), colours.note],
    )
    panels = [(data.model_name(before, "before"), old, before)]
    if after is not None and new is not None:
        panels.append((data.model_name(after, "after"), new, after))
    return _maps(panels, rows, colours, data.score_label(before), text, width)


def amplification_map(table: pd.DataFrame, *, share: bool = False, width: float = 940) -> go.Figure:
    """Each base head's change, after minus before, over the base model's layers and heads."""
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
    shown = table.assign(kind="base")
    return _maps([("", grid, shown)], grid.rows, colours, label, text, width, column)


def _maps(
    panels: Sequence[tuple[str, data.Grid, pd.DataFrame]],
    rows: Sequence[data.Row],
    colours: data.ColourRange,
    label: str,
    caption: str,
    width: float,
    column: str = "score",
) -> go.Figure:
    left, right, gap = _label_room(rows), 96, 24
    heads = panels[0][1].heads
    cell = _cell(width - left - right - gap * (len(panels) - 1), heads * len(panels))
    plot = heads * cell * len(panels) + gap * (len(panels) - 1)
    figure = make_subplots(
        1,
        len(panels),
        shared_yaxes=True,
        horizontal_spacing=gap / plot if len(panels) > 1 else 0,
        subplot_titles=[title for title, _, _ in panels],
    )
    places = _places(panels, rows)
    for i, (title, _, table) in enumerate(panels):
        figure.add_trace(
            _squares(table, column, rows, places[i], cell, colours.limit, title or label, label),
            row=1,
            col=i + 1,
        )
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in data.diverging_stops()],
            "cmin": -colours.limit,
            "cmax": colours.limit,
            "colorbar": _colour_bar(label, cell * len(rows)),
        }
    )
    _map_axes(figure, rows, heads)
    return finish(
        figure,
        caption,
        plot_height=cell * len(rows),
        left=left,
        right=right,
        width=max(left + plot + right, 460),
    )


def _places(
    panels: Sequence[tuple[str, data.Grid, pd.DataFrame]], rows: Sequence[data.Row]
) -> list[dict[tuple[int, str], int]]:
    """For each panel, where each of its blocks stands among the rows of the figure."""
    out = []
    shown = data.occurrences(rows)
    for _, _, table in panels:
        own = data.block_rows(table)
        keys = data.occurrences(own)
        out.append({(r.layer, r.kind): shown.index(k) for r, k in zip(own, keys, strict=True)})
    return out


def _label_room(rows: Sequence[data.Row]) -> int:
    return 26 + round(6.6 * max(len(r.label) for r in rows))


def _cell(room: float, columns: int) -> float:
    """Pixels of a cell: as large as the room allows, within what reads well."""
    return float(np.clip(room / columns, 11, 34))


def _squares(
    table: pd.DataFrame,
    column: str,
    rows: Sequence[data.Row],
    place: Mapping[tuple[int, str], int],
    cell: float,
    limit: float,
    name: str,
    label: str,
) -> go.Scatter:
    """A table as one trace of squares, a marker a head in the table's order."""
    table = table.dropna(subset=[column])
    y = [place[int(b), str(k)] for b, k in zip(table["layer"], table["kind"], strict=True)]
    values = table[column].to_numpy(float)
    minus = data.marked(values, limit)
    return go.Scatter(
        x=table["head"].to_numpy(int),
        y=np.array(y),
        mode="markers+text",
        name=name,
        text=np.where(minus, "–", ""),
        textposition="middle center",
        textfont={
            "size": max(8, 0.5 * cell),
            "color": [data.mark_ink(v / limit) for v in values],
        },
        customdata=_identity(table),
        hovertext=_hover(table, column, [rows[i].label for i in y], label),
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "symbol": "square",
            "size": round(cell - (1 if cell < 20 else 2)),
            "color": values,
            "coloraxis": "coloraxis",
            "line": {"width": 0.5, "color": FAINT},
        },
        showlegend=False,
    )


def _identity(table: pd.DataFrame) -> list[list[Any]]:
    """[layer, kind, head, source_layer] of every row, as plain Python values."""
    return [
        [int(layer), str(kind), int(head), int(source)]
        for layer, kind, head, source in table[list(data.HEAD_COLUMNS)].itertuples(
            index=False, name=None
        )
    ]


def _hover(table: pd.DataFrame, column: str, labels: Sequence[str], units: str) -> list[str]:
    units = units[units.find("(") + 1 : -1] if "(" in units else units
    low, high = data.interval_columns(column)
    columns = table.rename(columns={column: "score", low: "ci_low", high: "ci_high"})
    if column != "score":
        columns = table.assign(score=table[column], ci_low=np.nan, ci_high=np.nan)
        if low in table.columns:
            columns = columns.assign(ci_low=table[low], ci_high=table[high])
    records = columns.to_dict("records")
    return [data.hover(r, name, units) for r, name in zip(records, labels, strict=True)]


def _colour_bar(label: str, height: float, **more: Any) -> dict[str, Any]:
    """A colour bar as tall as its map, or as its own title needs."""
    return {
        "title": {"text": label, "side": "right"},
        "lenmode": "pixels",
        "len": max(height + 20, 90 + 3 * len(label)),
        "y": 1.0,
        "yanchor": "top",
        "ypad": 10,
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.0,
        "xpad": 12,
        "nticks": 6,
        **more,
    }


def _map_axes(figure: go.Figure, rows: Sequence[data.Row], heads: int) -> None:
    figure.update_xaxes(
        title_text="head",
        range=[-0.5, heads - 0.5],
        dtick=data.tick_step(heads),
        tick0=0,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        tickvals=list(range(len(rows))),
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(
        ticktext=[f"<b>{r.label}</b>" if r.inserted else r.label for r in rows],
        tickfont={"size": 11 if len(rows) <= 24 else 10},
        col=1,
    )


# --- curves and bars ------------------------------------------------------------------------------


def importance_curves(
    before: pd.DataFrame, after: pd.DataFrame | None = None, *, force: bool = False
) -> go.Figure:
    """Scores from the most to the least important head with their intervals, both on one axis."""
    data.require_pair(before, after, "importance_curves", force)
    figure = go.Figure()
    tables = [(before, data.BEFORE, "before")]
    if after is not None:
        tables.append((after, data.AFTER, "after"))
    for table, colour, fallback in tables:
        heads = data.sorted_scores(table)
        labels = {(r.layer, r.kind): r.label for r in data.block_rows(table)}
        names = [labels[int(b), str(k)] for b, k in zip(heads["layer"], heads["kind"], strict=True)]
        many = len(heads) > _MANY
        if many:
            figure.add_trace(_band(heads, colour))
        figure.add_trace(
            go.Scatter(
                x=heads["rank"],
                y=heads["score"],
                mode="lines+markers",
                name=data.model_name(table, fallback),
                line={"width": 1.2, "color": colour},
                marker=_curve_markers(heads["inserted"], colour, many),
                error_y=None if many else _interval(heads, colour),
                customdata=_identity(heads),
                hovertext=_hover(heads, "score", names, data.score_label(before)),
                hovertemplate="%{hovertext}<br>rank %{x}<extra>%{fullData.name}</extra>",
            )
        )
    inserted = any(r.inserted for t, _, _ in tables for r in data.block_rows(t))
    sizes = [len(t) > _MANY for t, _, _ in tables]
    sign = "upright ticks" if all(sizes) else "open diamonds"
    note = f"{sign}: inserted heads" if inserted else ""
    figure.update_xaxes(title_text="head rank", zeroline=False)
    figure.update_yaxes(title_text=data.score_label(before))
    figure.update_layout(legend=_legend())
    text = data.caption(before, after, title="Head importance, sorted", notes=[note])
    return finish(figure, text, plot_height=330)


def _curve_markers(inserted: pd.Series, colour: str, many: bool) -> dict[str, Any]:
    if many:
        symbol, plain_size, size = "line-ns-open", 0, 9
    else:
        symbol, plain_size, size = "diamond-open", 5, 7
    return {
        "size": [size if i else plain_size for i in inserted],
        "symbol": [symbol if i else "circle" for i in inserted],
        "color": colour,
        "line": {"width": [1 if i else 0 for i in inserted], "color": colour},
    }


def _band(table: pd.DataFrame, colour: str) -> go.Scatter:
    """The intervals of many heads as one filled outline."""
    known = table.dropna(subset=["ci_low", "ci_high"])
    return go.Scatter(
        x=[*known["rank"], *known["rank"][::-1]],
        y=[*known["ci_high"], *known["ci_low"][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.25,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        name="interval",
    )


def _interval(table: pd.DataFrame, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (table["ci_high"] - table["score"]).clip(lower=0),
        "arrayminus": (table["score"] - table["ci_low"]).clip(lower=0),
        "thickness": 1,
        "width": 0,
        "color": colour,
    }


def _pattern(shape: str) -> dict[str, Any]:
    return {"shape": shape, "size": 5, "solidity": 0.2, "fillmode": "overlay", "fgcolor": "white"}


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}


def amplification(table: pd.DataFrame, top: int | None = 20) -> go.Figure:
    """After minus before of the `top` most changed heads, split into own, memory and copy."""
    heads = data.amplified(table, top, "amplification").assign(kind="base")
    names = [
        f"<b>{n}</b>" if c else n for n, c in zip(heads["name"], heads["is_chosen"], strict=True)
    ]
    figure = go.Figure()
    units = data.unit(table)
    for part in data.shown_parts(heads):
        label, colour = data.PARTS[part]
        figure.add_trace(
            go.Bar(
                y=names,
                x=heads[part],
                orientation="h",
                name=label,
                customdata=_identity(heads),
                marker={"color": colour, "pattern": _pattern(_PATTERNS[part])},
                hovertemplate="%{y}, " + label + ": %{x:.4g} " + units + "<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            y=names,
            x=heads["score"],
            mode="markers",
            name="sum, with interval",
            marker={"color": "white", "size": 8, "line": {"width": 1.6, "color": "#404040"}},
            error_x=_interval(heads, "#808080"),
            customdata=_identity(heads),
            hovertext=_hover(heads, "score", list(heads["name"]), data.score_label(table)),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.update_layout(barmode="relative", bargap=0.28, legend=_legend())
    figure.update_xaxes(title_text=data.score_label(table, "change"))
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    notes = data.amplified_notes(heads, table)
    text = data.caption(table, title="Amplification (after minus before)", notes=notes)
    return finish(figure, text, plot_height=max(120, 22 * len(heads)))


def slot_usage(usage: pd.DataFrame, *, width: float = 940) -> go.Figure:
    """Coverage and effective number of slots of every memory head as square markers."""
    usage = data.require(usage, data.USAGE_COLUMNS, "slot_usage", "analysis.memory_usage()")
    rows = data.block_rows(usage)
    place = {(r.layer, r.kind): i for i, r in enumerate(rows)}
    heads = int(usage["head"].max()) + 1
    left, gap, right = _label_room(rows), 90, 70
    cell = _cell(width - left - gap - right, 2 * heads)
    plot = 2 * heads * cell + gap
    shown = usage.assign(coverage=100 * usage["coverage"])
    panels = (
        ("coverage", "coverage (% of slots)", 100.0),
        ("effective_slots", "effective slots (number)", float(usage["effective_slots"].max())),
    )
    figure = make_subplots(
        1,
        2,
        shared_yaxes=True,
        horizontal_spacing=gap / plot,
        subplot_titles=[label for _, label, _ in panels],
    )
    for i, (column, label, top) in enumerate(panels):
        squares = _squares(shown, column, rows, place, cell, top, label, label)
        squares.marker.coloraxis = f"coloraxis{i + 1 if i else ''}"
        figure.add_trace(squares, row=1, col=i + 1)
        figure.layout[squares.marker.coloraxis] = {
            "colorscale": [list(stop) for stop in data.sequential_stops()],
            "cmin": 0,
            "cmax": top,
            "colorbar": _colour_bar("", cell * len(rows), x=1.0 if i else heads * cell / plot),
        }
    _map_axes(figure, rows, heads)
    slots = ", ".join(f"{n:,}" for n in sorted({int(n) for n in usage["slots"]}))
    text = data.usage_caption(
        usage,
        "Memory use: coverage = share of slots hit at least once; effective slots = "
        "exp(entropy of weight over slots)",
        [f"slots a head: {slots}"],
    )
    return finish(
        figure,
        text,
        plot_height=cell * len(rows),
        left=left,
        right=right,
        width=left + plot + right,
    )


def slot_histogram(usage_slots: pd.DataFrame, *, slots: int | None = None) -> go.Figure:
    """Hits of one head's slots from the most to the least hit; `slots`: how many the bank has."""
    hits, count = data.slot_hits(usage_slots, slots, "slot_histogram")
    total = float(hits["hits"].sum())
    figure = go.Figure(
        go.Scatter(
            x=hits["rank"],
            y=hits["hits"],
            mode="lines",
            name="measured",
            line={"color": data.BEFORE, "shape": "hvh"},
            customdata=hits[["slot", "weight"]],
            hovertemplate="rank %{x}: slot %{customdata[0]}, %{y} hits, "
            "weight %{customdata[1]:.4g}<extra></extra>",
        )
    )
    if count:
        figure.add_trace(
            go.Scatter(
                x=[1, count],
                y=[total / count] * 2,
                mode="lines",
                name="if all slots were hit alike",
                line={"color": data.AFTER, "dash": "dash"},
            )
        )
    figure.update_xaxes(title_text="slot rank", zeroline=False)
    figure.update_yaxes(title_text="hits (number)", type="log", dtick=1)
    figure.update_layout(legend=_legend())
    known = f"{len(hits):,} of {count:,} slots hit" if count else f"{len(hits):,} slots hit"
    title = data.slots_title(usage_slots)
    text = data.usage_caption(usage_slots, title, [known, f"{int(total):,} hits"])
    return finish(figure, text, plot_height=280)


def costs(*tables: pd.DataFrame) -> go.Figure:
    """Parameters, compute and bytes a token by component, a bar a model; latency where measured."""
    models = data.cost_tables(tables, "costs")
    times = data.latencies(models)
    titles = [f"{label} ({units})" for label, units in data.COST_PANELS.values()]
    titles += [f"{phase} latency (ms)" for phase in times]
    columns = 2 if len(titles) == 4 else 3
    lines = -(-len(titles) // columns)
    height = lines * (60 + 26 * len(models))
    figure = make_subplots(
        lines,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=60 / height if lines > 1 else 0,
    )
    components = list(dict.fromkeys(c for t in models.values() for c in t.index))
    for i, column in enumerate(data.COST_PANELS):
        for component in components:
            figure.add_trace(
                go.Bar(
                    y=list(models),
                    orientation="h",
                    name=component.replace("_", " "),
                    x=[float(t[column].get(component, 0.0)) for t in models.values()],
                    legendgroup=component,
                    showlegend=i == 0,
                    marker={
                        "color": data.cost_colour(component),
                        "pattern": _pattern("/" if component == "memory" else ""),
                    },
                    hovertemplate="%{y}, " + component + ": %{x:.4s}<extra></extra>",
                ),
                row=i // columns + 1,
                col=i % columns + 1,
            )
    for i, by_model in enumerate(times.values(), start=len(data.COST_PANELS)):
        figure.add_trace(
            go.Bar(
                y=list(models),
                x=[by_model[n] for n in models],
                orientation="h",
                showlegend=False,
                marker={"color": data.OWN},
                hovertemplate="%{y}: %{x:.4g} ms<extra></extra>",
            ),
            row=i // columns + 1,
            col=i % columns + 1,
        )
    for i, title in enumerate(titles):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        ticks = {} if i >= len(data.COST_PANELS) else {"tickformat": "~s"}
        figure.update_xaxes(title_text=title, nticks=5, **ticks, **where)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_layout(barmode="relative", bargap=0.3, legend=_legend())
    left = 30 + round(7 * max(map(len, models)))
    return finish(figure, data.cost_caption(models), plot_height=height, left=left)


def training_curves(runs: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Training and held-out loss by step, the learning rate below; one log or {name: log}."""
    logs = data.training_logs(runs, "training_curves")
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05)
    for i, (name, log) in enumerate(logs.items()):
        colour = data.SERIES[i % len(data.SERIES)]
        held = log.dropna(subset=["eval_loss"])
        shared = {"legendgroup": name, "name": name}
        figure.add_trace(
            go.Scatter(
                x=log["step"],
                y=log["loss"],
                mode="lines",
                opacity=0.45,
                showlegend=False,
                line={"width": 1, "color": colour},
                **shared,
                hovertemplate="step %{x}: training loss %{y:.4g} nats/token",
            ),
            row=1,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=held["step"],
                y=held["eval_loss"],
                mode="lines+markers",
                line={"width": 2, "color": colour},
                **shared,
                marker={"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 6},
                hovertemplate="step %{x}: held-out loss %{y:.4g} nats/token",
            ),
            row=1,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=log["step"],
                y=log["learning_rate"],
                mode="lines",
                showlegend=False,
                line={
                    "width": 1.5,
                    "color": colour,
                    "dash": ("solid", "dash", "dot", "dashdot")[i % 4],
                },
                **shared,
                hovertemplate="step %{x}: learning rate %{y:.3g}",
            ),
            row=2,
            col=1,
        )
    figure.update_yaxes(title_text="loss (nats/token)", zeroline=False, row=1, col=1)
    figure.update_yaxes(title_text="learning<br>rate", rangemode="tozero", nticks=3, row=2, col=1)
    figure.update_xaxes(title_text="optimiser step", row=2, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_layout(legend=_legend())
    return finish(figure, data.training_caption(logs), plot_height=380)
