"""Names from outside (files, runs, models, tokens) as text, a function a medium.

matplotlib needs none: `analysis.paper` takes mathematics out of every text that it draws.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Controls, and what turns the direction of the text after it: it would hide or rearrange a line.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKDOWN = frozenset("\\`*_{}[]()<>#+-.!|~$:&=^@")
# Streamlit makes icons of these after Markdown is read, escaped or not; a word joiner parts them.
_ICON = re.compile(r":(?=[\w+-]+:|material/)")


def terminal(text: str) -> str:
    r"""Text for a terminal: control characters spelt out, line ends and tabs as they are.

    >>> terminal("a\x1b[31m\nb")
    'a\\x1b[31m\nb'
    """
    return "".join(c if c in "\n\t" or not _unseen(c) else _spelt(c) for c in text)


def one_line(text: str) -> str:
    r"""A name within a line: line ends spelt out too.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return "".join(_spelt(c) if _unseen(c) else c for c in text)


def markdown(text: str) -> str:
    r"""Text for Streamlit's Markdown, in which it shows as it is; its lines become one.

    >>> markdown("$x$ :red[y]")
    '\\$x\\$ \\:red\\[y\\]'
    """
    shown = _ICON.sub(":\u2060", one_line(" ".join(text.split())))
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in shown)


def plotly(text: str) -> str:
    """Text for plotly, which knows tags and a few entities, quotes not among them."""
    shown = html.escape(visible(text), quote=False)
    shown = shown.replace("%{", "%\u200b{")  # the beginning of a template
    # What stands between two dollars is LaTeX where the page has MathJax, as notebooks do.
    return shown.replace("$", "&#36;").replace("\n", "<br>")


def visible(text: str) -> str:
    """Text for a figure: what no font draws and no file format holds spelt out."""
    return "".join(c if c == "\n" or not _control(c) else _spelt(c) for c in text)


def storable(name: str) -> str:
    r"""A file's name as text that can be stored: bytes that are no UTF-8 spelt out.

    >>> storable("a\udcff")
    'a\\udcff'
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def _unseen(character: str) -> bool:
    return _control(character) or character in _TURNS or character in "\u2028\u2029"


def _spelt(character: str) -> str:
    r"""\n, \x1b, \u202e."""
    return character.encode("unicode_escape").decode("ascii")
