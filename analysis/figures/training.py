"""Training logs."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import escaped, finish, legend

_SYMBOLS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "triangle-right")


def training_curves(runs: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Training and held-out loss by step, the learning rate below; one log or {name: log}."""
    logs = data.training_logs(runs, "training_curves")
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05)
    names = data.labels(logs, 2 * data.NAME_EMS)
    for i, (name, log) in enumerate(logs.items()):
        colour = data.SERIES[i % len(data.SERIES)]
        held = log.dropna(subset=["eval_loss"])
        shared = {"legendgroup": f"run {i}", "name": escaped(names[name])}
        extra = f"<extra>{escaped(name)}</extra>"
        figure.add_trace(
            go.Scatter(
                x=log["step"],
                y=log["loss"],
                mode="lines",
                opacity=0.45,
                showlegend=False,
                line={"width": 1, "color": colour},
                **shared,
                hovertemplate="step %{x}: training loss %{y:.4g} nats/token" + extra,
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
                hovertemplate="step %{x}: held-out loss %{y:.4g} nats/token" + extra,
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
                hovertemplate="step %{x}: learning rate %{y:.3g}" + extra,
            ),
            row=2,
            col=1,
        )
    figure.update_yaxes(title_text="loss (nats/token)", zeroline=False, row=1, col=1)
    figure.update_yaxes(title_text="learning<br>rate", rangemode="tozero", nticks=3, row=2, col=1)
    figure.update_xaxes(title_text="optimiser step", row=2, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_layout(legend=legend())
    return finish(figure, data.training_caption(logs), plot_height=380)
