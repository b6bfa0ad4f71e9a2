"""What a cheap table says of its agreement with exact ablation, and whether that is so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import head_importance, rank_heads
from analysis.agreement import (
    DRAWN,
    ENDS,
    agreement_of,
    share_interval,
    weighted_spearman,
)
from analysis.agreement_words import agreement_words
from analysis.figure_data import caption
from analysis.methods import CHEAP
from analysis.subject import AGREEMENT
from analysis.tables import load, save
from kernels.errors import MidusError
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny

TEXTS = [20] * 24
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 20 documents")


def sampled(
    first: np.ndarray, exact: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `with_agreement` samples: both ends, and heads drawn between, with what they stand for."""
    order = np.argsort(-first)
    between = order[ENDS:-ENDS]
    drawn = rng.choice(between, DRAWN, replace=False)
    heads = np.concatenate([order[:ENDS], order[-ENDS:], drawn])
    weights = np.r_[np.ones(2 * ENDS), np.full(DRAWN, len(between) / DRAWN)]
    return first[heads], exact[heads], weights


def drawn(kind: str, rho: float, heads: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """First-order and exact scores of all heads, that agree so far."""
    x, noise = rng.standard_normal((2, heads))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    if kind == "heavy":  # some heads tower over the others
        scale = np.sqrt(3 / stats.chi2.rvs(3, size=heads, random_state=rng))
        x, y = x * scale, y * scale
    if kind == "ends":  # only the largest agree
        y = np.where(np.abs(x) > 1.5, 3 * x, noise * 0.3)
    if kind == "shifted":
        y = y + 0.7
    return x, y


def test_weights_count_as_copies_do() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 6, (2, 30)).astype(float)
    copies = rng.integers(1, 4, 30)
    found = weighted_spearman(one, two, copies.astype(float))
    expected = stats.spearmanr(np.repeat(one, copies), np.repeat(two, copies)).statistic
    assert found == pytest.approx(expected, abs=1e-12)
    assert np.isnan(weighted_spearman(np.ones(4), np.arange(4.0), np.ones(4)))


def test_a_share_s_interval_is_clopper_and_pearson_s() -> None:
    for hits, count in ((0, 9), (3, 9), (9, 9)):
        known = stats.binomtest(hits, count).proportion_ci(method="exact")
        assert share_interval(hits, count) == pytest.approx((known.low, known.high))


def covered(kind: str, rho: float, heads: int, races: int, seed: int) -> tuple[int, int]:
    """How often the intervals hold what is true of all heads: correlation, shared sign."""
    rng = np.random.default_rng(seed)
    ranks = signs = 0
    for _ in range(races):
        x, y = drawn(kind, rho, heads, rng)
        found = agreement_of(*sampled(x, y, rng))
        truth = stats.spearmanr(x, y).statistic
        ranks += found["spearman_low"] <= truth <= found["spearman_high"]
        signs += found["sign_low"] <= np.mean(np.sign(x) == np.sign(y)) <= found["sign_high"]
    return ranks, signs


def check_coverage(races: int, cases: Any) -> None:
    """At least 93%, as far as so many races tell: the binomial 95% bound."""
    for kind, rho, heads in cases:
        for hits in covered(kind, rho, heads, races, seed=1):
            least = stats.binomtest(hits, races).proportion_ci(0.9, "exact").high
            assert least >= 0.93, (kind, rho, heads, hits / races)


def test_intervals_hold_what_is_true_of_all_heads() -> None:
    check_coverage(150, [("normal", 0.0, 270), ("heavy", 0.6, 270), ("ends", 0.0, 270)])


@pytest.mark.verify
def test_intervals_hold_what_is_true_of_all_heads_in_many_settings() -> None:
    kinds = ("normal", "heavy", "ends", "shifted")
    check_coverage(
        2000, [(k, rho, n) for k in kinds for rho in (0.0, 0.3, 0.6, 0.8) for n in (64, 270, 512)]
    )


@pytest.mark.parametrize("method", CHEAP)
def test_every_cheap_table_carries_it(method: str) -> None:
    model, data = tiny("llama"), random_texts(TEXTS)
    table = head_importance(model, data, method=method)
    found = table.attrs["agreement"]
    assert (found["heads"], found["heads_of"], found["windows_of"]) == (16, 16, 24)
    assert 4 <= found["windows"] <= 8
    assert (found["top"], found["bottom"], found["drawn"]) == (5, 5, 6)
    assert found["signed"] == (method not in ("gradient", "fisher", "atp_star"))
    assert (found["sign"] is not None) == found["signed"]
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]
    words = agreement_words(table.attrs)
    assert f"{found['spearman']:.2f}" in words and "16 of 16 heads" in words
    assert words in caption(table, title="Head importance")


def test_it_is_what_ablation_and_the_method_give_on_those_windows() -> None:
    model, data = memory_model(), random_texts([20] * 4)
    table = head_importance(model, data, method="taylor")
    assert table.attrs["agreement"]["windows"] == 4  # all there are
    exact = head_importance(model, data)
    found = table.attrs["agreement"]
    assert len(found["sample"]) == len(table) == 20
    for row, first, second in zip(
        found["sample"], table.itertuples(), exact.itertuples(), strict=True
    ):
        assert (row["layer"], row["kind"], row["head"]) == (first.layer, first.kind, first.head)
        assert row["score"] == pytest.approx(first.score, abs=1e-12)
        assert row["exact"] == pytest.approx(second.score, abs=1e-12)
    expected = stats.spearmanr(table["score"], exact["score"]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-9)
    assert found["sign"] == np.mean(np.sign(table["score"]) == np.sign(exact["score"]))


def test_drawn_heads_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many heads a sample is measured, and each drawn one counts as those that it stands for."""
    model = tiny("llama", num_hidden_layers=12)
    given: list[np.ndarray] = []
    real = agreement_of

    def seen(first: Any, exact: Any, weights: Any, signed: bool) -> Any:
        given.append(weights)
        return real(first, exact, weights, signed)

    monkeypatch.setattr("analysis.agreement.agreement_of", seen)
    table = head_importance(model, random_texts(TEXTS), method="taylor")
    found = table.attrs["agreement"]
    assert found["heads"] == 2 * ENDS + DRAWN and found["heads_of"] == 48
    assert given[0].sum() == pytest.approx(48)
    best = table.nlargest(ENDS, "score")
    top = {(row["layer"], row["head"]) for row in found["sample"] if row["part"] == "top"}
    assert top == set(zip(best["layer"], best["head"], strict=True))


def test_who_carries_none(tmp_path: Any) -> None:
    model, data = tiny("llama"), random_texts(TEXTS)
    assert "agreement" not in head_importance(model, data).attrs
    assert "agreement" not in head_importance(model, data, method="taylor", agreement=False).attrs
    asked = {"method": "gradient", "baseline": "zero", "convention": "michel"}
    assert "agreement" not in head_importance(model, data, **asked).attrs
    ranked = rank_heads(model, data, method="taylor", top=3)
    save(ranked, tmp_path / "ranked.parquet")
    assert load(tmp_path / "ranked.parquet").attrs["agreement"] == ranked.attrs["agreement"]
    assert agreement_words({}) == ""


def test_a_time_that_does_not_hold_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.estimates import Work

    held = Work.holds
    monkeypatch.setattr(
        Work, "holds", lambda self, name, *more: name != AGREEMENT and held(self, name, *more)
    )
    table = head_importance(tiny("llama"), random_texts(TEXTS), method="taylor", within=60)
    assert "agreement" not in table.attrs
    assert "agree with exact ablation" in "; ".join(table.attrs["within"]["left_out"])


def test_a_method_that_is_unknown_is_refused_first() -> None:
    with pytest.raises(MidusError, match="method is 'atp'"):
        head_importance(tiny("llama"), random_texts(TEXTS), method="atp")
