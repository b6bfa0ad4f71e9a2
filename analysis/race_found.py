"""What a race found beside its top set: chances, ties, scores by document."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from analysis.tails import ENOUGH, carriers, kurtosis, scales, tail_share
from analysis.ties import first_equal

if TYPE_CHECKING:
    from analysis.race import Race

DRAWS = 4000  # draws behind p_top
RARE = 5.0  # usual distances beyond which a value is rare
TIED = 0.0125


def p_top(race: Race) -> np.ndarray:
    """The chance of each head, given what was measured, to be in the top set of these documents.

    [H]; 1 or 0 once every window was measured. From joint draws of all scores: two heads covary as
    their values do on the windows they share; a head whose variance rests on few windows is drawn
    from a Student t; and what windows not seen may yet hold of heads that have shown no rare value
    is drawn from what other heads have shown (`_unseen`). Equal heads get equal draws, and what is
    known is not drawn, so that ties fall by model order here too.
    """
    rng = np.random.default_rng(race.seed)
    twin = first_equal(race.y[head, :count] for head, count in enumerate(race.counts))
    alone = (race.counts < race.windows) & (twin == np.arange(race.heads))
    noise = np.zeros((DRAWS, race.heads))
    normal = rng.standard_normal(noise.shape)
    drawn = alone & (race.deviations > 0)
    if drawn.any():
        values, vectors = np.linalg.eigh(_covariance(race, np.flatnonzero(drawn)))
        root = vectors * np.sqrt(np.maximum(values, 0))  # pairs seen apart may not fit together
        # The symmetric root is the only one: eigenvectors alone depend on who computes them.
        freedom = _freedom(race)[drawn]
        wide = np.sqrt(freedom / rng.chisquare(freedom, (DRAWS, len(freedom))))
        noise[:, drawn] = normal[:, drawn] @ (root @ vectors.T) * wide
    noise[:, alone] += _unseen(race, rng)[:, alone]
    draws = race.scores + noise[:, twin]
    best = np.argsort(-draws, axis=1, kind="stable")[:, : race.top]
    return np.bincount(best.ravel(), minlength=race.heads) / DRAWS


def _freedom(race: Race) -> np.ndarray:
    """Degrees of freedom of each head's variance [H]: 2 n / (kurtosis - 1), n for a normal."""
    found = np.ones(race.heads)
    for head, count in enumerate(race.counts):
        value = race.y[head, race.known : count]
        if race.deviations[head] > 0:
            found[head] = max(2 * len(value) / max(kurtosis(value) - 1, 0.5), 1.0)
    return found


def _unseen(race: Race, rng: np.random.Generator) -> np.ndarray:
    """Draws [DRAWS, H] of what rare values among the windows not seen add to scores.

    Of a head that has shown none. Some heads are taken to have rare values, at one rate; how many
    and at which rate is fitted to those that have shown some (expectation maximisation).
    """
    seen = np.maximum(race.counts - race.known, 0)
    shown, scale = np.zeros(race.heads, dtype=int), np.zeros(race.heads)
    sizes: list[float] = []
    for head, count in enumerate(race.counts):
        if seen[head] < ENOUGH:
            continue
        value = race.y[head, race.known : count] / race.unit
        (centre,), _, (scale[head],) = scales(value[None])
        far = value[np.abs(value - centre) > RARE * scale[head]] - centre
        shown[head] = len(far)
        sizes += (far / scale[head]).tolist() if scale[head] else []
    found = np.zeros((DRAWS, race.heads))
    if not sizes:
        return found
    fit = scale > 0
    rate, chance = _rare(shown[fit], seen[fit])
    left = (race.windows - race.counts)[fit]
    has = rng.random((DRAWS, fit.sum())) < np.where(shown[fit] > 0, 0, chance)
    count = rng.binomial(left, rate, has.shape)
    found[:, fit] = has * count * rng.choice(sizes, has.shape) * scale[fit] / race.windows
    return found


def _rare(shown: np.ndarray, seen: np.ndarray) -> tuple[float, np.ndarray]:
    """The rate of rare values in heads that have some, and each head's chance to be one [H]."""
    chance = np.where(shown > 0, 1.0, 0.5)
    for _ in range(60):
        rate = float((chance * shown).sum() / (chance * seen).sum())
        share = (chance.sum() + 0.5) / (len(chance) + 1)
        missed = share * (1 - rate) ** seen
        chance = np.where(shown > 0, 1.0, missed / (missed + 1 - share))
    return rate, chance


def _covariance(race: Race, heads: np.ndarray) -> np.ndarray:
    """Of the means of the given heads, [A, A]."""
    counts, deviations = race.counts[heads], race.deviations[heads]
    covariance = np.zeros((len(heads), len(heads)))
    for count in np.unique(counts[counts > race.known + 1]):
        rows, columns = np.flatnonzero(counts >= count), np.flatnonzero(counts == count)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.nan_to_num(np.corrcoef(race.y[heads[rows], race.known : count]))
        found = np.atleast_2d(found)[:, np.searchsorted(rows, columns)]
        block = found * deviations[rows, None] * deviations[columns]
        covariance[np.ix_(rows, columns)] = block
        covariance[np.ix_(columns, rows)] = block.T
    np.fill_diagonal(covariance, deviations**2)
    left = race.variance_left[heads]
    return covariance * np.minimum.outer(left, left)  # of two, the head that saw more


def ties(race: Race, order: np.ndarray) -> list[bool]:
    """Whether each of `order` and the next may stand the other way in other documents.

    The interval of their difference on shared windows contains 0, documents being drawn.
    """
    tied = []
    left = race.windows - race.known
    for above, below in zip(order[:-1], order[1:], strict=True):
        shared = min(race.counts[above], race.counts[below])
        share = np.full(shared, 1 / race.windows)  # of the mean over all windows
        if shared > race.known:
            share[race.known :] *= left / (shared - race.known)
        else:
            share[:] = 1 / shared
        difference = race.y[above, :shared] - race.y[below, :shared]
        lead = math.fsum(share * difference) if difference.any() else 0.0
        if race.scores[above] == race.scores[below] and shared == race.windows:
            lead = 0.0
        cells = race.clusters[:shared]
        sums = np.bincount(cells, share * (difference - lead))
        tied.append(may_turn(lead, sums[np.bincount(cells) > 0]))
    return [*tied, False]


def may_turn(lead: float, sums: np.ndarray) -> bool:
    """Whether a lead may be the other way in other documents.

    sums: what each document adds to the lead, less its share of it. A t interval with documents - 1
    degrees of freedom; TIED of its level on each side, half of what 95% leave, because a race stops
    where it does, and which of two comes first is seen on the same windows.
    """
    count = len(sums)
    if lead <= 0 or count < 2:
        return True
    error = math.sqrt(float((sums**2).sum()) * count / (count - 1))
    return bool(lead <= stats.t.ppf(1 - TIED, count - 1) * error)


def by_cluster(race: Race, clusters: int) -> np.ndarray:
    """Each head's mean on each document's measured windows, NaN without: [H, clusters]."""
    result = np.full((race.heads, clusters), np.nan)
    for head, count in enumerate(race.counts):
        cells, weights = race.clusters[:count], race.weights[:count]
        total = np.bincount(cells, race.y[head, :count], clusters)
        mass = np.bincount(cells, weights, clusters)
        np.divide(total, mass, out=result[head], where=mass > 0)
    return result


def design_effect(race: Race) -> float:
    """Variance of the mean as of documents drawn, over that as of windows drawn.

    From the intraclass correlation of windows of one document (Kish 1965, section 5.4), pooled
    over heads. The race needs no correction for it: it draws windows, not documents.
    """
    alike = pairs = 0.0
    for head, count in enumerate(race.counts):
        value = race.y[head, :count]
        if not race.deviations[head]:
            continue
        centred = value - value.mean()
        variance = (centred**2).mean()
        size = np.bincount(race.clusters[:count])
        sums = np.bincount(race.clusters[:count], centred)
        alike += float((sums**2).sum() - (centred**2).sum()) / variance
        pairs += float((size * (size - 1)).sum())
    size = np.bincount(race.clusters)
    return 1 + (alike / pairs if pairs else 0.0) * float((size**2).sum() / size.sum() - 1)


def tails(race: Race) -> dict[str, np.ndarray]:
    """Of each head's measured windows: kurtosis, tail_share and carried_by, [H] each."""
    rows = [
        (kurtosis(value), tail_share(value), carriers(value))
        for value in (race.y[head, :count] for head, count in enumerate(race.counts))
    ]
    found = np.array(rows, dtype=float).T
    return {"kurtosis": found[0], "tail_share": found[1], "carried_by": found[2].astype(int)}
