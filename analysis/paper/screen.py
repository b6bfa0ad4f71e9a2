"""A figure for print on a page in a browser: without its caption and its sheet, light or dark."""

from __future__ import annotations

import io
import re

from analysis.paper.canvas import METADATA, Figure, lay_out, style

# What stands on the sheet itself takes the page's colours; what is coloured by a value keeps its
# own, and so do words that lie on it (black or white, whichever reads).
_DARK = {
    "#000000": "#c9d0d8", "#404040": "#c9d0d8", "#202020": "#dfe3e8", "#ffffff": "#14171b",
    "#e3e6e8": "#2a3037", "#d3d7da": "#363c44", "#b4bbc1": "#59626b",
}  # fmt: skip
_ELEMENT = re.compile(r"<(\w+)\b[^>]*>")
_CLOSED = re.compile(r'[zZ]\s*"')
_COLOUR = re.compile(r"#[0-9a-f]{6}")


def screen_svg(figure: Figure, *, dark: bool = False) -> str:
    """The figure as SVG on a transparent ground, its caption left to the page.

    The figure is changed: it loses its caption and the room it had.
    """
    width, height = figure.get_size_inches()
    if figure.note is not None:
        figure.note.remove()
        figure.note = None
        figure.set_size_inches(width, height - figure.foot)
        lay_out(figure, (0, 0, 1, 1))
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata=METADATA["svg"], transparent=True)
    text = buffer.getvalue()
    # A default ink, for text that names no colour of its own.
    text = text.replace("<svg ", f'<svg fill="{_DARK["#000000"] if dark else "#000000"}" ', 1)
    return _ELEMENT.sub(_darker, text) if dark else text


def _darker(element: re.Match[str]) -> str:
    # On coloured cells lie words, and signs, which are open strokes; cells themselves are closed.
    words = element[1] == "text"
    signs = "fill: none" in element[0] and not _CLOSED.search(element[0])

    def turned(colour: re.Match[str]) -> str:
        kept = (colour[0] == "#ffffff" and (words or signs)) or (colour[0] == "#202020" and words)
        return colour[0] if kept else _DARK.get(colour[0], colour[0])

    return _COLOUR.sub(turned, element[0])
