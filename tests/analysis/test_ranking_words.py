"""The line that a ranking can be quoted by, and its warning."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from analysis.ranking_words import counted, summary, tail_warning


def ranking(**attrs: Any) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "layer": [0, 1, 2, 3], "head": [3, 1, 0, 2], "p_top": [1.0, 0.96, 0.03, 0.01],
            "exact": [300, 300, 80, 40], "carried_by": [3, 90, 22, 0],
            "tied_with_next": [False, True, False, False],
        }
    )  # fmt: skip
    table.attrs = {
        "top": 2, "stopped": "settled", "confidence": 0.95, "guarantee": "asymptotic", "first": 0,
        "minimum": 16, "evaluations": 720, "exhaustive": 1200, "metric": "loss", "data": "heldout",
        "documents": ["a", "b", "c"], "method": "ablation",
    } | attrs  # fmt: skip
    return table


def test_what_was_settled_over_what_at_which_error_and_cost():
    line = summary(ranking())
    assert "\n" not in line and line.endswith(".")
    for words in (
        "the 2 best of 4 heads by ablation are settled",
        "other documents may turn the last place",
        "over these 3 documents of heldout, not over others",
        "the set and all intervals together wrong in at most 5% of races, asymptotically",
        "720 of 1,200 exact evaluations (60.0%)",
    ):
        assert words in line


@pytest.mark.parametrize(
    ("attrs", "words", "not_words"),
    [
        ({"stopped": "budget"}, "not settled (chance of 95% and more: 2 heads)", "the set and"),
        ({"guarantee": "exact"}, "in every sample size", "asymptotically"),
        (
            {"guarantee": "few windows", "enough": 33, "stopped": "budget"},
            "fewer than 33",
            "at most",
        ),
        ({"guarantee": None}, "if values are near normal", "asymptotically"),
        ({"first": 7}, "a first-order pass (7 windows first)", "all there are"),
        ({"evaluations": 1200}, "1,200 exact evaluations, all there are", "first-order"),
        ({"conditional": "on a screen"}, "conditional on a screen", "few windows"),
        ({"tails": "few windows carry it"}, "few windows carry it", "conditional"),
        ({"confidence": 0.999}, "at most 0.1% of races", "5%"),
    ],
)
def test_what_else_it_says(attrs, words, not_words):
    line = summary(ranking(**attrs))
    assert words in line and not_words not in line.replace("95%", "")


def test_without_a_race_it_claims_no_error_rate():
    table = ranking(method="taylor", evaluations=0)
    del table.attrs["minimum"], table.attrs["guarantee"]
    line = summary(table)
    assert "by taylor are known" in line and "no head was ablated" in line
    assert "settled" not in line and "of races" not in line


def test_a_tail_that_rules_the_mean_is_named():
    said = tail_warning(ranking())
    assert "0.3 (3 of 300)" in said and "1.1" not in said and "3.2" not in said
    table = ranking()
    table["carried_by"] = 100
    assert tail_warning(table) == ""


def test_windows_of_one_document_are_not_called_documents():
    texts = [{"id": f"a@{n}", "tokens": 8} for n in range(218)]
    assert "these 218 documents of" in summary(ranking(documents=texts))
    line = summary(ranking(documents=texts, bootstrap_unit="window"))
    assert "these 218 windows of" in line and "218 documents" not in line
    assert counted({"documents": texts[:1]}) == "1 document" and counted({}) == "0 documents"
