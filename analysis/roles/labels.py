"""From measures pooled over sequences to scores with their errors, and from these to roles.

Shape letter: K offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.roles.patterns import Measure
from analysis.ties import ROUNDING, evened

CONFIDENCE = 0.95
NONE = "none"
# Measured scores: of attention, what is above chance as a share of all that could be (docs/roles.md
# says which are not).
MEASURED = (
    "prefix_matching", "copying", "duplicate_token", "previous_token", "positional_offset",
    "retrieval", "first_token_sink", "delimiter", "local", "broad", "confident", "logit_raise",
    "written",
)  # fmt: skip
# What describes a pattern and is no role: heads of random weights are all broad, or all confident.
DESCRIPTIONS = ("local", "broad", "confident")
# Least score of a role. Half of the attention above chance makes a role the head's main one.
THRESHOLDS = {
    name: 0.5 for name in MEASURED if name not in ("logit_raise", "written", *DESCRIPTIONS)
}
# Roles whose evidence is more than the score of their own name.
EVIDENCE = {
    "induction": ("prefix_matching", "copying"),
    "retrieval": ("retrieval", "copying"),
}
# From the most specific on: a head gets a role of the first group in which one is clear.
GROUPS = (
    ("induction", "duplicate_token", "previous_token", "positional_offset"),
    ("retrieval",),
    ("first_token_sink", "delimiter"),
)
ROLES = tuple(role for group in GROUPS for role in group)
# Whom a role must be ahead of, by MARGIN. Induction, duplicate token and retrieval are asked about
# only where there is a match: elsewhere such a head may rest on the first token or a delimiter.
MARGIN = 0.2
_LOOKS, _RESTS = GROUPS[0], GROUPS[2]
RIVALS = {role: _LOOKS + _RESTS for role in _LOOKS + _RESTS} | {
    "induction": _LOOKS,
    "duplicate_token": _LOOKS,
    "retrieval": _LOOKS[1:],
}


# ---------------------------------------------------------------- pooling


class Tally:
    """Measures of every head by unit (a constructed sequence, a document), its windows summed."""

    def __init__(self, heads: int):
        self.heads = heads
        self.sums: dict[str, dict[int, np.ndarray]] = {}

    def add(self, name: str, unit: int, heads: Sequence[int], measure: Measure) -> None:
        """Add a measure of the heads whose indices are given, seen in one window of the unit."""
        gained, possible = (part.numpy() for part in measure)
        units = self.sums.setdefault(name, {})
        if unit not in units:
            units[unit] = np.zeros((2, self.heads, *gained.shape[1:]))
        units[unit][0, heads] += gained
        units[unit][1, heads] += possible

    def parts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """gained and possible, [heads, units] each, or [heads, units, K]."""
        found = np.stack([self.sums[name][unit] for unit in sorted(self.sums[name])], axis=2)
        return found[0], found[1]


def pooled(gained: np.ndarray, possible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score and standard error of each head from [heads, units], units being what varies.

    A ratio of sums, its error by linearisation (Cochran 1977, Sampling Techniques, ch. 6). NaN
    where nothing was possible; the error also with one unit.
    """
    units = gained.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        score = gained.sum(1) / possible.sum(1)
        residual = gained - score[:, None] * possible
        spread = np.sqrt((residual**2).sum(1) * np.divide(units, units - 1))
        return score, spread / possible.sum(1)


@dataclass(frozen=True)
class Scores:
    """Scores and standard errors by name, [heads] each; how many units are behind each; `offset`,
    the peak relative position [heads] in tokens."""

    score: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    units: dict[str, int]
    offset: np.ndarray


def scores_of(tally: Tally) -> Scores:
    """The scores of MEASURED, and `induction`: the weaker of prefix matching and copying.

    `positional_offset` is the score at the offset of 2 or more where it is highest.
    """
    gained, possible = tally.parts("offsets")  # [heads, units, K]
    with np.errstate(invalid="ignore"):
        profile = np.nan_to_num(gained.sum(1) / possible.sum(1), nan=-np.inf)
    profile = evened(profile)
    heads, far = np.arange(tally.heads), profile[:, 2:].argmax(1) + 2
    score, stderr, units = {}, {}, {}
    for name in MEASURED:
        at_offset = name == "positional_offset"
        parts = (part[heads, :, far] for part in (gained, possible))
        score[name], stderr[name] = pooled(*(parts if at_offset else tally.parts(name)))
        units[name] = len(tally.sums["offsets" if at_offset else name])
    weaker = score["copying"] < score["prefix_matching"] - ROUNDING
    for kind in (score, stderr):
        kind["induction"] = np.where(weaker, kind["copying"], kind["prefix_matching"])
    units["induction"] = min(units["copying"], units["prefix_matching"])
    return Scores(score, stderr, units, profile.argmax(1))


# ---------------------------------------------------------------- labels


def labels(
    scores: Scores,
    thresholds: Mapping[str, float] | None = None,
    null: Mapping[str, float] | None = None,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Each head's role, its score, and its lead over the best rival; "none", NaN, NaN if unclear.

    A role is clear where the lower bound of every score of its evidence is above its threshold, and
    above `null`, the highest score of a mixed head (analysis.roles.null), where that is given.
    The bound is one-sided, by Student's t, its level of 5% shared among all heads and roles
    (Bonferroni); where evidence is two scores, both bounds must hold, which needs no more.
    Of the first of GROUPS with a clear role, the one with the highest score is the head's, if it is
    MARGIN ahead of its rivals. A head that writes nothing has no role.
    """
    silent = scores.score["written"] == 0
    level = (1 - CONFIDENCE) / (len(silent) * len(ROLES))
    clear_of = {}
    for name, least in (THRESHOLDS | dict(thresholds or {})).items():
        reach = stats.t.ppf(1 - level, max(scores.units[name] - 1, 1))
        least = max(least, (null or {}).get(name, -1.0))
        clear_of[name] = scores.score[name] - reach * scores.stderr[name] > least + ROUNDING
    clear = {
        role: ~silent & np.all([clear_of[part] for part in EVIDENCE.get(role, (role,))], axis=0)
        for role in ROLES
    }
    found = [_label(scores.score, clear, head) for head in range(len(silent))]
    names, best, lead = zip(*found, strict=True)
    return list(names), np.array(best), np.array(lead)


def _label(
    score: Mapping[str, np.ndarray], clear: Mapping[str, np.ndarray], head: int
) -> tuple[str, float, float]:
    for group in GROUPS:
        candidates = [role for role in group if clear[role][head]]
        if not candidates:
            continue
        role = max(candidates, key=lambda one: score[one][head])
        rivals = [score[one][head] for one in RIVALS[role] if one != role]
        lead = score[role][head] - np.nanmax([0.0, *rivals])  # chance is everybody's rival
        if lead >= MARGIN - ROUNDING:
            return role, float(score[role][head]), float(lead)
        break
    return NONE, np.nan, np.nan
