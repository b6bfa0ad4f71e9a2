"""Figures on a page, drawn as light as what they do allows, and how they are saved.

`figure` moves and is plotly's; `map` answers clicks and keys and is drawn by `apps.parts.grid`;
`picture` is the figure for print, for what is only looked at.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import streamlit as st

from analysis import figure_data
from apps.parts import grid
from apps.parts.page import escape

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAP_WIDTH = 850  # pixels: what a 1280-pixel window leaves beside the sidebar
PAPER = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}
MOST = 128  # figures kept drawn

Tables: TypeAlias = pd.DataFrame | Mapping[str, pd.DataFrame] | Callable[[], pd.DataFrame]
Key: TypeAlias = tuple[Any, ...]


def figure(
    make: Callable[[], go.Figure],
    key: str,
    *,
    same: Key | None = None,
    stretch: bool = True,
    paper: Callable[[], Any] | None = None,
    table: Tables | None = None,
) -> None:
    """Show a figure of `analysis.figures`, its caption below as text that wraps with the page.

    Args:
        make: draws it.
        same: what it depends on, hashable; a figure once drawn for it is shown again.
        stretch: False where the figure has a width of its own.
        paper: makes the figure's twin for print; with it, and with `table`, a menu saves them.
        table: the numbers in the figure, several tables by name, or what makes the table.
    """
    theme = _theme()
    shown = _kept(_place("figure", key, theme, same), lambda: _prepared(make(), theme))
    st.plotly_chart(
        shown.figure,
        width="stretch" if stretch else "content",
        theme=None,
        key=key,
        config={"displaylogo": False, "modeBarButtonsToRemove": _BUTTONS},
        alt=shown.caption or None,
    )
    _below(key, shown.caption, make, paper, table)


def map(
    make: Callable[[], go.Figure],
    key: str,
    *,
    same: Key | None = None,
    marks: Sequence[grid.Mark] = (),
    clicked: Callable[[dict[str, Any]], None] | None = None,
    words: Callable[[], grid.Words] | None = None,
    paper: Callable[[], Any] | None = None,
    table: Tables | None = None,
) -> None:
    """Show a map of `analysis.figures`; arguments as of `figure`, and

    marks: the cells that have a frame; clicked: called with a cell's `customdata` (or `row` and
    `column`) and `panel`; words: says what the cells of a heat map are called.
    """
    theme = _theme()

    def drawing() -> tuple[grid.Spec, str]:
        ready = _prepared(make(), theme)
        return grid.of(ready.figure, words and words()), ready.caption

    spec, caption = _kept(_place("map", key, theme, same), drawing)
    grid.show(spec, key, label=caption, marks=marks, clicked=clicked)
    _below(key, caption, make, paper, table)


@dataclass(frozen=True)
class Picture:
    """A figure of `analysis.paper` of these tables, by its name; `same` and `table` as of `figure`.

    table: where it is not the first of `tables`.
    """

    name: str
    tables: tuple[Any, ...]
    same: Key
    table: Tables | None = None


def picture(picture: Picture, key: str) -> None:
    """Show a picture as wide as the page has room; the menu saves its interactive twin as well."""
    svg, caption = _pictured(picture, _theme())
    st.image(svg, width="stretch", alt=caption)
    name, held = picture.name, picture.tables
    table = held[0] if picture.table is None else picture.table
    _below(key, caption, on_screen(name, *held), on_paper(name, *held), table)


def ahead(picture: Picture) -> None:
    """Draw a picture before somebody waits for it, for a light page."""
    _pictured(picture, "light")


def _pictured(picture: Picture, theme: str) -> tuple[str, str]:
    def make() -> tuple[str, str]:
        from analysis.paper import screen_svg

        figure = on_paper(picture.name, *picture.tables)()
        return screen_svg(figure, dark=theme == "dark"), str(figure.caption)

    drawing: tuple[str, str] = _kept(_place("picture", picture.name, theme, picture.same), make)
    return drawing


def on_paper(name: str, *tables: Any, **options: Any) -> Callable[[], Any]:
    """Draws the figure of that name for print when it is called: matplotlib takes a second."""

    def make() -> Any:
        from analysis import paper

        return getattr(paper, name)(*tables, **options)

    return make


def on_screen(name: str, *tables: Any, **options: Any) -> Callable[[], go.Figure]:
    """Draws the interactive figure of that name when it is called."""

    def make() -> Any:
        from analysis import figures

        return getattr(figures, name)(*tables, **options)

    return make


# ---------------------------------------------------------------- as the page's theme has it


@dataclass(frozen=True)
class Prepared:
    """A figure as it is shown: its caption taken out, its colours those of the page's theme."""

    figure: go.Figure
    caption: str


_drawings: dict[Key, Any] = {}


def _place(kind: str, key: str, theme: str, same: Key | None) -> Key | None:
    return None if same is None else (kind, key, theme, *same)


def _kept(place: Key | None, make: Callable[[], Any]) -> Any:
    """What `make` drew for this place before; drawings are shared by all sessions, as they are."""
    if place is not None and place in _drawings:
        return _drawings[place]
    made = make()
    if place is not None:
        _drawings[place] = made
        for oldest in list(_drawings)[:-MOST]:
            _drawings.pop(oldest, None)  # another session may have been quicker
    return made


def _theme() -> str:
    return st.context.theme.type or "light"


def _prepared(figure: go.Figure, theme: str) -> Prepared:
    caption = _without_caption(figure)
    if theme == "dark":
        _darken(figure)
    ink = _INK[theme]
    figure.update_layout(
        font={"color": ink, "family": _FONT}, modebar={"bgcolor": _CLEAR, "color": ink}
    )
    return Prepared(figure, caption)


def _darken(figure: go.Figure) -> None:
    """Colours from dark to light, so that nothing is not what shines on a dark page."""
    axes = [name for name in figure.layout if name.startswith("coloraxis")]
    for holder in (*(figure.layout[name] for name in axes), *figure.data):
        if not getattr(holder, "colorscale", None):
            continue
        if getattr(holder, "cmin", None) is not None and holder.cmin == -holder.cmax:
            holder.colorscale = figure_data.diverging_stops(dark=True)
        else:
            holder.colorscale = [[1 - at, colour] for at, colour in reversed(holder.colorscale)]
    for trace in figure.data:
        if trace.type == "scatter" and isinstance(trace.textfont.color, tuple | list):
            trace.textfont.color = _inks(trace, figure.layout[trace.marker.coloraxis])


def _inks(trace: Any, axis: Any) -> list[str]:
    """Black or white on every cell of a trace, whichever reads on its colour."""
    from plotly.colors import sample_colorscale

    shares = (np.asarray(trace.marker.color, dtype=float) - axis.cmin) / (axis.cmax - axis.cmin)
    stops = [list(stop) for stop in axis.colorscale]
    cells = sample_colorscale(stops, shares.clip(0, 1), colortype="tuple")
    return [figure_data.ink_on(cell) for cell in cells]


def _without_caption(figure: go.Figure) -> str:
    """Take the caption out of the figure, and the room it had; returns it."""
    caption = str((figure.layout.meta or {}).get("caption", ""))
    inside = [a for a in figure.layout.annotations if _plain(a.text) == caption]
    if inside:
        foot = 14 * len(inside[0].text.split("<br>")) + 16
        figure.layout.annotations = [a for a in figure.layout.annotations if a not in inside]
        figure.layout.margin.b -= foot
        figure.layout.height -= foot
    if not figure.layout.annotations and not any(t.showlegend is None for t in figure.data):
        figure.layout.height -= figure.layout.margin.t - 12
        figure.layout.margin.t = 12
    return caption


def _plain(text: str | None) -> str:
    return html.unescape((text or "").replace("<br>", " "))


# ---------------------------------------------------------------- below a figure


def _below(
    key: str,
    caption: str,
    make: Callable[[], go.Figure] | None,
    paper: Callable[[], Any] | None,
    table: Tables | None,
) -> None:
    """The caption, and the menu that saves the figure and its numbers."""
    words, menu = st.columns([7, 1])
    if caption:
        words.caption(escape(caption))
    if paper or table is not None:
        saved = menu.popover(
            "", icon=":material/download:", help="Save the figure or its numbers",
            key=f"menu_{key}", on_change="rerun",
        )  # fmt: skip
        if saved.open:
            with saved:
                saves(key, make, paper, table)


def saves(
    name: str,
    make: Callable[[], go.Figure] | None,
    paper: Callable[[], Any] | None,
    table: Tables | None,
) -> None:
    """Buttons that save a figure for print and as a page, and the tables it is drawn from."""
    if paper:
        for form, mime in PAPER.items():
            _button(form.upper(), f"{name}.{form}", mime, _printed(paper, form))
    if make is not None:
        save_page(name, make)
    made = table() if callable(table) else table
    held = made if isinstance(made, Mapping) else {} if made is None else {"": made}
    for part, numbers in held.items():
        label = f"CSV, {part or 'the numbers'}"
        file_name = f"{name}-{part}.csv" if part else f"{name}.csv"
        _button(label, file_name, "text/csv", _csv_of(numbers))


def save_page(name: str, make: Callable[[], go.Figure]) -> None:
    """A button that saves the interactive figure that `make` draws, as one page."""
    _button("HTML, interactive", f"{name}.html", "text/html", _page_of(make))


def _button(label: str, file_name: str, mime: str, data: Callable[[], bytes]) -> None:
    st.download_button(
        label, data, file_name=file_name, mime=mime, key=f"save_{file_name}", on_click="ignore",
    )  # fmt: skip


def _printed(paper: Callable[[], Any], form: str) -> Callable[[], bytes]:
    def make() -> bytes:
        from analysis.paper import save

        with tempfile.TemporaryDirectory() as folder:
            return save(paper(), Path(folder) / "figure", [form])[0].read_bytes()

    return make


def _page_of(make_figure: Callable[[], go.Figure]) -> Callable[[], bytes]:
    def make() -> bytes:
        from analysis.figures import save_html

        with tempfile.TemporaryDirectory() as folder:
            return save_html(make_figure(), Path(folder) / "figure").read_bytes()

    return make


def _csv_of(table: pd.DataFrame) -> Callable[[], bytes]:
    return lambda: csv(table)


def csv(table: pd.DataFrame) -> bytes:
    """A table as CSV, without what is a list in every row: scores by document, patterns."""
    first = table.iloc[0] if len(table) else {}
    flat = table[[c for c in table.columns if not isinstance(first.get(c), list | np.ndarray)]]
    return flat.to_csv(index=False).encode()


def download(table: pd.DataFrame, name: str) -> None:
    """A button that saves the table as CSV."""
    st.download_button(
        "Download CSV",
        lambda: csv(table),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"download_{name}",
        icon=":material/download:",
        on_click="ignore",
    )


_CLEAR = "rgba(0,0,0,0)"
_INK = {"light": "#3d454d", "dark": "#c9d0d8"}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', 'Liberation Sans', sans-serif"
_BUTTONS = ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"]
