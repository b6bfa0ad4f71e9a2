"""The race as shipped, and races that lack one of its parts, to see what each part is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from analysis.race import Race


class Narrow(Race):
    """Takes no value to lie further than its pair's largest difference seen, whatever others do."""

    def widest(
        self, one: np.ndarray, two: np.ndarray, largest: np.ndarray, spread: np.ndarray
    ) -> np.ndarray:
        return largest


class WithReplacement(Race):
    """Takes the windows for draws from an endless source, until all are seen."""

    @property
    def population(self) -> int:
        return ENDLESS


class Lockstep(Race):
    """Plain successive elimination: every head in the race is measured on every window."""

    def contested(self) -> tuple[np.ndarray, int]:
        racing = np.flatnonzero(self.active)
        start = self.counts[racing].min()
        return racing[self.counts[racing] == start], int(start)


class Uncorrected(Race):
    """Looks again and again at plain 95% intervals, not corrected for looks, heads or pairs."""

    def certain(self, place: tuple[np.ndarray, ...], alpha: float) -> np.ndarray:
        return self.lead[place] > stats.norm.ppf(self.confidence)

    def intervals(self) -> dict[str, np.ndarray]:
        stderr = self.deviations * np.sqrt(self.variance_left)
        radius = stats.norm.ppf((1 + self.confidence) / 2) * stderr
        low, high = self.scores - radius, self.scores + radius
        return {"score": self.scores, "stderr": stderr, "ci_low": low, "ci_high": high}


class InOrder(Race):
    """Draws documents at random and takes the windows of each in a row."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _, place = np.unique(self.clusters, return_index=True)  # each document's first window drawn
        rank = dict(zip(self.clusters[place].tolist(), place.tolist(), strict=True))
        turn = np.argsort([rank[cluster] for cluster in self.clusters.tolist()], kind="stable")
        self.order, self.weights = self.order[turn], self.weights[turn]
        self.clusters = self.clusters[turn]


ENDLESS = 10**9  # windows
CONTROLLED = "first-order scores as control variate"
ALL_DRAWN = "no windows first, however heavy to first order"
IN_ORDER = "windows document by document"
NONE_FIRST = (CONTROLLED, ALL_DRAWN, IN_ORDER)
VARIANTS: dict[str, type[Race]] = {
    "as shipped": Race,
    "every head in the race, not the closest": Lockstep,
    "each pair's own range": Narrow,
    "no correction for the finite population": WithReplacement,
    CONTROLLED: Race,  # fed with effects less first-order scores, whose means are known
    ALL_DRAWN: Race,
    IN_ORDER: InOrder,
    "plain 95% intervals, uncorrected": Uncorrected,
}
