"""How memory heads use their slots."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.maps import cell_size, colour_bar, label_room, map_axes, squares
from analysis.figures.page import FAINT, finish, legend

_RANKS = 4096  # points of a line of ranks


def slot_usage(usage: pd.DataFrame, *, width: float = 940) -> go.Figure:
    """Coverage and effective number of slots of every memory head as square markers."""
    usage = data.require(usage, data.USAGE_COLUMNS, "slot_usage", "analysis.memory_usage()")
    rows = data.block_rows(usage)
    place = {(r.layer, r.kind): i for i, r in enumerate(rows)}
    heads = int(usage["head"].max()) + 1
    left, gap, right = label_room(rows), 90, 70
    cell = cell_size(width - left - gap - right, 2 * heads)
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
        cells = squares(shown, column, rows, place, cell, top, label, label)
        cells.marker.coloraxis = f"coloraxis{i + 1 if i else ''}"
        figure.add_trace(cells, row=1, col=i + 1)
        figure.layout[cells.marker.coloraxis] = {
            "colorscale": [list(stop) for stop in data.sequential_stops()],
            "cmin": 0,
            "cmax": top,
            "colorbar": colour_bar("", cell * len(rows), x=1.0 if i else heads * cell / plot),
        }
    map_axes(figure, rows, heads)
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
    known = f"{len(hits):,} of {count:,} slots hit" if count else f"{len(hits):,} slots hit"
    if len(hits) > _RANKS:  # a line of more points looks the same and is slow to send
        kept = np.unique(np.geomspace(1, len(hits), _RANKS).round().astype(int)) - 1
        hits = hits.iloc[kept]
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
    figure.update_layout(legend=legend())
    title = data.slots_title(usage_slots)
    text = data.usage_caption(usage_slots, title, [known, f"{int(total):,} hits"])
    return finish(figure, text, plot_height=280)


def slot_grid(slots: pd.DataFrame, *, side: int) -> go.Figure:
    """One head's hits on its grid of row keys by column keys, [side, side], on a logarithmic scale.

    Slots never hit stay grey. Errors as `analysis.paper.slot_grid`.
    """
    hits = data.slot_square(slots, side, "slot_grid")
    figure = go.Figure(
        go.Heatmap(
            z=np.log1p(hits),
            customdata=hits,
            colorscale=[list(stop) for stop in data.sequential_stops()],
            hoverongaps=False,
            hovertemplate="row %{y}, column %{x}: %{customdata} hits<extra></extra>",
            colorbar={
                "title": {"text": "hits", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": [math.log1p(10**power) for power in range(10)],
                "ticktext": [f"{10**power:,}" for power in range(10)],
            },
            showlegend=False,
        )
    )
    axis = {"constrain": "domain", "showgrid": False, "zeroline": False}
    figure.update_xaxes(title_text="column key", **axis)
    figure.update_yaxes(title_text="row key", autorange="reversed", scaleanchor="x", **axis)
    finish(figure, data.square_caption(slots, hits), plot_height=330, left=60)
    edge = side - 0.5
    figure.add_shape(
        type="rect",
        x0=-0.5,
        y0=-0.5,
        x1=edge,
        y1=edge,
        fillcolor=FAINT,
        line_width=0,
        layer="below",
    )
    return figure
