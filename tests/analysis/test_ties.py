"""What differs by rounding alone is equal: in orders, ranks, differences, and tables of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import rank_heads, ties
from analysis.amplification import amplification
from analysis.contrasts import amplification_contrast
from analysis.dose import _best
from analysis.evidence import _agreement, _split_half
from analysis.intervals import t_interval
from analysis.mixed_model import random_intercept
from analysis.ranking import _sorted
from analysis.roles.labels import MARGIN, NONE, ROLES, _label
from analysis.statistics import weighted_mean
from analysis.tables import head_table
from kernels.errors import MidusError
from midus_model import HeadSite

LEVELS = np.array([0.3, 0.3, -0.1, 0.0, 0.7, 0.3, 0.0, 0.7])


def shaken(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The last bits changed, as another order of summing changes them."""
    steps = np.random.default_rng(seed).integers(-4, 5, np.shape(values))
    return values * (1 + steps * np.finfo(float).eps) + steps * 1e-18


def importance(by_document: np.ndarray, tokens: np.ndarray | None = None, **attrs: Any) -> Any:
    heads, count = by_document.shape
    tokens = np.full(count, 3) if tokens is None else tokens
    documents = [
        {"id": str(i), "tokens": int(n), "sha256": f"{i:064d}"} for i, n in enumerate(tokens)
    ]
    sites = [HeadSite(i // 4, "attention", i % 4, i // 4, "", None, 0, 1, i) for i in range(heads)]
    known = {"metric": "loss", "baseline": "mean", "unit": "nats/token", "method": "ablation",
             "seed": 0, "model": "planted"}  # fmt: skip
    return head_table(sites, by_document, tokens, {**known, "documents": documents, **attrs})


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 3e40])
def test_rounding_decides_no_order_and_no_rank(seed, scale):
    other = np.random.default_rng(9).normal(0, 1, len(LEVELS))
    found = shaken(LEVELS, seed) * scale
    assert ties.best_first(found).tolist() == [4, 7, 0, 1, 5, 3, 6, 2]
    assert len(set(ties.evened(found).tolist())) == 4
    assert ties.spearman(found, other) == ties.spearman(LEVELS, other)
    assert ties.spearman(LEVELS, other) == pytest.approx(stats.spearmanr(LEVELS, other).statistic)


def test_evened_keeps_what_differs_and_rows_apart():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (5, 30))
    np.testing.assert_array_equal(ties.evened(values), values)
    rows = np.stack([LEVELS, LEVELS * 1e-9])
    np.testing.assert_array_equal(ties.evened(rows), rows + 0.0)
    strange = np.array([np.nan, np.inf, -np.inf, 1.0, np.inf, np.nan, -0.0])
    np.testing.assert_array_equal(ties.evened(strange), strange)
    assert ties.best_first(strange).tolist() == [1, 4, 3, 6, 2, 0, 5]
    assert ties.evened([]).size == 0 and ties.best_first([2.0]).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, 6, (2, 40)).astype(float)
    assert ties.spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic)
    assert np.isnan(ties.spearman(one, np.full(40, 0.1)))


def test_what_is_left_of_a_sum_by_rounding_is_zero():
    thirds = np.array([1 / 3, 1 / 3, 1 / 3, -1 / 3, -1 / 3, -1 / 3])
    values = np.array([0.1, 0.7, 0.2, 0.7, 0.2, 0.1])
    assert ties.combination(thirds, values) == 0
    assert ties.combination(thirds, values + [1e-9, 0, 0, 0, 0, 0]) != 0
    assert ties.difference(0.1 + 0.2, 0.3) == 0 != (0.1 + 0.2) - 0.3
    assert np.isnan(ties.difference(np.nan, 1.0)) and ties.difference(0.0, 1e-300) == -1e-300


# ---------------------------------------------------------------- statistics and rankings


@pytest.mark.parametrize("heads", [3, 8, 37, 130])
def test_equal_heads_have_equal_means_and_intervals_wherever_they_stand(heads):
    rng = np.random.default_rng(heads)
    three = rng.normal(0, 1, (3, 61))
    which = rng.integers(0, 3, heads)
    weights = rng.integers(1, 300, 61)
    mean = weighted_mean(three[which], weights)
    found = t_interval(three[which], weights)
    for one in range(3):
        for part in (mean, *found[:-1]):
            assert len(set(part[which == one].tolist())) <= 1
    np.testing.assert_allclose(mean, (three[which] * weights).sum(1) / weights.sum())


def test_a_sorted_table_keeps_ties_in_the_models_order_and_says_that_they_tie():
    rng = np.random.default_rng(4)
    levels = np.repeat(rng.normal(0, 1, (4, 31)) + 1, 5, axis=0)[rng.permutation(20)]
    table = _sorted(importance(levels, rng.integers(1, 90, 31)), 7, 31)
    places = table["layer"] * 4 + table["head"]
    for _, group in places.groupby(table["score"].round(9), sort=False):
        assert len(group) == 5 and group.is_monotonic_increasing
        assert table["tied_with_next"].iloc[group.index[:-1]].all()
        chances = table["p_top"].iloc[group.index]
        assert chances.is_monotonic_decreasing
    whole = _sorted(importance(np.tile(levels[:1], (9, 1))), 4, 31)
    assert whole["p_top"].tolist() == [1.0] * 4 + [0.0] * 5
    assert whole["tied_with_next"].tolist() == [True] * 8 + [False]


def test_scores_that_add_up_to_the_same_keep_the_models_order():
    """Answers right by token: as many in all, in other documents, so other sums of thirds."""
    rng = np.random.default_rng(0)
    tokens = rng.choice([49, 98, 103, 5], 40)  # a 49th times 49 is not 1 in floats
    right = np.zeros((16, 40))
    for row in right:
        row[rng.choice(40, 9, replace=False)] = 1
    table = importance(right / tokens, tokens)
    assert len(set(table["score"].tolist())) > 1  # rounding tells them apart
    ranked = _sorted(table, 5, 40)
    assert (ranked["layer"] * 4 + ranked["head"]).tolist() == list(range(16))


def test_heads_chosen_for_a_curve_are_the_first_of_equals(monkeypatch):
    scores = shaken(np.full((12, 20), 0.1), 3)
    monkeypatch.setattr("analysis.dose.head_importance", lambda *_, **__: importance(scores))
    assert _best(None, None, {}) == [(0, 0), (0, 1), (0, 2), (0, 3)]  # type: ignore[arg-type]


# ---------------------------------------------------------------- evidence, roles, contrasts


def test_agreement_of_tables_does_not_hang_on_rounding():
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 4, 24) / 7
    tables = [
        pd.DataFrame({"score": shaken(levels, seed) if seed else levels}) for seed in range(6)
    ]
    other = pd.DataFrame({"score": rng.normal(0, 1, 24)})
    found = [_agreement("method", "a", "b", table, other, 6) for table in tables]
    assert all(row == found[0] for row in found)
    assert _agreement("method", "a", "b", tables[0], tables[3], 6)["overlap"] == 1
    assert _agreement("method", "a", "b", tables[0], tables[3], 6)["spearman"] == 1


@pytest.mark.filterwarnings("error")
def test_halves_of_a_table_in_which_all_heads_are_equal_have_no_correlation():
    row = _split_half(importance(np.tile(np.linspace(0.1, 1, 30), (8, 1))), "ablation", 3, 0)
    assert np.isnan(row["spearman"]) and row["overlap"] == 1


@pytest.mark.parametrize("lead", [MARGIN, MARGIN - 1e-9])
def test_a_lead_of_just_the_margin_is_one_whatever_it_is_computed_from(lead):
    for best in (0.9, 0.7 + 0.2, 1.0, 0.6, 0.8):
        score = {role: np.array([0.0]) for role in ROLES}
        score["previous_token"][:] = best
        score["duplicate_token"][:] = best - lead
        clear = {role: np.array([role == "previous_token"]) for role in ROLES}
        name, _, _ = _label(score, clear, 0)
        assert name == ("previous_token" if lead == MARGIN else NONE)


def test_a_copy_of_a_table_is_amplified_by_nothing():
    """Untrained memory adds rows of zeros, which sums in another order notice."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.1, 0.2, (12, 25))
    before = importance(base, rng.integers(3, 80, 25))
    grown = importance(np.vstack([base, np.zeros((8, 25))]), rng.integers(3, 80, 25))
    grown.attrs |= {"documents": before.attrs["documents"], "inserted_layers": [3, 4]}
    grown.loc[12:, "kind"] = "memory"
    grown.loc[12:, "source_layer"] = grown.loc[12:, "layer"] - 3
    table = amplification(before, grown)
    for name in ("score", "share_score", "ci_low", "ci_high", "share_ci_low", "share_ci_high"):
        assert (table[name] == 0).all(), name
    assert not np.array(table["share_by_document"].tolist()).any()


def test_chosen_heads_that_gained_what_their_controls_did_differ_by_nothing():
    rng = np.random.default_rng(2)
    base = rng.normal(0.2, 0.05, (8, 30))
    gain = np.tile(rng.normal(0.1, 0.3, (1, 30)), (8, 1))
    table = amplification(importance(base), importance(base + gain))
    gained = rng.normal(0.1, 0.3, 30)
    table["by_document"] = [gained.tolist()] * 8
    table["score"] = gained.mean()
    for caliper in (1.0, 10.0):
        chosen = [(0, 1), (0, 3), (1, 2)]
        found = amplification_contrast(table, chosen, caliper=caliper, unmatched="drop").iloc[0]
        assert found["difference"] == found["ci_low"] == found["ci_high"] == 0
        assert found["p"] == 1 and not np.any(found["by_document"])


@pytest.mark.parametrize("level", [0.1, 1 / 3, -7e5])
def test_a_regression_on_values_that_are_all_the_same_is_refused(level):
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(24), rng.normal(0, 1, (24, 2))])
    with pytest.raises(MidusError, match="no variance left"):
        random_intercept(np.full(24, level), design, np.repeat(np.arange(4), 6))


# ---------------------------------------------------------------- from the outside


def missed(seed: int) -> list[dict[str, str]]:
    """Prompts with answers that pico never gives, so that no head changes its accuracy."""
    rng = np.random.default_rng(seed)
    words = ("zebra", "quartz", "violin", "harbour", "plum", "glacier", "saffron", "walrus")
    return [
        {"prompt": f"x = {number}\ny = ", "answer": " ".join(rng.choice(words, 2))}
        for number in range(int(rng.integers(20, 30)))
    ]


def ranked_by_nothing(seed: int) -> None:
    table = rank_heads("pico", missed(seed), metric="accuracy", seed=seed)
    assert table.attrs["stopped"] in ("documents", "settled", "budget")
    assert not table["score"].any()
    assert (table["layer"] * 8 + table["head"]).tolist() == list(range(48))
    assert table["tied_with_next"].tolist() == [True] * 47 + [False]
    assert table["p_top"].tolist() == [1.0] * 16 + [0.0] * 32


@pytest.mark.parametrize("seed", range(2))
def test_answers_that_the_model_misses_rank_heads_in_its_own_order(seed):
    ranked_by_nothing(seed)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(2, 20))
def test_more_answers_that_the_model_misses(seed):
    ranked_by_nothing(seed)
