"""How memory heads share their slots out, and which slot each token reads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.maps import cell_size, colour_bar, label_room, map_axes, squares
from analysis.figures.page import escaped, finish

_GAP, _BETWEEN = 90, 64  # pixels between columns and between rows of panels


def memory_map(usage: pd.DataFrame, *, width: float = 940) -> go.Figure:
    """Coverage, effective slots, overlap with other heads and read ratio of every memory head.

    Square markers in per cent, with their numbers where they fit; every marker's customdata is
    [layer, kind, head, source_layer]. Errors as `analysis.paper.memory_map`.
    """
    panels, shown = data.map_panels(usage, "memory_map")
    rows, heads = panels[0].grid.rows, panels[0].grid.heads
    place = {(row.layer, row.kind): i for i, row in enumerate(rows)}
    left, right = label_room(rows), 70
    columns = 2 if heads <= 12 else 1
    lines = -(-len(panels) // columns)
    cell = cell_size(width - left - right - _GAP * (columns - 1), columns * heads)
    across, down = columns * heads * cell, lines * len(rows) * cell
    plot, height = across + _GAP * (columns - 1), down + _BETWEEN * (lines - 1)
    figure = make_subplots(
        lines,
        columns,
        shared_yaxes=True,
        horizontal_spacing=_GAP / plot if columns > 1 else 0,
        vertical_spacing=_BETWEEN / height if lines > 1 else 0,
        subplot_titles=[panel.label for panel in panels],
    )
    for i, panel in enumerate(panels):
        line, column = divmod(i, columns)
        trace = squares(shown, panel.column, rows, place, cell, panel.top, panel.label, panel.label)
        values = trace.marker.color
        trace.marker.coloraxis = f"coloraxis{i + 1 if i else ''}"
        trace.text = [panel.text(value) for value in values] if cell >= 20 else [""] * len(values)
        trace.textfont = {"size": 10, "color": [data.ink(v / panel.top) for v in values]}
        figure.add_trace(trace, row=line + 1, col=column + 1)
        figure.layout[trace.marker.coloraxis] = {
            "colorscale": [list(stop) for stop in data.sequential_stops()],
            "cmin": 0,
            "cmax": panel.top,
            "colorbar": colour_bar(
                "",
                cell * len(rows),
                x=(heads * cell + column * (heads * cell + _GAP)) / plot,
                y=1 - line * (len(rows) * cell + _BETWEEN) / height,
                len=max(cell * len(rows) + 20, 60),
            ),
        }
    map_axes(figure, rows, heads)
    figure.update_xaxes(title_text="")
    figure.update_xaxes(title_text="head", row=lines)
    return finish(
        figure,
        data.map_caption(usage, panels),
        plot_height=height,
        left=left,
        right=right,
        width=max(left + plot + right, 460),
    )


def memory_view(
    view: pd.DataFrame,
    *,
    block: int | None = None,
    first: int | None = None,
    tokens: int = 24,
    width: float = 940,
) -> go.Figure:
    """The heaviest slot that each head of a block reads at each token, from `memory_view`.

    Cells hold the slot's number, colour is its weight; every marker's customdata is [block, head,
    position, slot]. Arguments and errors as `analysis.paper.memory_view`.
    """
    shown, best = data.view_of(view, block, first, tokens, "memory_view")
    heads, count = len(shown.heads), len(shown.tokens)
    left, right = 60, 96
    cell = float(np.clip((width - left - right) / count, 16, 34))
    digits = max(len(str(slot)) for slot in shown.slots.ravel())
    figure = go.Figure(_reads(shown, best, cell, cell >= 6 * digits))
    figure.update_xaxes(
        range=[-0.5, count - 0.5],
        tickvals=list(range(count)),
        ticktext=[escaped(token) for token in shown.tokens],
        tickangle=-90,
        title_text=f"tokens {shown.positions[0]} to {shown.positions[-1]}",
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        range=[heads - 0.5, -0.5],
        tickvals=list(range(heads)),
        ticktext=[str(head) for head in shown.heads],
        title_text=f"head of {shown.label}",
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in data.sequential_stops()],
            "cmin": 0,
            "cmax": float(np.nanmax(shown.weights)) or 1.0,
            "colorbar": colour_bar("weight of the slot", cell * heads),
        }
    )
    return finish(
        figure,
        data.view_caption(view, shown),
        plot_height=cell * heads,
        left=left,
        right=right,
        foot=60 + round(6.5 * max(map(len, shown.tokens))),
        width=max(left + cell * count + right, 460),
    )


def _reads(view: data.View, best: pd.DataFrame, cell: float, numbers: bool) -> go.Scatter:
    """One trace of squares, a marker a head and token."""
    x = [view.positions.index(int(p)) for p in best["position"]]
    y = [view.heads.index(int(h)) for h in best["head"]]
    top = float(np.nanmax(view.weights)) or 1.0
    weights, slots = best["weight"].to_numpy(float), best["slot"].to_numpy(int)
    hover = [
        f"<b>{escaped(view.tokens[column])}</b>, head {view.heads[row]}"
        f"<br>slot {slot}, weight {weight:.3g}"
        for column, row, slot, weight in zip(x, y, slots, weights, strict=True)
    ]
    return go.Scatter(
        x=x,
        y=y,
        mode="markers+text",
        name=view.label,
        text=[str(slot) if numbers else "" for slot in slots],
        textposition="middle center",
        textfont={"size": 9.5, "color": [data.ink(weight / top) for weight in weights]},
        customdata=[
            [view.block, view.heads[row], view.positions[column], int(slot)]
            for column, row, slot in zip(x, y, slots, strict=True)
        ],
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "symbol": "square",
            "size": round(cell - 1),
            "color": weights,
            "coloraxis": "coloraxis",
        },
        showlegend=False,
    )
