"""What each head does, and what the heads of each role matter."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.maps import cell_size, hover_texts, identity, label_room, map_axes
from analysis.figures.page import FAINT, at_edge, finish, interval

_NONE = "rgba(128,128,128,0.22)"  # on a light and on a dark page


def role_map(
    roles: pd.DataFrame, importance: pd.DataFrame | None = None, *, width: float = 940
) -> go.Figure:
    """Layer x head roles as colours and letters, a trace a role, from `head_roles`.

    With `importance`, a table of the same heads, every head's score with its interval stands
    beside the map, by role. Every marker's customdata is [layer, kind, head, source_layer];
    `width` is the most the figure may take, in pixels. Errors as `analysis.paper.role_map`.
    """
    grid = data.role_grid(roles, "role_map")
    points = None if importance is None else data.role_points(roles, importance, "role_map")
    axis = None if points is None else data.role_axis(points, grid)
    key = 40 + round(6.6 * max(len(grid.legend(role)) for role in grid.present))
    heads, left = grid.places.shape[1], label_room(grid.rows)
    strip = 0.0 if points is None else max(220.0, 0.28 * width)
    right = 20 if strip else key
    cell = cell_size(width - left - right - (strip + key if strip else 0), heads)
    plot = heads * cell + (strip + key if strip else 0)
    figure = make_subplots(
        1,
        2 if strip else 1,
        column_widths=[heads * cell, strip] if strip else None,
        horizontal_spacing=key / plot if strip else 0,
    )
    for role in grid.present:
        figure.add_trace(_squares(roles, grid, role, cell, not strip), row=1, col=1)
    map_axes(figure, grid.rows, heads, data.head_word(roles))
    if importance is not None and points is not None and axis is not None:
        _add_strip(figure, grid, points, axis, importance)
    figure.update_layout(
        legend={"x": 1.0, "xanchor": "left", "y": 1.0, "yanchor": "top", "itemsizing": "constant"}
    )
    return finish(
        figure,
        data.role_caption(roles, importance, axis),
        plot_height=max(cell * len(grid.rows), 24 * len(grid.present)),
        left=left,
        right=right,
        width=max(left + plot + right, 460),
    )


def _colour(role: str) -> str:
    return _NONE if role == data.NO_ROLE else data.ROLES[role].colour


def _squares(
    roles: pd.DataFrame, grid: data.RoleGrid, role: str, cell: float, legend: bool
) -> go.Scatter:
    """The heads of one role as squares on the map."""
    part = roles[roles["role"] == role]
    place = {(row.layer, row.kind): i for i, row in enumerate(grid.rows)}
    y = [place[int(b), str(k)] for b, k in zip(part["layer"], part["kind"], strict=True)]
    labels = [grid.rows[i].label for i in y]
    style = data.ROLES[role]
    records = part.to_dict("records")
    return go.Scatter(
        x=part["head"].to_numpy(int),
        y=y,
        mode="markers+text",
        name=grid.legend(role),
        legendgroup=role,
        showlegend=legend,
        text=[style.letter] * len(part),
        textposition="middle center",
        textfont={"size": max(8, 0.38 * cell), "color": style.ink},
        customdata=identity(part),
        hovertext=[data.role_hover(r, name) for r, name in zip(records, labels, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "symbol": "square",
            "size": round(cell - (1 if cell < 20 else 2)),
            "color": _colour(role),
            "line": {"width": 0.5, "color": FAINT},
        },
    )


def _add_strip(
    figure: go.Figure,
    grid: data.RoleGrid,
    points: pd.DataFrame,
    axis: data.RoleAxis,
    importance: pd.DataFrame,
) -> None:
    """Every head's importance by role, its interval, and the median of each role."""
    label = data.score_label(importance)
    for role in grid.present:
        figure.add_trace(_dots(points[points["role"] == role], grid, role, label), row=1, col=2)
    for row, middle in axis.medians.items():
        figure.add_shape(
            type="line",
            x0=middle,
            x1=middle,
            y0=row - 0.4,
            y1=row + 0.4,
            line={"width": 2, "color": "#808080"},
            row=1,
            col=2,
        )
    at_edge(figure, 2, axis.limits, axis.beyond)
    figure.update_xaxes(
        title_text=label,
        dtick=None,
        nticks=5,
        showgrid=True,
        zeroline=True,
        fixedrange=False,
        row=1,
        col=2,
    )
    figure.update_yaxes(
        range=[len(grid.present) - 0.5, -0.5],
        tickvals=list(range(len(grid.present))),
        ticktext=[grid.legend(role) for role in grid.present],
        showgrid=False,
        zeroline=False,
        row=1,
        col=2,
    )


def _dots(part: pd.DataFrame, grid: data.RoleGrid, role: str, label: str) -> go.Scatter:
    """The heads of one role, a dot and an interval each."""
    names = {(row.layer, row.kind): row.label for row in grid.rows}
    blocks = [names[int(b), str(k)] for b, k in zip(part["layer"], part["kind"], strict=True)]
    colour = data.NEUTRAL if role == data.NO_ROLE else data.ROLES[role].colour
    return go.Scatter(
        x=part["score"],
        y=part["y"],
        mode="markers",
        name=data.ROLES[role].name,
        legendgroup=role,
        showlegend=False,
        marker={"size": 6, "color": colour, "line": {"width": 0.5, "color": "#808080"}},
        error_x=interval(part, colour),
        customdata=identity(part),
        hovertext=hover_texts(part, "score", blocks, label),
        hovertemplate="%{hovertext}<extra></extra>",
    )
