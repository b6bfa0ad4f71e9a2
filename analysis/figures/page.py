"""The page that interactive figures stand on: theme, caption, and how one is saved."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis import figure_data as data
from analysis.escapes import plotly as escaped
from kernels import files

CLEAR = "rgba(0,0,0,0)"
FAINT = "rgba(128,128,128,0.28)"
MIDDLE = "rgba(128,128,128,0.9)"
_CHARACTER = 5.9  # pixels, mean width of a caption character
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1rem; background: #fff; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16191d; }}
  .js-plotly-plot .main-svg text:not(.bartext):not(.textpoint text):not(.heatmap-label text) {{
    fill: #d7dbe0 !important;
  }}
}}
</style></head><body>
{body}
</body></html>
"""


def save_html(figure: go.Figure, path: str | Path) -> Path:
    """Write one self-contained interactive page (no network needed), whole or not at all."""
    path = Path(path)
    path = path if path.suffix == ".html" else path.with_name(path.name + ".html")
    body = figure.to_html(
        full_html=False, include_plotlyjs=True, div_id="figure", config={"displaylogo": False}
    )
    title = html.escape(str((figure.layout.meta or {}).get("title", "figure")))
    return files.write_file(path, _PAGE.format(title=title, body=body))


def finish(
    figure: go.Figure,
    caption: str,
    *,
    plot_height: float,
    top: int = 40,
    foot: int = 46,
    left: int = 70,
    right: int = 20,
    width: float | None = None,
) -> go.Figure:
    """Transparent ground, quiet axes, and the caption below; heights and margins in pixels."""
    top += _settle_legend(figure, (width or 760) - left - right)
    lines = data.wrap(caption, int(((width or 760) - 30) / _CHARACTER))
    bottom = foot + 14 * len(lines) + 10
    figure.add_annotation(
        text="<br>".join(map(escaped, lines)),
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        xshift=12 - left,
        yshift=-foot,
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"size": 10.5},
    )
    figure.update_annotations(font={"size": 13}, selector={"yanchor": "bottom"})
    figure.update_layout(
        template="none",
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"size": 12},
        height=round(plot_height + top + bottom),
        width=None if width is None else round(width),
        margin={"l": left, "r": right, "t": top, "b": bottom},
        meta={"caption": caption, "title": caption.split(":")[0].split(";")[0]},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(gridcolor=FAINT, zerolinecolor=MIDDLE, linecolor=MIDDLE, title_standoff=6)
    figure.update_yaxes(gridcolor=FAINT, zerolinecolor=MIDDLE, linecolor=MIDDLE)
    return figure


def _settle_legend(figure: go.Figure, room: float) -> int:
    """Pixels that a horizontal legend needs beyond its first line."""
    if figure.layout.legend.orientation != "h":
        return 0
    names = {
        trace.legendgroup or trace.name: str(trace.name)
        for trace in figure.data
        if trace.showlegend is not False and trace.name
    }
    if len(names) < 2 and not any(trace.showlegend for trace in figure.data):
        return 0
    lines, at = 1, 0.0
    # Plotly gives every entry the room of the longest.
    entry = 45 + 12 * max(map(data.ems, names.values()))
    for _ in names:
        if at and at + entry > room:
            lines, at = lines + 1, 0.0
        at += entry
    return 19 * (lines - 1)


def room_of(shown: Iterable[str], size: float = 12) -> int:
    """Pixels that labels of an axis take."""
    return 30 + round(size * data.widest(shown))


def interval(table: pd.DataFrame, colour: str, thickness: float = 1) -> dict[str, Any]:
    """A row's ci_low to ci_high as error bars about its score."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (table["ci_high"] - table["score"]).clip(lower=0),
        "arrayminus": (table["score"] - table["ci_low"]).clip(lower=0),
        "thickness": thickness,
        "width": 0,
        "color": colour,
    }


def lines_together(
    table: pd.DataFrame, at: Sequence[Any], colour: str, upright: bool = False
) -> list[go.Scatter]:
    """Thin lines of the intervals that hold for all rows together; none where there are none.

    `at`: each row's place on the other axis; `upright`: that axis is x.
    """
    known = data.together(table)
    if not len(known):
        return []
    place = dict(zip(table.index, at, strict=True))
    across = [place[index] for index in known.index for _ in range(3)]
    ends = [end for pair in zip(known["ci_low"], known["ci_high"], strict=True) for end in pair]
    along = [end for low, high in zip(ends[::2], ends[1::2], strict=True)
             for end in (low, high, None)]  # fmt: skip
    return [
        go.Scatter(
            x=across if upright else along,
            y=along if upright else across,
            mode="lines",
            line={"width": 0.8, "color": colour},
            opacity=0.7,
            hoverinfo="skip",
            showlegend=False,
            name="all heads together",
        )
    ]


def band(x: Any, low: Any, high: Any, colour: str, **more: Any) -> go.Scatter:
    """Intervals of many points as one filled outline."""
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.25,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        name="interval",
        **more,
    )


def pattern(shape: str) -> dict[str, Any]:
    """White hatching over a bar, so that parts differ in grey too."""
    return {"shape": shape, "size": 5, "solidity": 0.2, "fillmode": "overlay", "fgcolor": "white"}


def legend() -> dict[str, Any]:
    """One line of names above the plot, from its left edge."""
    return {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}


def at_edge(
    figure: go.Figure,
    column: int,
    limits: tuple[float, float],
    beyond: Sequence[tuple[float | str, str]],
) -> None:
    """An axis' limits, and the numbers [(y, text)] of what lies beyond, at the edge that the arrow
    in the text points to."""
    figure.update_xaxes(range=list(limits), row=1, col=column)
    for y, text in beyond:
        right = text.endswith("▸")
        figure.add_annotation(
            text=text,
            x=limits[1 if right else 0],
            y=y,
            xanchor="right" if right else "left",
            yshift=9,
            showarrow=False,
            row=1,
            col=column,
        )
