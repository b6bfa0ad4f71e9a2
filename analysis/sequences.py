"""Confidence sequences for the mean of a finite population, by betting.

Waudby-Smith and Ramdas, arXiv 2010.09686 (betting) and 2006.04347 (without replacement): whoever
holds that the mean of N values is at most m has to hold, once the first i - 1 of them were seen in
random order, that the next is on average at most m_i = (N m - their sum) / (N - i + 1). A bet that
puts a share g of the money on more than that, of values of at least `low`, multiplies the money by
1 - g + g (x_i - low) / (m_i - low), on average by at most 1. So the money exceeds 1/alpha at any
time with a chance of at most alpha (Ville), in every sample size, whatever the distribution between
`low` and above. Money is spread over a few shares g in equal parts, which is a bet as well; the
result falls as m rises, so what is not rejected is an interval.

Shape letters: P sequences, t values seen of each, S shares.
"""

from __future__ import annotations

import numpy as np

SHARES = 0.9 * 4.0 ** -np.arange(4)  # [S]; best for a mean far above m, to one hardly above
STEPS = 30  # halvings of an interval's end


def capital(
    values: np.ndarray, mean: np.ndarray, low: np.ndarray, population: int, known: int = 0
) -> np.ndarray:
    """Log of the money won against "the mean of all `population` values is at most `mean`", [P].

    Args:
        values: [P, t], in the order drawn, of which the first `known` were not drawn at random (a
            stratum that was measured whole): nothing is bet on those.
        mean, low: [P]; no value lies below `low`.

    inf where no values from `low` up could make the mean as small as that.
    """
    count = values.shape[1]
    before = np.cumsum(values, axis=1)
    left = population - np.arange(known, count)
    expected = np.empty((len(values), count - known))
    np.subtract(population * mean[:, None], before[:, known:] - values[:, known:], out=expected)
    expected /= left
    expected -= low[:, None]
    # The room above `low` that is left to the values not seen: none, and `mean` is impossible.
    beyond = (expected <= 0).any(1)
    if count < population:
        beyond |= population * mean - before[:, -1] < (population - count) * low
    expected[beyond] = 1.0
    gain = (values[:, known:] - low[:, None]) / expected
    money = np.empty((len(SHARES), len(values)))
    with np.errstate(over="ignore", under="ignore"):
        for number, share in enumerate(SHARES):
            np.multiply.reduce(1 - share + share * gain, axis=1, out=money[number])
        with np.errstate(divide="ignore"):
            found = np.log(money.mean(0))
    return np.where(beyond, np.inf, found)


def interval(
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    population: int,
    alpha: float,
    known: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [P] that hold the means of all values, with 1 - alpha at all times.

    Args as `capital` takes them; no value lies outside of `low` to `high` [P].
    """
    lower = _lower_end(values, low, population, alpha / 2, known)
    upper = -_lower_end(-values, -high, population, alpha / 2, known)
    return lower, upper


def _lower_end(
    values: np.ndarray, low: np.ndarray, population: int, alpha: float, known: int
) -> np.ndarray:
    """The smallest means [P] that are not rejected in favour of larger ones."""
    count = values.shape[1]
    total = values.sum(1)
    outside = (total + (population - count) * low) / population  # all others as low as can be
    sampled = max(count - known, 1)
    rest = (total - values[:, :known].sum(1)) / sampled * (population - known)
    inside = np.maximum((values[:, :known].sum(1) + rest) / population, outside)
    for _ in range(STEPS):
        middle = (outside + inside) / 2
        rejected = capital(values, middle, low, population, known) > -np.log(alpha)
        outside = np.where(rejected, middle, outside)
        inside = np.where(rejected, inside, middle)
    return outside
