"""What a model predicts next, before and after heads were scaled."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analysis import figure_data as data
from analysis.figures.page import escaped, finish, legend, pattern


def next_tokens(table: pd.DataFrame) -> go.Figure:
    """Two bars a token, its probability before and after; errors as of its twin on paper."""
    bars = data.token_bars(table, "next_tokens")
    figure = go.Figure()
    for name, values, colour in (
        ("before", bars.before, data.BEFORE),
        ("after", bars.after, data.AFTER),
    ):
        marker = {"color": colour, "pattern": pattern("/") if name == "after" else None}
        figure.add_trace(
            go.Bar(
                x=values, y=list(range(len(values))), orientation="h", name=name, marker=marker,
                customdata=[escaped(label) for label in bars.labels],
                hovertemplate=f"<b>%{{customdata}}</b><br>{name}: %{{x:.2f}} %<extra></extra>",
            )
        )  # fmt: skip
    count = len(bars.labels)
    figure.update_yaxes(
        range=[count - 0.5, -0.5],
        tickvals=list(range(count)),
        ticktext=[escaped(label) for label in bars.labels],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(title_text="probability of the next token (%)", rangemode="tozero")
    figure.update_layout(barmode="group", bargap=0.3, legend=legend())
    left = 30 + round(7.2 * max(map(len, bars.labels)))
    return finish(figure, data.tokens_caption(table), plot_height=30 * count, left=left)
