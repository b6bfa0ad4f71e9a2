"""Which heads are the best, from as few exact measurements as it takes: the statistics of a race.

Windows are drawn at random without replacement, one order for all heads, and a head is measured on
the windows in that order: any two heads share the windows of the one that has fewer. Two heads are
compared by their paired difference on what they share, and by their own intervals. Both are
confidence sequences, which hold at every number of windows at once and so whenever one stops. Heads
that are surely in or surely out leave the race; effort goes to the closest pairs of the others. The
target is the weighted mean over these very windows, known exactly once all of them were seen.

No decision hangs on the last bit of a sum. Sums of values are exact, so that heads whose values add
up to the same have one score, whatever the order of windows; a pair's differences are formed before
they are squared, so that equal heads differ by nothing; what stays equal is decided by model order.
`docs/ranking.md` has the derivation and what the choices are worth.

Nothing here knows of models or losses. Shape letters: H heads, N windows, A heads in the race.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from analysis.ties import first_equal
from kernels.errors import ModelError

MINIMUM = 16  # exact windows a head: fewer carry no interval
PILOT = 2  # windows of a head that a screen leaves out
ROUND = 8  # windows between two looks
FOCUS = 6  # heads measured in a round
TIGHTEST = 256  # windows at which the confidence sequences are tightest
DRAWS = 4000  # draws behind p_top
PAIR_ENTRIES = 1 << 17  # differences of pairs held at once: 1 MB
LEAST = 1074  # bits behind the point of the least float

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


def exact_sum(values: Iterable[float]) -> int:
    """Sum of finite floats in units of 2**-LEAST: not rounded, so the same in every order."""
    ratios = (value.as_integer_ratio() for value in values)  # denominators are powers of two
    return sum(top << LEAST + 1 - bottom.bit_length() for top, bottom in ratios)


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
        self.unit = self.weights.mean()  # a mean over windows, over this, is a score
        self.y = np.full((heads, len(self.order)), np.nan)  # [h, i]: head h on i-th window drawn
        self.counts = np.zeros(heads, dtype=int)  # y[h, :counts[h]] is measured
        self.totals = [0] * heads  # the sum of that, as `exact_sum` gives it
        self.scores = np.zeros(heads)  # its mean over `unit`, rounded once
        self.deviations = np.zeros(heads)  # its standard deviation; 0 of a single window
        self.accepted = np.zeros(heads, dtype=bool)
        self.rejected = np.zeros(heads, dtype=bool)
        self.screened = np.zeros(heads, dtype=bool)  # left out by a screen, not by measurement
        self.better = np.zeros((heads, heads), dtype=bool)  # [i, j]: i surely scores above j
        self.lead = np.zeros((heads, heads))  # [i, j]: i's lead over j, in half widths
        self._shared = np.zeros((heads, heads), dtype=np.int32)  # windows behind the next two
        self._gap, self._spread = np.zeros((2, heads, heads))  # of a pair's differences
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
            if not len(chosen):
                self.stopped = "documents"
                return
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
        self.y[chosen, start:stop] = values
        self.counts[chosen] = stop
        for head, row in zip(
            chosen.tolist(), np.asarray(values, dtype=float).tolist(), strict=True
        ):
            self.totals[head] += exact_sum(row)
        means = np.array([self.totals[head] / (stop << LEAST) for head in chosen.tolist()])
        self.scores[chosen] = means / self.unit
        squares = ((self.y[chosen, :stop] - means[:, None]) ** 2).sum(1)
        self.deviations[chosen] = np.sqrt(squares / max(stop - 1, 1)) / self.unit
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
            # In: fewer than `places` others may be better. Out: at least as many surely are. Only
            # where comparisons contradict each other do more qualify than there is room for: then
            # the best enter, and the worst leave.
            order = np.lexsort((racing, -self.scores[racing]))
            room = len(racing) - places
            enter = order[(better.sum(1) >= room)[order]][:places]
            leave = order[::-1][(better.sum(0) >= places)[order[::-1]]][:room]
            if not len(enter) and not len(leave):
                return not len(racing)
            self.accepted[racing[enter]] = True
            self.rejected[racing[leave]] = True

    def _compare(self, racing: np.ndarray) -> None:
        """Bring `better` and `lead` of all pairs of the given heads up to date."""
        alpha = (1 - self.confidence) / 2 / (self.top * (self.heads - self.top))
        gap, radius, complete = self.gaps(racing, alpha)
        place = np.ix_(racing, racing)
        known = self.better[place]
        # Two ways to compare may contradict each other, or what was found before: no decision.
        found = (gap > radius) | self.apart(racing)
        found &= ~(found | known).T
        # Of all windows the scores are known: they decide, and of equal ones the model's order.
        scores, index = self.scores[racing], np.arange(len(racing))
        exact = scores[:, None] > scores
        exact |= (scores[:, None] == scores) & (index[:, None] < index)
        self.better[place] = np.where(complete, exact, known | found)
        with np.errstate(divide="ignore", invalid="ignore"):
            certain = np.where(gap == 0, 0.0, np.sign(gap) * np.inf)
            self.lead[place] = np.where(radius > 0, gap / radius, certain)

    def gaps(self, racing: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each pair of the given heads, on the windows they share: [A, A] each.

        The mean difference, the half width of its one-sided confidence sequence, and whether both
        have seen all windows.
        """
        self._pair(racing)
        place = np.ix_(racing, racing)
        counts, at = np.unique(self.counts[racing], return_inverse=True)
        shared = np.minimum.outer(at, at)  # index into counts
        width = self.half_width(counts, alpha, sides=1)[shared]
        return self._gap[place], self._spread[place] * width, (counts >= self.windows)[shared]

    def _pair(self, racing: np.ndarray) -> None:
        """Mean and deviation of the differences of those pairs that share more windows than before.

        Differences first, squares after: var + var - 2 cov would leave the rounding of three large
        numbers where a small one is asked, and something where two heads are equal.
        """
        counts = self.counts[racing]
        shared = np.minimum.outer(counts, counts)
        stale = np.argwhere(np.triu(shared != self._shared[np.ix_(racing, racing)], 1))
        windows = shared[stale[:, 0], stale[:, 1]]
        for count in np.unique(windows).tolist():
            pairs = racing[stale[windows == count]]  # [P, 2]
            for part in np.array_split(pairs, -(-len(pairs) * count // PAIR_ENTRIES)):
                one, two = part.T
                difference = self.y[one, :count] - self.y[two, :count]
                mean = difference.sum(1) / count
                difference -= mean[:, None]
                squares = np.square(difference, out=difference).sum(1)
                self._gap[one, two] = mean / self.unit
                self._gap[two, one] = -mean / self.unit
                spread = np.sqrt(squares / max(count - 1, 1)) / self.unit
                self._spread[one, two] = self._spread[two, one] = spread
                self._shared[one, two] = self._shared[two, one] = count

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
        windows is what holds it up; others that stand at the same window go along. No heads, where
        no such pair is open.
        """
        order = self.ranking()
        order = order[self.active[order]]
        places = self.top - int(self.accepted.sum())
        above, below = order[:places], order[places:]
        place = np.ix_(above, below)
        closest = np.argsort(self.lead[place], axis=None, kind="stable")
        pairs = np.stack([above[closest // len(below)], below[closest % len(below)]], axis=1)
        undecided = ~self.better[place] & (
            np.minimum.outer(self.counts[above], self.counts[below]) < self.windows
        )
        open_pairs = pairs[undecided.ravel()[closest]]
        if not len(open_pairs):
            return above[:0], self.windows
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

        Two heads' means covary as their values do on the windows they share. Equal heads get equal
        draws, and what is known is not drawn, so that ties fall by model order here too.
        """
        twin = first_equal(self.y[head, :count] for head, count in enumerate(self.counts))
        index = np.arange(self.heads)
        drawn = (self.counts < self.windows) & (self.deviations > 0) & (twin == index)
        noise = np.zeros((DRAWS, self.heads))
        normal = np.random.default_rng(self.seed).standard_normal(noise.shape)
        if drawn.any():
            values, vectors = np.linalg.eigh(self._covariance(np.flatnonzero(drawn)))
            root = vectors * np.sqrt(np.maximum(values, 0))  # pairs seen apart may not fit together
            # The symmetric root is the only one: eigenvectors alone depend on who computes them.
            noise[:, drawn] = normal[:, drawn] @ (root @ vectors.T)
        draws = self.scores + noise[:, twin]
        best = np.argsort(-draws, axis=1, kind="stable")[:, : self.top]
        return np.bincount(best.ravel(), minlength=self.heads) / DRAWS

    def _covariance(self, heads: np.ndarray) -> np.ndarray:
        """Of the means of the given heads, [A, A]."""
        counts, deviations = self.counts[heads], self.deviations[heads]
        covariance = np.zeros((len(heads), len(heads)))
        for count in np.unique(counts[counts > 1]):
            rows, columns = np.flatnonzero(counts >= count), np.flatnonzero(counts == count)
            with np.errstate(divide="ignore", invalid="ignore"):
                found = np.nan_to_num(np.corrcoef(self.y[heads[rows], :count]))
            found = np.atleast_2d(found)[:, np.searchsorted(rows, columns)]
            block = found * deviations[rows, None] * deviations[columns]
            covariance[np.ix_(rows, columns)] = block
            covariance[np.ix_(columns, rows)] = block.T
        np.fill_diagonal(covariance, deviations**2)
        return covariance * (1 / np.maximum.outer(counts, counts) - 1 / self.windows)

    def ties(self, order: np.ndarray) -> list[bool]:
        """Whether each of `order` and the next may stand the other way in other documents.

        The 95% interval of their difference on shared windows, clustered by document, contains 0.
        """
        tied = []
        for above, below in zip(order[:-1], order[1:], strict=True):
            shared = min(self.counts[above], self.counts[below])
            one, two = self.y[above, :shared], self.y[below, :shared]
            lead = (math.fsum(one) - math.fsum(two)) / shared  # 0 where they add up to the same
            sums = np.bincount(self.clusters[:shared], one - two - lead)
            tied.append(bool(lead <= 1.96 * np.sqrt((sums**2).sum()) / shared))
        return [*tied, False]

    def by_cluster(self, clusters: int) -> np.ndarray:
        """Each head's mean on each document's measured windows, NaN without: [H, clusters]."""
        result = np.full((self.heads, clusters), np.nan)
        for head, count in enumerate(self.counts):
            cells, weights = self.clusters[:count], self.weights[:count]
            total = np.bincount(cells, self.y[head, :count], clusters)
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
            if not self.deviations[head]:
                continue
            centred = value - value.mean()
            variance = (centred**2).mean()
            size = np.bincount(self.clusters[:count])
            sums = np.bincount(self.clusters[:count], centred)
            alike += float((sums**2).sum() - (centred**2).sum()) / variance
            pairs += float((size * (size - 1)).sum())
        size = np.bincount(self.clusters)
        return 1 + (alike / pairs if pairs else 0.0) * float((size**2).sum() / size.sum() - 1)
