"""Amplification as a cause: the loss by gain, and which roles and heads were amplified."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.lanes import dots, lanes_room, name_lanes, score_axis
from analysis.figures.page import MIDDLE, band, finish, legend


def dose_response(table: pd.DataFrame) -> go.Figure:
    """Change of the loss as heads are weakened or amplified, a line an arm with its interval.

    Errors as `analysis.paper.dose_response`.
    """
    responses = data.responses_of(table, "dose_response")
    units = data.unit(table)
    figure = go.Figure()
    for arm in responses:
        name, colour, _, symbol = arm.style
        figure.add_trace(band(arm.gain, arm.low, arm.high, colour, legendgroup=arm.arm))
        figure.add_trace(
            go.Scatter(
                x=arm.gain,
                y=arm.change,
                mode="lines+markers",
                name=name,
                legendgroup=arm.arm,
                line={"width": 2, "color": colour},
                marker={"symbol": symbol, "size": 7},
                customdata=list(zip(arm.low, arm.high, strict=True)),
                hovertemplate=f"<b>{name}</b>, gain %{{x}}<br>%{{y:.4g}} {units}"
                "<br>interval %{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
            )
        )
    for gain, words in data.GAIN_MARKS.items():
        line = {"color": MIDDLE, "dash": "dash", "width": 1}
        figure.add_vline(gain, line=line, annotation_text=words, annotation_position="bottom right")
    figure.update_xaxes(title_text="gain of the heads' outputs", zeroline=False)
    figure.update_yaxes(title_text=data.dose_label(table))
    figure.update_layout(legend=legend())
    return finish(figure, data.dose_caption(table), plot_height=330)


def role_slopes(slopes: pd.DataFrame, contrast: pd.DataFrame | None = None) -> go.Figure:
    """How much more heads of a role were amplified, from `amplification_by_role`.

    A panel a measure; with `contrast`, chosen heads against their controls below. Errors as
    `analysis.paper.role_slopes`.
    """
    panels, lanes = data.slopes_of(slopes, "role_slopes")
    contrasts = data.contrasts_of(contrast, "role_slopes")
    columns = max(len(panels), len(contrasts))
    tall, low = 24 * lanes.height, 24 * 3 if contrasts else 0
    height = tall + low + (70 if contrasts else 0)
    figure = make_subplots(
        2 if contrasts else 1,
        columns,
        row_heights=[tall, low] if contrasts else None,
        vertical_spacing=70 / height if contrasts else 0,
        horizontal_spacing=0.06 if columns > 1 else 0,
        subplot_titles=[""] * columns + [part.p_words for part in contrasts],
    )
    for column, panel in enumerate(panels, start=1):
        trace = dots(panel.rows, data.BEFORE, panel.unit, name=panel.measure)
        figure.add_trace(trace, row=1, col=column)
        score_axis(figure, panel.axis, panel.label, column=column)
    name_lanes(figure, lanes, columns=len(panels))
    for column, found in enumerate(contrasts, start=1):
        for trace in _contrast(found):
            figure.add_trace(trace, row=2, col=column)
        score_axis(figure, found.axis, found.label, row=2, column=column)
    if contrasts:
        below = data.lanes(list(contrasts[0].rows["name"]))
        name_lanes(figure, below, row=2, columns=len(contrasts))
    return finish(
        figure,
        data.slopes_caption(slopes, contrast, panels),
        plot_height=height,
        left=lanes_room(lanes),
        top=20,
    )


def _contrast(contrast: data.Contrast) -> list[go.Scatter]:
    """Chosen heads, controls and their difference."""
    rows = contrast.rows.assign(sure=contrast.rows["sure"] | (contrast.rows["y"] < 2))
    kinds = ((data.AFTER, "square"), (data.NEUTRAL, "triangle-up"), (data.BEFORE, "diamond"))
    return [
        dots(rows.iloc[[i]], colour, contrast.unit, symbol, name=rows["name"].iloc[i])
        for i, (colour, symbol) in enumerate(kinds)
    ]
