"""Names as people give them, of 80 characters and of any sign, in every figure that shows one."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from analysis import figure_data as data
from analysis import figures, paper
from tests.analysis.figure_tables import hidden, training_log
from tests.analysis.test_figure_sheets import SHEETS, overlapping, shown

LONG = {
    "parts": "organisation/some-very-long-model-name-of-eighty-characters_v2.1-instruct-bf16-e3",
    "no break": "w" * 40 + "M" * 40,
    "spaces": "the model that we trained in march on all of the new text, twice, and its copy x",
    "signs": "_org/$money$_<b>bold</b>&amp;_{x^2}_%{x}_$\\frac$" + "-and-more" * 4,
    "unicode": "größe/модель-ελληνικά-naïve-" + "ééñ" * 17,
    "wide": "組織" * 40,
}
# Columns of tables, and entries of their attrs, that hold names of models, runs and data.
COLUMNS = ("run", "model", "data")
ATTRS = ("model", "before_model", "after_model", "data", "run")
# Where names stand elsewhere than in the caption; these are checked in every run.
NAMED = ("map", "curves", "costs", "training", "agreement", "large usage", "quality")
EVERY = [
    pytest.param(
        which, name,
        marks=() if which in NAMED and name in ("parts", "signs") else pytest.mark.verify,
    )
    for which in SHEETS
    for name in LONG
]  # fmt: skip


def renamed(table: Any, name: str, old: dict[str, str]) -> Any:
    """The table with every name in it made long, different names staying different."""
    if isinstance(table, dict):
        return {long(key, name, old): value for key, value in table.items()}
    table = table.copy()
    for key in ATTRS:
        if isinstance(table.attrs.get(key), str):
            table.attrs[key] = long(table.attrs[key], name, old)
    for column in COLUMNS:
        if column in table.columns:
            table[column] = [long(str(value), name, old) for value in table[column]]
    if "second" in table.columns and "kind" in table.columns:
        other = table["kind"] == "data"
        table.loc[other, "second"] = [long(str(v), name, old) for v in table.loc[other, "second"]]
    return table


def long(value: str, name: str, old: dict[str, str]) -> str:
    """Alike but for a sign in the middle, where labels are cut."""
    place = len(name) // 2
    return old.setdefault(value, f"{name[:place]}{len(old) or ''}{name[place:]}"[:82])


def sheet(which: str, name: str, module: Any) -> tuple[Any, list[str]]:
    figure, tables, options = SHEETS[which]
    old: dict[str, str] = {}
    given = [renamed(table, name, old) for table in tables]
    return getattr(module, figure)(*given, **options), list(old.values())


def area(figure: paper.Figure) -> tuple[float, float]:
    """How much of the sheet's width, and of its height over the caption, lies between its axes."""
    own = [ax for ax in figure.axes if ax.axison and ax.get_subplotspec()]  # no colour bars
    boxes = np.array([ax.get_position().extents for ax in own])
    width, height = boxes[:, 2].max() - boxes[:, 0].min(), boxes[:, 3].max() - boxes[:, 1].min()
    return width, height / (1 - figure.foot / figure.get_size_inches()[1])


@pytest.mark.parametrize(("which", "name"), EVERY)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_on_paper_axes_keep_their_room_and_nothing_leaves_the_sheet(which, name):
    usual = getattr(paper, SHEETS[which][0])(*SHEETS[which][1], **SHEETS[which][2])
    figure, names = sheet(which, LONG[name], paper)
    for one in (usual, figure):
        one.canvas.draw()
    width, height = figure.get_size_inches()
    used = figure.get_tightbbox()
    assert used.x0 >= -0.01 and used.y0 >= -0.01
    assert used.x1 <= width + 0.01 and used.y1 <= height + 0.01
    assert figure.note.get_window_extent().x1 <= figure.bbox.x1
    for found, before in zip(area(figure), area(usual), strict=True):
        assert found >= min(0.6, 0.9 * before)
    level = [t for t in shown(figure) if t.get_rotation() in (0, 90)]
    assert not overlapping([(t.get_text(), t.get_window_extent().extents) for t in level])


def strings(content: Any) -> list[str]:
    """Every text of a figure, in whatever it lies."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, dict):
        return [text for value in content.values() for text in strings(value)]
    if isinstance(content, list | tuple | np.ndarray):
        return [text for value in content for text in strings(value)]
    return []


def read(text: str) -> str:
    """What plotly shows of a text."""
    return html.unescape(re.sub(r"<br>", "", text).replace("\u200b", ""))


@pytest.mark.parametrize(("which", "name"), EVERY)
def test_on_a_page_axes_keep_their_room_and_names_are_no_markup(which, name):
    figure, names = sheet(which, LONG[name], figures)
    layout, margin = figure.layout, figure.layout.margin
    across = layout.width or 760
    plot = across - margin.l - margin.r
    usual = getattr(figures, SHEETS[which][0])(*SHEETS[which][1], **SHEETS[which][2]).layout
    before = (usual.width or 760) - usual.margin.l - usual.margin.r
    assert plot >= min(0.6 * across, 0.9 * before)
    assert layout.height - margin.t - margin.b >= 0.99 * (
        usual.height - usual.margin.t - usual.margin.b
    )
    first = [
        text
        for trace in figure.data
        if trace.type in ("bar", "scatter") and (trace.yaxis or "y") == "y"
        for text in (trace.y if trace.y is not None else ())
        if isinstance(text, str)
    ]
    for text in [*(layout.yaxis.ticktext or ()), *first]:
        widest = max(data.ems(html.unescape(part)) for part in hidden(text).split("<br>"))
        assert 11 * widest <= margin.l - 4, text
    if layout.legend.orientation == "h":
        entries = {
            t.legendgroup or t.name: t.name for t in figure.data if t.showlegend is not False
        }
        assert all(12 * data.ems(read(str(one))) + 45 <= plot for one in entries.values())
    content = figure.to_plotly_json()
    content["layout"].pop("meta")  # plain text, which plotly does not show
    for trace in content["data"]:
        trace.pop("legendgroup", None)
    everything = strings(content)
    assert not any("<b>bold" in text for text in everything)
    if which in NAMED:
        said = "".join("".join(map(read, everything)).split())
        assert [one for one in names if "".join(one.split()) not in said] == []


@pytest.mark.parametrize("which", NAMED)
def test_what_a_label_leaves_out_the_caption_says(which):
    for name in ("parts", "spaces"):
        figure, names = sheet(which, LONG[name], paper)
        said = figure.caption + "".join(text.get_text() for text in figure.findobj(Text))
        said = "".join(said.split())
        assert [one for one in names if "".join(one.split()) not in said] == []


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(("width", "lines"), [(8, 1), (12, 2), (25, 1), (25, 3)])
def test_labels_fit_keep_both_ends_and_differ(name, width, lines):
    names = [LONG[name], f"{LONG[name][:40]}!{LONG[name][41:]}", f"{LONG[name]}"]
    found = data.labels(names, width, lines)
    assert list(found) == names[:2] and len(set(found.values())) == 2
    for whole, label in found.items():
        parts = label.split("\n")
        assert len(parts) <= lines and data.widest([label]) <= width + 1e-9
        assert label[0] == whole.lstrip()[0]
        assert label.removesuffix(" (2)")[-1] == whole[-1]


def test_short_names_stay_as_they_are():
    names = ["pico", "pico-midus", "a/b", "two words", ""]
    assert data.labels(names, 20) == {name: name for name in names}
    assert data.whole_names(data.labels(names, 20)) == ""
    assert data.fold("one/two three", 4) == ["one/", "two", "three"]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    figure = paper.training_curves({"_a": training_log(1.0), "b": training_log(0.9)})
    shown = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["_a", "b"]
