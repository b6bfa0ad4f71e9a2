"""How much of the memory is in use: through a training, and by how its keys were started."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.lanes import lanes_height, lanes_room, name_lanes
from analysis.figures.page import escaped, finish, legend, room_of

_SYMBOLS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "triangle-right")
_DASHES = ("solid", "dash", "dot", "dashdot")


def usage_curves(log: pd.DataFrame) -> go.Figure:
    """Coverage and effective slots by training step, a line a block, mean over its heads.

    Errors as `analysis.paper.usage_curves`.
    """
    lines = data.use_lines(log, "usage_curves")
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.07)
    few = len(lines) <= 6
    room, most = (2 * data.NAME_EMS, 1) if few else (11, 2)
    shown = data.labels([line.name for line in lines], room, most)
    for row, (column, label) in enumerate(data.USE_PANELS.items(), start=1):
        for line in lines:
            figure.add_trace(
                go.Scatter(
                    x=line.step,
                    y=line.values[column],
                    mode="lines+markers",
                    name=escaped(shown[line.name]),
                    legendgroup=line.name,
                    showlegend=row == 1,
                    line={
                        "width": 2,
                        "color": line.colour,
                        "dash": _DASHES[line.run_place % len(_DASHES)],
                    },
                    marker={"symbol": _SYMBOLS[line.place % len(_SYMBOLS)], "size": 6},
                    hovertemplate=f"{escaped(line.name)}, step %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=label, rangemode="tozero", row=row, col=1)
    figure.update_yaxes(range=[0, 103], row=1, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title_text="optimiser step", row=2, col=1)
    figure.update_layout(legend=legend() if few else {"x": 1.0, "xanchor": "left"})
    right = 20 if few else 40 + room_of(shown.values())
    return finish(figure, data.log_caption(log, lines), plot_height=420, right=right)


def key_coverage(table: pd.DataFrame) -> go.Figure:
    """Every head's coverage and effective slots by block and by how its keys were started.

    Means over heads are marked. Errors as `analysis.paper.key_coverage`.
    """
    study = data.key_study(table, "key_coverage")
    figure = make_subplots(1, 2, horizontal_spacing=0.04)
    for column, (name, label) in enumerate(data.USE_PANELS.items(), start=1):
        for init, colour in study.colours.items():
            part = study.heads[study.heads["init"] == init]
            figure.add_trace(_heads(part, name, label, init, colour), row=1, col=column)
        figure.add_trace(_means(study.rows, name), row=1, col=column)
        top = 103 if name == "coverage" else 1.05 * float(study.heads[name].max())
        figure.update_xaxes(title_text=label, range=[0, top], nticks=6, row=1, col=column)
    name_lanes(figure, study.lanes, columns=2)
    return finish(
        figure,
        data.key_caption(table, study),
        plot_height=lanes_height(study.lanes),
        left=lanes_room(study.lanes),
        top=20,
    )


def _heads(part: pd.DataFrame, column: str, label: str, init: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=part[column],
        y=part["y"],
        mode="markers",
        name=init,
        marker={"size": 6, "color": colour},
        customdata=part[["block", "head"]],
        hovertemplate=f"<b>{init}</b>, block %{{customdata[0]}}, head %{{customdata[1]}}"
        f"<br>{label}: %{{x:.4g}}<extra></extra>",
        showlegend=False,
    )


def _means(rows: pd.DataFrame, column: str) -> go.Scatter:
    return go.Scatter(
        x=rows[column],
        y=rows["y"],
        mode="markers",
        name="means",
        marker={
            "symbol": "line-ns",
            "size": 16,
            "line": {"width": 2, "color": data.NEUTRAL},
        },
        hovertemplate="mean over heads: %{x:.4g}<extra></extra>",
        showlegend=False,
    )
