"""Means, intervals and spread of head scores. The source document is what is resampled.

A score is a token-weighted mean over documents, a ratio of two sums that both vary with the
documents drawn. The bootstrap therefore draws documents with their tokens and forms the ratio
anew each time (a cluster bootstrap; Field and Welsh 2007, J. R. Stat. Soc. B 69(3)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.ties import first_equal
from kernels.errors import MidusError

RESAMPLES = 2000
CHUNK_ENTRIES = 4_000_000  # counts held at once: 32 MB


class Interval(NamedTuple):
    """An estimate, its standard error and a percentile interval, arrays of one shape."""

    estimate: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray


def weighted_mean(values: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Mean of `values` [..., documents] with `weights` [documents] (tokens) -> [...].

    Equal rows have equal means, which a product of matrices does not promise.
    """
    matrix, counts = _checked(values, weights)
    return np.multiply(matrix, counts, order="C").sum(-1) / counts.sum()


def bootstrap(
    statistic: Callable[..., np.ndarray],
    values: Sequence[ArrayLike],
    weights: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a function of several heads' means, documents being resampled.

    `values`: arrays [heads, documents] measured on the same documents; every resample draws the
    same documents for all of them, so differences are paired. `statistic` is given their means,
    each [resamples, heads], and returns [resamples, ...]. `weights` [documents]: tokens.

    Equal heads have equal means in every resample.

    With one document there is nothing to resample: stderr, low and high are NaN. Where the
    statistic of a resample is NaN (a share of nothing), so are they.

        bootstrap(lambda b, a: shares(a)[0] - shares(b)[0], [before, after], tokens)
    """
    if not 0 < confidence < 1:
        raise MidusError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence}")
    if resamples < 2:
        raise MidusError(f"a bootstrap needs at least 2 resamples; got {resamples}")
    if not values:
        raise MidusError("a bootstrap needs at least one array of values; got none")
    checked = [_checked(array, weights) for array in values]
    matrices, counts = [matrix for matrix, _ in checked], checked[0][1]

    estimate = np.asarray(statistic(*(weighted_mean(m, counts)[None] for m in matrices)))[0]
    if len(counts) < 2:
        unknown = np.full_like(estimate, np.nan, dtype=float)
        return Interval(estimate, unknown, unknown.copy(), unknown.copy())
    twins = [first_equal(matrix) for matrix in matrices]
    kept = [np.unique(twin, return_inverse=True) for twin in twins]
    drawn = []
    for times in _resample_counts(len(counts), resamples, seed):  # [chunk, documents]
        mass = times * counts
        total = mass.sum(axis=1, keepdims=True)
        means = (
            (mass @ matrix[rows].T / total)[:, back]
            for matrix, (rows, back) in zip(matrices, kept, strict=True)
        )
        drawn.append(statistic(*means))
    samples = np.concatenate(drawn)  # [resamples, ...]
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return Interval(estimate, samples.std(axis=0, ddof=1), low, high)


def bootstrap_mean(
    values: ArrayLike,
    weights: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the token-weighted mean of `values` [heads, documents] -> arrays [heads]."""
    return bootstrap(
        lambda mean: mean,
        [values],
        weights,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    weights: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of after - before, both [heads, documents] of the same documents."""
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if first.shape != second.shape:
        raise MidusError(
            "a paired difference needs the same heads and documents on both sides; "
            f"got {list(first.shape)} and {list(second.shape)}"
        )
    return bootstrap_mean(
        second - first, weights, confidence=confidence, resamples=resamples, seed=seed
    )


# ---------------------------------------------------------------- shares and spread


def shares(scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Each head's share of the total of max(score, 0), and the negative mass clipped away.

    `scores` [..., heads] -> shares [..., heads], which sum to 1 (NaN where no score is positive),
    and clipped [...] = the total of max(-score, 0), in the scores' own unit.
    """
    array = np.asarray(scores, dtype=float)
    positive = np.maximum(array, 0)
    total = positive.sum(axis=-1, keepdims=True)
    share = np.divide(positive, total, out=np.full_like(positive, np.nan), where=total > 0)
    return share, np.maximum(-array, 0).sum(axis=-1)


def gini(scores: ArrayLike) -> np.ndarray:
    """Gini coefficient of max(score, 0) over the last axis: 0 = equal, (H - 1) / H = one head."""
    share = np.sort(shares(scores)[0], axis=-1)
    heads = share.shape[-1]
    rank = np.arange(1, heads + 1)
    return (share * (2 * rank - heads - 1)).sum(axis=-1) / heads


def entropy(scores: ArrayLike) -> np.ndarray:
    """Entropy [nats] of the shares of max(score, 0) over the last axis."""
    share = shares(scores)[0]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum(axis=-1) + 0.0


def effective_heads(scores: ArrayLike) -> np.ndarray:
    """exp(entropy): the number of equally important heads with the same entropy."""
    return np.exp(entropy(scores))


def concentration(scores: ArrayLike) -> dict[str, float]:
    """`gini`, `entropy` [nats] and `effective_heads` of one vector of scores [heads]."""
    array = np.asarray(scores, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise MidusError(f"concentration takes one score a head; got shape {list(array.shape)}")
    measures = {"gini": gini, "entropy": entropy, "effective_heads": effective_heads}
    return {name: float(measure(array)) for name, measure in measures.items()}


# ---------------------------------------------------------------- helpers


def _checked(values: ArrayLike, weights: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    matrix, counts = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if counts.ndim != 1 or counts.size == 0 or matrix.ndim == 0 or len(counts) != matrix.shape[-1]:
        raise MidusError(
            "scores must be [heads, documents] with one weight a document; "
            f"got scores {list(matrix.shape)} and weights {list(counts.shape)}"
        )
    if not (np.isfinite(counts).all() and (counts > 0).all()):
        raise MidusError("every document's weight (its tokens) must be positive and finite")
    if not np.isfinite(matrix).all():
        broken = int((~np.isfinite(matrix)).sum())
        raise MidusError(
            f"{broken} of {matrix.size} scores are NaN or infinite; "
            "check that the model's loss on these documents is finite"
        )
    return matrix, counts


def _resample_counts(documents: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each document is drawn in each resample: int64 [chunk, documents], in chunks."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ENTRIES // documents)
    even = np.full(documents, 1 / documents)
    for index in range(math.ceil(resamples / chunk)):
        yield rng.multinomial(documents, even, size=min(chunk, resamples - index * chunk))
