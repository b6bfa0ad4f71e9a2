"""Races of planted tables: right as often as they say, in a short form and in the whole of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.ranking_study import planted as module
from workbench.ranking_study.outcomes import (
    WARNED,
    Record,
    neighbours,
    outcome,
    pooled,
    reliability,
    together,
    true_scores,
    untied,
    upper,
)
from workbench.ranking_study.report import planted_chances
from workbench.ranking_study.settings import FIRST_ORDER, SETTINGS

SHORT = {  # what a race of normal intervals got wrong, and how many races show it
    "zero variance": 4, "lognormal 2": 6, "rare 2%": 3, "one document each": 3, "320 tasks": 6,
    "10 documents": 15, "rare 2%, first order agrees": 3,
}  # fmt: skip
LIMITS = ("one rare head", "one rare head, first order of other windows")


def races(name: str, count: int) -> dict[str, Any]:
    return together(name, [outcome(name, number) for number in range(count)])


@pytest.mark.parametrize(("name", "count"), SHORT.items())
def test_a_race_is_right_where_effects_are_rare_skewed_or_few(name: str, count: int) -> None:
    row = races(name, count)
    assert row["wrong"] == 0 and row["covered"] == 1 == row["cut_covered"]
    assert row["guarantee"] == ("exact" if name == "320 tasks" else "asymptotic")


@pytest.mark.verify
@pytest.mark.parametrize("name", [name for name in [*SETTINGS, *FIRST_ORDER] if name not in LIMITS])
def test_a_race_is_right_as_often_as_it_says(name: str) -> None:
    row = races(name, 60 if name in ("192 heads", "512 heads") else 200)
    assert row["wrong_share"] <= 0.05 and row["wrong_upper"] <= 0.07
    asymptotic = row["guarantee"] == "asymptotic" and row["cut_few_windows_carry"] > 0.5
    assert row["covered"] >= 0.95 and row["cut_covered"] >= (0.93 if asymptotic else 0.95)


def chances_of(names: Iterable[str], races: int) -> tuple[list[dict[str, Any]], ...]:
    rows = [together(name, [outcome(name, n) for n in range(races)]) for name in names]
    return tuple(pooled([row[key] for row in rows]) for key in WARNED)


def test_chances_are_what_they_say_where_no_tail_warns() -> None:
    plain, _ = chances_of(("near ties", "5 documents", "uneven lengths"), 12)
    # Three deviations of a share among heads of one race, which are not independent.
    for cell in plain:
        room = 0.05 + 3 * np.sqrt(cell["said"] * (1 - cell["said"]) / cell["heads"])
        assert abs(cell["said"] - cell["true"]) <= room, cell


@pytest.mark.verify
def test_chances_of_every_setting_are_what_they_say() -> None:
    plain, warned = chances_of([*SETTINGS, *FIRST_ORDER], 60)
    assert all(abs(cell["said"] - cell["true"]) <= 0.05 for cell in plain), plain
    assert all(abs(cell["said"] - cell["true"]) <= 0.15 for cell in warned), warned


@pytest.mark.verify
@pytest.mark.parametrize("documents", [3, 5, 10, 30])
def test_neighbours_that_are_equal_elsewhere_are_seldom_untied(documents: int) -> None:
    row = untied(documents, [neighbours(documents, number) for number in range(400)])
    assert row["pairs"] > 500 and row["untied"] <= 0.05 * row["pairs"]


def test_untied_neighbours_are_few_with_few_documents() -> None:
    assert untied(3, [neighbours(3, number) for number in range(60)])["untied"] <= 6


def test_upper_bounds_and_bins() -> None:
    assert upper(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert upper(3, 3) == 1
    bins = reliability(np.array([0.0, 0.01, 0.6, 0.6, 1.0]), np.array([0, 0, 1, 0, 1], dtype=bool))
    assert [(cell["heads"], cell["true"]) for cell in bins] == [(2, 0.0), (2, 0.5), (1, 1.0)]
    twice = pooled([bins, bins[1:]])
    assert [(cell["heads"], cell["true"]) for cell in twice] == [(2, 0.0), (4, 0.5), (2, 1.0)]


def test_a_table_of_few_races_has_empty_bins() -> None:
    low, high = reliability(np.array([0.0, 0.6]), np.array([False, True]))
    rows = planted_chances({"p_top": [low], "p_top_warned": [high]}).splitlines()[2:]
    assert [row.split("|")[1:-1] for row in rows] == [
        [" 0 to 0.05 ", " 1 ", " 0.000 ", " 0.000 ", " 0 ", "  ", "  "],
        [" 0.5 to 0.75 ", " 0 ", "  ", "  ", " 1 ", " 0.600 ", " 1.000 "],
    ]


def test_a_row_counts_races_cut_short_and_at_their_end() -> None:
    cut = {"covered": False, "carried": True, "settled": False, "cost": 0.2, "p_top": [],
           "guarantee": "exact"}  # fmt: skip
    end = {"heads": 3, "windows": 9, "top": 1, "guarantee": "exact", "wrong": True,
           "covered": True, "carried": False, "stopped": "settled", "cost": 0.6}  # fmt: skip
    other = end | {"wrong": False, "cost": 1.0, "stopped": "documents"}
    few = cut | {"guarantee": "few windows"}  # states no error
    row = together(
        "name", [end | {"cut": cut}, other | {"cut": cut | {"covered": True}}, end | {"cut": few}]
    )
    assert (row["wrong"], row["wrong_upper"]) == (2, upper(2, 3)) and row["cut_races"] == 2
    assert (row["covered"], row["cut_covered"], row["cut_uncovered_upper"]) == (1, 0.5, upper(1, 2))
    assert (row["cost"], row["cost_most"]) == (pytest.approx(2.2 / 3), 1.0)
    assert row["stopped"] == {"settled": 2, "documents": 1, "budget": 0}
    assert (row["few_windows_carry"], row["cut_few_windows_carry"], row["silent"]) == (0, 1, 0)


def test_every_setting_has_a_top_set_and_sizes_of_its_own_windows() -> None:
    for name, make in {**SETTINGS, **FIRST_ORDER}.items():
        made = make(np.random.default_rng(0))
        scores, best = true_scores(made)
        assert len(best) == made.top < len(scores) and np.isfinite(made.effects).all(), name
        assert len(made.weights) == len(made.clusters) == made.effects.shape[1]
        if name.endswith("agrees"):
            assert np.corrcoef(made.sizes.ravel(), np.abs(made.effects).ravel())[0, 1] > 0.6


def test_the_command_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(name: str, number: int, seed: int) -> Record:
        made.append(number)
        return outcome(name, number, seed)

    monkeypatch.setattr(module, "outcome", counted)
    given = ["--settings", "3 documents", "--work", str(tmp_path)]
    assert module.main([*given, "--races", "2"]) == 0
    (row,) = json.loads((tmp_path / "planted.json").read_text())["settings"]
    assert row["setting"] == "3 documents" and row["races"] == 2
    assert "3 documents: wrong though settled" in capsys.readouterr().err
    kept = tmp_path / "races.jsonl"
    kept.write_bytes(kept.read_bytes()[:-5])  # the second line is cut off
    assert module.main([*given, "--races", "3"]) == 0
    assert made == [0, 1, 1, 2]
    assert module.main([*given, "--races", "1", "--seed", "1"]) == 0
    assert made == [0, 1, 1, 2, 0]
    kept.write_text("[1, 2]\n")
    assert module.main([*given, "--races", "1"]) == 2
    assert "line 1, is no race" in capsys.readouterr().err
    assert module.main(["--races", "0"]) == 2
    assert module.main([*given, "--docs", str(tmp_path)]) == 2
