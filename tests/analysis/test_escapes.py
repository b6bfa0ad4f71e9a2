"""Names from outside in every medium: they show as they are, and do nothing."""

from __future__ import annotations

import html
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from analysis import escapes, figures, paper
from analysis.paper import fonts
from tests.analysis.figure_tables import costs_table, training_log

NAMES = [
    "$a$", "$", "a_$\\frac{1}$", "$\\undefined{x$", "_x_", "x^2", "\\alpha", "[red]", "[/]",
    "[a](b)", "*bold*", "`code`", "<b>b</b>", "<a href='x'>y</a>", "&amp;", "&lt;", ":red[x]",
    ":smile:", ":material/home:", "# head", "- item", "1. one", "| a | b |", "~~x~~", "http://x.y",
    "a@b.c", "%{x}", "{0}", "-->", "é", "w" * 300, "(x", "{", "}", "%s",
]  # fmt: skip
HIDDEN = [
    "a\x1b[31mred",
    "bell\x07",
    "nul\x00",
    "\udcff",
    "back\x08",
    "a\rb",
    "turn\u202e",
    "\u2028",
]
ANY = st.text(st.characters(), min_size=1, max_size=12)


@pytest.mark.parametrize("name", [*NAMES, *HIDDEN])
def test_a_terminal_shows_a_name_and_does_nothing(name: str) -> None:
    shown = escapes.terminal(name)
    assert shown == name if name in NAMES else shown.encode() and shown.isprintable()


def rendered(text: str) -> str:
    """What Markdown makes of a text, without its paragraph."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert re.fullmatch(r"<p>[^<]*</p>\n", made), made
    return html.unescape(made[3:-5])


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    for text in (name, f"the run {name}, twice {name}"):
        shown = rendered(escapes.markdown(text))
        assert shown.replace("\u2060", "") == text
        assert not re.search(r":[\w+-]+:|:material/", shown)  # Streamlit's icons
        assert not re.search(r"(?<!\\)[$]|(?<!\\):\w+\[", escapes.markdown(text))


@given(ANY)
@example("\n")
@settings(max_examples=60, deadline=None)
def test_any_text_is_one_line_of_markdown_without_marks(text: str) -> None:
    shown = escapes.markdown(f"x{text}x")
    assert shown.encode() and not any(unicodedata.category(c) == "Cc" for c in shown)
    rendered(shown)


@given(ANY)
@settings(max_examples=60, deadline=None)
def test_any_text_on_a_plotly_page_is_no_markup(text: str) -> None:
    shown = escapes.plotly(text)
    assert "$" not in shown and "%{" not in shown and shown.encode()
    assert not re.search(r"<(?!br>)", shown)
    assert html.unescape(shown.replace("<br>", "\n")).replace("\u200b", "") == (
        escapes.visible(text).replace("\u200b", "")
    )


# ---------------------------------------------------------------- a figure on paper


def groups(names: list[str], size: int = 8) -> list[list[str]]:
    short = [name for name in names if len(name) < 100]
    return [short[at : at + size] for at in range(0, len(short), size)]


def drawn(names: list[str], tmp_path: Path) -> list[str]:
    """Every text in the SVG of a figure in which the names are in the legend and the caption."""
    figure = paper.training_curves({name: training_log(1.0) for name in names})
    (path,) = paper.save(figure, tmp_path / "figure", ["svg"])
    tree = ElementTree.parse(path)
    return ["".join(e.itertext()).strip() for e in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("names", groups(NAMES), ids=str)
def test_paper_shows_names_as_they_are(names: list[str], tmp_path: Path) -> None:
    said = drawn(names, tmp_path)
    assert [name for name in names if not any(name in text for text in said)] == []


@pytest.mark.filterwarnings("ignore:no font of this machine")
def test_paper_spells_out_what_cannot_be_drawn(tmp_path: Path) -> None:
    said = drawn(HIDDEN, tmp_path)
    for part in ("\\x1b[31mred", "bell\\x07", "nul\\x00", "\\udcff", "back\\x08"):
        assert any(part in text for text in said), said
    figure = paper.training_curves({name: training_log(1.0) for name in HIDDEN})
    assert len(paper.save(figure, tmp_path / "figure", ["pdf", "png"])) == 2


def test_ticks_are_no_mathematics(tmp_path: Path) -> None:
    tables = (costs_table("$\\frac{1$ \x1b[0m", 0.0), costs_table("x_$", 1e6))
    (path,) = paper.save(paper.costs(*tables), tmp_path / "figure", ["svg"])
    said = "".join(ElementTree.parse(path).getroot().itertext())
    assert "$\\frac{1$ \\x1b[0m" in said and "x_$" in said


def test_what_no_font_has_is_one_warning(tmp_path: Path) -> None:
    fonts._told.clear()
    strange = "\U000f1234\U000f1235"  # for private use: no font has them
    assert fonts.missing(["plain é", strange]) == sorted(strange)
    with pytest.warns(UserWarning) as caught:
        drawn([f"a{strange}", strange], tmp_path)
    said = [str(one.message) for one in caught if "no font of this machine" in str(one.message)]
    assert len(said) == 1 and all(c in said[0] for c in strange)
    assert not [one for one in caught if "Glyph" in str(one.message)]
    assert fonts.families()[0] == "DejaVu Sans"


def test_a_page_holds_every_name(tmp_path: Path) -> None:
    figure = figures.training_curves({name: training_log(1.0) for name in [*NAMES, *HIDDEN]})
    assert figures.save_html(figure, tmp_path / "page").stat().st_size


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", [*NAMES, *HIDDEN])
def test_a_table_on_a_terminal_is_no_markup(name: str, monkeypatch: Any, capsys: Any) -> None:
    import rich.console

    from workbench.cli import common

    wide = lambda **_: Console(width=2000, force_terminal=False)  # noqa: E731
    monkeypatch.setattr(rich.console, "Console", wide)
    common.print_table(f"of {name}", [name], [[name]])
    assert capsys.readouterr().out.count(escapes.terminal(name).strip()) >= 3
