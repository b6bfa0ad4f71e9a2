"""Controls that match: for each chosen head others of its layer that were as important before.

Importance is skewed (one head of pico's 48 has 20 times what the second has) and can be negative,
so heads are compared on `level`, which is linear near 0 and logarithmic beyond: a caliper on it is
about a ratio of importances. Whoever has no control within the caliper is left without one; nothing
is matched with what does not match.

Noise in importance before makes important heads fall back by themselves (regression to the mean),
and a control far below its chosen head does not. The caliper holds both to one level, and what is
left of the gap is taken off by a regression on it (Rubin 1979, JASA 74(366); Abadie and Imbens
2011, J. Bus. Econ. Stat. 29(1)). `workbench.contrast_study` shows how often a null is rejected.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize

from analysis.ties import ROUNDING

# Standard deviations of `level` over all heads. Austin's 0.2 (2011, Pharm. Stat. 10(2)) is of a
# propensity score's logit, with hundreds to draw on; layers hold few heads. docs/amplification.md.
CALIPER = 0.3


class Matches(NamedTuple):
    """`sets`: rows of heads, a chosen one first and its controls behind, nearest first; `alone`:
    chosen rows without a control; `caliper`, in units of `level`."""

    sets: list[np.ndarray]
    alone: list[int]
    caliper: float


def level(before: np.ndarray) -> np.ndarray:
    """asinh(before / median size) of heads [n], on which they are compared."""
    scale = float(np.median(np.abs(before)))
    return np.arcsinh(before / (scale or float(np.abs(before).max()) or 1.0))


def matched(
    levels: np.ndarray, layers: np.ndarray, chosen: np.ndarray, caliper: float = CALIPER
) -> Matches:
    """Sets of one chosen head and one or more others of its layer.

    As many chosen heads as can be get a control of their own, the sum of the distances being least
    (optimal matching; Rosenbaum 1989, JASA 84(408)); then every other head joins the set that is
    nearest to it, within the caliper (a variable ratio; Ming and Rosenbaum 2000, Biometrics 56(1)).

    Args:
        levels: [n] of `level`. layers: [n]. chosen: rows. caliper: in standard deviations.
    """
    free = np.setdiff1d(np.arange(len(levels)), chosen)
    reach = caliper * float(levels.std(ddof=1)) if len(levels) > 1 else 0.0
    gaps = np.abs(levels[chosen][:, None] - levels[free])  # [chosen, free]
    near = (gaps <= reach) & (layers[chosen][:, None] == layers[free])
    far = 1.0 + gaps.sum()  # dearer than any assignment that avoids it
    mine, theirs = optimize.linear_sum_assignment(np.where(near, gaps, far))
    own = {int(a): [int(b)] for a, b in zip(mine, theirs, strict=True) if near[a, b]}
    rows, taken = sorted(own), {members[0] for members in own.values()}
    for column in range(len(free)):
        if rows and column not in taken and near[rows, column].any():
            apart = np.where(near[rows, column], gaps[rows, column], np.inf)
            own[rows[int(apart.argmin())]].append(column)
    sets = []
    for row in rows:
        others = sorted(own[row], key=lambda column: gaps[row, column])
        sets.append(np.array([chosen[row], *free[others]]))
    alone = [int(chosen[row]) for row in range(len(chosen)) if row not in own]
    return Matches(sets, alone, reach)


def sides(matches: Matches, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [heads] of the chosen and of their controls; each sums to 1, every set alike."""
    chosen, controls = np.zeros(heads), np.zeros(heads)
    for members in matches.sets:
        chosen[members[0]] += 1 / len(matches.sets)
        controls[members[1:]] += 1 / (len(members) - 1) / len(matches.sets)
    return chosen, controls


def trend(levels: np.ndarray, layers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weights [heads] that make of values their slope on `level`, over the heads that were not
    chosen, each layer with its own intercept; 0 where these do not differ within layers."""
    weights = np.zeros(len(levels))
    free = np.setdiff1d(np.arange(len(levels)), chosen)
    for layer in np.unique(layers[free]):
        rows = free[layers[free] == layer]
        weights[rows] = levels[rows] - levels[rows].mean()
    squares = float((weights**2).sum())
    return weights / squares if squares > 0 else weights


def without_trend(weights: np.ndarray, levels: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Weights [..., heads] of what `weights` give once the slope times their gap is taken off."""
    return weights - (weights @ levels)[..., None] * slope


# ---------------------------------------------------------------- relabelling


class Relabelled(NamedTuple):
    """Which member of each set counts as chosen, [relabellings, sets]; whether these are all; and
    the smallest share of relabellings that can reach as far as one of them."""

    picks: np.ndarray
    exact: bool
    least: float


def relabelled(matches: Matches, draws: int, rng: np.random.Generator) -> Relabelled:
    """Every way to pick one head of each set, or `draws` random ones where there are more.

    With one control each, swapping all chosen heads and controls turns the sign of the difference,
    so that two relabellings reach as far as each other.
    """
    sizes = [len(members) for members in matches.sets]
    total = float(np.prod(np.array(sizes, dtype=float)))
    if total > draws:
        picks = np.stack([rng.integers(size, size=draws) for size in sizes], 1)
        return Relabelled(picks, False, 1 / (1 + draws))
    picks = np.indices(sizes).reshape(len(sizes), -1).T
    return Relabelled(picks, True, (2 if max(sizes) == 2 else 1) / total)


def null_differences(values: np.ndarray, matches: Matches, picks: np.ndarray) -> np.ndarray:
    """The mean of picked heads' values less that of the rest of their sets, [relabellings]."""
    found = np.zeros(len(picks))
    for place, members in enumerate(matches.sets):
        here = values[members]
        rest = (here.sum() - here) / (len(here) - 1)
        found += (here - rest)[picks[:, place]]
    size = ROUNDING * np.abs(values).max()
    return np.where(np.abs(found) <= size * len(matches.sets), 0.0, found) / len(matches.sets)


def p_value(found: float, null: np.ndarray, exact: bool) -> float:
    """Share of relabellings with a difference at least as large; the one found counts as one."""
    as_large = np.abs(null) >= np.abs(found) * (1 - 1e-9)
    return float(as_large.mean() if exact else (1 + as_large.sum()) / (1 + len(null)))
