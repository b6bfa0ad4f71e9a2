"""Tails: what is usual, what is heavy, and how far values are taken to reach."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.tails import (
    MARGIN,
    Range,
    carriers,
    heavy_windows,
    kurtosis,
    scales,
    tail_share,
)


def test_scales_of_a_normal_are_its_own_and_rare_values_do_not_move_them():
    values = np.random.default_rng(0).normal(3, 2, (4, 4000))
    centre, largest, usual = scales(values)
    np.testing.assert_allclose(centre, 3, atol=0.15)
    np.testing.assert_allclose(usual, 2, rtol=0.05)
    assert (largest >= 6).all()
    values[:, :80] = 500.0  # 2%
    _, far, still = scales(values)
    np.testing.assert_allclose(still, usual, rtol=0.1)
    np.testing.assert_allclose(far, 500 - scales(values)[0])


def test_tails_by_hand():
    values = np.array([10.0, -1, 1, -1, 1, 0, 0, 0, 0, 0] + [0.0] * 10)
    assert tail_share(values) == pytest.approx(10 / 14)
    assert carriers(values) == 1 and carriers(np.ones(20)) == 10
    assert carriers(np.zeros(5)) == 0 and tail_share(np.zeros(5)) == 0
    draws = np.random.default_rng(1).standard_t(4, 500)
    assert kurtosis(draws) == pytest.approx(stats.kurtosis(draws, fisher=False))
    assert np.isnan(kurtosis(np.ones(4)))


def test_heavy_windows_are_those_that_carry_some_head():
    sizes = np.abs(np.random.default_rng(2).normal(0, 1, (8, 200)))
    assert len(heavy_windows(sizes)) <= 2
    sizes[3, [5, 60, 61]] = [40, 90, 50]
    sizes[6, 120] = 70
    assert heavy_windows(sizes)[:4] == [60, 120, 61, 5]
    assert heavy_windows(sizes, most=2) == [60, 120]
    assert heavy_windows(np.zeros((3, 50))) == []
    assert len(heavy_windows(np.random.default_rng(3).lognormal(0, 2, (32, 200)))) == 50


def test_a_range_is_the_widest_tail_of_any_head_in_units_of_ones_own_scale():
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, (3, 64)) * np.array([[1.0], [10.0], [1.0]])
    values[2, 10] = 60.0
    found = Range(3, 200, None)
    found.see(np.array([0, 1]), values[:2])
    narrow = found.ratio
    assert found.grew() and not found.grew() and narrow < 6
    found.see(np.array([2]), values[2:])
    assert found.grew() and found.ratio > 30
    low, high = found.of_heads(np.array([0, 1]), values[:2])
    _, _, usual = scales(values[:2])
    np.testing.assert_allclose((high - low) / 2, found.ratio * usual)
    one, two = np.array([0]), np.array([1])
    wide = found.of_pairs(one, two, np.array([3.0]), np.array([1.0]))
    assert wide[0] == pytest.approx(found.ratio)
    assert found.of_pairs(one, two, np.array([99.0]), np.array([1.0]))[0] == 99


def test_a_head_that_has_shown_nothing_may_reach_as_far_as_any():
    found = Range(2, 200, None)
    values = np.stack([np.zeros(32), np.random.default_rng(5).normal(0, 1, 32)])
    found.see(np.array([0, 1]), values)
    low, high = found.of_heads(np.array([0]), values[:1])
    reach = scales(values[1:])[1][0]
    assert high[0] == -low[0] == pytest.approx(MARGIN * reach)
    assert found.of_pairs(np.array([0]), np.array([1]), np.zeros(1), np.zeros(1))[0] >= reach


def test_a_bound_is_the_range():
    found = Range(2, 200, 1.5)
    found.see(np.array([0, 1]), np.full((2, 20), 9.0))
    assert not found.grew()
    low, high = found.of_heads(np.array([0, 1]), np.zeros((2, 20)))
    assert low.tolist() == [-1.5] * 2 and high.tolist() == [1.5] * 2
    one, two = np.array([0]), np.array([1])
    assert found.of_pairs(one, two, np.zeros(1), np.zeros(1)).tolist() == [1.5]
