"""Where one head looks in one text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import figure_data as data
from analysis.figures.maps import colour_bar
from analysis.figures.page import escaped, finish


def attention_pattern(view: pd.DataFrame, *, width: float = 760) -> go.Figure:
    """A head's attention from each token (rows) to those before it (columns), from `head_view`.

    Axes name the tokens of texts up to 60, and count positions of longer ones. Errors as
    `analysis.paper.attention_pattern`.
    """
    pattern = data.pattern_of(view, "attention_pattern")
    count = len(pattern.tokens)
    label = 20 + (round(7 * max(map(len, pattern.tokens))) if pattern.labelled else 30)
    left, right = label + 34, 96
    cell = float(np.clip((width - left - right) / count, 2, 34))
    figure = go.Figure(_weights(pattern))
    ends = [-0.5, count - 0.5]
    figure.update_xaxes(title_text="to token (key)", range=ends)
    figure.update_yaxes(title_text="from token (query)", title_standoff=8, range=ends[::-1])
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        axis.update(showgrid=False, zeroline=False)
        if pattern.labelled:
            axis.update(
                tickvals=list(range(count)),
                ticktext=[escaped(token) for token in pattern.tokens],
                tickfont={"size": float(np.clip(0.85 * cell, 7, 12))},
            )
    figure.update_xaxes(tickangle=-90 if pattern.labelled else 0)
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in data.sequential_stops()],
            "cmin": 0,
            "cmax": pattern.top,
            "colorbar": colour_bar("attention weight", cell * count),
        }
    )
    return finish(
        figure,
        data.pattern_caption(view, pattern),
        plot_height=cell * count,
        left=left,
        right=right,
        foot=label + 24,
        width=max(left + cell * count + right, 460),
    )


def _weights(pattern: data.Pattern) -> go.Heatmap:
    """The lower triangle; a cell says from which token to which."""
    named = [f"{escaped(token)} ({at})" for at, token in enumerate(pattern.tokens)]
    return go.Heatmap(
        z=pattern.weights.astype(np.float32),
        text=[[f"{row} → {column}" for column in named[: at + 1]] for at, row in enumerate(named)],
        hovertemplate="<b>%{text}</b>: %{z:.3f}<extra></extra>",
        hoverongaps=False,
        xgap=int(pattern.labelled),
        ygap=int(pattern.labelled),
        coloraxis="coloraxis",
    )
