from __future__ import annotations

import numpy as np

from analysis.shrinkage import shrunk


def test_what_is_only_error_is_drawn_to_zero() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_t(9, 100)
    found = shrunk(noise, np.ones(100), 9)
    assert np.abs(found).max() < 0.25 * np.abs(noise).max()


def test_what_stands_clear_of_its_error_stays() -> None:
    rng = np.random.default_rng(1)
    true = 20 * rng.normal(size=100)
    seen = true + rng.standard_t(9, 100)
    np.testing.assert_allclose(shrunk(seen, np.ones(100), 9), seen, atol=0.6)


def test_of_two_alike_the_less_certain_is_drawn_further() -> None:
    estimate, stderr = np.tile([1.0, -2.0, 3.0], 10), np.full(30, 0.5)
    stderr[2], stderr[29] = 0.1, 3.0
    found = shrunk(estimate, stderr, 6)
    assert (np.sign(found) == np.sign(estimate)).all() and (np.abs(found) <= 3).all()
    assert found[29] < found[5] < found[2] < 3


def test_the_largest_of_many_is_worth_what_it_says() -> None:
    rng = np.random.default_rng(2)
    said, true = [], []
    for _ in range(150):
        effects, stderr = rng.normal(size=48), np.sqrt(rng.chisquare(4, 48) / 4)
        seen = effects + rng.standard_normal(48)
        found = shrunk(seen, stderr, 4)
        top = np.argsort(-found)[:5]
        said.append(found[top].mean())
        true.append(effects[top].mean())
    assert abs(np.mean(said) / np.mean(true) - 1) < 0.1


def test_rows_without_error_or_number_stay() -> None:
    found = shrunk([1.0, np.nan, 0.5, 0.0], [0.0, 1.0, np.nan, 0.0], 3)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan, 0.0])
