"""Amplification: the map of changes, and the heads that changed most."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.maps import hover_texts, identity, maps
from analysis.figures.page import at_edge, finish, interval, legend, lines_together, pattern

_PATTERNS = {"own": "", "memory": "/", "copy": "."}


def amplification_map(table: pd.DataFrame, *, share: bool = False, width: float = 940) -> go.Figure:
    """Each base head's change, after minus before, over the base model's layers and heads."""
    column = "share_score" if share else "score"
    grid = data.base_heads(table, column, "amplification_map")
    colours = data.colour_range(grid)
    label = "change of share" if share else data.score_label(table, "change")
    text = data.caption(
        table,
        title="Amplification (after minus before)",
        intervals=False,
        notes=[data.mark_note(colours.limit), colours.note],
    )
    shown = table.assign(kind="base")
    head = data.head_word(table)
    return maps([("", grid, shown)], grid.rows, colours, label, text, width, column, head)


def amplification(table: pd.DataFrame, top: int | None = 20) -> go.Figure:
    """After minus before of the `top` most changed heads, split into own, memory and copy."""
    heads = data.amplified(table, top, "amplification").assign(kind="base")
    names = _names(heads)
    figure = go.Figure()
    units = data.unit(table)
    for part in data.shown_parts(heads):
        label, colour = data.PARTS[part]
        figure.add_trace(
            go.Bar(
                y=names,
                x=heads[part],
                orientation="h",
                name=label,
                customdata=identity(heads),
                marker={"color": colour, "pattern": pattern(_PATTERNS[part])},
                hovertemplate="%{y}, " + label + ": %{x:.4g} " + units + "<extra></extra>",
            )
        )
    figure.add_traces(lines_together(heads, names, "#808080"))
    figure.add_trace(
        go.Scatter(
            y=names,
            x=heads["score"],
            mode="markers",
            name="sum, with interval",
            marker={"color": "white", "size": 8, "line": {"width": 1.6, "color": "#404040"}},
            error_x=interval(heads, "#808080", 2.2),
            customdata=identity(heads),
            hovertext=hover_texts(heads, "score", list(heads["name"]), data.score_label(table)),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.update_layout(barmode="relative", bargap=0.28, legend=legend())
    figure.update_xaxes(title_text=data.score_label(table, "change"))
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    notes = data.amplified_notes(heads, table)
    text = data.caption(table, title="Amplification (after minus before)", notes=notes)
    return finish(figure, text, plot_height=max(120, 22 * len(heads)))


def _names(heads: pd.DataFrame) -> list[str]:
    """Heads' names, chosen ones in bold."""
    pairs = zip(heads["name"], heads["is_chosen"], strict=True)
    return [f"<b>{name}</b>" if chosen else name for name, chosen in pairs]


def importance_change(table: pd.DataFrame, top: int | None = 20) -> go.Figure:
    """Before, after, and the paired difference with its interval, of the `top` most changed heads.

    The two panels have one scale. Errors as `analysis.paper.importance_change`.
    """
    heads = data.changed(table, top, "importance_change").assign(kind="base")
    axes = data.change_axes(heads)
    figure = make_subplots(
        1, 2, shared_yaxes=True, column_widths=axes.widths, horizontal_spacing=0.03
    )
    for trace in _before_and_after(heads, data.unit(table)):
        figure.add_trace(trace, row=1, col=1)
    label, word = data.score_label(table, "change"), data.head_word(table)
    for trace in lines_together(heads, _names(heads), data.NEUTRAL):
        figure.add_trace(trace, row=1, col=2)
    figure.add_trace(
        go.Scatter(
            x=heads["score"],
            y=_names(heads),
            mode="markers",
            name="change, paired interval",
            marker={
                "symbol": ["diamond" if sure else "diamond-open" for sure in heads["sure"]],
                "size": 9,
                "color": data.NEUTRAL,
            },
            error_x=interval(heads, data.NEUTRAL, 2.2),
            customdata=identity(heads),
            hovertext=hover_texts(heads, "score", list(heads["name"]), label, word),
            hovertemplate="%{hovertext}<extra></extra>",
        ),
        row=1,
        col=2,
    )
    for column, limits, beyond in (
        (1, axes.values, axes.values_beyond),
        (2, axes.change, axes.change_beyond),
    ):
        at_edge(figure, column, limits, [(_names(heads)[row], text) for row, text in beyond])
    figure.update_xaxes(title_text=data.score_label(table), row=1, col=1)
    figure.update_xaxes(title_text=label, row=1, col=2)
    figure.update_xaxes(tickangle=0, nticks=6)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_layout(legend=legend())
    text = data.change_caption(heads, table, axes)
    return finish(figure, text, plot_height=max(120, 22 * len(heads)))


def _before_and_after(heads: pd.DataFrame, units: str) -> list[go.Scatter]:
    """A line from before to after for every head, and the two as open and filled dots."""
    names = _names(heads)
    ends = [[*pair, None] for pair in zip(heads["before"], heads["after"], strict=True)]
    lines = go.Scatter(
        x=[end for pair in ends for end in pair],
        y=[name for name in names for _ in range(3)],
        mode="lines",
        line={"width": 1.5, "color": data.NEUTRAL},
        hoverinfo="skip",
        showlegend=False,
        name="before to after",
    )
    dots = [
        go.Scatter(
            x=heads[column],
            y=names,
            mode="markers",
            name=column,
            marker={
                "symbol": symbol,
                "size": 9,
                "color": colour,
                "line": {"width": 2, "color": colour},
            },
            customdata=identity(heads),
            hovertemplate=f"%{{y}}, {column}: %{{x:.4g}} {units}<extra></extra>",
        )
        for column, colour, symbol in (
            ("before", data.BEFORE, "circle-open"),
            ("after", data.AFTER, "circle"),
        )
    ]
    return [lines, *dots]
