"""Intervals over documents: what they are in closed form, and how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import hadamard

from analysis import intervals as iv
from analysis.statistics import gini, shares, weighted_mean
from kernels.errors import MidusError


def drawn(heads: int = 6, documents: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 0.5, (heads, documents)), rng.integers(20, 900, documents)


def symmetric(documents: int) -> np.ndarray:
    """Scores without skewness."""
    half = np.random.default_rng(1).normal(size=(4, documents // 2))
    return 3 + np.concatenate([half, -half], 1)


def test_of_equal_documents_without_skewness_it_is_students_t() -> None:
    values = symmetric(8)
    found = iv.t_interval(values, np.full(8, 50.0))
    ours = stats.ttest_1samp(values, 0.0, axis=1)
    theirs = ours.confidence_interval(0.95)
    np.testing.assert_allclose(found.low, theirs.low)
    np.testing.assert_allclose(found.high, theirs.high)
    np.testing.assert_allclose(found.p, ours.pvalue)
    np.testing.assert_allclose(found.stderr, stats.sem(values, axis=1))
    assert found.df == pytest.approx(7)


def test_its_error_is_that_of_the_delete_one_jackknife_of_the_ratio() -> None:
    values, tokens = drawn()
    count = len(tokens)
    without = np.stack([
        weighted_mean(np.delete(values, i, 1), np.delete(tokens, i)) for i in range(count)
    ])  # fmt: skip
    moved = without - weighted_mean(values, tokens)
    found = iv.t_interval(values, tokens)
    np.testing.assert_allclose(found.stderr, np.sqrt((count - 1) / count * (moved**2).sum(0)))
    share = tokens / tokens.sum()
    assert found.df == pytest.approx((count - 1) / (count * (share**2).sum()))
    assert found.df < count - 1


def test_documents_are_the_unit_from_two_on() -> None:
    """Windows of one document repeat it; 19 documents say as much as 19 of 20 do."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(200, 20))
    widths = []
    for count in (19, 20):
        found = iv.t_interval(values[:, :count], np.ones(count))
        widths.append(float((found.high - found.low).mean()))
    assert 1.0 < widths[0] / widths[1] < 1.1  # resampling windows made it 1.7 times narrower
    two = iv.t_interval([[1.0, 3.0]], [10, 10])
    assert two.high[0] - two.estimate[0] == pytest.approx(stats.t.ppf(0.975, 1))
    one = iv.t_interval([[0.4], [0.1]], [12])
    np.testing.assert_allclose(one.estimate, [0.4, 0.1])
    assert all(np.isnan(part).all() for part in one[1:])


def test_the_side_of_the_tail_reaches_further() -> None:
    values = np.array([[0.0, 0.1, 0.2, 0.1, 0.0, 2.0]])
    found = iv.t_interval(np.concatenate([values, -values]), np.ones(6))
    above, below = found.high - found.estimate, found.estimate - found.low
    own = stats.t.ppf(0.975, 5) * found.stderr
    np.testing.assert_allclose([below[0], above[1]], own)
    assert above[0] > 1.2 * own[0] and below[1] == pytest.approx(above[0])


@pytest.mark.parametrize("documents", [3, 5, 12])
def test_p_and_interval_agree(documents: int) -> None:
    rng = np.random.default_rng(documents)
    values = np.exp(rng.normal(size=(400, documents))) - 1.0
    found = iv.t_interval(values, rng.integers(50, 800, documents), together=False)
    outside = (found.low > 0) | (found.high < 0)
    np.testing.assert_array_equal(outside, found.p < 0.05)
    assert outside.any() and not outside.all()
    assert found.low_all is None and "ci_low_all" not in found.columns()


def test_intervals_together_lie_between_the_own_and_bonferronis() -> None:
    values, tokens = drawn(heads=30, documents=20)
    found = iv.t_interval(values, tokens)
    own = (found.high - found.low) / found.stderr
    every = (found.high_all - found.low_all) / found.stderr
    wider = float((every / own).mean())
    most = stats.t.isf(0.025 / 30, found.df) / stats.t.isf(0.025, found.df)
    assert 1.2 < wider <= most + 1e-12
    alike = iv.t_interval(np.repeat(values[:1], 30, 0), tokens)
    assert (alike.high_all - alike.low_all).mean() < 0.95 * most * (alike.high - alike.low).mean()
    alone = iv.t_interval(values[:1], tokens)
    np.testing.assert_allclose(alone.low, alone.low_all)


def test_intervals_together_of_uncorrelated_rows_are_sidaks() -> None:
    """Seven rows that are orthogonal over eight documents, each with a variance of its own."""
    rows = hadamard(8)[1:].astype(float)
    found = iv.t_interval(5 + rows, np.ones(8))
    reach = (found.high_all - found.estimate) / found.stderr
    np.testing.assert_allclose(reach, stats.t.ppf((1 + 0.95 ** (1 / 7)) / 2, 7), rtol=0.04)
    np.testing.assert_allclose(reach, (found.estimate - found.low_all) / found.stderr)
    pair = iv.t_interval(5 + np.stack([rows[0], -rows[0]]), np.ones(8))
    np.testing.assert_allclose(pair.high_all - pair.estimate, pair.high - pair.estimate, rtol=0.2)


def test_equal_documents_leave_nothing_open() -> None:
    found = iv.t_interval([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]], [7, 11, 13])
    np.testing.assert_array_equal(found.stderr, 0)
    np.testing.assert_array_equal(found.high, found.low)
    np.testing.assert_array_equal(found.p, [0, 1])


def test_the_same_table_has_the_same_intervals_and_equal_heads_equal_ones() -> None:
    values, tokens = drawn()
    values[3] = values[1]
    first, second = (iv.t_interval(values, tokens) for _ in range(2))
    for one, other in zip(first[:-1], second[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one[1] == one[3]


def test_a_row_without_a_number_is_none_and_no_others_matter() -> None:
    values, tokens = drawn()
    whole = iv.t_interval(values, tokens)
    broken = np.concatenate([values, np.full((1, len(tokens)), np.nan)])
    with pytest.raises(MidusError, match="NaN or infinite"):
        iv.t_interval(broken, tokens)
    found = iv.t_interval(broken, tokens, finite=False)
    assert np.isnan(found.high_all[-1]) and np.isnan(found.p[-1])
    np.testing.assert_array_equal(found.high_all[:-1], whole.high_all)
    for wrong in (95, 1, 0):
        with pytest.raises(MidusError, match="between 0 and 1"):
            iv.t_interval(values, tokens, confidence=wrong)


# ---------------------------------------------------------------- functions of means


def test_a_mean_by_document_is_itself() -> None:
    values, tokens = drawn()
    found = iv.by_document(lambda mean: 2 * mean, [values], tokens)
    np.testing.assert_allclose(found, 2 * values)


def test_a_function_by_document_has_its_value_as_mean_and_its_error() -> None:
    values, tokens = drawn(heads=12, documents=40)
    later = values[::-1] * 1.3
    given = iv.by_document(lambda a, b: gini(b) - gini(a), [values, later], tokens)
    whole = gini(weighted_mean(later, tokens)) - gini(weighted_mean(values, tokens))
    found = iv.t_interval(given, tokens)
    assert found.estimate == pytest.approx(whole, abs=1e-12)
    rng = np.random.default_rng(0)
    times = rng.multinomial(40, np.full(40, 1 / 40), 4000) * tokens
    total = times.sum(1, keepdims=True)
    spread = (gini(times @ later.T / total) - gini(times @ values.T / total)).std()
    assert found.stderr == pytest.approx(spread, rel=0.12)


def test_by_document_are_the_jackknifes_pseudo_values_less_their_bias() -> None:
    values, tokens = drawn(heads=3, documents=6)
    whole = weighted_mean(values, tokens) ** 3
    expected = np.empty_like(values)
    for i, length in enumerate(tokens):
        rest = np.delete(tokens, i)
        without = weighted_mean(np.delete(values, i, 1), rest) ** 3
        expected[:, i] = whole + (whole - without) * rest.sum() / length
    expected += (whole - weighted_mean(expected, tokens))[:, None]
    found = iv.by_document(lambda mean: mean**3, [values], tokens)
    np.testing.assert_allclose(found, expected)


def test_a_share_has_the_error_of_its_own_denominator() -> None:
    """A head that always has half of the total is sure of it, however much the total varies."""
    rng = np.random.default_rng(3)
    total = rng.gamma(2.0, size=30)
    values = np.stack([0.5 * total, 0.3 * total, 0.2 * total])
    tokens = rng.integers(50, 100, 30)
    found = iv.t_interval(iv.shares_by_document(values, tokens), tokens)
    np.testing.assert_allclose(found.estimate, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(found.stderr, 0, atol=1e-12)


def test_shares_by_document_are_their_jackknife() -> None:
    values, tokens = drawn(heads=5, documents=60)
    values[4] -= 4  # has no share
    ours = iv.t_interval(iv.shares_by_document(values, tokens), tokens)
    given = iv.by_document(lambda mean: shares(mean)[0], [values], tokens)
    theirs = iv.t_interval(given, tokens)
    np.testing.assert_allclose(ours.estimate, theirs.estimate, atol=1e-14)
    np.testing.assert_allclose(ours.stderr[:4], theirs.stderr[:4], rtol=0.03)
    assert ours.stderr[4] > 0  # what is clipped is not sure
    pair = np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    joined = iv.shares_by_document(values, tokens, pair)
    np.testing.assert_allclose(weighted_mean(joined, tokens).sum(), 1)


# ---------------------------------------------------------------- many rows


def test_false_discovery_is_benjamini_and_hochbergs() -> None:
    p = np.array([0.01, 0.02, np.nan, 0.03, 0.04])
    np.testing.assert_allclose(iv.false_discovery(p), [0.04, 0.04, np.nan, 0.04, 0.04])
    assert np.isnan(iv.false_discovery([np.nan])).all()


def test_skewed_documents_are_noted() -> None:
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(48, 20))
    assert iv.skewness_note(normal) == ""
    assert "skewed over these 20 documents" in iv.skewness_note(np.exp(normal))
    assert "skewed" in iv.skewness_note(-np.exp(normal[:1] * 1.5))
    assert "5 documents are too few to see" in iv.skewness_note(normal[:, :5])
    assert iv.skewness_note(np.zeros((3, 20))) == iv.skewness_note(normal[:, :1]) == ""
    assert "windows" in iv.notes_of(normal, "window")["interval_note"]
    assert iv.notes_of(normal, "document") == {}


def test_rows_alike_are_no_more_than_one() -> None:
    """A row as skewed as one of ten normal ones is chance, however many heads repeat it."""
    rows = np.random.default_rng(5).normal(size=(10, 20))
    worst = rows[np.abs(stats.skew(rows, axis=1)).argmax()]
    assert iv.skewness_note(np.repeat(worst[None], 48, 0)) == ""
    assert iv.skewness_note(worst + 0.01 * rows) == ""


def test_how_many_independent_rows_correlated_ones_are() -> None:
    rows = hadamard(8)[1:].astype(float)
    assert iv._independent_rows(rows) == pytest.approx(7)
    assert iv._independent_rows(np.repeat(rows[:1], 7, 0)) == pytest.approx(1)
    pair = np.stack([rows[0], 0.6 * rows[0] - 0.8 * rows[1]])  # correlation 0.6
    assert iv._independent_rows(pair) == pytest.approx(2 / (1 + 0.6**3))
    assert iv._independent_rows(rows[:1]) == 1
    many = np.random.default_rng(0).normal(size=(600, 400))
    assert iv._independent_rows(many) == pytest.approx(600, rel=0.1)
