from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import statistics as st
from kernels.errors import MidusError


def test_weighted_mean_is_the_mean_over_tokens():
    values, weights = np.array([[1.0, 4.0], [0.0, 2.0]]), np.array([3, 1])
    per_token = np.repeat(values, weights, axis=1)
    np.testing.assert_allclose(st.weighted_mean(values, weights), per_token.mean(axis=1))


def test_one_row_has_one_mean():
    assert st.weighted_mean([1.0, 5.0], [3, 1]) == 2.0


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        (3.0, [1], "one weight a document"),
        ([[1.0, 2.0]], [1, 2, 3], "one weight a document"),
        ([[1.0, np.nan]], [1, 2], "1 of 2 scores"),
        ([[1.0, 2.0]], [1, 0], "positive"),
        ([[]], [], "one weight a document"),
    ],
)
def test_bad_input_is_one_clear_line(values, weights, message):
    with pytest.raises(MidusError, match=message) as caught:
        st.weighted_mean(values, weights)
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_is_refused_unless_it_may_be():
    with pytest.raises(MidusError, match="1 of 2 scores are NaN"):
        st.checked([[1.0, np.nan]], [1.0, 2.0])
    assert np.isnan(st.checked([[1.0, np.nan]], [1.0, 2.0], finite=False)[0]).sum() == 1
    with pytest.raises(MidusError, match="one weight a document"):
        st.checked(1.0, [1.0])


def test_shares_clip_what_is_negative():
    share, clipped = st.shares([[3.0, 1.0, -2.0], [0.0, -1.0, 0.0]])
    np.testing.assert_allclose(share[0], [0.75, 0.25, 0])
    assert np.isnan(share[1]).all()
    np.testing.assert_allclose(clipped, [2, 1])


@pytest.mark.parametrize(
    ("scores", "gini", "entropy"),
    [
        ([1, 1, 1, 1], 0, np.log(4)),
        ([0, 0, 0, 5], 0.75, 0),
        ([1, 2, 3, 4], 0.25, stats.entropy([1, 2, 3, 4])),
        ([3, 1, -9, 0], 0.625, stats.entropy([3, 1])),
    ],
)
def test_known_spreads(scores, gini, entropy):
    assert st.gini(scores) == pytest.approx(gini)
    assert st.entropy(scores) == pytest.approx(entropy)
    assert st.effective_heads(scores) == pytest.approx(np.exp(entropy))


def test_gini_is_the_mean_absolute_difference():
    scores = np.random.default_rng(0).gamma(0.5, size=(5, 31))
    pairs = np.abs(scores[:, :, None] - scores[:, None, :]).mean(axis=(1, 2))
    np.testing.assert_allclose(st.gini(scores), pairs / (2 * scores.mean(axis=1)))


def test_concentration_takes_one_vector():
    found = st.concentration([1, 1, 0])
    assert found == pytest.approx(
        {"gini": 1 / 3, "entropy": np.log(2), "effective_heads": 2.0}, rel=1e-12
    )
    assert np.isnan(st.concentration([-1, 0])["gini"])
    with pytest.raises(MidusError, match="one score a head"):
        st.concentration([[1, 2]])
