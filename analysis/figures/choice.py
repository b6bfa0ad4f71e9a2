"""Memory for chosen heads, random heads or all: every trained model, and the arms' differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import FAINT, finish


def choice(choice: pd.DataFrame, contrast: pd.DataFrame | None = None) -> go.Figure:
    """Left, a dot a trained model by arm, and the arms' means; a line of panels a measure.

    With `contrast`, differences of arms on the right, with the interval over documents (thick) and
    over seeds (thin). Errors as `analysis.paper.choice`.
    """
    panels = data.choice_panels(choice, contrast, "choice")
    columns = 1 if contrast is None else 2
    each, gap = 34 * len(panels[0].arms) + 10, 64
    height = len(panels) * each + gap * (len(panels) - 1)
    figure = make_subplots(
        len(panels),
        columns,
        vertical_spacing=gap / height if len(panels) > 1 else 0,
        horizontal_spacing=0.2 if columns > 1 else 0,
    )
    for row, panel in enumerate(panels, start=1):
        for trace in _models(panel):
            figure.add_trace(trace, row=row, col=1)
        figure.update_xaxes(title_text=panel.label, zeroline=False, nticks=6, row=row, col=1)
        _name(figure, panel.names, row, 1)
        if contrast is None or panel.rows.empty:
            continue
        for trace in _differences(panel):
            figure.add_trace(trace, row=row, col=2)
        figure.update_xaxes(
            title_text=f"difference ({panel.unit})", range=_reach(panel), nticks=6, row=row, col=2
        )
        _name(figure, list(panel.rows["name"]), row, 2)
    text = data.choice_caption(choice, panels, contrast is not None)
    return finish(figure, text, plot_height=height, top=20, left=110)


def _name(figure: go.Figure, names: list[str], row: int, column: int) -> None:
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tickvals=list(range(len(names))),
        ticktext=names,
        showgrid=False,
        zeroline=False,
        row=row,
        col=column,
    )


def _models(panel: data.ChoicePanel) -> list[go.Scatter]:
    """Lines between the models of a seed, their dots by arm, and the means."""
    places = list(range(len(panel.arms)))
    joined = go.Scatter(
        x=[value for values in panel.values for value in (*values, None)],
        y=[place for _ in panel.seeds for place in (*places, None)],
        mode="lines",
        name="seeds",
        line={"width": 1, "color": FAINT},
        hoverinfo="skip",
        showlegend=False,
    )
    dots = [
        go.Scatter(
            x=panel.values[:, place],
            y=np.full(len(panel.seeds), place),
            mode="markers",
            name=data.ARMS[arm].name,
            marker={"symbol": data.ARMS[arm].symbol, "size": 8, "color": data.ARMS[arm].colour},
            customdata=panel.seeds,
            hovertemplate="seed %{customdata}: %{x:.5g}<extra>%{fullData.name}</extra>",
            showlegend=False,
        )
        for place, arm in enumerate(panel.arms)
    ]
    means = go.Scatter(
        x=panel.means,
        y=places,
        mode="markers",
        name="means",
        marker={"symbol": "line-ns", "size": 20, "line": {"width": 2, "color": data.NEUTRAL}},
        hovertemplate="mean %{x:.5g}<extra></extra>",
        showlegend=False,
    )
    return [joined, *dots, means]


def _reach(panel: data.ChoicePanel) -> list[float]:
    """The axis of differences: both intervals and zero, with some room."""
    ends = ["difference", "ci_low", "ci_high", "seed_low", "seed_high"]
    values = np.append(panel.rows[ends].to_numpy(float), 0.0)
    low, high = np.nanmin(values), np.nanmax(values)
    room = 0.08 * (high - low) or 1.0
    return [float(low - room), float(high + room)]


def _differences(panel: data.ChoicePanel) -> list[go.Scatter]:
    """Differences of arms, the interval over seeds thin, over documents thick."""
    rows = panel.rows
    bars = []
    for name, ends, colour, width in (
        ("seeds", ("seed_low", "seed_high"), data.NEUTRAL, 1.5),
        ("documents", ("ci_low", "ci_high"), data.BEFORE, 5),
    ):
        pairs = rows[list(ends)].to_numpy(float).tolist()
        bars.append(
            go.Scatter(
                x=[end for pair in pairs for end in (*pair, None)],
                y=[y for y in rows["y"] for y in (y, y, None)],
                mode="lines",
                name=name,
                line={"width": width, "color": colour},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    hover = [
        f"<b>{r['name']}</b><br>{r['difference']:.4g}"
        f"<br>over documents {r['ci_low']:.4g} to {r['ci_high']:.4g}"
        f"<br>over seeds {r['seed_low']:.4g} to {r['seed_high']:.4g}"
        for r in rows.to_dict("records")
    ]
    middle = go.Scatter(
        x=rows["difference"],
        y=rows["y"],
        mode="markers",
        name="differences",
        marker={"size": 9, "color": "white", "line": {"width": 1.6, "color": "#404040"}},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    return [*bars, middle]
