"""Which heads are the best, from as few exact measurements as it takes: the statistics of a race.

Windows are drawn at random without replacement, one order for all heads, and a head is measured on
the windows in that order: any two heads share the windows of the one that has fewer. Two heads are
compared by their paired difference on what they share, and by their own intervals. Both are
confidence sequences, which hold at every number of windows at once and so whenever one stops. Heads
that are surely in or surely out leave the race; effort goes to the closest pairs of the others. The
target is the weighted mean over these very windows, known exactly once all of them were seen.
`docs/ranking.md` has the derivation and what the choices are worth.

Nothing here knows of models or losses. Shape letters: H heads, N windows, A heads in the race.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from kernels.errors import ModelError

MINIMUM = 16  # exact windows a head: fewer carry no interval
PILOT = 2  # windows of a head that a screen leaves out
ROUND = 8  # windows between two looks
FOCUS = 6  # heads measured in a round
TIGHTEST = 256  # windows at which the confidence sequences are tightest
DRAWS = 4000  # draws behind p_top

# Sums [heads, windows] of a metric's change, for indices of heads and of windows.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
Told = Callable[[int, int], None]
# Whether a piece, these heads on so many windows, may still be measured.
May = Callable[[np.ndarray, int], bool]


def half_width(count: ArrayLike, population: float, alpha: float, sides: int) -> np.ndarray:
    """Half width of a confidence sequence for a mean, in standard deviations of one value.

    Asymptotic, by mixing over a normal (two sides) or half-normal (one): Waudby-Smith et al. 2021,
    arXiv 2103.06476, theorem 2.2 and its one-sided counterpart. Without replacement the sum's
    deviation from its expectation, times N / (N - t), is a martingale whose variance grows as
    t * N / (N - t) (Serfling 1974; Waudby-Smith and Ramdas 2020, arXiv 2006.04347): that takes the
    place of the count t. At t = N nothing is left to estimate.
    """
    t = np.asarray(count, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        time = t / np.maximum(1 - t / population, 0)
        tail = np.log(sides / (2 * alpha))
        rho2 = (2 * tail + np.log1p(2 * tail)) / TIGHTEST  # their eq. 12, to first order
        spread = time * rho2 + 1
        if sides == 2:
            log = np.log(np.sqrt(spread) / alpha)
        else:
            log = np.log1p(np.sqrt(spread) / (2 * alpha))
        width = np.sqrt(2 * spread / (time**2 * rho2) * log)
    return np.where(t >= population, 0.0, width)


def least_budget(top: int, heads: int, windows: int) -> int:
    """The smallest budget: the minimum for top + 1 heads and a pilot for the others."""
    minimum, pilot = min(MINIMUM, windows), min(PILOT, windows)
    return heads * pilot + (top + 1) * (minimum - pilot)


class Race:
    """Heads measured on windows as far as it takes to know the best `top` of them.

    Args:
        heads: H.
        weights: of every window [N], its tokens or 1: a score is sums of values over sums of these.
        clusters: of every window [N], the index of its document.
        top: size of the top set, from 1 to H - 1.
        confidence: that all intervals hold the truth and, where the race ends settled, that the
            whole top set is right, all together and whenever it stops.
        seed: of the order of the windows and the draws behind `p_top`.
    """

    def __init__(
        self,
        heads: int,
        weights: ArrayLike,
        clusters: ArrayLike,
        top: int,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.heads, self.top, self.confidence, self.seed = heads, top, confidence, seed
        self.order = np.random.default_rng(seed).permutation(len(np.asarray(weights)))
        self.weights = np.asarray(weights, dtype=float)[self.order]
        self.clusters = np.asarray(clusters)[self.order]
        # y[h, i]: head h on the i-th window drawn, over the mean weight of a window, so that the
        # mean over all windows is the score.
        self.y = np.full((heads, len(self.order)), np.nan)
        self.counts = np.zeros(heads, dtype=int)  # y[h, :counts[h]] is measured
        self.scores = np.zeros(heads)  # the mean of that
        self.deviations = np.zeros(heads)  # its standard deviation; 0 of a single window
        self.accepted = np.zeros(heads, dtype=bool)
        self.rejected = np.zeros(heads, dtype=bool)
        self.screened = np.zeros(heads, dtype=bool)  # left out by a screen, not by measurement
        self.better = np.zeros((heads, heads), dtype=bool)  # [i, j]: i surely scores above j
        self.lead = np.zeros((heads, heads))  # [i, j]: i's lead over j, in half widths
        self.stopped = ""

    # ------------------------------------------------------------ measuring

    @property
    def windows(self) -> int:
        """N."""
        return len(self.order)

    @property
    def minimum(self) -> int:
        """Exact windows of every head in the race."""
        return min(MINIMUM, self.windows)

    @property
    def spent(self) -> int:
        """Evaluations so far, a head on a window each."""
        return int(self.counts.sum())

    @property
    def active(self) -> np.ndarray:
        """Heads neither surely in nor surely out, [H]."""
        return ~(self.accepted | self.rejected | self.screened)

    def screen(self, order: np.ndarray, budget: int) -> None:
        """Leave heads out where the budget does not pay the minimum for all, the last of `order`.

        Half of what the pilot leaves goes to the minimum of those that stay.
        """
        pilot = min(PILOT, self.windows)
        extra = max(self.minimum - pilot, 1)
        stay = max(self.top + 1, (budget - self.heads * pilot) // (2 * extra))
        self.screened[order[stay:]] = True

    def run(
        self,
        measure: Measure,
        budget: int,
        told: Told | None = None,
        may: May | None = None,
        step: int = ROUND,
    ) -> None:
        """Measure until the top set is settled, the budget spent, or no window left; see `stopped`.

        `may` is asked before each piece but the pilot's; where it says no, the budget counts as
        spent. The minimum is measured `step` windows at a time, the pilot's first of all.

        Raises ModelError where a value is not finite.
        """
        starts = list(range(0, self.minimum, step))
        if may is not None:
            starts = [0, *range(min(PILOT, self.minimum), self.minimum, step)]
        for start, stop in zip(starts, [*starts[1:], self.minimum], strict=True):
            if may and start >= PILOT and not may(np.flatnonzero(~self.screened), stop - start):
                self.stopped = "budget"
                return
            pilot = np.flatnonzero(self.screened)
            if start < PILOT and len(pilot):
                self._take(measure, pilot, start, min(PILOT, stop), told)
            self._take(measure, np.flatnonzero(~self.screened), start, stop, told)
        while True:
            racing = self.active
            if self.settled():
                seen = (self.counts[racing] == self.windows).all()
                self.stopped = "documents" if seen else "settled"
                return
            chosen, start = self.contested()
            size = min(ROUND, self.windows - start, (budget - self.spent) // len(chosen))
            if size < 1 or (may and not may(chosen, size)):
                self.stopped = "budget"
                return
            self._take(measure, chosen, start, start + size, told)

    def _take(
        self, measure: Measure, chosen: np.ndarray, start: int, stop: int, told: Told | None
    ) -> None:
        values = measure(chosen, self.order[start:stop])
        if not np.isfinite(values).all():
            raise ModelError(
                "the values are not finite: the model's weights, dtype or metric is at fault"
            )
        self.y[chosen, start:stop] = values / self.weights.mean()
        self.counts[chosen] = stop
        self.scores[chosen] = self.y[chosen, :stop].mean(1)
        self.deviations[chosen] = self.y[chosen, :stop].std(1, ddof=1) if stop > 1 else 0.0
        if told:
            told(self.spent, int(self.active.sum()))

    # ------------------------------------------------------------ deciding

    def settled(self) -> bool:
        """Accept and reject what is certain; True when the top set is settled.

        A wrong top set means that some head outside the true one was found surely better than one
        inside: their paired difference missed the truth, one of top * (H - top), or the interval
        of one of the H heads did. Pairs share one half of alpha, intervals the other.
        """
        self._compare(np.flatnonzero(self.active))
        while True:
            racing = np.flatnonzero(self.active)
            places = self.top - int(self.accepted.sum())
            better = self.better[np.ix_(racing, racing)]
            # In: fewer than `places` others may be better. Out: at least as many surely are.
            enter = better.sum(1) >= len(racing) - places
            leave = better.sum(0) >= places
            if not (enter | leave).any():
                return not len(racing)
            self.accepted[racing[enter]] = True
            self.rejected[racing[leave]] = True

    def _compare(self, racing: np.ndarray) -> None:
        """Bring `better` and `lead` of all pairs of the given heads up to date."""
        alpha = (1 - self.confidence) / 2 / (self.top * (self.heads - self.top))
        gap, radius, complete = self.gaps(racing, alpha)
        index = np.arange(len(racing))
        first = complete & (gap == 0) & (index[:, None] < index)  # equal to the last: model order
        place = np.ix_(racing, racing)
        self.better[place] |= (gap > radius) | (self.apart(racing) & ~complete) | first
        with np.errstate(divide="ignore", invalid="ignore"):
            self.lead[place] = np.where(radius > 0, gap / radius, np.sign(gap) * np.inf)

    def gaps(self, racing: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each pair of the given heads, on the windows they share: [A, A] each.

        The mean difference, the half width of its one-sided confidence sequence, and whether both
        have seen all windows.
        """
        gap, deviation = np.zeros((2, len(racing), len(racing)))
        counts = self.counts[racing]
        shared = np.minimum.outer(counts, counts)
        for count in np.unique(counts):
            rows, columns = np.flatnonzero(counts >= count), np.flatnonzero(counts == count)
            y = self.y[racing[rows], :count]
            mean = y.mean(1)
            centred = y - mean[:, None]
            at = np.searchsorted(rows, columns)
            variance = (centred**2).sum(1)
            squares = variance[:, None] + variance[at] - 2 * centred @ centred[at].T
            spread = np.sqrt(np.maximum(squares, 0) / max(count - 1, 1))
            block, turned = np.ix_(rows, columns), np.ix_(columns, rows)
            gap[block] = mean[:, None] - mean[at]
            gap[turned] = -gap[block].T
            deviation[block], deviation[turned] = spread, spread.T
        width = self.half_width(shared, alpha, sides=1)
        return gap, deviation * width, shared >= self.windows

    def apart(self, racing: np.ndarray) -> np.ndarray:
        """Of each pair of the given heads, whether the first's interval lies above the other's."""
        own = self.intervals()
        return own["ci_low"][racing, None] > own["ci_high"][racing]

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        """See the function of that name."""
        return half_width(count, self.windows, alpha, sides)

    def contested(self) -> tuple[np.ndarray, int]:
        """The heads to measure next and the window they stand at: those of the closest open pairs.

        A pair is one of the top set as it stands and one below it. Of a pair, the head with fewer
        windows is what holds it up; others that stand at the same window go along.
        """
        order = self.ranking()
        order = order[self.active[order]]
        places = self.top - int(self.accepted.sum())
        above, below = order[:places], order[places:]
        lead = np.where(self.better, np.inf, self.lead)[np.ix_(above, below)]
        closest = np.argsort(lead, axis=None, kind="stable")
        pairs = np.stack([above[closest // len(below)], below[closest % len(below)]], axis=1)
        open_pairs = pairs[lead.ravel()[closest] < np.inf]
        start = self.counts[open_pairs[0]].min()
        held = open_pairs[self.counts[open_pairs].min(1) == start].ravel()
        held = held[self.counts[held] == start]
        _, places_of = np.unique(held, return_index=True)
        return held[np.sort(places_of)[:FOCUS]], int(start)

    # ------------------------------------------------------------ what was found

    def ranking(self) -> np.ndarray:
        """Heads, best first: those surely in, the undecided, those out; within each by score."""
        group = np.select([self.accepted, self.active, self.rejected], [0, 1, 2], 3)
        return np.lexsort((np.arange(self.heads), -self.scores, group))

    def intervals(self) -> dict[str, np.ndarray]:
        """score, stderr, ci_low, ci_high, [H] each: confidence sequences, corrected over heads."""
        alpha = (1 - self.confidence) / 2 / self.heads
        radius = self.deviations * self.half_width(self.counts, alpha, sides=2)
        stderr = self.deviations * np.sqrt(1 / self.counts - 1 / self.windows)
        low, high = self.scores - radius, self.scores + radius
        return {"score": self.scores, "stderr": stderr, "ci_low": low, "ci_high": high}

    def p_top(self) -> np.ndarray:
        """Chance of the top set given what was measured, [H]: normal draws of all means together.

        Two heads' means covary as their values do on the windows they share.
        """
        covariance = np.zeros((self.heads, self.heads))
        for count in np.unique(self.counts[self.counts > 1]):
            rows = np.flatnonzero(self.counts >= count)
            columns = np.flatnonzero(self.counts == count)
            with np.errstate(divide="ignore", invalid="ignore"):
                found = np.nan_to_num(np.corrcoef(self.y[rows, :count]))
            found = np.atleast_2d(found)[:, np.searchsorted(rows, columns)]
            block = found * self.deviations[rows, None] * self.deviations[columns]
            covariance[np.ix_(rows, columns)] = block
            covariance[np.ix_(columns, rows)] = block.T
        np.fill_diagonal(covariance, self.deviations**2)
        covariance *= 1 / np.maximum.outer(self.counts, self.counts) - 1 / self.windows
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))  # pairs seen apart may not fit together
        normal = np.random.default_rng(self.seed).standard_normal((DRAWS, self.heads))
        draws = self.scores + normal @ root.T
        best = np.argsort(-draws, axis=1, kind="stable")[:, : self.top]
        return np.bincount(best.ravel(), minlength=self.heads) / DRAWS

    def ties(self, order: np.ndarray) -> list[bool]:
        """Whether each of `order` and the next may stand the other way in other documents.

        The 95% interval of their difference on shared windows, clustered by document, contains 0.
        """
        tied = []
        for above, below in zip(order[:-1], order[1:], strict=True):
            shared = min(self.counts[above], self.counts[below])
            gap = self.y[above, :shared] - self.y[below, :shared]
            sums = np.bincount(self.clusters[:shared], gap - gap.mean())
            tied.append(bool(gap.mean() <= 1.96 * np.sqrt((sums**2).sum()) / shared))
        return [*tied, False]

    def by_cluster(self, clusters: int) -> np.ndarray:
        """Each head's mean on each document's measured windows, NaN without: [H, clusters]."""
        result = np.full((self.heads, clusters), np.nan)
        for head, count in enumerate(self.counts):
            cells, weights = self.clusters[:count], self.weights[:count]
            total = np.bincount(cells, self.y[head, :count], clusters) * self.weights.mean()
            mass = np.bincount(cells, weights, clusters)
            np.divide(total, mass, out=result[head], where=mass > 0)
        return result

    def design_effect(self) -> float:
        """Variance of the mean as of documents drawn, over that as of windows drawn.

        From the intraclass correlation of windows of one document (Kish 1965, section 5.4), pooled
        over heads. The race needs no correction for it: it draws windows, not documents.
        """
        alike = pairs = 0.0
        for head, count in enumerate(self.counts):
            value = self.y[head, :count]
            centred = value - value.mean()
            if not (variance := (centred**2).mean()):
                continue
            size = np.bincount(self.clusters[:count])
            sums = np.bincount(self.clusters[:count], centred)
            alike += float((sums**2).sum() - (centred**2).sum()) / variance
            pairs += float((size * (size - 1)).sum())
        size = np.bincount(self.clusters)
        return 1 + (alike / pairs if pairs else 0.0) * float((size**2).sum() / size.sum() - 1)
