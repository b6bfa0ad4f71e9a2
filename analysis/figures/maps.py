"""Layer x head maps of square markers, which can be clicked where heat maps cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import FAINT, escaped, finish


def maps(
    panels: Sequence[tuple[str, data.Grid, pd.DataFrame]],
    rows: Sequence[data.Row],
    colours: data.ColourRange,
    label: str,
    caption: str,
    width: float,
    column: str = "score",
    head: str = "head",
) -> go.Figure:
    """A panel a table on shared rows and colours; `head` is what the columns count.

    The first traces are the panels, in their order: a click's trace number is its panel.
    """
    left, right, gap = label_room(rows), 96, 24
    heads = panels[0][1].heads
    cell = cell_size(width - left - right - gap * (len(panels) - 1), heads * len(panels))
    plot = heads * cell * len(panels) + gap * (len(panels) - 1)
    titles = data.labels([title for title, _, _ in panels], max(heads * cell / 13, 14), 3)
    figure = make_subplots(
        1,
        len(panels),
        shared_yaxes=True,
        horizontal_spacing=gap / plot if len(panels) > 1 else 0,
        subplot_titles=[escaped(titles[title]) for title, _, _ in panels],
    )
    places = _places(panels, rows)
    for i, (title, _, table) in enumerate(panels):
        figure.add_trace(
            squares(
                table,
                column,
                rows,
                places[i],
                cell,
                colours.limit,
                escaped(title or label),
                label,
                head,
            ),
            row=1,
            col=i + 1,
        )
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in data.diverging_stops()],
            "cmin": -colours.limit,
            "cmax": colours.limit,
            "colorbar": colour_bar(label, cell * len(rows)),
        }
    )
    map_axes(figure, rows, heads, head)
    return finish(
        figure,
        caption,
        plot_height=cell * len(rows),
        top=40 + 16 * (data.lines_of(titles.values()) - 1),
        left=left,
        right=right,
        width=max(left + plot + right, 460),
    )


def _places(
    panels: Sequence[tuple[str, data.Grid, pd.DataFrame]], rows: Sequence[data.Row]
) -> list[dict[tuple[int, str], int]]:
    """For each panel, where each of its blocks stands among the rows of the figure."""
    out = []
    shown = data.occurrences(rows)
    for _, _, table in panels:
        own = data.block_rows(table)
        keys = data.occurrences(own)
        out.append({(r.layer, r.kind): shown.index(k) for r, k in zip(own, keys, strict=True)})
    return out


def label_room(rows: Sequence[data.Row]) -> int:
    """Pixels that the rows' labels take."""
    return 26 + round(6.6 * max(len(r.label) for r in rows))


def cell_size(room: float, columns: int) -> float:
    """Pixels of a cell: as large as the room allows, within what reads well."""
    return float(np.clip(room / columns, 11, 34))


def squares(
    table: pd.DataFrame,
    column: str,
    rows: Sequence[data.Row],
    place: Mapping[tuple[int, str], int],
    cell: float,
    limit: float,
    name: str,
    label: str,
    head: str = "head",
) -> go.Scatter:
    """A table as one trace of squares, a marker a head in the table's order."""
    table = table.dropna(subset=[column])
    y = [place[int(b), str(k)] for b, k in zip(table["layer"], table["kind"], strict=True)]
    values = table[column].to_numpy(float)
    noise = np.zeros(len(table), dtype=bool)
    if column == "score" and "below_noise" in table.columns:
        noise = table["below_noise"].to_numpy(bool)
    marks = np.where(data.marked(values, limit), "–", "")
    return go.Scatter(
        x=table["head"].to_numpy(int),
        y=np.array(y),
        mode="markers+text",
        name=name,
        text=np.where(noise, "×", marks),
        textposition="middle center",
        textfont={
            "size": max(8, 0.5 * cell),
            "color": [
                (data.noise_ink if below else data.mark_ink)(value / limit)
                for value, below in zip(values, noise, strict=True)
            ],
        },
        customdata=identity(table),
        hovertext=hover_texts(table, column, [rows[i].label for i in y], label, head),
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "symbol": "square",
            "size": round(cell - (1 if cell < 20 else 2)),
            "color": values,
            "coloraxis": "coloraxis",
            "line": {"width": 0.5, "color": FAINT},
        },
        showlegend=False,
    )


def identity(table: pd.DataFrame) -> list[list[Any]]:
    """[layer, kind, head, source_layer] of every row, as plain Python values."""
    return [
        [int(layer), str(kind), int(head), int(source)]
        for layer, kind, head, source in table[list(data.HEAD_COLUMNS)].itertuples(
            index=False, name=None
        )
    ]


def hover_texts(
    table: pd.DataFrame, column: str, labels: Sequence[str], label: str, head: str = "head"
) -> list[str]:
    """Hover text of every row of a table, `labels` naming its blocks and `label` its unit."""
    units = label[label.find("(") + 1 : -1] if "(" in label else label
    low, high = data.interval_columns(column)
    known = low in table.columns
    shown = table.assign(
        score=table[column],
        ci_low=table[low] if known else np.nan,
        ci_high=table[high] if known else np.nan,
    )
    records = shown.to_dict("records")
    return [data.hover(r, name, units, head) for r, name in zip(records, labels, strict=True)]


def colour_bar(label: str, height: float, **more: Any) -> dict[str, Any]:
    """A colour bar as tall as its map, or as its own title needs."""
    return {
        "title": {"text": label, "side": "right"},
        "lenmode": "pixels",
        "len": max(height + 20, 90 + 3 * len(label)),
        "y": 1.0,
        "yanchor": "top",
        "ypad": 10,
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.0,
        "xpad": 12,
        "nticks": 6,
        **more,
    }


def map_axes(figure: go.Figure, rows: Sequence[data.Row], heads: int, head: str = "head") -> None:
    """Heads along, blocks down, the first on top; inserted blocks in bold."""
    figure.update_xaxes(
        title_text=head,
        range=[-0.5, heads - 0.5],
        dtick=data.tick_step(heads),
        tick0=0,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        tickvals=list(range(len(rows))),
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(
        ticktext=[f"<b>{r.label}</b>" if r.inserted else r.label for r in rows],
        tickfont={"size": 11 if len(rows) <= 24 else 10},
        col=1,
    )
