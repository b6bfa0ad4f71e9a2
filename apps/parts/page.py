"""Messages, figures, downloads and links: what every page of the explorer does alike."""

from __future__ import annotations

import contextlib
import html
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analysis import figure_data
from apps.parts import access
from kernels.errors import MidusError, RunError

MAP_WIDTH = 850  # pixels: what a 1280-pixel window leaves beside the sidebar
PAPER = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}


class MissingTable(RunError):
    """A table that this kind of run does not make; nothing is wrong with the run."""


# ---------------------------------------------------------------- messages


@contextlib.contextmanager
def messages(what: str) -> Iterator[None]:
    """Anything that goes wrong inside becomes one message on the page; the rest goes on."""
    try:
        yield
    except MissingTable as error:
        st.info(sentence(error), icon=":material/info:")
    except MidusError as error:
        st.error(sentence(error), icon=":material/error:")
    except MemoryError:
        st.error(f"{what} does not fit into this machine's memory.", icon=":material/error:")
    except Exception as error:
        logging.getLogger(__name__).exception("%s could not be shown", what)
        st.error(
            escape(
                f"{what} could not be shown ({type(error).__name__}: {error}). The run folder may "
                "be damaged or of another version: make the run again or choose another one."
            ),
            icon=":material/error:",
        )


def sentence(error: Exception) -> str:
    """An error's line as a sentence."""
    text = str(error).rstrip(".")
    return escape(f"{text[:1].upper()}{text[1:]}.")


def escape(text: str) -> str:
    """Text that shows as it is where Streamlit reads Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>$~|:" else c for c in text)


def computed(text: str) -> None:
    """The explanation under a figure, folded away."""
    with st.expander("How is this computed"):
        st.markdown(text)


# ---------------------------------------------------------------- links


def linked(key: str, options: Sequence[str], what: str, fallback: int = 0) -> Callable[[], None]:
    """Say so where the page's address asks for a `key` that is none of the options.

    To be called before the widget that is bound to `key`: Streamlit drops such a value silently.
    The message stays until the user chooses; returns what the widget is to call then.
    """
    lost = f"lost_{key}_{what}"
    asked = st.query_params.get(key)
    if asked is not None and asked not in options and key not in st.session_state:
        st.session_state[lost] = asked
    now = st.session_state.get(key)
    if now in options and now != options[fallback]:  # chosen since
        st.session_state.pop(lost, None)
    if lost in st.session_state:
        shown = options[fallback] if options else "nothing"
        st.warning(
            f"The link asks for {what} {escape(st.session_state[lost])}, which is not there; "
            f"this page shows {escape(shown)} instead. Choose another one below.",
            icon=":material/link_off:",
        )
    return lambda: st.session_state.pop(lost, None)


def choose(
    label: str,
    options: Sequence[str],
    key: str,
    *,
    place: Any = st,
    default: int = 0,
    help: str | None = None,
    what: str | None = None,
) -> str:
    """A choice that the page's address keeps; options are texts, as the address shows them."""
    chosen = linked(key, options, what or label.lower(), default)
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    return str(
        place.selectbox(
            label, options, index=default, key=key, bind="query-params", help=help, on_change=chosen
        )
    )


def toggle(label: str, options: Sequence[str], key: str, *, place: Any = st) -> str:
    """One of a few options side by side, kept in the page's address."""
    chosen = linked(key, options, label.lower())
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    return str(
        place.segmented_control(
            label, options, default=options[0], key=key, bind="query-params", required=True,
            on_change=chosen,
        )
    )  # fmt: skip


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class Prepared:
    """A figure as it is shown: its caption taken out, its colours those of the page's theme.

    Sessions share it, so it is changed (its marks) only under the lock.
    """

    figure: go.Figure
    caption: str
    shapes: tuple[Any, ...]
    lock: threading.Lock


_prepared: dict[tuple[Any, ...], Prepared] = {}
MOST_FIGURES = 128  # kept drawn


def draw(
    make: Callable[[], go.Figure],
    key: str,
    *,
    same: tuple[Any, ...] | None = None,
    marks: Sequence[dict[str, Any]] | None = None,
    clicked: Callable[[dict[str, Any]], None] | None = None,
    stretch: bool = True,
    paper: Callable[[], Any] | None = None,
    table: pd.DataFrame | None = None,
) -> None:
    """Show a figure of `analysis.figures`, its caption below as text that wraps with the page.

    Args:
        make: draws it.
        same: what it depends on, hashable; a figure once drawn for it is shown again.
        marks: shapes on top, such as `frame` makes.
        clicked: called with the point that was clicked, before the page is drawn again.
        stretch: False of maps, whose markers have a fixed size.
        paper: makes the figure's twin for print; with it, and with `table`, a menu saves them.
    """
    theme = st.context.theme.type or "light"
    shown = _shown(make, theme, None if same is None else (key, theme, *same))

    def selected() -> None:
        points = ((st.session_state.get(key) or {}).get("selection") or {}).get("points")
        if points and clicked:
            clicked(dict(points[0]))

    with shown.lock:
        if marks is not None:
            shown.figure.layout.shapes = (*shown.shapes, *marks)
        st.plotly_chart(
            shown.figure,
            width="stretch" if stretch else "content",
            theme=None,
            key=key,
            on_select=selected if clicked else "ignore",
            selection_mode="points",
            config={"displaylogo": False, "modeBarButtonsToRemove": _BUTTONS},
            alt=shown.caption or None,
        )
    words, menu = st.columns([7, 1])
    if shown.caption:
        words.caption(escape(shown.caption))
    if paper or table is not None:
        with menu.popover("", icon=":material/download:", help="Save the figure or its numbers"):
            saves(key, make, paper, table)


def _shown(make: Callable[[], go.Figure], theme: str, same: tuple[Any, ...] | None) -> Prepared:
    kept = None if same is None else _prepared.get(same)
    if kept is not None:
        return kept
    figure = make()
    caption = _without_caption(figure)
    ink = _INK[theme]
    if theme == "dark":
        _darken(figure)
    figure.update_traces(unselected={"marker": {"opacity": 1}}, selector={"type": "scatter"})
    figure.update_layout(
        font={"color": ink, "family": _FONT}, modebar={"bgcolor": _CLEAR, "color": ink}
    )
    prepared = Prepared(figure, caption, tuple(figure.layout.shapes), threading.Lock())
    if same is not None:
        _prepared[same] = prepared
        for oldest in list(_prepared)[:-MOST_FIGURES]:
            _prepared.pop(oldest, None)  # another session may have been quicker
    return prepared


def frame(head: int, row: int, panel: int = 1) -> dict[str, Any]:
    """A frame around a cell of a map: `head` across, `row` down, in its first or second panel."""
    axis = "" if panel == 1 else str(panel)
    return {
        "type": "rect", "line": {"width": 2.5, "color": figure_data.MEMORY},
        "x0": head - 0.48, "x1": head + 0.48, "y0": row - 0.48, "y1": row + 0.48,
        "xref": f"x{axis}", "yref": f"y{axis}",
    }  # fmt: skip


def on_paper(name: str, *tables: Any, **options: Any) -> Callable[[], Any]:
    """Draws the figure of that name for print when it is called: matplotlib takes a second."""

    def make() -> Any:
        from analysis import paper

        return getattr(paper, name)(*tables, **options)

    return make


def _darken(figure: go.Figure) -> None:
    """Heat maps run from dark to light, so that nothing is not what shines on a dark page."""
    for trace in figure.data:
        if trace.type != "heatmap":
            continue
        holder = figure.layout[trace.coloraxis] if trace.coloraxis else trace
        holder.colorscale = [[1 - at, colour] for at, colour in reversed(holder.colorscale)]


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


def saves(
    name: str,
    make: Callable[[], go.Figure] | None,
    paper: Callable[[], Any] | None,
    table: pd.DataFrame | None,
) -> None:
    """Buttons that save a figure for print, as a page, and the table it is drawn from."""
    if paper:
        for form, mime in PAPER.items():
            _button(f"{form.upper()}", f"{name}.{form}", mime, _printed(paper, form))
    if make is not None:
        save_page(name, make)
    if table is not None:
        _button("CSV, the numbers", f"{name}.csv", "text/csv", lambda: csv(table))


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


def csv(table: pd.DataFrame) -> bytes:
    """A table as CSV, without the scores by document."""
    flat = table[[c for c in table.columns if not c.endswith("by_document")]]
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


def _plain(text: str | None) -> str:
    return html.unescape((text or "").replace("<br>", " "))


# ---------------------------------------------------------------- the run in view


def model_of(run: access.Run, *sides: str) -> str | None:
    """The run's model of the first side that it names, as it may be loaded.

    None, with a message on the page, where there is none or it was not given to the explorer.
    """
    for side in sides:
        try:
            name = run.model(side)
        except MidusError as error:
            st.info(sentence(error), icon=":material/info:")
            return None
        if name is not None:
            return name
    st.info("This run names no model, so nothing can be run here.", icon=":material/info:")
    return None


def run() -> access.Run:
    """The run chosen in the sidebar."""
    chosen: access.Run = st.session_state["run"]
    return chosen
