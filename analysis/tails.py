"""Tails: how far values reach, and whether a few windows carry a head's score.

Shape letters: H heads, N windows, t values seen of each.
"""

from __future__ import annotations

import numpy as np

SPREAD = 0.9  # quantile of sizes that says what is usual
USUAL = 1.6448536269514722  # that quantile of a standard normal's size
ENOUGH = 16  # values that say something of a head's tail
HEAVY = 4.0  # usual distances: of a normal, one value in 16,000
MOST = 0.25  # of all windows are measured before the drawn ones
MARGIN = 1.1  # by which a range that grew is taken larger, so that it grows seldom


def scales(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, largest distance from it, and the usual one, of values [H, t]: [H] each.

    The usual distance is the 90% quantile, over that of a normal: rare values do not move it.
    """
    centre = np.median(values, axis=1)
    size = np.sort(np.abs(values - centre[:, None]), axis=1)
    place = min(int(SPREAD * size.shape[1]), size.shape[1] - 1)
    return centre, size[:, -1], size[:, place] / USUAL


def kurtosis(values: np.ndarray) -> float:
    """Fourth moment over the squared second: 3 of a normal; NaN where all values are the same."""
    centred = values - values.mean()
    square = float((centred**2).mean())
    return float((centred**4).mean()) / square**2 if square > 0 else float("nan")


def tail_share(values: np.ndarray) -> float:
    """The share of all size that the largest 5% of values hold; 0 where all are 0."""
    size = np.sort(np.abs(values))[::-1]
    total = float(size.sum())
    return float(size[: max(round(0.05 * len(size)), 1)].sum()) / total if total else 0.0


def carriers(values: np.ndarray) -> int:
    """The fewest values that hold half of all size; 0 where all are 0."""
    size = np.sort(np.abs(values))[::-1]
    total = float(size.sum())
    return int(np.searchsorted(np.cumsum(size), total / 2) + 1) if total else 0


class Range:
    """How far values may reach: as far as a bound allows, or as is taken from what was seen.

    Taken: no value of a head lies further from its median than the largest seen, nor further than
    `ratio` times its own scale, the ratio being the largest seen of any head. A head whose scale is
    0, because nearly all of its values are the same, may reach as far as any head did.

    Args:
        heads, windows: H, N.
        bound: that no value is larger than; None where nothing bounds them.
    """

    def __init__(self, heads: int, windows: int, bound: float | None) -> None:
        self.bound = bound
        self.ratio = self.reach = 0.0
        self.scale = np.zeros(heads)
        self._stale = False

    def see(self, heads: np.ndarray, values: np.ndarray) -> None:
        """Take into account the values [A, t] of the given heads: all that were drawn so far."""
        if self.bound is not None:
            return
        _, largest, scale = scales(values)
        self.scale[heads] = scale
        reach = float(largest.max() or np.abs(values).max())
        ratio = 0.0
        if values.shape[1] >= ENOUGH and scale.any():
            ratio = float((largest[scale > 0] / scale[scale > 0]).max())
        if ratio > self.ratio:
            self.ratio, self._stale = MARGIN * ratio, True
        if reach > self.reach:
            self.reach, self._stale = MARGIN * reach, True

    def grew(self) -> bool:
        """Whether it is wider than when this was last asked."""
        stale, self._stale = self._stale, False
        return stale

    def of_pairs(
        self, one: np.ndarray, two: np.ndarray, largest: np.ndarray, spread: np.ndarray
    ) -> np.ndarray:
        """How far from 0 the differences of pairs may lie, [P].

        largest, spread [P]: the largest size and the deviation of those seen.
        """
        if self.bound is not None:
            return np.full(len(one), self.bound)
        taken = np.maximum(largest, self.ratio * spread)
        unknown = np.minimum(self.scale[one], self.scale[two]) == 0
        return np.where(unknown, np.maximum(taken, self.reach), taken)

    def of_heads(self, heads: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest that values of heads may be, [A] each."""
        if self.bound is not None:
            limit = np.full(len(heads), self.bound)
            return -limit, limit
        centre, largest, scale = scales(values)
        taken = np.maximum(largest, self.ratio * scale)
        if values.shape[1] < ENOUGH:
            scale = np.zeros(len(heads))
        taken = np.where(scale == 0, np.maximum(taken, self.reach), taken)
        return centre - taken, centre + taken


def heavy_windows(sizes: np.ndarray, most: int | None = None) -> list[int]:
    """Windows that carry much of some head's score, by sizes [H, N] to first order; heaviest first.

    Those where a head's size is more than HEAVY times its usual one; at most a quarter of all
    windows, and `most` of them.
    """
    size = np.abs(sizes)
    usual = np.quantile(size, SPREAD, axis=1, keepdims=True) / USUAL
    with np.errstate(divide="ignore", invalid="ignore"):
        outlying = size / usual
    worst = np.nan_to_num(outlying, posinf=np.finfo(float).max).max(0)
    order = np.argsort(-worst, kind="stable")
    order = order[: min(int(MOST * sizes.shape[1]), len(order) if most is None else most)]
    return order[worst[order] > HEAVY].tolist()
