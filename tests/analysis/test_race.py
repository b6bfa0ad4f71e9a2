"""The race on planted values: sure when it says so, right at the end, frugal on the way.

The oracle is the planted table itself: every head's value on every window, which the race sees only
as far as it pays for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis import race as module
from analysis.race import MINIMUM, PILOT, Race, enough, least_budget
from analysis.race_found import by_cluster, design_effect, p_top, ties
from analysis.sequences import capital, interval
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

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        return super().certain(place, 0.05)


class NotOverTime(Race):
    """Looks again and again at tests and intervals that hold once."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        return self.lead[place] > stats.norm.ppf(1 - alpha)

    def intervals(self) -> dict[str, np.ndarray]:
        return self.plain((1 - self.confidence) / 2 / self.heads)

    def plain(self, alpha: float) -> dict[str, np.ndarray]:
        stderr = self.deviations * np.sqrt(self.variance_left)
        radius = stats.norm.ppf(1 - alpha / 2) * stderr
        low, high = self.scores - radius, self.scores + radius
        return {"score": self.scores, "stderr": stderr, "ci_low": low, "ci_high": high}


class Naive(NotOverTime):
    """Both."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        return super().certain(place, 0.05)

    def intervals(self) -> dict[str, np.ndarray]:
        return self.plain(0.05)


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


@pytest.mark.parametrize(("make", "runs"), [(planted, 60), (close, 60)])
def test_sets_and_intervals_are_right_as_often_as_asked_with_heavy_tails(make, runs):
    wrong, uncovered = errors(make, Race, runs)
    assert wrong <= 0.05
    assert uncovered <= 0.05


@pytest.mark.parametrize("kind", [NotOverTime, Naive])
def test_the_same_check_finds_a_race_without_corrections_wrong(kind):
    wrong, uncovered = errors(close, kind, 60)
    assert wrong > 0.03
    assert uncovered > 0.07


def test_pairs_and_intervals_are_corrected_for_how_many_there_are():
    """Bets hardly ever err where values are tame: the level they are held to is looked at."""
    race = raced(planted(3), 500)
    pairs = TOP * (HEADS - TOP)
    asked = np.log(2 * pairs / 0.05)
    open_ = np.minimum.outer(race.counts, race.counts) < WINDOWS
    assert (race.better[open_] == (race.money > asked)[open_]).all()
    assert (race.money[open_] > np.log(1 / 0.05)).sum() > race.better[open_].sum()
    found = race.intervals()
    head = int(np.flatnonzero(race.counts < WINDOWS)[0])
    values = race.y[head : head + 1, : race.counts[head]]
    ends = race.range.of_heads(np.array([head]), values)
    low, high = interval(values, *ends, WINDOWS, 0.05 / 2 / HEADS)
    assert (found["ci_low"][head], found["ci_high"][head]) == (low[0], high[0])


@pytest.mark.parametrize(("heads", "top", "confidence"), [(8, 3, 0.95), (5, 1, 0.8)])
def test_pairs_share_half_of_what_the_confidence_leaves(heads, top, confidence):
    """The other half is the intervals'; Bonferroni over the pairs that a top set is made of."""
    asked: list[float] = []

    class Told(Race):
        def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
            asked.append(alpha)
            return super().certain(place, alpha)

    race = Told(heads, np.ones(WINDOWS), np.arange(WINDOWS), top, confidence)
    race.run(fed(planted(3)[:heads]), 60 * heads)
    assert asked and asked == pytest.approx(
        [(1 - confidence) / 2 / (top * (heads - top))] * len(asked)
    )


def test_settling_takes_more_windows_of_more_heads_and_of_more_confidence():
    """Leads are as clear as can be; what is left is how many windows certainty takes."""
    rng = np.random.default_rng(0)
    least = []
    for heads, confidence in ((4, 0.99), (200, 0.99), (200, 0.999999)):
        values = rng.normal(0, 1e-3, (heads, 400)) + 10.0 * (np.arange(heads) < 2)[:, None]
        race = Race(heads, np.ones(400), np.arange(400), 2, confidence)
        race.run(fed(values), UNLIMITED)
        assert race.stopped == "settled"
        least.append(race.counts.min())
    assert least == sorted(least) and least[0] < least[1] < least[2]


def test_nothing_is_certain_of_unbounded_values_on_few_windows():
    """Eight heads that are far apart: with a bound it is settled on the minimum, without it not."""
    least = enough(HEADS, 0.95)
    assert MINIMUM < least == 26 < enough(512, 0.95) < enough(512, 0.999)
    assert 2 * HEADS * (1 - 0.2) ** least <= 0.05 < 2 * HEADS * (1 - 0.2) ** (least - 1)
    values = np.random.default_rng(0).normal(0, 0.01, (HEADS, WINDOWS))
    values[:TOP] += 0.9
    for bound, counts, word in ((1.0, MINIMUM, "exact"), (None, least, "asymptotic")):
        race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP, 0.95, bound=bound)
        race.run(fed(values), UNLIMITED)
        assert race.stopped == "settled" and race.guarantee == word
        assert race.counts.min() == counts
    short = raced(values, HEADS * least - 1)
    assert short.stopped == "budget" and short.guarantee == "few windows"
    few = short.counts < least
    assert few.any() and not short.better[few].any() and not short.better[:, few].any()


@pytest.mark.parametrize("budget", [137, 500])
def test_a_race_that_its_budget_ended_goes_on(budget):
    values = close(2)
    race = raced(values, budget)
    assert race.stopped == "budget" and race.spent <= budget
    asked: list[tuple[int, int]] = []

    def once(heads: np.ndarray, windows: np.ndarray) -> np.ndarray:
        asked.extend((h, w) for h in heads.tolist() for w in windows.tolist())
        return values[np.ix_(heads, windows)]

    before = race.spent
    race.run(once, UNLIMITED)
    assert race.stopped != "budget" and chosen(race) == best(values)
    assert len(asked) == len(set(asked)) == race.spent - before
    np.testing.assert_array_equal(race.y[:, 0], values[:, race.order[0]])
    whole = race.counts == WINDOWS
    np.testing.assert_allclose(race.scores[whole], values.mean(1)[whole], atol=1e-12)


def test_a_look_after_each_piece_finds_what_a_look_at_all_of_it_does():
    """Only pairs of heads that were measured since are looked at again."""
    values = close(7)
    race = raced(values, 700)
    whole = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP)
    for head, count in enumerate(race.counts.tolist()):
        whole._take(fed(values), np.array([head]), 0, count, None)
    whole.range = race.range
    whole.settled()
    np.testing.assert_array_equal(whole.better, race.better)
    np.testing.assert_array_equal(whole.money, race.money)


def test_what_was_decided_is_decided_again_when_a_larger_value_shows_up():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (6, 300)) + np.array([3.0, 2.4, 0, 0, 0, 0])[:, None]
    race = Race(6, np.ones(300), np.arange(300), 1)
    late = race.order[60:63]
    values[1, late] += 100.0
    race._take(fed(values), np.arange(6), 0, 56, None)
    race.settled()
    assert race.rejected.sum() >= 4
    race._take(fed(values), np.array([1]), 56, 72, None)
    assert not race.settled() and not race.rejected.any()


def test_no_interval_is_of_zero_width_before_the_last_window():
    values = planted(4)
    values[:4] = np.array([0.0, 0.0, 1.5, -2.0])[:, None]
    values[1, 7] = 1.0
    race = raced(values, 400)
    found, early = race.intervals(), race.counts < WINDOWS
    assert early[:4].any() and (found["ci_low"] < found["ci_high"])[early].all()
    blank = raced(np.zeros((HEADS, WINDOWS)), 300)
    assert blank.stopped == "budget"
    assert np.isinf(blank.intervals()["ci_high"]).all()  # nothing says how far values reach


def test_windows_that_come_first_are_known_and_the_mean_stays_unbiased():
    """Over all seeds the estimate is the true mean, though the heaviest windows were chosen."""
    values = planted(6)
    values[2, :12] += 30.0
    first = list(range(12))
    found = []
    for seed in range(400):
        race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP, 0.95, seed, first=first)
        assert race.order[:12].tolist() == first and sorted(race.order) == list(range(WINDOWS))
        race._take(fed(values), np.arange(HEADS), 0, 40, None)
        found.append(race.scores.copy())
    error = np.std(found, axis=0) / 20
    assert (np.abs(np.mean(found, axis=0) - values.mean(1)) < 4 * error).all()
    assert np.std(found, axis=0)[2] < 0.5  # they move it no more
    race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP, 0.95, first=first)
    race.run(fed(values), UNLIMITED)
    assert race.counts.min() >= 12 + MINIMUM and chosen(race) == best(values)
    whole = race.counts == WINDOWS
    np.testing.assert_allclose(race.scores[whole], values.mean(1)[whole], atol=1e-12)
    np.testing.assert_allclose(np.array(found).std(0)[2], race_error(values[2, 12:]), rtol=0.15)


def race_error(drawn: np.ndarray) -> float:
    """Standard error of the mean over all windows from 28 of those that are drawn."""
    left = len(drawn)
    return float(drawn.std(ddof=1) * np.sqrt(1 / 28 - 1 / left) * left / WINDOWS)


def test_a_bounded_race_is_right_where_hardly_any_answer_changes():
    wrong = uncovered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lost = np.array([0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.0, 0.0])[:, None]
        values = (rng.random((HEADS, WINDOWS)) < lost).astype(float)
        race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP, 0.95, seed, bound=1.0)
        race.run(fed(values), UNLIMITED)
        found, truth = race.intervals(), values.mean(1)
        wrong += chosen(race) != best(values)
        uncovered += ((truth < found["ci_low"] - 1e-9) | (truth > found["ci_high"] + 1e-9)).any()
    assert wrong <= 2 and uncovered <= 2


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
    assert p_top(one).sum() == pytest.approx(TOP)


def test_what_a_race_starts_from() -> None:
    """Sixteen windows a head and two of those left out, as `rank_heads` says; seed 0."""
    assert least_budget(5, 8, 100) == 8 * 2 + 6 * 14 and least_budget(5, 8, 10) == 8 * 2 + 6 * 8
    race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP)
    assert race.order.tolist() == np.random.default_rng(0).permutation(WINDOWS).tolist()
    assert race.minimum == 16 and race.confidence == 0.95


def test_whoever_says_no_ends_it_at_once() -> None:
    asked: list[int] = []

    def may(heads: np.ndarray, windows: int) -> bool:
        asked.append(windows)
        return len(asked) > 1

    race = Race(HEADS, np.ones(WINDOWS), np.arange(WINDOWS), TOP)
    race.run(fed(planted(0)), UNLIMITED, may=may)
    assert race.stopped == "budget" and race.spent == PILOT * HEADS and len(asked) == 1


def test_values_that_are_not_finite_are_refused():
    values = planted(0)
    values[3] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        raced(values)


# ---------------------------------------------------------------- its parts


def test_a_pair_is_bet_on_by_its_differences_on_shared_windows():
    values = planted(5)
    race = raced(values, 400, seed=2)
    race._compare(np.arange(HEADS))
    assert len(set(race.counts.tolist())) > 1
    for one, two in [(1, 2), (3, 5), (7, 0), (2, 7)]:
        shared = min(race.counts[one], race.counts[two])
        difference = (values[one] - values[two])[race.order[:shared]]
        up = difference if difference.mean() > 0 else -difference
        low = -max(np.abs(up).max(), race.range.ratio * up.std(ddof=1))
        won = capital(up[None], np.zeros(1), np.array([low]), WINDOWS)[0]
        ahead = (one, two) if difference.mean() > 0 else (two, one)
        assert race.money[ahead] == pytest.approx(won) and race.money[ahead[::-1]] == -np.inf
        error = difference.std(ddof=1) * np.sqrt(1 / shared - 1 / WINDOWS)
        assert race.lead[one, two] == pytest.approx(difference.mean() / error)


def test_weights_make_the_score_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    weights, clusters = rng.integers(1, 256, 40).astype(float), rng.integers(0, 6, 40)
    sums = rng.normal(0, 1, (6, 40)) * weights
    race = Race(6, weights, clusters, 2, 0.9999)
    race.run(fed(sums), 6 * 40)
    full = race.counts == 40
    assert full.sum() >= 2
    np.testing.assert_allclose(race.scores[full], (sums.sum(1) / weights.sum())[full])
    by_document = by_cluster(race, 7)
    assert np.isnan(by_document[:, 6]).all()
    for cluster in range(6):
        here = clusters == cluster
        expected = sums[:, here].sum(1) / weights[here].sum()
        np.testing.assert_allclose(by_document[full, cluster], expected[full])


def test_p_top_means_what_it_says():
    chances, inside = [], []
    for seed in range(100):
        values = planted(2000 + seed, spread=0.1)
        race = raced(values, 300, seed=seed)
        chance = p_top(race)
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
        found.append(design_effect(race))
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
    assert ties(race, order) == [True, False, False]
    assert ties(apart, order) == [False, False, False]


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
