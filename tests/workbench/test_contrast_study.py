"""A contrast's p value holds its level where choice has no effect, and finds one where it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench
from workbench import contrast_study
from workbench.contrast_study import drawn_table, outcome, report, upper_bound

DOCS = Path(workbench.__file__).parents[1] / "docs"


@pytest.mark.parametrize("choice", ["top", "chance"])
def test_what_is_not_there_is_seldom_found(choice: str) -> None:
    """At 6% more than 8 of 60 come once in 80 times; nearest heads within layers gave 70%."""
    found = outcome(512, 0.3, choice, 60, seed=1)
    assert found["answered"] > 50 and found["able"] > 25 and found["rejected"] <= 8
    assert abs(found["smd"]) < 0.3


def test_an_effect_is_found_where_heads_have_controls() -> None:
    found = outcome(512, 0.1, "chance", 10, effect=1.0, seed=2)
    assert found["rejected"] >= 8


def test_in_the_studys_setting_there_is_no_telling() -> None:
    """Three of 48 heads, the most important of their layers: hardly one has a control."""
    found = outcome(48, 0.1, "top", 20, seed=3)
    assert found["refused"] >= 18 and found["able"] == found["rejected"] == 0


def test_the_table_drawn_is_as_it_says() -> None:
    table, chosen = drawn_table(np.random.default_rng(0), 48, 0.1, "top", effect=2.0)
    plain, same = drawn_table(np.random.default_rng(0), 48, 0.1, "top")
    assert chosen == same and len(chosen) == 3 and all(layer % 2 for layer, _ in chosen)
    picked = np.array([pair in chosen for pair in zip(table["layer"], table["head"], strict=True)])
    gained = (table["score"] - plain["score"]).to_numpy()
    assert (gained[picked] > 0).all() and (gained[~picked] == 0).all()
    able = table[table["layer"] % 2 == 1]
    assert table["before"][picked].min() >= able["before"].nlargest(3).min()


def test_bounds_are_clopper_and_pearsons() -> None:
    assert upper_bound(0, 59) == pytest.approx(0.05, abs=1e-3)  # the rule of three
    assert upper_bound(0, 0) == upper_bound(5, 5) == 1


def test_the_docs_table_is_that_of_the_numbers_kept(capsys: Any) -> None:
    kept = json.loads((DOCS / "contrasts.json").read_text(encoding="utf-8"))
    page = (DOCS / "amplification.md").read_text(encoding="utf-8")
    assert report(kept["settings"]) in page
    nulls = [row for row in kept["settings"] if not row["effect"] and row["choice"] != "other"]
    assert len(nulls) == 18
    assert all(row["rejected"] <= 0.06 * row["answered"] for row in nulls)
    assert contrast_study.main(["--tables", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.verify
@pytest.mark.parametrize("choice", ["top", "chance"])
@pytest.mark.parametrize("heads", [192, 512])
def test_what_is_not_there_is_found_in_six_per_cent_at_most(choice: str, heads: int) -> None:
    found = outcome(heads, 0.3, choice, 800, seed=11)
    print(found)
    assert found["rejected"] <= 0.06 * found["answered"] and found["upper"] <= 0.075
