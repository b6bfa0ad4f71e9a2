"""Races of planted tables: right as often as they say, in a short form and in the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from workbench.ranking_study import planted as module
from workbench.ranking_study.planted import outcome, reliability, true_scores, untied, upper
from workbench.ranking_study.settings import FIRST_ORDER, SETTINGS

SHORT = {  # what a race of normal intervals got wrong, and how many races show it
    "zero variance": 4, "lognormal 2": 6, "rare 2%": 4, "one document each": 4, "320 tasks": 6,
    "10 documents": 20, "rare 2%, first order agrees": 4,
}  # fmt: skip
LIMITS = ("one rare head", "one rare head, first order of other windows")


@pytest.mark.parametrize(("name", "races"), SHORT.items())
def test_a_race_is_right_where_effects_are_rare_skewed_or_few(name: str, races: int) -> None:
    row = outcome(name, races)
    assert row["wrong"] == 0 and row["covered"] == 1
    assert row["guarantee"] == ("exact" if name == "320 tasks" else "asymptotic")


@pytest.mark.verify
@pytest.mark.parametrize("name", [name for name in [*SETTINGS, *FIRST_ORDER] if name not in LIMITS])
def test_a_race_is_right_as_often_as_it_says(name: str) -> None:
    row = outcome(name, 200 if row_is_small(name) else 60)
    assert row["wrong_share"] <= 0.05 and row["wrong_upper"] <= 0.07
    assert row["covered"] >= 0.95


def row_is_small(name: str) -> bool:
    return name not in ("192 heads", "512 heads")


@pytest.mark.verify
@pytest.mark.parametrize("documents", [3, 5, 10, 30])
def test_neighbours_that_are_equal_elsewhere_are_seldom_untied(documents: int) -> None:
    row = untied(documents, 400)
    assert row["pairs"] > 500 and row["untied"] <= 0.05 * row["pairs"]


def test_untied_neighbours_are_few_with_few_documents() -> None:
    assert untied(3, 60)["untied"] <= 6


def test_upper_bounds_and_bins() -> None:
    assert upper(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert upper(3, 3) == 1
    bins = reliability(np.array([0.0, 0.01, 0.6, 0.6, 1.0]), np.array([0, 0, 1, 0, 1], dtype=bool))
    assert [(cell["heads"], cell["true"]) for cell in bins] == [(2, 0.0), (2, 0.5), (1, 1.0)]


def test_every_setting_has_a_top_set_and_sizes_of_its_own_windows() -> None:
    for name, make in {**SETTINGS, **FIRST_ORDER}.items():
        made = make(np.random.default_rng(0))
        scores, best = true_scores(made)
        assert len(best) == made.top < len(scores) and np.isfinite(made.effects).all(), name
        assert len(made.weights) == len(made.clusters) == made.effects.shape[1]
        if name.endswith("agrees"):
            assert np.corrcoef(made.sizes.ravel(), np.abs(made.effects).ravel())[0, 1] > 0.6


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = tmp_path / "found.json"
    given = ["--races", "2", "--settings", "3 documents", "--out", str(place)]
    assert module.main(given) == 0
    (row,) = json.loads(place.read_text())["settings"]
    assert row["setting"] == "3 documents" and row["races"] == 2
    assert "3 documents: wrong though settled" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main(["--races", "0"])
