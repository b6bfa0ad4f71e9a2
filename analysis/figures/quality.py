"""Quality against cost."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import escaped, finish, legend


def quality_cost(table: pd.DataFrame) -> go.Figure:
    """A panel a text, a point a model: loss by parameters added; errors as of its twin on paper."""
    panels = data.quality_panels(table, "quality_cost")
    names, titles = data.quality_labels(panels), data.labels(panels, data.TITLE_EMS, 2)
    figure = make_subplots(
        1,
        len(panels),
        subplot_titles=[escaped(title) for title in titles.values()],
        horizontal_spacing=0.26 / len(panels),
    )
    named: set[str] = set()
    for column, points in enumerate(panels.values(), 1):
        for point in points:
            figure.add_trace(
                go.Scatter(
                    x=[point.millions], y=[point.loss], mode="markers",
                    name=escaped(names[point.name]),
                    cliponaxis=False, legendgroup=point.name, showlegend=point.name not in named,
                    marker={"symbol": point.symbol, "size": 12, "color": point.colour},
                    hovertemplate=f"<b>{escaped(point.name)}</b><br>%{{y:.4f}} nats/token"
                    "<br>%{x:.3f} M parameters added<extra></extra>",
                ),
                row=1, col=column,
            )  # fmt: skip
            named.add(point.name)
    figure.update_xaxes(title_text="parameters added (millions)", rangemode="tozero")
    figure.update_yaxes(title_text="loss (nats/token)", zeroline=False)
    above = 18 * (data.lines_of(titles.values()) - 1)
    figure.update_layout(legend={**legend(), "y": 1.12 + above / 300})
    return finish(figure, data.quality_caption(table), plot_height=300, top=70 + above)
