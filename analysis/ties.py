"""Equal is equal: what a sum's rounding must not decide.

Two heads with one score come out of a matrix product, or of another processor's, a last bit
apart. Whatever orders heads, ranks them or asks for a difference's sign does it through these: what
differs by rounding alone is equal, and what is equal keeps the order it was given in, the model's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

# Of what was added up: far above float64's rounding of any sum made here (1e-16 times the root of
# its length), far below what a measurement in fp32 can tell apart (1e-7).
ROUNDING = 1e-12


def evened(scores: ArrayLike) -> np.ndarray:
    """Scores [..., n] where those that differ by rounding alone are the same; NaN stays.

    Neighbours in order that are no further apart than ROUNDING times the largest size belong
    together, so that no boundary lies between equal ones.
    """
    array = np.asarray(scores, dtype=float) + 0.0  # no -0.0
    if not array.shape[-1]:
        return array
    order = np.argsort(array, axis=-1, kind="stable")
    rising = np.take_along_axis(array, order, -1)
    finite = np.isfinite(rising)
    size = np.abs(np.where(finite, rising, 0.0)).max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        apart = ~(np.diff(rising, axis=-1) <= ROUNDING * size)
    first = np.zeros(array.shape, dtype=int)  # where each run of equals begins
    first[..., 1:] = np.where(apart, np.arange(1, array.shape[-1]), 0)
    lowest = np.take_along_axis(rising, np.maximum.accumulate(first, -1), -1)
    result = np.empty_like(array)
    np.put_along_axis(result, order, lowest, -1)
    return result


def best_first(scores: ArrayLike) -> np.ndarray:
    """Indices along the last axis, largest score first; ties in the order given, NaN last."""
    return np.argsort(-evened(scores), axis=-1, kind="stable")


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks along the last axis, centred and of norm 1, so that a product is Spearman's rho.

    Ties share the mean of their ranks. NaN where a value is, or where all are the same.
    """
    from scipy import stats  # takes a second, and whoever only reads tables does without

    found = stats.rankdata(evened(values), axis=-1, nan_policy="propagate")
    centred = found - found.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return centred / np.linalg.norm(centred, axis=-1, keepdims=True)


def spearman(one: ArrayLike, two: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors; NaN where all of one are the same."""
    return float(np.clip((ranks(one) * ranks(two)).sum(), -1.0, 1.0))


def difference(one: ArrayLike, two: ArrayLike) -> np.ndarray:
    """one - two, and 0 where they differ by rounding alone."""
    first, second = np.asarray(one, dtype=float), np.asarray(two, dtype=float)
    gap = first - second
    size = np.maximum(np.abs(first), np.abs(second))
    return np.where(np.abs(gap) <= ROUNDING * size, 0.0, gap)


def combination(weights: ArrayLike, values: ArrayLike) -> np.ndarray:
    """weights @ values, and 0 where what is left of the sum is its rounding.

    weights: [..., n]; values: [n] or [n, k].
    """
    share, array = np.asarray(weights, dtype=float), np.asarray(values, dtype=float)
    total = share @ array
    return np.where(np.abs(total) <= ROUNDING * (np.abs(share) @ np.abs(array)), 0.0, total)


def first_equal(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Of each row, the index of the first that holds the same numbers."""
    seen: dict[bytes, int] = {}
    keys = ((row + 0.0).tobytes() for row in rows)
    return np.array([seen.setdefault(key, index) for index, key in enumerate(keys)], dtype=int)
