"""Scores of heads by document with known truths, as documents are drawn."""

from __future__ import annotations

import numpy as np

# setting -> what its documents are like
SETTINGS = {
    "normal": "normal scores, documents of one length",
    "uneven": "normal scores, lengths log-normal (sigma 1)",
    "clustered": "normal scores by window, half of the variance the document's; 1 to 15 windows",
    "heavy": "Student's t with 3 degrees of freedom, documents of one length",
    "skewed": "log-normal scores (sigma 1), documents of one length",
    "skewed, uneven": "log-normal scores (sigma 1), lengths log-normal (sigma 1)",
    "rare": "one document in ten has a normal score around 3, the others none",
}
TAILED = ("skewed", "skewed, uneven", "rare")
SHARED = 0.6  # of the variance, what heads of a table have in common; with either sign


def scores_of(
    setting: str, heads: int, documents: int, rng: np.random.Generator, shared: float = SHARED
) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores [heads, documents], weights [documents] (tokens), and the mean that all heads have.

    Errors of heads are correlated over documents by a common normal factor.
    """
    weights = np.full(documents, 500.0)
    normal = _correlated(heads, documents, shared, rng)
    if "uneven" in setting:
        weights = np.ceil(500 * np.exp(rng.standard_normal(documents)))
    if setting == "clustered":
        windows = rng.integers(1, 16, documents)
        weights = 128.0 * windows
        noise = rng.standard_normal((heads, documents)) / np.sqrt(windows)
        return np.sqrt(0.5) * (normal + noise), weights, 0.0
    if setting.startswith("skewed"):
        return np.exp(normal), weights, float(np.exp(0.5))
    if setting == "heavy":
        spread = np.sqrt(rng.chisquare(3, documents) / 3)
        return normal / spread, weights, 0.0
    if setting == "rare":
        acts = rng.random((heads, documents)) < 0.1
        return acts * (3 + normal), weights, 0.3
    return normal, weights, 0.0


def _correlated(heads: int, documents: int, shared: float, rng: np.random.Generator) -> np.ndarray:
    sign = rng.choice([-1.0, 1.0], (heads, 1))
    common = sign * rng.standard_normal(documents)
    own = rng.standard_normal((heads, documents))
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * own


def effects_of(kind: str, heads: int, rng: np.random.Generator) -> np.ndarray:
    """True changes of heads in units of a document's spread: "none", "few" (one head in five), or
    "all", normal."""
    normal = rng.standard_normal(heads)
    few = 1.5 * normal * (rng.random(heads) < 0.2)
    return {"none": 0 * normal, "few": few, "all": normal}[kind]
