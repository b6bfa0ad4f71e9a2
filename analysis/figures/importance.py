"""Head importance: the map, and the sorted scores."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis import figure_data as data
from analysis.figures.maps import hover_texts, identity, maps
from analysis.figures.page import band, escaped, finish, interval, legend, lines_together

_MANY = 100  # heads, above which a curve shows a band and ticks in place of bars and markers


def importance_map(
    before: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    width: float = 940,
    force: bool = False,
) -> go.Figure:
    """Layer x head importance as square markers, one colour range for before and after.

    Every marker's customdata is [layer, kind, head, source_layer]; `width` is the most the figure
    may take, in pixels. Errors as `analysis.paper.importance_map`.
    """
    data.require_pair(before, after, "importance_map", force)
    rows, old, new = data.aligned(data.grid(before), None if after is None else data.grid(after))
    colours = data.colour_range(old, new)
    text = data.caption(
        before,
        after,
        title="Head importance",
        intervals=False,
        notes=[data.mark_note(colours.limit), data.noise_note(before, after), colours.note],
    )
    panels = [(data.model_name(before, "before"), old, before)]
    if after is not None and new is not None:
        panels.append((data.model_name(after, "after"), new, after))
    head = data.head_word(before)
    return maps(panels, rows, colours, data.score_label(before), text, width, head=head)


def importance_curves(
    before: pd.DataFrame, after: pd.DataFrame | None = None, *, force: bool = False
) -> go.Figure:
    """Scores from the most to the least important head with their intervals, both on one axis."""
    data.require_pair(before, after, "importance_curves", force)
    figure = go.Figure()
    tables = [(before, data.BEFORE, "before")]
    if after is not None:
        tables.append((after, data.AFTER, "after"))
    names_of = [data.model_name(table, fallback) for table, _, fallback in tables]
    shown = data.labels(names_of, 2 * data.NAME_EMS)
    for model, (table, colour, _) in zip(names_of, tables, strict=True):
        heads = data.sorted_scores(table)
        labels = {(r.layer, r.kind): r.label for r in data.block_rows(table)}
        names = [labels[int(b), str(k)] for b, k in zip(heads["layer"], heads["kind"], strict=True)]
        many = len(heads) > _MANY
        if many:
            known = heads.dropna(subset=["ci_low", "ci_high"])
            figure.add_trace(band(known["rank"], known["ci_low"], known["ci_high"], colour))
            every = data.together(heads)
            if len(every):
                figure.add_trace(band(every["rank"], every["ci_low"], every["ci_high"], colour))
        else:
            figure.add_traces(lines_together(heads, heads["rank"], colour, upright=True))
        figure.add_trace(
            go.Scatter(
                x=heads["rank"],
                y=heads["score"],
                mode="lines+markers",
                name=escaped(shown[model]),
                line={"width": 1.2, "color": colour},
                marker=_curve_markers(heads["inserted"], colour, many),
                error_y=None if many else interval(heads, colour, 2),
                customdata=identity(heads),
                hovertext=hover_texts(
                    heads, "score", names, data.score_label(before), data.head_word(table)
                ),
                hovertemplate=f"%{{hovertext}}<br>rank %{{x}}<extra>{escaped(model)}</extra>",
            )
        )
    inserted = any(r.inserted for t, _, _ in tables for r in data.block_rows(t))
    sizes = [len(t) > _MANY for t, _, _ in tables]
    sign = "upright ticks" if all(sizes) else "open diamonds"
    note = f"{sign}: inserted heads" if inserted else ""
    figure.update_xaxes(title_text=f"{data.head_word(before)} rank", zeroline=False)
    figure.update_yaxes(title_text=data.score_label(before))
    figure.update_layout(legend=legend())
    notes = [data.together_note(before, after), note]
    text = data.caption(before, after, title="Head importance, sorted", notes=notes)
    return finish(figure, text, plot_height=330)


def _curve_markers(inserted: pd.Series, colour: str, many: bool) -> dict[str, Any]:
    if many:
        symbol, plain_size, size = "line-ns-open", 0, 9
    else:
        symbol, plain_size, size = "diamond-open", 5, 7
    return {
        "size": [size if i else plain_size for i in inserted],
        "symbol": [symbol if i else "circle" for i in inserted],
        "color": colour,
        "line": {"width": [1 if i else 0 for i in inserted], "color": colour},
    }
