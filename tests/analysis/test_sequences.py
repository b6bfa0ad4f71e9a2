"""Betting on the mean of a finite population: fair by enumeration, right at every window."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from analysis.sequences import SHARES, capital, interval

ALPHA = 0.05


def money(values: list[float], mean: float, low: float, population: int, known: int = 0) -> float:
    """By definition: one window after the other, in the open."""
    held = np.ones(len(SHARES))
    for i, value in enumerate(values):
        if i < known:
            continue
        expected = (population * mean - sum(values[:i])) / (population - i)
        held *= 1 - SHARES + SHARES * (value - low) / (expected - low)
    return float(held.mean())


@pytest.mark.parametrize("known", [0, 2])
@pytest.mark.parametrize("seen", [3, 5])
def test_money_is_neither_won_nor_lost_on_average_over_all_orders(known, seen):
    """Exactly 1 over all orders of the drawn values where the mean is the true one."""
    population = [0.3, -0.9, 1.0, 0.25, -0.5, 0.7, 0.1][: 7 - 1]
    first, rest = population[:known], population[known:]
    orders = np.array([[*first, *turn] for turn in itertools.permutations(rest)])[:, :seen]
    mean = np.full(len(orders), np.mean(population))
    low = np.full(len(orders), -1.0)
    won = np.exp(capital(orders, mean, low, len(population), known))
    assert won.mean() == pytest.approx(1, rel=1e-9)
    assert won.std() > 0.01
    for row, found in list(zip(orders.tolist(), won, strict=True))[::37]:
        assert found == pytest.approx(money(row, mean[0], -1.0, len(population), known))
    too_small = capital(orders, mean - 0.1, low, len(population), known)
    too_large = capital(orders, mean + 0.1, low, len(population), known)
    assert (too_small >= too_large).all() and np.exp(too_large).mean() < 1


def normal(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.normal(0.1, 0.3, 120), -1, 1)


def rare(rng: np.random.Generator) -> np.ndarray:
    values = np.zeros(120)
    values[rng.choice(120, 5, replace=False)] = 1.0
    return values


def two_sided(rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], 120, p=[0.3, 0.7])


@pytest.mark.parametrize("make", [normal, rare, two_sided])
def test_intervals_hold_at_every_window_at_once(make: Callable[..., np.ndarray]):
    runs, population = 300, 120
    rng = np.random.default_rng(0)
    values = np.stack([rng.permutation(make(rng)) for _ in range(runs)])
    truth, one = values.mean(1), np.ones(runs)
    missed = np.zeros(runs, dtype=bool)
    widths = []
    for count in (1, 2, 3, 5, 8, 13, 21, 34, 55, 80, 100, 115, 119):
        low, high = interval(values[:, :count], -one, one, population, ALPHA)
        missed |= (truth < low) | (truth > high)
        assert (low < high).all()  # never of zero width before the last window
        widths.append((high - low).mean())
    assert missed.mean() <= ALPHA
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.05


def test_an_interval_for_draws_from_an_endless_source_is_wider_and_a_smaller_range_is_wrong():
    rng = np.random.default_rng(1)
    values = np.stack([rng.permutation(rare(rng)) for _ in range(200)])[:, :60]
    one, truth = np.ones(200), 5 / 120
    finite = interval(values, -one, one, 120, ALPHA)
    endless = interval(values, -one, one, 10**9, ALPHA)
    assert ((endless[1] - endless[0]) > (finite[1] - finite[0])).all()
    with np.errstate(invalid="ignore"):
        low, high = interval(values, -0.05 * one, 0.05 * one, 120, ALPHA)
    assert ((low > truth) | (high < truth)).mean() > 0.3


def test_an_interval_ends_where_the_money_reaches_its_limit():
    rng = np.random.default_rng(2)
    values, one = rng.normal(0.2, 0.3, (6, 40)).clip(-1, 1), np.ones(6)
    low, high = interval(values, -one, one, 90, 0.02, known=7)
    limit = np.log(2 / 0.02)
    for step, expected in ((-1e-6, True), (1e-6, False)):
        assert ((capital(values, low + step, -one, 90, 7) > limit) == expected).all()
        assert ((capital(-values, -high + step, -one, 90, 7) > limit) == expected).all()


def test_what_no_values_could_make_is_impossible():
    values = np.full((1, 9), 0.8)
    assert capital(values, np.array([0.5]), np.array([-1.0]), 10)[0] == np.inf  # 8.2 is too low
    assert np.isfinite(capital(values, np.array([0.63]), np.array([-1.0]), 10)[0])
    low, high = interval(values, np.array([-1.0]), np.array([1.0]), 10, 0.05)
    assert 0.62 <= low[0] <= 0.72 <= high[0] <= 0.82


def test_how_many_windows_certainty_takes_grows_with_the_confidence():
    """However clear a lead is: money grows by less than a factor of two a window."""
    values, zero, low = np.ones((1, 64)), np.zeros(1), -np.ones(1)
    needed = []
    for alpha in (1e-2, 1e-4, 1e-6):
        won = [capital(values[:, :t], zero, low, 10**6)[0] for t in range(1, 65)]
        needed.append(int(np.argmax(np.array(won) > -np.log(alpha))) + 1)
    assert needed == sorted(set(needed)) and needed[0] >= 7 and needed[-1] >= 20
