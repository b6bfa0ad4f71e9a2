"""Races of heads that tie: they end, with a word, and ties fall by value and model order alone."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from analysis.race import LEAST, Measure, Race, exact_sum
from analysis.race_found import design_effect, p_top, ties

UNLIMITED = 10**9
WORDS = ("settled", "documents", "budget")


class ToTheEnd(Race):
    """Certain of nothing before the last window, so that every head sees all of them."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        return np.zeros(self.money[place].shape, dtype=bool)


def fed(values: np.ndarray) -> Measure:
    return lambda heads, windows: values[np.ix_(heads, windows)]


def raced(
    values: np.ndarray,
    top: int,
    kind: type[Race] = Race,
    seed: int = 0,
    weights: np.ndarray | None = None,
    budget: int = UNLIMITED,
) -> Race:
    windows = values.shape[1]
    weights = np.ones(windows) if weights is None else weights
    race = kind(len(values), weights, np.arange(windows) // 3, top, 0.95, seed)
    race.run(fed(values), budget)
    return race


def ended(race: Race, word: tuple[str, ...] = WORDS) -> None:
    """It has a word, as many heads as were asked for, and no head twice."""
    assert race.stopped in word
    assert sorted(race.ranking().tolist()) == list(range(race.heads))
    assert not (race.accepted & race.rejected).any()
    if race.stopped != "budget":
        assert race.accepted.sum() == race.top and not race.active.any()
    if race.seed % 5 == 0:
        chances = p_top(race)
        assert np.isfinite(chances).all() and chances.sum() == pytest.approx(race.top)
    assert np.isfinite(design_effect(race)) and len(ties(race, race.ranking())) == race.heads


def by_value_and_place(values: np.ndarray) -> list[int]:
    """Heads by their sum, in exact arithmetic, and where it is the same by model order."""
    total = [sum(map(Fraction, row)) for row in values.tolist()]
    return sorted(range(len(values)), key=lambda head: (-total[head], head))


def zero_one(rng: np.random.Generator) -> np.ndarray:
    """What ablation does to answers right or wrong: few change, many heads alike."""
    heads, windows = rng.integers(4, 24), rng.integers(5, 90)
    share = rng.choice([0.0, 0.02, 0.2, 0.5])
    values = (rng.random((heads, windows)) < share).astype(float)
    return values * rng.choice([1.0, -1.0]) if rng.random() < 0.5 else values


def duplicates(rng: np.random.Generator) -> np.ndarray:
    """Heavy-tailed effects of which several heads have the same, at different places."""
    heads, windows = rng.integers(5, 20), rng.integers(20, 90)
    different = rng.standard_t(3, (max(heads // 3, 2), windows)) * 0.1
    return different[rng.integers(0, len(different), heads)]


def constant(rng: np.random.Generator) -> np.ndarray:
    """The same on every window, which no sum of floats need give back; some alike, some zero."""
    levels = np.array([0.1, 0.3, 1e-9, 0.0, -0.0, -0.7])
    return np.repeat(rng.choice(levels, (rng.integers(3, 12), 1)), rng.integers(1, 70), axis=1)


TABLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "zero and one": zero_one,
    "duplicates": duplicates,
    "constant": constant,
}


def many(make: str, count: int) -> list[tuple[np.ndarray, int, int]]:
    """Tables with a size of the top set and a seed."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(7000 + seed)
        values = TABLES[make](rng)
        found.append((values, int(rng.integers(1, len(values))), seed))
    return found


@pytest.mark.parametrize(
    ("make", "count"), [("zero and one", 100), ("duplicates", 60), ("constant", 100)]
)
def test_every_race_ends_with_a_word(make, count):
    for values, top, seed in many(make, count):
        ended(raced(values, top, seed=seed), ("settled", "documents"))
        if seed % 4 == 0:
            ended(raced(values, top, seed=seed, budget=values.size // 2))


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize("unequal", [False, True])
def test_when_all_windows_are_seen_scores_decide_and_then_the_models_order(make, unequal):
    for values, top, seed in many(make, 40):
        rng = np.random.default_rng(seed)
        weights = rng.integers(1, 300, values.shape[1]).astype(float) if unequal else None
        race = raced(values, top, ToTheEnd, seed, weights)
        ended(race, ("documents",))
        assert race.ranking()[:top].tolist() == by_value_and_place(values)[:top]
        if (race.counts == race.windows).all() and seed % 5 == 0:
            assert (p_top(race) == race.accepted).all()


@pytest.mark.parametrize("level", [0.0, -0.0, 0.1, -1 / 3])
def test_heads_that_are_all_equal_stand_in_the_models_order(level):
    race = raced(np.full((9, 40), level), 4)
    ended(race, ("documents",))
    assert race.ranking().tolist() == list(range(9))
    assert p_top(race).tolist() == [1.0] * 4 + [0.0] * 5
    assert ties(race, race.ranking()) == [True] * 8 + [False]
    assert (race.scores == level).all() and not race.deviations.any()


def test_equal_sums_from_other_windows_are_equal_scores():
    """One third of a token's weight is no float: only exact sums make these heads equal."""
    rng = np.random.default_rng(0)
    weights = np.full(48, 3.0)
    values = np.zeros((8, 48))
    for row in values:
        row[rng.choice(48, 7, replace=False)] = 1.0
    race = raced(values, 3, ToTheEnd, weights=weights)
    assert len(set(race.scores.tolist())) == 1
    assert race.ranking().tolist() == list(range(8))


def test_relabelling_heads_relabels_the_race():
    rng = np.random.default_rng(3)
    for seed in range(20):
        values = rng.standard_t(3, (10, 80)) + np.linspace(1, 0, 10)[:, None]
        turn = rng.permutation(10)
        first, second = raced(values, 4, seed=seed), raced(values[turn], 4, seed=seed)
        assert turn[second.ranking()].tolist() == first.ranking().tolist()
        assert first.counts[turn].tolist() == second.counts.tolist()
        assert first.stopped == second.stopped
        np.testing.assert_array_equal(first.scores[turn], second.scores)


@pytest.mark.parametrize("power", [-60, -7, 9, 60])
@pytest.mark.parametrize("make", TABLES)
def test_another_unit_changes_no_decision(make, power):
    for values, top, seed in many(make, 10):
        one, two = raced(values, top, seed=seed), raced(values * 2.0**power, top, seed=seed)
        assert one.ranking().tolist() == two.ranking().tolist()
        assert one.counts.tolist() == two.counts.tolist() and one.stopped == two.stopped
        np.testing.assert_array_equal(one.scores * 2.0**power, two.scores)


def test_the_spread_of_a_small_difference_is_its_own():
    """Heads a billion times larger than what they differ by: var + var - 2 cov has nothing left."""
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 1, 60) * 1e3
    values = np.stack([shared, shared, shared + np.round(rng.normal(0, 1, 60), 2) * 2**-20])
    race = Race(3, np.ones(60), np.arange(60), 1)
    race._take(fed(values), np.arange(3), 0, 59, None)  # all windows but one
    race._compare(np.arange(3))
    assert race.lead[0, 1] == 0 == race.money[0, 1]
    at = race.order[:-1]
    exact = [Fraction(b) - Fraction(a) for a, b in zip(values[0, at], values[2, at], strict=True)]
    mean = sum(exact) / len(exact)
    variance = sum((one - mean) ** 2 for one in exact) / (len(exact) - 1)
    error = float(variance * Fraction(1, 59 * 60)) ** 0.5
    assert race.lead[2, 0] == pytest.approx(float(mean) / error, rel=1e-9)
    assert race.lead[0, 2] == -race.lead[2, 0]


def test_pairs_are_kept_up_to_date_as_a_full_computation_gives_them():
    values = np.random.default_rng(2).normal(0, 1, (12, 150))
    race = raced(values, 4, budget=700)
    race._compare(np.arange(12))
    assert len(set(race.counts.tolist())) > 1
    kept = race.money.copy(), race.lead.copy(), race.better.copy()
    race._shared[:] = 0
    race._compare(np.arange(12))
    for before, anew in zip(kept, (race.money, race.lead, race.better), strict=True):
        np.testing.assert_array_equal(before, anew)


def test_sums_are_exact():
    rng = np.random.default_rng(0)
    values = [*(rng.normal(0, 1, 300) * 10.0 ** rng.integers(-300, 300, 300)), 5e-324, -0.0]
    exact = sum(map(Fraction, values))
    assert Fraction(exact_sum(values), 1 << LEAST) == exact
    assert exact_sum([0.1] * 10) / (10 << LEAST) == 0.1 != sum([0.1] * 10) / 10


class Contradictory(Race):
    """Says something else every time it is asked."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        rng = np.random.default_rng(int(self.counts.sum()) + 1000 * self.seed)
        return rng.random(self.money[place].shape) < 0.4


class NeverSure(Race):
    """Has no number for any pair."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        self.lead[place] = self.money[place] = np.nan
        return self.money[place] > 0


@pytest.mark.parametrize("kind", [Contradictory, NeverSure])
def test_a_race_whose_comparisons_make_no_sense_ends_all_the_same(kind):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 1, (rng.integers(4, 14), rng.integers(5, 60)))
        race = raced(values, int(rng.integers(1, len(values))), kind, seed)
        assert race.stopped in ("settled", "documents")
        assert race.accepted.sum() <= race.top
        assert not (race.accepted & race.rejected).any()
