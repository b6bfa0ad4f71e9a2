"""What a map says, taken from its plotly figure: cells, colours, axes and words, in pixels."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

FAINT = "rgba(128,128,128,0.28)"
BAR_ROOM = 90  # pixels that a colour bar takes beside a figure without a width of its own
BAR_TICKS = 5  # about so many numbers along a colour bar
_TAG = re.compile(r"</?\w+>")


@dataclass(frozen=True)
class Words:
    """What a cell of a heat map is called, where its figure spells out every cell.

    rows, columns: names of all of them; template: what is said of a cell, with {row}, {column} and
    {value}; values: the numbers said, where they are not those that are drawn.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    template: str
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Spec:
    """A map as the browser draws it, and what each of its cells stands for.

    drawing: JSON; cells: a panel's `customdata`, one entry a cell, or (rows, columns) where the
    panel is a heat map.
    """

    drawing: dict[str, Any]
    cells: tuple[list[Any] | tuple[int, int], ...]

    def point(self, asked: Any) -> dict[str, Any] | None:
        """The cell that the browser named by panel and number; None where there is none such."""
        match asked:
            case {"panel": int(panel), "cell": int(cell)} if 0 <= panel < len(self.cells):
                known = self.cells[panel]
            case _:
                return None
        if isinstance(known, tuple):
            rows, columns = known
            row, column = divmod(cell, columns)
            return {"panel": panel, "row": row, "column": column} if 0 <= row < rows else None
        return {"panel": panel, "customdata": known[cell]} if 0 <= cell < len(known) else None


def of(figure: go.Figure, words: Words | None = None) -> Spec:
    """The map that a figure of square markers or of one heat map draws."""
    layout = figure.layout
    edges = layout.margin
    height = layout.height - edges.t - edges.b
    width = layout.width - edges.l - edges.r if layout.width else height + BAR_ROOM
    room = _Room(width + edges.l + edges.r, layout.height, (edges.l, edges.t, width, height))
    panels = [_panel(figure, trace, room, words) for trace in figure.data]
    drawing = {
        "width": room.width,
        "height": room.height,
        "ink": layout.font.color,
        "panels": panels,
        "bars": _bars(figure, room, panels),
        "notes": [
            {"x": x, "y": y - 8, "text": plain(note.text), "anchor": "middle"}
            for note in layout.annotations
            for x, y in [room.at(note.x, note.y)]
        ],
    }
    return Spec(drawing, tuple(_identity(trace) for trace in figure.data))


@dataclass(frozen=True)
class _Room:
    """A figure's size, and its plot's left, top, width and height in it; all in pixels."""

    width: float
    height: float
    plot: tuple[float, float, float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place given in the plot's own fractions, y upwards."""
        left, top, width, height = self.plot
        return left + x * width, top + (1 - y) * height


def plain(text: str | None) -> str:
    """A figure's words without its tags."""
    return html.unescape(_TAG.sub("", (text or "").replace("<br>", "\n")))


def _identity(trace: Any) -> list[Any] | tuple[int, int]:
    if trace.type != "heatmap":
        return list(trace.customdata)
    rows, columns = np.shape(trace.z)
    return int(rows), int(columns)


def _panel(figure: go.Figure, trace: Any, room: _Room, words: Words | None) -> dict[str, Any]:
    across = figure.layout[f"xaxis{(trace.xaxis or 'x')[1:]}"]
    down = figure.layout[f"yaxis{(trace.yaxis or 'y')[1:]}"]
    x0, x1 = across.domain or (0, 1)
    y0, y1 = down.domain or (0, 1)
    (left, top), (right, bottom) = room.at(x0, y1), room.at(x1, y0)
    width, height = right - left, bottom - top
    if down.scaleanchor:  # square cells
        width = height = min(width, height)
    columns, rows = _count(across, trace, 1), _count(down, trace, 0)
    panel = {
        "left": left, "top": top, "width": width, "height": height,
        "columns": columns, "rows": rows,
        "across": _ticks(across, columns), "down": _ticks(down, rows),
        "acrossTitle": plain(across.title.text), "downTitle": plain(down.title.text),
        "turned": across.tickangle == -90,
        "tickSize": down.tickfont.size or across.tickfont.size or 11,
        "scale": _scale(figure, trace),
    }  # fmt: skip
    return panel | (_matrix(figure, trace, words) if trace.type == "heatmap" else _squares(trace))


def _count(axis: Any, trace: Any, side: int) -> int:
    if axis.range is not None:
        return round(abs(axis.range[1] - axis.range[0]))
    return int(np.shape(trace.z)[side])


def _ticks(axis: Any, count: int) -> list[dict[str, Any]]:
    if axis.showticklabels is False:
        return []
    if axis.tickvals is not None:
        texts = axis.ticktext if axis.ticktext is not None else axis.tickvals
        return [
            {"at": float(at), "text": plain(str(text)), "bold": str(text).startswith("<b>")}
            for at, text in zip(axis.tickvals, texts, strict=True)
        ]
    step = int(axis.dtick or max(1, -(-count // 8)))
    return [{"at": at, "text": str(at), "bold": False} for at in range(0, count, step)]


def _squares(trace: Any) -> dict[str, Any]:
    texts = [""] * len(trace.x) if trace.text is None else list(trace.text)
    marker, font = trace.marker, trace.textfont
    inks = list(font.color) if isinstance(font.color, tuple | list) else font.color
    return {
        "size": marker.size,
        "line": FAINT if marker.line.width else "",
        "x": _list(trace.x), "y": _list(trace.y), "value": _list(marker.color),
        "text": [str(text or "") for text in texts],
        "textSize": font.size or 10,
        "textInk": inks if isinstance(inks, list) else [inks] * len(texts),
        "words": [plain(text) for text in trace.hovertext],
    }  # fmt: skip


def _matrix(figure: go.Figure, trace: Any, words: Words | None) -> dict[str, Any]:
    if words is None:
        raise ValueError("a heat map needs the words of its rows and columns")
    drawn = np.asarray(trace.z, dtype=np.float32)
    shown = drawn if words.values is None else np.asarray(words.values, dtype=np.float32)
    return {
        "matrix": _bytes(drawn),
        "shown": "" if words.values is None else _bytes(shown),
        "gap": int(trace.xgap or 0),
        "ground": FAINT if figure.layout.shapes else "",  # of cells without a value
        "rowWords": list(words.rows),
        "columnWords": list(words.columns),
        "template": words.template,
    }


def _list(values: Any) -> list[Any]:
    return np.asarray(values).tolist()  # type: ignore[no-any-return]


def _bytes(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _scale(figure: go.Figure, trace: Any) -> dict[str, Any]:
    """Colours and their limits."""
    holder, low, high = trace, None, None
    name = trace.coloraxis if trace.type == "heatmap" else trace.marker.coloraxis
    if name:
        holder = figure.layout[name]
        low, high = holder.cmin, holder.cmax
    if low is None or high is None:
        known = np.asarray(trace.z, dtype=float)
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return {"stops": [list(stop) for stop in holder.colorscale], "low": low, "high": high}


def _bars(figure: go.Figure, room: _Room, panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The colour bars, one a scale, beside the plot."""
    found: dict[str, dict[str, Any]] = {}
    for trace, panel in zip(figure.data, panels, strict=True):
        name = trace.coloraxis if trace.type == "heatmap" else trace.marker.coloraxis
        bar = (figure.layout[name] if name else trace).colorbar
        left, top = room.at(1.0 if bar.x is None else bar.x, 1.0 if bar.y is None else bar.y)
        if panel["width"] < room.plot[2] and len(panels) == 1:  # a square in a wider room
            left = panel["left"] + panel["width"]
        length = bar.len - 20 if bar.lenmode == "pixels" else panel["height"]
        ticks = None
        if bar.tickvals is not None:
            ticks = [[float(v), str(t)] for v, t in zip(bar.tickvals, bar.ticktext, strict=True)]
        found[name or "own"] = {
            "left": left + 12, "top": top, "length": length, "thickness": bar.thickness or 12,
            "title": plain(bar.title.text), "ticks": ticks, "many": BAR_TICKS,
            "scale": panel["scale"],
        }  # fmt: skip
    return list(found.values())
