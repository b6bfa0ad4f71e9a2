"""Which heads are the best, from as few exact measurements as it takes: the statistics of a race.

Windows are drawn at random without replacement, one order for all heads, and a head is measured on
the windows in that order: any two heads share the windows of the one that has fewer. Windows that
are thought to carry much (`first`) may come before, for all heads; they are known then, and only
what is left of a mean is estimated. Two heads are compared by betting on their paired difference
(`analysis.sequences`), which may be looked at after every window. Heads that are surely in or
surely out are measured no more; effort goes to the closest pairs of the others. The target is the
weighted mean over these very windows, known exactly once all of them were seen.

Bets need a range that values cannot leave. Where the metric has one (`bound`), what a race says
holds in every sample size. Elsewhere a range is taken from what was seen: no value of a head lies
further from its median than the largest seen, nor than the heaviest tail seen of any head would
have it in units of its own scale (`analysis.tails`). That is an assumption, true in the long run:
what rests on it is called asymptotic, and nothing is certain of heads on fewer windows than
`enough`. When a larger value shows up, what was decided is decided again.

No decision hangs on the last bit of a sum. Sums of values are exact, so that heads whose values add
up to the same have one score, whatever the order of windows; a pair's differences are formed before
they are squared, so that equal heads differ by nothing; what stays equal is decided by model order.
`docs/ranking.md` has the derivation and what the choices are worth.

Nothing here knows of models or losses. Shape letters: H heads, N windows, A heads in the race.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.sequences import capital, interval
from analysis.tails import Range
from kernels.errors import ModelError

MINIMUM = 16  # exact windows a head, drawn at random, before anything is said of it
KIND = 0.2  # share of windows that is not missed, of any head, before a range is taken as known
PILOT = 2  # windows of a head that a screen leaves out
ROUND = 8  # windows between two looks
FOCUS = 6  # heads measured in a round
PAIR_ENTRIES = 1 << 15  # differences of pairs held at once: a few arrays that a cache holds
LEAST = 1074  # bits behind the point of the least float

# Sums [heads, windows] of a metric's change, for indices of heads and of windows.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
Told = Callable[[int, int], None]
# Whether a piece, these heads on so many windows, may still be measured.
May = Callable[[np.ndarray, int], bool]


def least_budget(top: int, heads: int, windows: int) -> int:
    """The smallest budget: the minimum for top + 1 heads and a pilot for the others."""
    minimum, pilot = min(MINIMUM, windows), min(PILOT, windows)
    return heads * pilot + (top + 1) * (minimum - pilot)


def enough(heads: int, confidence: float) -> int:
    """Windows a head before values not seen are taken to reach no further than those seen.

    More, the more heads and the surer: any kind of window that makes up a fifth of a head's was
    met by then, for all heads together with half of what the confidence leaves. Rarer ones are
    met sooner where several heads have them, which all widen the range.
    """
    return math.ceil(math.log(2 * heads / (1 - confidence)) / -math.log(1 - KIND))


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
        bound: no value, and no two heads' difference, is larger than this times its window's
            weight; None where nothing bounds them, which makes the race asymptotic.
        first: windows that every head is measured on before any is drawn.
    """

    def __init__(
        self,
        heads: int,
        weights: ArrayLike,
        clusters: ArrayLike,
        top: int,
        confidence: float = 0.95,
        seed: int = 0,
        *,
        bound: float | None = None,
        first: Sequence[int] = (),
    ) -> None:
        self.heads, self.top, self.confidence, self.seed = heads, top, confidence, seed
        drawn = np.random.default_rng(seed).permutation(len(np.asarray(weights)))
        chosen = np.asarray(first, dtype=int)
        self.order = np.concatenate([chosen, drawn[~np.isin(drawn, chosen)]])
        self.known = len(chosen)  # windows that were not drawn
        self.weights = np.asarray(weights, dtype=float)[self.order]
        self.clusters = np.asarray(clusters)[self.order]
        self.unit = self.weights.mean()  # a mean over windows, over this, is a score
        largest = None if bound is None else bound * float(self.weights.max() / self.unit)
        self.range = Range(heads, self.windows, largest)
        self.y = np.full((heads, len(self.order)), np.nan)  # [h, i]: head h on i-th window
        self.counts = np.zeros(heads, dtype=int)  # y[h, :counts[h]] is measured
        self.totals = np.zeros((2, heads), dtype=object)  # exact sums: known windows, drawn ones
        self.scores = np.zeros(heads)  # the estimated mean over `unit`, rounded once
        self.deviations = np.zeros(heads)  # of the values of drawn windows; 0 of a single one
        self.accepted = np.zeros(heads, dtype=bool)
        self.rejected = np.zeros(heads, dtype=bool)
        self.screened = np.zeros(heads, dtype=bool)  # left out by a screen, not by measurement
        self.better = np.zeros((heads, heads), dtype=bool)  # [i, j]: i surely scores above j
        self.lead = np.zeros((heads, heads))  # [i, j]: i's lead over j, in standard errors
        self.money = np.zeros((heads, heads))  # [i, j]: log of what betting on i > j has won
        self._shared = np.zeros((heads, heads), dtype=np.int32)  # windows behind a pair's numbers
        self._fresh = np.zeros(heads, dtype=bool)  # measured since pairs were last compared
        self.stopped = ""

    # ------------------------------------------------------------ measuring

    @property
    def windows(self) -> int:
        """N."""
        return len(self.order)

    @property
    def minimum(self) -> int:
        """Exact windows of every head in the race, whatever the budget."""
        return min(self.known + MINIMUM, self.windows)

    @property
    def enough(self) -> int:
        """Windows of a head before anything is certain of it, where its values are not bounded."""
        if self.range.bound is not None:
            return self.minimum
        return min(self.known + max(MINIMUM, enough(self.heads, self.confidence)), self.windows)

    @property
    def guarantee(self) -> str:
        """ "exact", "asymptotic", or "few windows": asymptotic, and of some heads on too few."""
        if self.range.bound is not None:
            return "exact"
        return "asymptotic" if self.counts.min() >= self.enough else "few windows"

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

        Half of what the pilot leaves goes to the minimum of those that stay. All windows are drawn
        at random then: two of those that come first would say nothing of a mean.
        """
        assert not self.known
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

        First of all heads are measured side by side: on the minimum whatever the budget, and on
        `enough` windows as far as the budget reaches, unless a screen left heads out. A race that
        its budget ended goes on where it was when it is run again with a larger one. `may` is asked
        before each piece but the pilot's; where it says no, the budget counts as spent.

        Raises ModelError where a value is not finite.
        """
        if not self._side_by_side(measure, budget, told, may, step):
            self.stopped = "budget"
            return
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

    def _side_by_side(
        self, measure: Measure, budget: int, told: Told | None, may: May | None, step: int
    ) -> bool:
        """All heads, `step` windows at a time, the pilot's first; False where the time is up.

        What the budget does not pay for all heads is left to the closest pairs.
        """
        least = self.minimum if self.screened.any() else self.enough
        starts = [*range(0, self.minimum, step), *range(self.minimum, least, step)]
        if may is not None:
            pilot = min(PILOT, self.minimum)
            starts = [0, *range(pilot, self.minimum, step), *range(self.minimum, least, step)]
        for start, stop in zip(starts, [*starts[1:], least], strict=True):
            behind = ~self.screened & (self.counts < stop)
            lacks = int((stop - self.counts[behind]).sum()) - (budget - self.spent)
            if start >= self.minimum and lacks > 0:
                stop += -lacks // int(behind.sum())
                behind &= self.counts < stop
            if not behind.any():
                continue
            if may and start >= PILOT and not may(np.flatnonzero(behind), stop - start):
                return False
            pilots = np.flatnonzero(self.screened)
            if start < PILOT and len(pilots):
                self._take(measure, pilots, start, min(PILOT, stop), told)
            for count in np.unique(self.counts[behind]).tolist():  # `start`, or where it ended
                heads = np.flatnonzero(behind & (self.counts == count))
                self._take(measure, heads, count, stop, told)
        return True

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
        self._fresh[chosen] = True
        split = min(max(self.known - start, 0), stop - start)  # values of windows not drawn
        for head, row in zip(
            chosen.tolist(), np.asarray(values, dtype=float).tolist(), strict=True
        ):
            self.totals[:, head] += exact_sum(row[:split]), exact_sum(row[split:])
        self.scores[chosen] = [self._mean(head) / self.unit for head in chosen.tolist()]
        if count := max(stop - self.known, 0):
            drawn = self.y[chosen, self.known : stop]
            means = [total / (count << LEAST) for total in self.totals[1, chosen].tolist()]
            squares = ((drawn - np.array(means)[:, None]) ** 2).sum(1)
            self.deviations[chosen] = np.sqrt(squares / max(count - 1, 1)) / self.unit
            self.range.see(chosen, drawn / self.unit)
        if told:
            told(self.spent, int(self.active.sum()))

    def _mean(self, head: int) -> float:
        """Estimated mean of a head over all windows: exact arithmetic, rounded once."""
        known, drawn = self.totals[:, head].tolist()
        count, left = self.counts[head].item() - self.known, self.windows - self.known
        if count < 1:
            return known / (self.counts[head].item() << LEAST)
        return (known * count + drawn * left) / (self.windows * count << LEAST)

    # ------------------------------------------------------------ deciding

    def settled(self) -> bool:
        """Accept and reject what is certain; True when the top set is settled.

        A wrong top set means that some head outside the true one was found surely better than one
        inside: a bet on the wrong side of one of top * (H - top) pairs was won. Pairs share one
        half of alpha, the intervals of heads the other. All is decided anew at every look: a range
        that grew takes back what rested on a smaller one.
        """
        self._compare(np.flatnonzero(~self.screened))
        self.accepted[:] = self.rejected[:] = False
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
        if self.range.grew():
            self._shared[:] = 0
            self._fresh[:] = True
        fresh = racing[self._fresh[racing]]
        self._fresh[:] = False
        self._pair(fresh, racing)
        place, turned = np.ix_(fresh, racing), np.ix_(racing, fresh)
        above, below = self.certain(place, alpha), self.certain(turned, alpha).T
        # Of all windows the scores are known: they decide, and of equal ones the model's order.
        complete = np.logical_and.outer(*[self.counts[h] >= self.windows for h in (fresh, racing)])
        higher = np.subtract.outer(self.scores[fresh], self.scores[racing])
        before = np.subtract.outer(fresh, racing)
        exact = (higher > 0) | ((higher == 0) & (before < 0))
        after = (higher < 0) | ((higher == 0) & (before > 0))
        both = np.isin(racing, fresh)
        below[:, both] = above[:, both].T
        shared = np.minimum.outer(self.counts[fresh], self.counts[racing])
        above, below = above & (shared >= self.enough), below & (shared >= self.enough)
        self.better[place] = np.where(complete, exact, above & ~below)
        self.better[turned] = np.where(complete, after, below & ~above).T

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        """Of pairs that have not seen all windows, whether the first is surely better, [A, A]."""
        return self.money[place] > -np.log(alpha)

    @property
    def population(self) -> int:
        """Windows that the mean is over."""
        return self.windows

    def widest(
        self, one: np.ndarray, two: np.ndarray, largest: np.ndarray, spread: np.ndarray
    ) -> np.ndarray:
        """How far from 0 the differences of pairs may lie, [P]; see `Range.of_pairs`."""
        return self.range.of_pairs(one, two, largest, spread)

    def _pair(self, fresh: np.ndarray, racing: np.ndarray) -> None:
        """Bets on those pairs of the given heads that share more windows than they did."""
        shared = np.minimum.outer(self.counts[fresh], self.counts[racing])
        stale = shared != self._shared[np.ix_(fresh, racing)]
        # Of two heads that are both fresh, the pair once; never a head with itself.
        stale &= (fresh[:, None] < racing) | ~np.isin(racing, fresh)
        rows, columns = np.nonzero(stale)
        pairs = np.sort(np.stack([fresh[rows], racing[columns]], axis=1), axis=1)  # [P, 2]
        windows = shared[rows, columns]
        for count in np.unique(windows).tolist():
            chosen = pairs[windows == count]
            for part in np.array_split(chosen, -(-len(chosen) * count // PAIR_ENTRIES)):
                self._bet(part[:, 0], part[:, 1], count)

    def _bet(self, one: np.ndarray, two: np.ndarray, count: int) -> None:
        """Evidence that one of each pair is better, from the windows they share.

        Differences first, squares after: var + var - 2 cov would leave the rounding of three large
        numbers where a small one is asked, and something where two heads are equal.
        """
        difference = (self.y[one, :count] - self.y[two, :count]) / self.unit
        known, left = self.known, self.windows - self.known
        drawn = difference[:, known:]
        mean = drawn.sum(1) / drawn.shape[1]
        gap = (difference[:, :known].sum(1) + left * mean) / self.windows
        spread = np.sqrt(np.square(drawn - mean[:, None]).sum(1) / max(count - known - 1, 1))
        sign = np.where(gap < 0, -1.0, 1.0)
        difference *= sign[:, None]
        low = -self.widest(one, two, np.abs(drawn).max(1), spread)
        won = capital(difference, np.zeros(len(gap)), low, self.population, known)
        won = np.where(gap == 0, 0.0, won)
        ahead = sign > 0
        self.money[one, two] = np.where(ahead, won, -np.inf)
        self.money[two, one] = np.where(ahead, -np.inf, won)
        error = spread * np.sqrt(1 / (count - known) - 1 / left) * left / self.windows
        with np.errstate(divide="ignore", invalid="ignore"):
            lead = np.where(gap == 0, 0.0, gap / error)
        self.lead[one, two], self.lead[two, one] = lead, -lead
        self._shared[one, two] = self._shared[two, one] = count

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

    @property
    def variance_left(self) -> np.ndarray:
        """The variance of each head's score, in squared deviations of a window, [H]."""
        left = self.windows - self.known
        drawn = np.maximum(self.counts - self.known, 1)
        return (1 / drawn - 1 / max(left, 1)) * (left / self.windows) ** 2

    def intervals(self) -> dict[str, np.ndarray]:
        """score, stderr, ci_low, ci_high, [H] each: confidence sequences, corrected over heads."""
        alpha = (1 - self.confidence) / 2 / self.heads
        low, high = self.scores.copy(), self.scores.copy()
        for count in np.unique(self.counts).tolist():
            rows = np.flatnonzero(self.counts == count)
            if count == self.windows:
                continue
            values = self.y[rows, :count] / self.unit
            ends = self.range.of_heads(rows, values[:, self.known :])
            low[rows], high[rows] = interval(values, *ends, self.windows, alpha, self.known)
            blank = rows[ends[0] == ends[1]]  # zeros alone were seen, of all heads
            low[blank], high[blank] = -np.inf, np.inf
        stderr = self.deviations * np.sqrt(self.variance_left)
        return {"score": self.scores, "stderr": stderr, "ci_low": low, "ci_high": high}
