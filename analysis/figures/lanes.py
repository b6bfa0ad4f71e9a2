"""Rows of dots with intervals."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis import figure_data as data
from analysis.figures.page import at_edge, interval

_MOST = 1000  # pixels that many rows share


def lanes_height(lanes: data.Lanes) -> float:
    """Pixels that the rows take, less each where there are many."""
    return max(min(22 * lanes.height, max(_MOST, 4 * lanes.height)), 60)


def lanes_room(lanes: data.Lanes) -> int:
    """Pixels that the rows' names take."""
    return 26 + round(6.8 * max(map(len, lanes.labels)))


def dots(
    rows: pd.DataFrame, colour: str, units: str, symbol: str = "circle", **more: Any
) -> go.Scatter:
    """Scores of rows (y, name, score, ci_low, ci_high, sure) with their intervals.

    Filled where the interval leaves out zero.
    """
    return go.Scatter(
        x=rows["score"],
        y=rows["y"],
        mode="markers",
        marker={
            "symbol": [symbol if certain else f"{symbol}-open" for certain in rows["sure"]],
            "size": 8,
            "color": colour,
            "line": {"width": 1.5, "color": colour},
        },
        error_x=interval(rows, colour),
        hovertext=[data.lane_hover(row, row["name"], units) for _, row in rows.iterrows()],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        **more,
    )


def name_lanes(figure: go.Figure, lanes: data.Lanes, row: int = 1, columns: int = 1) -> None:
    """Rows' names in the first column, headings in bold; the same rows in all columns."""
    texts = zip(lanes.labels, lanes.headings, strict=True)
    for column in range(1, columns + 1):
        figure.update_yaxes(
            range=list(lanes.limits),
            tickvals=lanes.places,
            showticklabels=column == 1,
            zeroline=False,
            row=row,
            col=column,
        )
    figure.update_yaxes(
        ticktext=[f"<b>{text}</b>" if heading else text for text, heading in texts], row=row, col=1
    )


def score_axis(
    figure: go.Figure, axis: data.IntervalAxis, label: str, row: int = 1, column: int = 1
) -> None:
    """Limits, the label, and in the first row the numbers of what lies beyond."""
    if row == 1:
        at_edge(figure, column, axis.limits, axis.beyond)
    figure.update_xaxes(
        title_text=label, range=list(axis.limits), nticks=6, tickangle=0, row=row, col=column
    )
