"""The race as shipped, and races that lack one of its parts, to see what each part is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from analysis.race import Race, half_width


class Unpaired(Race):
    """Compares heads by their own intervals instead of their paired difference."""

    def gaps(self, racing: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, _, complete = super().gaps(racing, alpha)
        found = self.intervals()
        score, radius = found["score"][racing], (found["score"] - found["ci_low"])[racing]
        return score[:, None] - score, radius[:, None] + radius, complete


class PairedOnly(Race):
    """Compares heads by their paired difference alone."""

    def apart(self, racing: np.ndarray) -> np.ndarray:
        return np.zeros((len(racing), len(racing)), dtype=bool)


class WithReplacement(Race):
    """Takes the windows for draws from an endless source, until all are seen."""

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        return np.where(count >= self.windows, 0.0, half_width(count, np.inf, alpha, sides))


class Lockstep(Race):
    """Plain successive elimination: every head in the race is measured on every window."""

    def contested(self) -> tuple[np.ndarray, int]:
        racing = np.flatnonzero(self.active)
        start = self.counts[racing].min()
        return racing[self.counts[racing] == start], int(start)


class Uncorrected(Race):
    """Looks again and again at plain 95% intervals, not corrected for looks, heads or pairs."""

    def half_width(self, count: np.ndarray, alpha: float, sides: int) -> np.ndarray:
        share = np.maximum(1 / count - 1 / self.windows, 0)
        return stats.norm.ppf(1 - (1 - self.confidence) / sides) * np.sqrt(share)


class InOrder(Race):
    """Draws documents at random and takes the windows of each in a row."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _, place = np.unique(self.clusters, return_index=True)  # each document's first window drawn
        rank = dict(zip(self.clusters[place].tolist(), place.tolist(), strict=True))
        turn = np.argsort([rank[cluster] for cluster in self.clusters.tolist()], kind="stable")
        self.order, self.weights = self.order[turn], self.weights[turn]
        self.clusters = self.clusters[turn]


CONTROLLED = "first-order scores as control variate"
VARIANTS: dict[str, type[Race]] = {
    "as shipped": Race,
    "every head in the race, not the closest": Lockstep,
    "own intervals alone": Unpaired,
    "paired differences alone": PairedOnly,
    "no correction for the finite population": WithReplacement,
    CONTROLLED: Race,  # fed with effects less first-order scores, whose means are known
    "windows document by document": InOrder,
    "plain 95% intervals, uncorrected": Uncorrected,
}
