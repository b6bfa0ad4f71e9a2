"""Figures of a head's attention show the table's weights, cell by cell."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import pytest

from analysis import figures, paper
from kernels.errors import MidusError
from tests.analysis.figure_tables import drawn, importance_table, words
from tests.analysis.text_tables import pattern_table


def square(table: pd.DataFrame) -> np.ndarray:
    """The weights [T, T], NaN above the diagonal."""
    weights = np.full((len(table), len(table)), np.nan)
    for at, row in enumerate(table["pattern"]):
        weights[at, : at + 1] = row
    return weights


@pytest.mark.parametrize("tokens", [5, 61])
def test_cells_are_the_weights_of_the_table(tokens):
    table = pattern_table(tokens)
    (mesh,) = drawn(paper.attention_pattern(table), "cells")
    cells = np.asarray(mesh.get_array().filled(np.nan)).reshape(tokens, tokens)
    np.testing.assert_array_equal(cells, square(table))
    (trace,) = figures.attention_pattern(table).data
    np.testing.assert_array_equal(np.array(trace.z), square(table).astype(np.float32))
    assert trace.hoverongaps is False


def test_a_cell_says_from_which_token_to_which():
    table = pattern_table(12)
    (trace,) = figures.attention_pattern(table).data
    assert [len(row) for row in trace.text] == list(range(1, 13))
    assert trace.text[4][3] == "):\\n (4) → x&lt;y&gt; (3)"
    assert trace.text[8][7] == "id 8 (8) → (empty) (7)"
    assert "%{text}" in trace.hovertemplate and "%{z" in trace.hovertemplate


def test_axes_name_tokens_of_short_texts_and_count_positions_of_long_ones():
    short, long = pattern_table(20), pattern_table(61)
    figure, twin = paper.attention_pattern(short), figures.attention_pattern(short)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels[:5] == ["def", "␣$f$", "(", "x<y>", r"):\n"] and len(labels) == 20
    for axis in (twin.layout.xaxis, twin.layout.yaxis):
        assert list(axis.ticktext) == [html.escape(x).replace("$", "&#36;") for x in labels]
    assert figures.attention_pattern(long).layout.xaxis.ticktext is None
    assert "return" not in words(paper.attention_pattern(long))
    low, high = twin.layout.yaxis.range
    assert low > high  # the first token on top


def test_colours_of_a_broad_head_are_not_left_to_its_first_rows():
    sharp, broad = pattern_table(20), pattern_table(20)
    broad["pattern"] = [np.full(at + 1, 1 / (at + 1)).tolist() for at in range(20)]
    assert figures.attention_pattern(sharp).layout.coloraxis.cmax == 1
    assert "colours" not in paper.attention_pattern(sharp).caption
    figure = paper.attention_pattern(broad)
    assert figures.attention_pattern(broad).layout.coloraxis.cmax == pytest.approx(1 / 11)
    assert drawn(figure, "cells")[0].norm.vmax == pytest.approx(1 / 11)
    assert "colours end at 0.091" in figure.caption


def test_captions_name_the_model_the_head_and_the_text():
    table = pattern_table(30, "memory", cut=12)
    for text in (
        paper.attention_pattern(table).caption,
        figures.attention_pattern(table).layout.meta["caption"],
    ):
        for part in (
            "block 2, head 3 (memory)",
            "which makes the head's query",
            "first 30 of 42 tokens",
            "model pico-midus",
        ):
            assert part in text
    plain = paper.attention_pattern(pattern_table(30)).caption
    assert "memory" not in plain and "; 30 tokens;" in plain


@pytest.mark.parametrize("module", [paper, figures])
def test_another_table_is_refused(module):
    with pytest.raises(MidusError, match="pattern"):
        module.attention_pattern(importance_table([("attention", 0)], "pico"))
    with pytest.raises(MidusError, match="without rows"):
        module.attention_pattern(pattern_table().iloc[:0])
