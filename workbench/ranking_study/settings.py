"""Planted tables: what ablating heads adds to windows, of kinds that a race has to get right.

Every setting is a table that stands for a model and its documents: H heads, N windows, the truth
being the weighted mean over all windows. Levels are in standard deviations of a window's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

HEADS, WINDOWS, TOP = 32, 300, 10
DOCUMENT = 10  # windows
Generator = np.random.Generator


@dataclass(frozen=True)
class Planted:
    """A table [H, N] of effects and what a race may know of it beforehand.

    weights, clusters [N]; sizes [H, N]: first-order effects, as far as they say something, or None;
    bound: no value lies further from 0 than this times its window's weight, or None.
    """

    effects: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray
    top: int = TOP
    sizes: np.ndarray | None = None
    bound: float | None = None


Make = Callable[[Generator], Planted]


def _table(effects: np.ndarray, document: int = DOCUMENT, top: int = TOP) -> Planted:
    windows = effects.shape[1]
    return Planted(effects, np.ones(windows), np.arange(windows) // document, top)


def _levels(heads: int = HEADS, spread: float = 2.0) -> np.ndarray:
    """Means [H, 1], evenly spaced from `spread` to 0."""
    return np.linspace(spread, 0, heads)[:, None]


def normal(
    rng: Generator,
    heads: int = HEADS,
    windows: int = WINDOWS,
    spread: float = 2.0,
    lowest: float = 0.0,
    top: int = TOP,
) -> Planted:
    """Normal noise around evenly spaced levels."""
    noise = rng.normal(0, 1, (heads, windows))
    return _table(lowest + _levels(heads, spread) + noise, top=top)


def clustered(rng: Generator, documents: int = 30, size: int = DOCUMENT) -> Planted:
    """Half of a window's variance is its document's."""
    of_document = rng.normal(0, np.sqrt(0.5), (HEADS, documents)).repeat(size, axis=1)
    noise = rng.normal(0, np.sqrt(0.5), of_document.shape)
    return _table(_levels() + of_document + noise, size)


def uneven(rng: Generator) -> Planted:
    """Windows of 8 to 256 tokens; an effect is a sum over them."""
    weights = rng.integers(8, 257, WINDOWS).astype(float)
    noise = rng.normal(0, 16, (HEADS, WINDOWS)) * np.sqrt(weights)
    return replace(_table(_levels() * weights + noise), weights=weights)


def student(rng: Generator, freedom: float = 2.0) -> Planted:
    """Student t: with 2 degrees of freedom, no variance."""
    return _table(_levels(spread=4.0) + rng.standard_t(freedom, (HEADS, WINDOWS)))


def lognormal(rng: Generator, sigma: float) -> Planted:
    """Skewed: the larger a head's level, the larger its rare windows."""
    scale = np.linspace(2, 0.5, HEADS)[:, None]
    return _table(scale * rng.lognormal(0, sigma, (HEADS, WINDOWS)))


def rare(rng: Generator, share: float, count: int = TOP // 2) -> Planted:
    """`count` of the ten best heads act in a share of windows only; noise elsewhere."""
    found = normal(rng)
    acting = max(round(share * WINDOWS), 1)
    for head in rng.choice(TOP, count, replace=False):
        at = rng.choice(WINDOWS, acting, replace=False)
        _concentrate(found.effects, head, at, rng)
    return found


def one_document(rng: Generator, count: int = 6) -> Planted:
    """Six heads are carried by a document each."""
    found = normal(rng)
    for head in rng.choice(TOP, count, replace=False):
        at = np.flatnonzero(found.clusters == rng.integers(WINDOWS // DOCUMENT))
        _concentrate(found.effects, head, at, rng)
    return found


def _concentrate(effects: np.ndarray, head: int, at: np.ndarray, rng: Generator) -> None:
    """Move a head's level from all windows to some."""
    level = _levels()[head, 0]
    effects[head] -= level
    effects[head, at] += level * effects.shape[1] / len(at) * rng.uniform(0.8, 1.2, len(at))


def accuracy(rng: Generator, heads: int = HEADS, windows: int = WINDOWS, top: int = TOP) -> Planted:
    """Answers right or wrong: ablation turns some right ones wrong, and few the other way."""
    right = rng.random(windows) < 0.6
    lost = np.linspace(0.3, 0.0, heads)[:, None]
    return _flips(rng, right, lost, 0.02, top)


def tasks(rng: Generator) -> Planted:
    """Like pico on 320 one-token tasks: most heads change one answer or none."""
    right = rng.random(320) < 0.35
    lost = np.sort(np.minimum(rng.lognormal(-4, 1.3, (48, 1)), 0.8), axis=0)[::-1]
    return _flips(rng, right, lost, 0.004, top=8)


def _flips(rng: Generator, right: np.ndarray, lost: np.ndarray, won: float, top: int) -> Planted:
    chance = rng.random((len(lost), len(right)))
    effects = np.where(right, (chance < lost) * 1.0, (chance < won) * -1.0)
    return replace(_table(effects, 1, top), bound=1.0)


def exact_ties(rng: Generator) -> Planted:
    """Heads in groups of four with the same values, one group across the last place."""
    values = normal(rng, heads=HEADS // 4).effects
    return _table(values.repeat(4, axis=0))


def equal_sums(rng: Generator) -> Planted:
    """Heads across the last place have one score, of other windows each."""
    found = normal(rng)
    shared = found.effects[TOP]
    for head in range(TOP - 3, TOP + 4):
        found.effects[head] = rng.permutation(shared)
    return replace(found, effects=np.round(found.effects * 1024) / 1024)


def zero_variance(rng: Generator) -> Planted:
    """A third of the heads are constant, some of them zero; one acts once."""
    found = normal(rng)
    still = rng.choice(HEADS, HEADS // 3, replace=False)
    found.effects[still] = np.round(_levels()[still], 1)
    found.effects[still[:3]] = 0.0
    found.effects[still[0], rng.integers(WINDOWS)] = 0.5
    return found


def equal_in_kind(rng: Generator, documents: int, size: int = 8) -> Planted:
    """Three heads around the last place that are equal in text of this kind, not in these."""
    level = np.array([3.0, 2.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0])[:, None]
    of_document = rng.normal(0, np.sqrt(0.5), (8, documents)).repeat(size, axis=1)
    return _table(level + of_document + rng.normal(0, np.sqrt(0.5), of_document.shape), size, 3)


def with_sizes(rng: Generator, make: Make, agree: bool) -> Planted:
    """A table with first-order effects: the effect with some error, or that of other windows."""
    found = make(rng)
    sizes = found.effects * rng.lognormal(0, 0.5, found.effects.shape)
    sizes += 0.3 * found.effects.std() * rng.normal(0, 1, sizes.shape)
    if not agree:
        sizes = rng.permuted(sizes, axis=1)
    return replace(found, sizes=np.abs(sizes))


SETTINGS: Mapping[str, Make] = {
    "normal": normal,
    "near ties": partial(normal, spread=0.5),
    "clustered": clustered,
    "uneven lengths": uneven,
    "negative scores": partial(normal, lowest=-3.0),
    "zero variance": zero_variance,
    "exact ties": exact_ties,
    "equal sums": equal_sums,
    "3 documents": partial(clustered, documents=3, size=8),
    "5 documents": partial(clustered, documents=5, size=8),
    "10 documents": partial(clustered, documents=10, size=8),
    "20 documents": partial(clustered, documents=20, size=8),
    "192 heads": partial(normal, heads=192, spread=12.0, top=16),
    "512 heads": partial(normal, heads=512, spread=32.0, top=16),
    "Student t3": partial(student, freedom=3.0),
    "Student t2": student,
    "lognormal 1": partial(lognormal, sigma=1.0),
    "lognormal 1.5": partial(lognormal, sigma=1.5),
    "lognormal 2": partial(lognormal, sigma=2.0),
    "rare 5%": partial(rare, share=0.05),
    "rare 2%": partial(rare, share=0.02),
    "one document each": one_document,
    "one rare head": partial(rare, share=0.02, count=1),
    "accuracy": accuracy,
    "320 tasks": tasks,
}
FIRST_ORDER: Mapping[str, Make] = {
    f"{name}, first order {'agrees' if agree else 'of other windows'}": partial(
        with_sizes, make=SETTINGS[name], agree=agree
    )
    for name in (
        "normal",
        "lognormal 2",
        "rare 5%",
        "rare 2%",
        "one document each",
        "one rare head",
    )
    for agree in (True, False)
}
EQUAL = slice(2, 5)  # of `equal_in_kind`
DOCUMENTS = (3, 5, 10, 30)
