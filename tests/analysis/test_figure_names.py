"""Names as people give them, of 80 characters and of any sign, in every figure that shows one."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data as data
from analysis import figures, paper
from tests.analysis.test_figure_sheets import SHEETS, overlapping, shown

LONG = {
    "parts": "organisation/some-very-long-model-name-of-eighty-characters_v2.1-instruct-bf16-e3",
    "no break": "w" * 40 + "M" * 40,
    "spaces": "the model that we trained in march on all of the new text, twice, and its copy x",
    "signs": "_org/$money$_<b>bold</b>&amp;_{x^2}_%{x}_$\\frac$" + "-and-more" * 4,
    "unicode": "größe/модель-ελληνικά-naïve-" + "ééñ" * 17,
    "wide": "組織" * 40,
}
# Columns of tables, and entries of their attrs, that hold names of models, runs, data and documents.
COLUMNS = ("run", "model", "data")
ATTRS = ("model", "before_model", "after_model", "data", "run")
# Sheets with other labels than names along their axes, which take their room: their share of it.
FLOOR = 0.55


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


def named(which: str) -> bool:
    """Whether a figure shows a name elsewhere than below it."""
    figure, tables, options = SHEETS[which]
    for module in (paper, figures):
        plain = getattr(module, figure)(*tables, **options)
        made, _ = sheet(which, LONG["parts"], module)
        texts = [
            {t.get_text() for t in shown(one) if t is not one.note}
            if module is paper
            else {json_text for json_text in re.findall(r'"(?:name|text|ticktext)":"([^"]*)"', one.to_json())}
            for one in (plain, made)
        ]
        if texts[0] != texts[1]:
            return True
    return False


def area(figure: paper.Figure) -> tuple[float, float]:
    """How much of the sheet's width, and of its height over the caption, lies between its axes."""
    boxes = np.array([ax.get_position().extents for ax in figure.axes if ax.axison])
    width, height = boxes[:, 2].max() - boxes[:, 0].min(), boxes[:, 3].max() - boxes[:, 1].min()
    return width, height / (1 - figure.foot / figure.get_size_inches()[1])


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("which", SHEETS)
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
