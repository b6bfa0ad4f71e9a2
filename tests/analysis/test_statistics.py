from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import statistics as st
from kernels.errors import MidusError


@pytest.fixture
def sample():
    rng = np.random.default_rng(3)
    weights = rng.integers(5, 400, 40)
    effect = np.array([[0.0], [0.3], [-0.1]])
    return effect + rng.normal(0, 0.2, (3, 40)) + 0.3 * (weights / 400), weights


def test_weighted_mean_is_the_mean_over_tokens():
    values, weights = np.array([[1.0, 4.0], [0.0, 2.0]]), np.array([3, 1])
    per_token = np.repeat(values, weights, axis=1)
    np.testing.assert_allclose(st.weighted_mean(values, weights), per_token.mean(axis=1))


def test_bootstrap_agrees_with_scipy(sample):
    values, weights = sample
    ours = st.bootstrap_mean(values, weights, resamples=20_000, seed=1)
    for head in range(len(values)):
        theirs = stats.bootstrap(
            (values[head], weights),
            lambda x, w, axis: (x * w).sum(axis) / w.sum(axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(2),
        )
        spread = theirs.standard_error
        assert ours.stderr[head] == pytest.approx(spread, rel=0.03)
        assert ours.low[head] == pytest.approx(theirs.confidence_interval.low, abs=0.06 * spread)
        assert ours.high[head] == pytest.approx(theirs.confidence_interval.high, abs=0.06 * spread)


def test_stderr_of_equal_weights_is_the_textbook_one():
    values = np.random.default_rng(0).normal(size=(1, 200))
    found = st.bootstrap_mean(values, np.ones(200), resamples=20_000)
    assert found.stderr[0] == pytest.approx(values.std() / np.sqrt(200), rel=0.03)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    draws = rng.normal(1.0, 1.0, (400, 60))  # 400 experiments as 400 heads
    found = st.bootstrap_mean(draws, np.ones(60), resamples=500)
    covered = ((found.low <= 1.0) & (found.high >= 1.0)).mean()
    assert 0.90 < covered < 0.98


def test_seed_fixes_the_result_and_chunks_do_not_change_it(sample, monkeypatch):
    values, weights = sample
    first = st.bootstrap_mean(values, weights, seed=7)
    np.testing.assert_array_equal(first.low, st.bootstrap_mean(values, weights, seed=7).low)
    assert not np.array_equal(first.low, st.bootstrap_mean(values, weights, seed=8).low)
    monkeypatch.setattr(st, "CHUNK_ENTRIES", 333)
    np.testing.assert_allclose(first.low, st.bootstrap_mean(values, weights, seed=7).low)


def test_resamples_draw_as_many_documents_as_there_are():
    chunks = list(st._resample_counts(7, 1000, seed=0))
    counts = np.concatenate(chunks)
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.12)


def test_pairing_removes_what_both_sides_share(sample):
    before, weights = sample
    after = before + 0.05
    found = st.paired_difference(before, after, weights)
    np.testing.assert_allclose(found.estimate, 0.05)
    np.testing.assert_allclose(found.low, 0.05)
    np.testing.assert_allclose(found.stderr, 0, atol=1e-12)
    with pytest.raises(MidusError, match="same heads and documents"):
        st.paired_difference(before, after[:2], weights)


def test_a_function_of_means_is_resampled_together(sample):
    values, weights = sample
    by_mean = st.bootstrap(lambda m: 2 * m, [values], weights, seed=4)
    plain = st.bootstrap_mean(values, weights, seed=4)
    np.testing.assert_allclose(by_mean.high, 2 * plain.high)
    apart = st.bootstrap(lambda a, b: st.shares(a)[0] - st.shares(b)[0], [values] * 2, weights)
    np.testing.assert_array_equal(apart.estimate, 0)
    np.testing.assert_array_equal(apart.stderr, 0)


def test_one_document_has_no_interval():
    found = st.bootstrap_mean([[0.4], [0.1]], [12])
    np.testing.assert_allclose(found.estimate, [0.4, 0.1])
    assert np.isnan(found.stderr).all()
    assert np.isnan(found.low).all()


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([[1.0, 2.0]], [1, 2, 3], "one weight a document"),
        ([[1.0, np.nan]], [1, 2], "1 of 2 scores"),
        ([[1.0, 2.0]], [1, 0], "positive"),
        ([[]], [], "one weight a document"),
    ],
)
def test_bad_input_is_one_clear_line(values, weights, message):
    with pytest.raises(MidusError, match=message) as caught:
        st.bootstrap_mean(values, weights)
    assert "\n" not in str(caught.value)


def test_bad_options_are_refused():
    with pytest.raises(MidusError, match="between 0 and 1"):
        st.bootstrap_mean([[1.0, 2.0]], [1, 1], confidence=95)
    with pytest.raises(MidusError, match="at least 2"):
        st.bootstrap_mean([[1.0, 2.0]], [1, 1], resamples=1)


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
