"""The race on planted values: sure when it says so, right at the end, frugal on the way.

The oracle is the planted table itself: every head's value on every window, which the race sees only
as far as it pays for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, stats

from analysis import race as module
from analysis.race import MINIMUM, PILOT, Race, half_width, least_budget
from kernels.errors import ModelError

WINDOWS, HEADS, TOP = 160, 8, 3
UNLIMITED = 10**9


def planted(seed: int, spread: float = 0.25) -> np.ndarray:
    """Heavy-tailed values [heads, windows]: skewed noise, part of it shared by all heads."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_t(3, WINDOWS)
    own = rng.lognormal(0, 1, (HEADS, WINDOWS)) - np.exp(0.5)
    return np.linspace(1, 0, HEADS)[:, None] * spread * HEADS + shared + own


def close(seed: int) -> np.ndarray:
    """Heads that hardly differ: what a careless race gets wrong."""
    return planted(seed, spread=0.02)


def fed(values: np.ndarray) -> module.Measure:
    """Measures by looking up."""
    return lambda heads, windows: values[np.ix_(heads, windows)]


def raced(
    values: np.ndarray,
    budget: int = UNLIMITED,
    kind: type[Race] = Race,
    seed: int = 0,
    top: int = TOP,
) -> Race:
    race = kind(len(values), np.ones(values.shape[1]), np.arange(values.shape[1]), top, 0.95, seed)
    race.run(fed(values), budget)
    return race


def best(values: np.ndarray, top: int = TOP) -> set[int]:
    return set(np.argsort(-values.mean(1), kind="stable")[:top].tolist())


def chosen(race: Race) -> set[int]:
    return set(race.ranking()[: race.top].tolist())


class NotOverHeads(Race):
    """Does not divide alpha over heads and pairs."""

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        return half_width(count, self.windows, 0.05, sides)


class NotOverTime(Race):
    """Looks again and again at intervals that hold once."""

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        share = np.maximum(1 / count - 1 / self.windows, 0)
        return stats.norm.ppf(1 - alpha / sides) * np.sqrt(share)


class Naive(NotOverTime):
    """Both."""

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        return super().half_width(count, 0.05, sides)


# ---------------------------------------------------------------- the confidence sequence


@pytest.mark.parametrize("count", [16, 100, 5000])
@pytest.mark.parametrize("alpha", [0.05, 1e-4])
def test_the_boundary_is_where_the_mixture_reaches_one_over_alpha(count, alpha):
    """The martingale of theorem 2.2, integrated: normal for two sides, half-normal for one."""
    for sides in (1, 2):
        tail = np.log(sides / (2 * alpha))
        rho = np.sqrt((2 * tail + np.log1p(2 * tail)) / module.TIGHTEST)
        total = count * float(half_width(count, np.inf, alpha, sides))

        def likelihood(slope: float, total: float = total, rho: float = rho) -> float:
            return np.exp(slope * total - slope**2 * count / 2) * stats.norm.pdf(slope, 0, rho)

        peak = total / (count + 1 / rho**2)
        reach = 12 / np.sqrt(count + 1 / rho**2)
        low = peak - reach if sides == 2 else max(0.0, peak - reach)
        mass, _ = integrate.quad(likelihood, low, peak + reach, epsabs=0, epsrel=1e-9)
        reached = mass * (1 if sides == 2 else 2) * alpha
        assert reached == pytest.approx(1, rel=1e-6) if sides == 2 else 1 <= reached < 1.6


@pytest.mark.parametrize("sides", [1, 2])
def test_it_holds_at_every_count_at_once_and_a_plain_interval_does_not(sides):
    rng, runs, steps = np.random.default_rng(0), 600, 500
    count = np.arange(1, steps + 1)
    means = rng.standard_normal((runs, steps)).cumsum(1) / count
    means = np.abs(means) if sides == 2 else means
    left = (means > half_width(count, np.inf, 0.05, sides)).any(1).mean()
    assert left <= 0.05
    assert (means > stats.norm.ppf(1 - 0.05 / sides) / np.sqrt(count)).any(1).mean() > 0.15


def test_without_replacement_it_narrows_to_nothing_and_still_holds():
    rng, runs, population = np.random.default_rng(1), 600, 200
    values = rng.standard_normal((runs, population))
    values -= values.mean(1, keepdims=True)
    values /= values.std(1, keepdims=True)
    count = np.arange(1, population + 1)
    means = np.abs(values.cumsum(1) / count)[:, MINIMUM:]
    width = half_width(count, population, 0.05, 2)[MINIMUM:]
    assert (means > width + 1e-12).any(1).mean() <= 0.05
    assert (means > 0.8 * width + 1e-12).any(1).mean() > 0.02  # there is little slack
    assert width[-1] == 0 and (np.diff(width) < 0).all()
    assert half_width(10, 10**9, 0.05, 2) == pytest.approx(float(half_width(10, np.inf, 0.05, 2)))


# ---------------------------------------------------------------- what the race says is so


def errors(make: Callable[[int], np.ndarray], kind: type[Race], runs: int) -> tuple[float, float]:
    """Of races to the end: share with a wrong set, and share with some interval wrong."""
    wrong, uncovered = 0, 0
    for seed in range(runs):
        values = make(1000 + seed)
        race = raced(values, kind=kind, seed=seed)
        found, truth = race.intervals(), values.mean(1)
        wrong += chosen(race) != best(values)
        inside = (found["ci_low"] <= truth + 1e-9) & (truth - 1e-9 <= found["ci_high"])
        uncovered += not inside.all()
    return wrong / runs, uncovered / runs


@pytest.mark.parametrize(("make", "runs"), [(planted, 100), (close, 200)])
def test_sets_and_intervals_are_right_as_often_as_asked_with_heavy_tails(make, runs):
    wrong, uncovered = errors(make, Race, runs)
    assert wrong <= 0.05
    assert uncovered <= 0.05


@pytest.mark.parametrize(
    ("kind", "least"), [(NotOverHeads, 0.07), (NotOverTime, 0.07), (Naive, 0.3)]
)
def test_the_same_check_finds_a_race_without_corrections_wrong(kind, least):
    wrong, uncovered = errors(close, kind, 80)
    assert wrong > 0.05
    assert uncovered > least


def test_a_clear_top_set_is_settled_early_and_effort_goes_to_the_boundary():
    shares = []
    for seed in range(20):
        values = planted(seed, spread=1.2)
        race = raced(values, seed=seed)
        assert race.stopped == "settled" and chosen(race) == best(values)
        order = np.argsort(-values.mean(1))
        near, far = race.counts[order[TOP - 1 : TOP + 1]], race.counts[order[[0, -1]]]
        assert near.max() == race.counts.max() and (race.counts >= MINIMUM).all()
        shares.append(far.mean() / near.mean())
    assert np.mean(shares) < 0.6


def test_when_all_windows_are_seen_the_ranking_is_exact_and_ties_keep_the_models_order():
    values = close(3)
    values[TOP] = values[TOP - 1]
    values[TOP + 1] = values[TOP - 1]
    race = raced(values)
    assert race.stopped == "documents", race.counts
    assert chosen(race) == best(values)
    full = race.counts == WINDOWS
    found = race.intervals()
    np.testing.assert_allclose(found["score"][full], values.mean(1)[full], atol=1e-12)
    assert (found["ci_high"] - found["ci_low"])[full].max() == 0 == found["stderr"][full].max()


@pytest.mark.parametrize("budget", [128, 129, 400, 777])
def test_budget_is_never_exceeded_and_windows_are_a_prefix(budget):
    race = raced(close(0), budget)
    assert race.stopped == "budget"
    assert budget - HEADS * module.ROUND < race.spent <= budget
    for head, count in enumerate(race.counts):
        assert np.isfinite(race.y[head, :count]).all() and np.isnan(race.y[head, count:]).all()
    assert (race.counts >= MINIMUM).all()


def test_fewer_windows_than_the_minimum_are_all_seen():
    values = planted(0)[:, :5]
    race = raced(values)
    assert race.stopped == "documents" and (race.counts == 5).all()
    assert chosen(race) == best(values)
    one = raced(values[:, :1])
    assert chosen(one) == best(values[:, :1]) and np.isfinite(one.intervals()["ci_low"]).all()
    assert one.p_top().sum() == pytest.approx(TOP)


def test_values_that_are_not_finite_are_refused():
    values = planted(0)
    values[3] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        raced(values)


# ---------------------------------------------------------------- its parts


def test_gaps_are_the_paired_statistics_of_shared_windows():
    values = planted(5)
    race = raced(values, 400, seed=2)
    racing = np.array([1, 2, 3, 5, 7])
    gap, radius, complete = race.gaps(racing, 0.01)
    assert len(set(race.counts[racing].tolist())) > 1 and not complete.any()
    for i, first in enumerate(racing):
        for j, second in enumerate(racing):
            shared = min(race.counts[first], race.counts[second])
            at = race.order[:shared]
            difference = values[first, at] - values[second, at]
            width = half_width(shared, WINDOWS, 0.01, 1)
            assert gap[i, j] == pytest.approx(difference.mean(), abs=1e-12)
            assert radius[i, j] == pytest.approx(difference.std(ddof=1) * width, abs=1e-7)


def test_weights_make_the_score_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    weights, clusters = rng.integers(1, 256, 40).astype(float), rng.integers(0, 6, 40)
    sums = rng.normal(0, 1, (6, 40)) * weights
    race = Race(6, weights, clusters, 2, 0.9999)
    race.run(fed(sums), 6 * 40)
    full = race.counts == 40
    assert full.sum() >= 2
    np.testing.assert_allclose(race.scores[full], (sums.sum(1) / weights.sum())[full])
    by_cluster = race.by_cluster(7)
    assert np.isnan(by_cluster[:, 6]).all()
    for cluster in range(6):
        here = clusters == cluster
        expected = sums[:, here].sum(1) / weights[here].sum()
        np.testing.assert_allclose(by_cluster[full, cluster], expected[full])


def test_p_top_means_what_it_says():
    chances, inside = [], []
    for seed in range(100):
        values = planted(2000 + seed, spread=0.1)
        race = raced(values, 300, seed=seed)
        chance = race.p_top()
        assert chance.sum() == pytest.approx(TOP)
        chances.append(chance)
        inside.append(np.isin(np.arange(HEADS), list(best(values))))
    said, true = np.array(chances), np.array(inside)
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        here = (said >= low) & (said < high)
        assert here.sum() > 40
        assert true[here].mean() == pytest.approx(said[here].mean(), abs=0.12)


def test_design_effect_of_windows_alike_within_documents():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 10)
    alike = rng.normal(0, 1, (20, 60))[:, clusters] + rng.normal(0, 1, (20, 600))
    apart = rng.normal(0, 1, (20, 600))
    found = []
    for values in (alike, apart):
        race = Race(20, np.ones(600), clusters, 5)
        race.run(fed(values), 20 * 200)
        found.append(race.design_effect())
    assert found[0] == pytest.approx(1 + 0.5 * 9, rel=0.2)  # intraclass correlation 1/2
    assert found[1] == pytest.approx(1, abs=0.2)


def test_neighbours_tie_where_other_documents_may_turn_them():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 10)
    turns = rng.normal(0, 1, 30)
    turns = ((turns - turns.mean()) / turns.std())[clusters]  # of one document, alike
    values = np.stack([2 + turns, np.full(300, 1.8), np.full(300, 1.0) + 0.01 * turns])
    race = Race(3, np.ones(300), clusters, 1, 1 - 1e-9)
    race.run(fed(values), UNLIMITED)
    apart = Race(3, np.ones(300), np.arange(300), 1, 1 - 1e-9)
    apart.run(fed(values), UNLIMITED)
    order = np.array([0, 1, 2])
    assert race.ties(order) == [True, False, False]
    assert apart.ties(order) == [False, False, False]


def test_a_screen_leaves_out_the_last_and_keeps_the_budget():
    values = planted(1, spread=0.5)
    order = np.argsort(-values.mean(1))
    budget = least_budget(TOP, HEADS, WINDOWS) + 20
    race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP)
    race.screen(order, budget)
    race.run(fed(values), budget)
    assert race.spent <= budget
    assert race.screened.sum() == HEADS - TOP - 1
    assert (race.counts[race.screened] == PILOT).all()
    assert (race.counts[~race.screened] >= MINIMUM).all()
    assert set(race.ranking()[-race.screened.sum() :]) == set(np.flatnonzero(race.screened))
