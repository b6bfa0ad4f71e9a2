"""Intervals over documents: Student's t on the token-weighted mean, alone and for all rows at once.

A score is a token-weighted mean over documents, a ratio of two sums that both vary with the
documents drawn. Its error is that of its linearisation, each document's residual raised by its
leverage: the delete-one jackknife (Efron and Tibshirani 1993, section 11.5; of clustered ratios
Cochran 1977, section 6.17, and Bell and McCaffrey 2002). Other functions of means come to the same
form by `by_document`.

Intervals by `t_interval`, their simulated coverage in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics import checked, weighted_mean
from analysis.ties import ROUNDING
from kernels.errors import MidusError

MAX_T_DRAWS = 4000
CHUNK_ENTRIES = 2_000_000  # numbers drawn at once: 16 MB
# A sample of few documents shows less than half of its population's skewness; chosen so that the
# mean of log-normal documents (sigma 1) is covered in 89% of cases from 3 documents up.
SKEW_WEIGHT = 3.0
SKEWED_FACTOR = 1.1  # a side of the interval longer than that, by skewness, is worth a warning
FEW_DOCUMENTS = 7  # from which on log-normal documents are told from normal ones
FDR = 0.05
DRAWN_BY = 0  # seed of all draws: the same table has the same intervals


class Interval(NamedTuple):
    """Estimates with their intervals, arrays of one shape.

    stderr; low and high, of each estimate for itself; low_all and high_all, which hold for all
    estimates of the call together (None where these were not asked for); `p`, two-sided, that the
    estimate's truth is 0, each for itself; df, degrees of freedom.
    """

    estimate: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_all: np.ndarray | None
    high_all: np.ndarray | None
    p: np.ndarray
    df: float

    def columns(self, prefix: str = "") -> dict[str, np.ndarray]:
        """stderr, ci_low, ci_high, and where they are there ci_low_all and ci_high_all."""
        names = ("stderr", "ci_low", "ci_high", "ci_low_all", "ci_high_all")
        parts = zip(names, self[1:6], strict=True)
        return {prefix + name: part for name, part in parts if part is not None}


def t_interval(
    values: ArrayLike,
    weights: ArrayLike,
    *,
    confidence: float = 0.95,
    finite: bool = True,
    together: bool = True,
) -> Interval:
    """Intervals of the weighted means of `values` [..., documents] -> arrays [...].

    `weights` [documents]: tokens. Degrees of freedom are documents - 1, fewer where lengths differ:
    times Kish's effective number of documents over their number. Towards the side that the
    documents are skewed to, an interval reaches further: see `skew_factors`.

    With `together`, low_all and high_all reach as far as the largest t of all rows does in 95% of
    draws, errors being normal and as correlated as the rows are over documents, each with a
    variance estimated for itself; never further than Bonferroni's.

    With one document stderr and all ends are NaN. NaN and infinity are refused with `finite`;
    without, a row that holds one is NaN.
    """
    from scipy import stats  # takes a second, and whoever only reads tables does without

    if not 0 < confidence < 1:
        raise MidusError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence}")
    matrix, counts = checked(values, weights, finite=finite)
    estimate = weighted_mean(matrix, counts, finite=finite)
    if len(counts) < 2:
        none = np.full(estimate.shape, np.nan)
        every = none if together else None
        return Interval(estimate, none, none, none, every, every, none, np.nan)
    errors, df = _errors(matrix, estimate, counts)  # [..., documents]
    stderr = np.sqrt((errors**2).sum(-1))
    own = float(stats.t.ppf((1 + confidence) / 2, df))
    below, above = skew_factors(errors, counts, own)
    towards_zero = np.where(estimate > 0, below, above) * stderr
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(estimate == 0, 0.0, np.abs(estimate) / towards_zero)
    down, up = below * stderr, above * stderr
    p = 2 * stats.t.sf(t, df)
    low, high = estimate - own * down, estimate + own * up
    if not together:
        return Interval(estimate, stderr, low, high, None, None, p, df)
    reach = _max_t(errors.reshape(-1, errors.shape[-1]), df, confidence, own)
    low_all, high_all = estimate - reach * down, estimate + reach * up
    return Interval(estimate, stderr, low, high, low_all, high_all, p, df)


def _errors(
    matrix: np.ndarray, estimate: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, float]:
    """By how much each document moves the mean, of which the squares' sum is the variance.

    Equal numbers have an error of zero, not of their mean's rounding.
    """
    share, number = counts / counts.sum(), len(counts)
    rest = matrix - estimate[..., None]
    size = np.abs(matrix).max(-1, keepdims=True)
    rest = np.where(np.abs(rest) <= ROUNDING * size, 0.0, rest)
    errors = np.sqrt((number - 1) / number) * share / (1 - share) * rest
    return errors, float((number - 1) / (number * (share**2).sum()))


def skew_factors(
    errors: np.ndarray, counts: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the interval is longer than t's below and above: at least 1 each, [...].

    The first term of the t statistic's Edgeworth expansion (Hall 1992, section 2.6) moves its ends
    by skewness * (2 t^2 + 1) / (6 sqrt(documents)); here the far end is moved, and the near one
    stays. Of two documents there is no skewness to see.
    """
    parts = errors * (1 - counts / counts.sum())  # without leverage, which few long documents have
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = (parts**3).mean(-1) / (parts**2).mean(-1) ** 1.5
    skewness = np.nan_to_num(skewness)
    each = SKEW_WEIGHT * (2 * reach**2 + 1) / (6 * np.sqrt(len(counts)) * reach)
    return 1 + each * np.maximum(-skewness, 0), 1 + each * np.maximum(skewness, 0)


def _max_t(errors: np.ndarray, df: float, confidence: float, own: float) -> float:
    """How many standard errors all intervals of the rows must reach to hold together."""
    from scipy import stats

    norms = np.linalg.norm(errors, axis=1)
    unit = errors[norms > 0] / norms[norms > 0][:, None]  # NaN is not above 0
    if len(unit) < 2:
        return own
    bonferroni = float(stats.t.isf((1 - confidence) / (2 * len(unit)), df))
    rng = np.random.default_rng(DRAWN_BY)
    largest, chunk = [], max(1, CHUNK_ENTRIES // max(unit.shape))
    for start in range(0, MAX_T_DRAWS, chunk):
        size = min(chunk, MAX_T_DRAWS - start)
        normal = rng.standard_normal((size, unit.shape[1])) @ unit.T  # [draws, rows]
        spread = np.sqrt(rng.chisquare(df, normal.shape) / df)
        largest.append(np.abs(normal / spread).max(1))
    found = float(np.quantile(np.concatenate(largest), confidence))
    return max(own, min(found, bonferroni))


# ---------------------------------------------------------------- other functions of means


def by_document(
    statistic: Callable[..., np.ndarray], values: Sequence[ArrayLike], weights: ArrayLike
) -> np.ndarray:
    """A function of heads' means as a mean over documents, to first order: [..., documents].

    `values`: arrays [heads, documents] measured on the same documents; `statistic` is given their
    means, each [times, heads], and returns [times, ...]. Each document is left out in turn (the
    jackknife's pseudo-values, less their bias); `t_interval` of the result, with the same weights,
    is the interval of the function. Not for functions that jump, such as a rank.

        t_interval(by_document(gini, [scores], tokens), tokens, finite=False)
    """
    pairs = [checked(array, weights) for array in values]
    matrices, counts = [matrix for matrix, _ in pairs], pairs[0][1]
    means = [weighted_mean(matrix, counts) for matrix in matrices]
    whole = np.asarray(statistic(*(mean[None] for mean in means)), dtype=float)[0]
    share = counts / counts.sum()
    if len(counts) < 2:
        return whole[..., None]
    left = share / (1 - share)
    without = [
        mean - left[:, None] * (matrix.T - mean)
        for matrix, mean in zip(matrices, means, strict=True)
    ]
    moved = np.moveaxis(whole - np.asarray(statistic(*without), dtype=float), 0, -1) / left
    return whole[..., None] + moved - (moved @ share)[..., None]


def shares_by_document(
    scores: np.ndarray, weights: np.ndarray, owners: np.ndarray | None = None
) -> np.ndarray:
    """Shares of the total of max(mean, 0) as means over documents, to first order (the influence
    function; Hampel 1974): [rows, documents].

    A row is the sum of the heads that `owners` [rows, heads] marks with 1; by default each head is
    a row. A head below zero has no share, but the error that it would have just above, so that its
    interval says how far from a share it is.

    scores: [heads, documents]; weights: [documents].
    """
    mean = weighted_mean(scores, weights)
    rest, positive = scores - mean[:, None], np.maximum(mean, 0)
    total = positive.sum()
    parts = (positive, rest) if owners is None else (owners @ positive, owners @ rest)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (parts[0] / total)[:, None]
        return share + (parts[1] - share * rest[mean > 0].sum(0)) / total


# ---------------------------------------------------------------- many rows


def false_discovery(p: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p values, [rows]; NaN stays and is not counted.

    Of the rows with a value of at most FDR, that share at most is expected to be wrong. Rows share
    their documents, so their errors are correlated; for two-sided t's of correlated normals no
    case is known where the share is exceeded, though only independence and positive dependence are
    proved (Benjamini and Yekutieli 2001; Reiner-Benaim 2007). The bound that holds for any
    dependence divides by the sum of 1/rank, 4.5 for 48 heads, and the simulation shows no need.
    """
    from scipy import stats

    array = np.asarray(p, dtype=float)
    found, known = np.full(array.shape, np.nan), np.isfinite(array)
    if known.any():
        found[known] = stats.false_discovery_control(array[known], method="bh")
    return found


def skewness_note(values: ArrayLike, confidence: float = 0.95) -> str:
    """What to say of intervals of `values` [rows, documents] where documents are skewed; else "".

    Where the rows' median skewness lengthens intervals by more than a tenth, and is larger than
    that of 95% of tables of normal documents would be. Of fewer than FEW_DOCUMENTS no sample shows
    what they are drawn from, which is said instead.
    """
    from scipy import stats

    matrix = np.asarray(values, dtype=float)
    matrix = matrix.reshape(-1, matrix.shape[-1])
    count = matrix.shape[1]
    if count < 2:
        return ""
    if count < FEW_DOCUMENTS:
        return (
            f"{count} documents are too few to see whether scores are skewed over documents; where "
            f"they are, intervals hold in fewer cases than {confidence:.0%}"
        )
    even = np.ones(count)
    normal = np.random.default_rng(DRAWN_BY).standard_normal((500, count))
    reach, factors, rest = float(stats.t.ppf((1 + confidence) / 2, count - 1)), [], []
    for sample in (matrix, normal):
        errors, _ = _errors(sample, weighted_mean(sample, even, finite=False), even)
        rest.append(errors[(errors**2).sum(1) > 0])  # NaN is not above 0
        factors.append(np.maximum(*skew_factors(rest[-1], even, reach)))
    if not len(rest[0]):
        return ""
    independent = _independent_rows(rest[0])
    # The median of so many uniform numbers.
    level = stats.beta.ppf(0.95, (independent + 1) / 2, (independent + 1) / 2)
    if np.median(factors[0]) <= max(SKEWED_FACTOR, np.quantile(factors[1], level)):
        return ""
    return (
        f"scores are skewed over these {count} documents, a few of which carry the mean: intervals "
        f"may hold in fewer cases than {confidence:.0%}; more documents would mend it"
    )


def _independent_rows(errors: np.ndarray) -> float:
    """As many independent rows tell as much of skewness as these, whose errors are correlated.

    Third moments of normals of correlation r have the correlation r cubed.
    """
    unit = errors / np.linalg.norm(errors, axis=1)[:, None]
    unit = unit[:: -(-len(unit) // 200)]  # 200 rows tell enough
    alike = (np.abs(unit @ unit.T) ** 3).mean()  # with 1 / rows of a row and itself
    return float(len(errors) / len(unit) / alike) if len(unit) > 1 else 1.0


def notes_of(values: ArrayLike, unit: str) -> dict[str, Any]:
    """The attr `interval_note`, where there is something to say of a table's intervals."""
    note = skewness_note(values)
    if unit == "window":
        note = "windows of a document are alike, and say nothing of other documents"
    return {"interval_note": note} if note else {}
