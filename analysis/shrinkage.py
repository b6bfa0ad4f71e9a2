"""Scores of many heads drawn towards zero by how much of their spread is error (empirical Bayes).

The largest of many noisy scores is largest partly by luck. What a score is expected to be, given
all scores and their errors, has no such lean, as far as the prior fits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

ERRORS = 16  # points of the t distribution's mixture over its variance
STEPS = 300  # of EM; the prior changes little after a few dozen
NULL_WEIGHT = 1.0  # imagined heads of no effect, which hold the prior's point at zero up


def shrunk(estimate: ArrayLike, stderr: ArrayLike, df: float) -> np.ndarray:
    """Posterior means of effects around zero, [rows]; NaN where an estimate or its error is.

    Adaptive shrinkage (Stephens 2017, Biostatistics 18(2), sections 2.1 and 2.4): effects are a
    mixture of zero and of normals around zero whose weights are fitted to all rows by EM; errors
    are t with `df` degrees of freedom, here itself a mixture of normals. Rows are taken to be
    independent, which of heads measured on the same documents they are not quite. A row without
    error stays as it is.
    """
    from scipy import stats

    given, error = np.asarray(estimate, dtype=float), np.asarray(stderr, dtype=float)
    result = given + 0 * error
    known = np.isfinite(given) & np.isfinite(error) & (error > 0)
    if not known.any():
        return result
    y, se = given[known], error[known]
    levels = (np.arange(ERRORS) + 0.5) / ERRORS
    inflation = df / stats.chi2.ppf(levels, df)  # of the variance, each as likely
    spread = _spreads(y, se)
    variance = (se[:, None] ** 2 * inflation)[:, None]  # [rows, 1, errors]
    total = variance + spread[:, None] ** 2  # [rows, spreads, errors]
    density = np.exp(-0.5 * (y[:, None, None] ** 2 / total + np.log(total / se.min() ** 2)))
    likelihood = density.mean(-1)  # [rows, spreads]
    prior = np.full(len(spread), 1 / len(spread))
    imagined = np.zeros(len(spread))
    imagined[0] = NULL_WEIGHT
    for _ in range(STEPS):
        owned = prior * likelihood
        owned /= np.maximum(owned.sum(1, keepdims=True), np.finfo(float).tiny)
        prior = (owned.sum(0) + imagined) / (len(y) + NULL_WEIGHT)
    mass = prior[:, None] * density
    kept = (mass * spread[:, None] ** 2 / total).sum((1, 2)) / np.maximum(
        mass.sum((1, 2)), np.finfo(float).tiny
    )
    result[known] = y * kept
    return result


def _spreads(y: np.ndarray, se: np.ndarray) -> np.ndarray:
    """The prior's standard deviations: 0, then from a tenth of the least error in steps of root 2
    to twice the largest effect that is more than error."""
    least = se.min() / 10
    most = 2 * np.sqrt(max(float((y**2 - se**2).max()), 0.0))
    count = int(np.ceil(2 * np.log2(max(most / least, 1.0)))) + 1
    return np.append(0.0, least * np.sqrt(2.0) ** np.arange(count))
