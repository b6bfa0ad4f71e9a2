"""Evidence for a ranking: prune curves, and how far methods and data sets agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import MIDDLE, band, escaped, finish, interval, legend, room_of

_CELL = 62  # pixels of a cell of the matrix


def prune_curves(table: pd.DataFrame) -> go.Figure:
    """The metric as heads are ablated best first, worst first and at random, from `prune_curve`.

    Random orders show as their mean and, thin, each by itself. Errors as
    `analysis.paper.prune_curves`.
    """
    curves = data.curves_of(table, "prune_curves")
    label = data.prune_label(table)
    head = data.head_word(table)
    figure = go.Figure()
    for curve in curves:
        colour, _, symbol = data.PRUNE_ORDERS[curve.order]
        shared = {"legendgroup": curve.order}
        if len(curve.draws) == 1:
            figure.add_trace(band(curve.removed, curve.low, curve.high, colour, **shared))
        for draw in curve.draws if len(curve.draws) > 1 else ():
            figure.add_trace(
                go.Scatter(
                    x=curve.removed,
                    y=draw,
                    mode="lines",
                    opacity=0.45,
                    line={"width": 1, "color": colour},
                    hoverinfo="skip",
                    showlegend=False,
                    name="draw",
                    **shared,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=curve.removed,
                y=curve.score,
                mode="lines+markers",
                name=curve.label,
                line={"width": 2, "color": colour},
                marker={"symbol": symbol, "size": 7},
                hovertext=_points(curve, head, data.unit(table)),
                hovertemplate="%{hovertext}<extra></extra>",
                **shared,
            )
        )
    places, texts = data.prune_ticks(curves)
    figure.update_xaxes(
        title_text=f"{head}s removed, and their share of all",
        tickvals=places,
        ticktext=[text.replace("\n", "<br>") for text in texts],
        zeroline=False,
    )
    figure.update_yaxes(title_text=label, zeroline=False)
    figure.update_layout(legend=legend())
    return finish(figure, data.prune_caption(table, curves), plot_height=330, foot=62)


def _points(curve: data.Curve, head: str, unit: str) -> list[str]:
    texts = []
    for i, score in enumerate(curve.score):
        text = f"<b>{curve.order}</b>, {curve.removed[i]} {head}s ({100 * curve.share[i]:.0f}%)"
        text += f"<br>{score:.4g} {unit}"
        if np.isfinite(curve.low[i]):
            text += f"<br>interval {curve.low[i]:.4g} to {curve.high[i]:.4g}"
        elif len(curve.draws) > 1:
            least, most = curve.draws[:, i].min(), curve.draws[:, i].max()
            text += f"<br>{len(curve.draws)} orders, {least:.4g} to {most:.4g}"
        texts.append(text)
    return texts


def method_agreement(table: pd.DataFrame) -> go.Figure:
    """Rank correlation and top-set overlap of every two methods, from `evidence`.

    Below, where the table has them, the first method on other data sets. Errors as
    `analysis.paper.method_agreement`.
    """
    agreement = data.agreement_of(table, "method_agreement")
    count, others = len(agreement.methods), agreement.other_data
    side = _CELL * count
    low = 40 + 26 * len(others) if len(others) else 0
    gap = 110  # the matrix' own labels stand between the two
    height = side + (low + gap if low else 0)
    figure = make_subplots(
        2 if low else 1,
        1,
        row_heights=[side, low] if low else None,
        vertical_spacing=gap / height if low else 0,
    )
    figure.add_trace(_matrix(agreement), row=1, col=1)
    ticks = {"tickvals": list(range(count)), "ticktext": agreement.names}
    figure.update_xaxes(**ticks, tickangle=-30, showgrid=False, zeroline=False, row=1, col=1)
    figure.update_yaxes(
        **ticks, range=[count - 0.5, -0.5], showgrid=False, zeroline=False, row=1, col=1
    )
    if low:
        _add_stability(figure, agreement)
    names = [*agreement.names, *agreement.data_labels]
    left = room_of(names)
    return finish(
        figure,
        data.agreement_caption(table, agreement),
        plot_height=height,
        left=left,
        right=110,
        foot=46 if low else 100,
        width=max(left + side + 110, 460),
    )


def _matrix(agreement: data.Agreement) -> go.Heatmap:
    count = len(agreement.methods)
    texts = [
        ["<br>".join(agreement.cell(row, column)) for column in range(count)]
        for row in range(count)
    ]
    hover = [[_pair(agreement, row, column) for column in range(count)] for row in range(count)]
    return go.Heatmap(
        z=agreement.spearman,
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorscale=[list(stop) for stop in data.diverging_stops()],
        zmin=-1,
        zmax=1,
        colorbar={
            "title": {"text": "Spearman's ρ", "side": "right"},
            "lenmode": "pixels",
            "len": max(_CELL * count, 140),
            "y": 1.0,
            "yanchor": "top",
            "thickness": 12,
            "outlinewidth": 0,
        },
    )


def _pair(agreement: data.Agreement, row: int, column: int) -> str:
    """Hover text of one cell."""
    first, second = agreement.names[column], agreement.names[row]
    text = f"<b>{first}</b>, split half" if row == column else f"<b>{first}</b> and <b>{second}</b>"
    text += f"<br>ρ {agreement.spearman[row, column]:.3f}"
    low, high = agreement.low[row, column], agreement.high[row, column]
    if np.isfinite(low):
        text += f"<br>interval {low:.3f} to {high:.3f}"
    shared = agreement.shared(agreement.overlap[row, column])
    return text + (f"<br>top heads in common {shared}" if shared else "")


def _add_stability(figure: go.Figure, agreement: data.Agreement) -> None:
    """The first method against itself on other data: a dot and an interval a data set."""
    rows = agreement.other_data
    shown = rows.rename(columns={"spearman": "score"})
    figure.add_trace(
        go.Scatter(
            x=rows["spearman"],
            y=[escaped(label) for label in agreement.data_labels],
            mode="markers",
            name="other data",
            marker={"color": data.BEFORE, "size": 8},
            error_x=interval(shown, data.BEFORE),
            customdata=[escaped(name) for name in rows["second"].astype(str)],
            hovertemplate="<b>%{customdata}</b><br>ρ %{x:.3f}<extra></extra>",
            showlegend=False,
        ),
        row=2,
        col=1,
    )
    reliability = agreement.spearman[0, 0]
    if np.isfinite(reliability):
        figure.add_vline(
            reliability, line={"color": MIDDLE, "dash": "dash", "width": 1}, row=2, col=1
        )
    least = min(float(rows["ci_low"].min()), 0.0)
    figure.update_xaxes(
        title_text="Spearman's ρ with other data",
        range=[max(-1.0, 1.1 * least), 1.02],
        row=2,
        col=1,
    )
    figure.update_yaxes(
        type="category", range=[len(rows) - 0.5, -0.5], showgrid=False, row=2, col=1
    )
