"""Token-weighted means of head scores, their shares and their spread over heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kernels.errors import MidusError


def weighted_mean(values: ArrayLike, weights: ArrayLike, *, finite: bool = True) -> np.ndarray:
    """Mean of `values` [..., documents] with `weights` [documents] (tokens) -> [...].

    Equal rows have equal means, which a product of matrices does not promise. With `finite`, NaN
    and infinity are refused.
    """
    matrix, counts = checked(values, weights, finite=finite)
    return np.multiply(matrix, counts, order="C").sum(-1) / counts.sum()


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


def checked(
    values: ArrayLike, weights: ArrayLike, *, finite: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Values [..., documents] and weights [documents] as arrays of float64.

    Raises MidusError where they do not fit, a weight is not positive, or (with `finite`) a value is
    NaN or infinite.
    """
    matrix, counts = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if counts.ndim != 1 or counts.size == 0 or matrix.ndim == 0 or len(counts) != matrix.shape[-1]:
        raise MidusError(
            "scores must be [heads, documents] with one weight a document; "
            f"got scores {list(matrix.shape)} and weights {list(counts.shape)}"
        )
    if not (np.isfinite(counts).all() and (counts > 0).all()):
        raise MidusError("every document's weight (its tokens) must be positive and finite")
    if finite and not np.isfinite(matrix).all():
        broken = int((~np.isfinite(matrix)).sum())
        raise MidusError(
            f"{broken} of {matrix.size} scores are NaN or infinite; "
            "check that the model's loss on these documents is finite"
        )
    return matrix, counts
