"""A race of heads within a time: on which documents, in windows of what length, among which heads.

Every head is to have its minimum of exact windows, on windows as long as they are; where the time
does not hold that, these are given up in turn:

1. the length of windows, halved down to 128 tokens (not of tasks, nor where documents came cut into
   windows shorter than the model's own: somebody chose those);
2. the minimum for all heads: first-order effects choose who has it, the others get two windows;
3. the length again, down to 32 tokens, with the minimum for all heads where that fits;
4. the two windows: the other heads are not measured at all, and have no score.

What is below that is refused. Where the time goes differently than foreseen the race ends early, or
goes on longer: it stops at the time, between two pieces.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.baselines import MEANS
from analysis.distributed import agreed
from analysis.documents import MAX_CONTEXT, Documents
from analysis.estimates import FIRST_ORDER, Work
from analysis.few_heads import SCREENING, first_order
from analysis.methods import ablation_passes, method_text
from analysis.race import FOCUS, MINIMUM, ROUND, May, Race, least_budget
from analysis.shortened import lessened, passes_of
from analysis.subject import Subject, Unit
from analysis.ties import best_first
from analysis.within import (
    LEAST,
    PIECE,
    SHARE,
    Cost,
    enough_documents,
    least_documents,
    measure_speed,
    say_left_out,
    too_short,
)

BASELINE_SHARE = 0.12  # of the time, for the mean head outputs
MANY = 20  # documents
SCREEN = 32  # windows of gradients behind a screen
FULL, SCREENED, BARE = "full", "screened", "bare"  # which heads are measured
LONG, SHORT = 128, 32  # tokens a window
STAGE = method_text("ablation")


@dataclass(frozen=True)
class Course:
    """How a race fits: windows of `context` tokens (None: as they are), who is measured, how much.

    evaluations: what the time is thought to hold, a head on a window each.
    """

    context: int | None
    kind: str
    evaluations: int


def raced_documents(
    work: Work,
    cost: Cost,
    docs: Documents,
    units: Sequence[Unit],
    stages: Mapping[str, float],
    model: Any,
    made: Callable[[Documents, Sequence[Unit]], Subject],
    *,
    top: int,
    allowed: int,
) -> Documents:
    """The documents and windows that heads are raced on in the time of the measurement under way.

    allowed: evaluations at most.

    Raises MidusError where not even the least race fits.
    """
    work.facts |= {"documents_of": len(docs), "windows_of": len(docs.windows)}
    means = MEANS in stages
    if work.repeat is not None:
        given = {name: work.repeat[name] for name in ("limit", "tokens", "context")}
        evaluations = work.repeat["race"]["evaluations"]
    else:
        measure_speed(work, cost, docs, units, model, made)
        limit, tokens = _population(work, docs) if means else (None, None)
        chosen = lessened(docs, limit, tokens)
        course = _course(work, cost, model, chosen, units, top, allowed, means)
        given = {"limit": limit, "tokens": tokens, "context": course.context}
        evaluations = course.evaluations
    work.record |= given
    found = lessened(docs, **given)
    say_left_out(work, docs, found)
    length = passes_of(found) / len(found.windows)
    totals = {STAGE: evaluations * length * evaluation_passes(model, units)}
    totals |= {MEANS: float(passes_of(found))} if means else {}
    work.begin(cost.text, work.rate or 0.0, totals)
    return found


def _population(work: Work, docs: Documents) -> tuple[int | None, int | None]:
    """`limit` and `tokens` of the documents whose mean head outputs take so much of the time.

    Rather MANY documents and more than whole ones.
    """
    seconds = BASELINE_SHARE * (work.time_left - work.reserve)
    affordable = agreed(int(seconds / (work.rate or 1e-9)))
    for least in (MANY, LEAST):
        if (found := enough_documents(docs, affordable, least)) is not None:
            return found
    return least_documents(docs)


def _course(
    work: Work,
    cost: Cost,
    model: Any,
    docs: Documents,
    units: Sequence[Unit],
    top: int,
    allowed: int,
    means: bool,
) -> Course:
    before = passes_of(docs) * (work.rate or 0.0) if means else 0.0
    rest = float("inf")  # what the least of the race takes, the baseline not counted
    pays_all = allowed >= needed(FULL, len(units), len(docs.windows), top)
    for context, kind in _courses(model, docs, FULL if pays_all else SCREENED):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few documents: said where they are used
            windows = lessened(docs, context=context).windows
        length = float(np.mean([len(window.ids) for window in windows]))
        count = min(_held(work, model, units, kind, length, len(windows), before), allowed)
        least = needed(kind, len(units), len(windows), top)
        if count >= least:
            return Course(context, kind, count)
        each = length * evaluation_passes(model, units) * work.speed(STAGE)
        most = max(len(windows), work.facts["windows_of"])
        least = needed(kind, len(units), most, top)
        rest = min(rest, _screening(work, kind, length, most) + least * each)
    # More time has more documents: a baseline up to its share, and a minimum of more windows.
    seconds = max(before + rest, rest * SHARE / (SHARE - BASELINE_SHARE) if means else 0.0)
    raise too_short(work, f"{top + 1} of {len(units)} heads", len(docs), None, seconds, cost.smooth)


def _held(
    work: Work, model: Any, units: Sequence[Unit], kind: str, length: float, windows: int,
    before: float = 0.0,
) -> int:  # fmt: skip
    """How many evaluations on windows of so many tokens the time holds, once `before` is over."""
    seconds = SHARE * (work.time_left - work.reserve) - before
    seconds -= _screening(work, kind, length, windows)
    each = length * evaluation_passes(model, units) * work.speed(STAGE)
    return agreed(int(max(seconds, 0.0) / max(each, 1e-12)))


def _screening(work: Work, kind: str, length: float, windows: int) -> float:
    """Seconds of the first-order effects that choose heads."""
    if kind == FULL:
        return 0.0
    return min(SCREEN, windows) * length * FIRST_ORDER * work.speed(SCREENING)


def _courses(model: Any, docs: Documents, best: str) -> list[tuple[int | None, str]]:
    """What is tried, from the best down: (context, who is measured).

    best: `FULL`, or `SCREENED` where a budget does not pay the minimum of all heads anyway.
    """
    whole = min(MAX_CONTEXT, getattr(model.config, "max_position_embeddings", None) or MAX_CONTEXT)
    closed = any(item.is_task for item in docs) or docs.context < whole
    shorter = [] if closed else _halves(max(min(len(item.ids), docs.context) for item in docs))
    long = [None, *(length for length in shorter if length >= LONG)]
    short = [length for length in shorter if length < LONG]
    return [
        *((length, best) for length in long),
        (long[-1], SCREENED),
        *((length, kind) for length in short for kind in (FULL, SCREENED)),
        *((length, BARE) for length in (long[-1], *short)),
    ]


def _halves(longest: int) -> list[int]:
    """Powers of two below a length, downwards."""
    found = [SHORT]
    while 2 * found[-1] < longest:
        found.append(2 * found[-1])
    return [length for length in reversed(found) if length < longest]


def needed(kind: str, heads: int, windows: int, top: int) -> int:
    """The fewest evaluations of a race of that kind."""
    minimum = min(MINIMUM, windows)
    if kind == FULL:
        return heads * minimum
    return least_budget(top, heads, windows) if kind == SCREENED else (top + 1) * minimum


def evaluation_passes(model: Any, units: Sequence[Unit]) -> float:
    """Forward passes that ablating a head takes on average, its share of the clean run included."""
    return float(np.mean(ablation_passes(model, units))) + 1 / FOCUS


@dataclass(frozen=True)
class Entry:
    """Who is raced: indices of units, `pilot`: whether the others get their two windows."""

    kind: str
    heads: np.ndarray
    sizes: np.ndarray | None
    evaluations: int


def entered(work: Work, subject: Subject, order: np.ndarray, top: int, allowed: int) -> Entry:
    """Who is raced in the time that is left, once the documents were chosen.

    order: of the windows; allowed: evaluations at most. Kept for a repetition.
    """
    units, windows = subject.units, len(subject.docs.windows)
    if work.repeat is not None:
        kind, count = work.repeat["race"]["kind"], int(work.repeat["race"]["held"])
    else:
        kind, count = _kind_now(work, subject, top, allowed)
    work.record["race"] = {"kind": kind, "held": count}
    everyone = np.arange(len(units))
    if kind == FULL:
        return Entry(kind, everyone, None, count)
    sizes = first_order(subject, order[:SCREEN].tolist())
    if kind == SCREENED:
        return Entry(kind, everyone, sizes, count)
    stay = int(np.clip(count // min(MINIMUM, windows), top + 1, len(units)))
    chosen = np.sort(best_first(sizes)[:stay])
    return Entry(kind, chosen, sizes, count)


def _kind_now(work: Work, subject: Subject, top: int, allowed: int) -> tuple[str, int]:
    units, docs = subject.units, subject.docs
    length = passes_of(docs) / len(docs.windows)
    count = 0
    for kind in (FULL, SCREENED, BARE):
        held = _held(work, subject.model, units, kind, length, len(docs.windows))
        count = min(held, allowed)
        if count >= needed(kind, len(units), len(docs.windows), top):
            return kind, count
    return BARE, count


def windows_at_once(work: Work, race: Race, subject: Subject) -> int:
    """Windows of the minimum that are measured in one piece, which ends soon."""
    if work.repeat is not None:
        found = int(work.repeat["race"]["step"])
    else:
        lengths = [len(window.ids) for window in subject.docs.windows]
        staying = [unit for unit, out in zip(subject.units, race.screened, strict=True) if not out]
        passes = 1 + sum(ablation_passes(subject.model, staying))
        each = float(np.mean(lengths)) * passes * work.speed(STAGE)
        found = agreed(int(np.clip(PIECE * (work.within or 0.0) // max(each, 1e-12), 1, ROUND)))
    work.record["race"]["step"] = found
    return found


def permission(work: Work, race: Race, subject: Subject) -> May:
    """Whether a piece of the race may still be measured: by the time, or as it was before."""
    costs = np.array(ablation_passes(subject.model, subject.units))
    lengths = np.array([len(window.ids) for window in subject.docs.windows])
    length = float(lengths.mean())

    def may(heads: np.ndarray, windows: int) -> bool:
        if work.repeat is not None:
            ahead = race.spent + len(heads) * windows
            return bool(ahead <= work.repeat["race"]["evaluations"])
        return work.fits(STAGE, windows * length * (1 + float(costs[heads].sum())))

    return may
