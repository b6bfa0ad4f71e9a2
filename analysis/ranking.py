"""A ranking of heads that says how sure it is: exact ablation, raced window by window.

The statistics are in `analysis.race`, the reasons and the evidence in `docs/ranking.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.distributed import is_main, rank_and_size, reduced, share
from analysis.documents import Documents
from analysis.engine import Progress
from analysis.estimates import FIRST_ORDER, Cheaper, a_time, current, did, timed
from analysis.few_heads import SCREENING, first_order, first_order_by_window, with_the_others
from analysis.importance import head_importance, method_cost
from analysis.methods import METHODS, ablation_passes
from analysis.metrics import Metric
from analysis.noise import with_noise
from analysis.race import FOCUS, MINIMUM, ROUND, May, Measure, Race, enough, least_budget
from analysis.race_found import by_cluster, design_effect, may_turn, p_top, tails, ties
from analysis.race_in_time import (
    BARE,
    SCREEN,
    SCREENED,
    STAGE,
    Entry,
    entered,
    evaluation_passes,
    permission,
    raced_documents,
    windows_at_once,
)
from analysis.ranking_words import tail_warning
from analysis.screen import BUDGET, planned, screened, screening_passes
from analysis.screen import NAME as BY_SCREEN
from analysis.subject import Subject, Unit, check_choice, loaded_with, prepared, units_of
from analysis.tables import head_table, weights_of
from analysis.tails import heavy_windows
from analysis.ties import best_first, difference
from analysis.within import Cost
from kernels.errors import MidusError

PER_HEAD = 56  # evaluations a head, on average, of the default budget
CONFIDENCE = 0.95
SIZING = 0.4  # of the budget, for a first-order pass


@timed
def rank_heads(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: Any = "loss",
    top: int = 16,
    confidence: float = CONFIDENCE,
    budget: int | float | str | None = None,
    seed: int = 0,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Heads by importance, best first, with the chance that each belongs to the top set.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes, a task included; by default pico's held-out text.
        method: "ablation" (exact, raced); "screen" (first-order sizes choose the candidates, exact
            ablation decides among them, on a tenth of all evaluations by default: see
            `analysis.screen`); or another of `head_importance`, whose table is sorted.
        baseline, metric: as `head_importance` takes them.
        top: size of the top set, at least 1 and below the number of heads.
        confidence: that the whole top set is right, where the race ends settled, and that all
            intervals are, together. Only a race has one: with another method, and with budget
            "all", every window is measured, and what is not 0.95 is refused.
        budget: exact evaluations at most, a head on a window each: a whole number, a share of all
            there are (0.25), or "all", the exhaustive sweep without a race. By default 56 a head.
        seed: of the order of windows.
        within: seconds that all of this may take. The race then ends with the time, as "budget";
            documents, the length of windows and, last, the heads that are raced are chosen so that
            every head of the race has its minimum: see `analysis.race_in_time`. What was left out,
            and what repeats it without a clock, stands in `.attrs["within"]`, as in
            `head_importance`. Heads that are not raced at all have no score and come last, by
            `first_order`.
        progress: called with (done, total, text). Without it a measurement of more than a minute
            warns (`analysis.EstimateWarning`).

    Returns:
        A row a head, columns of `head_importance` (`by_document` holds NaN where a document was not
        reached; intervals are confidence sequences for the mean over these documents, together
        right with `confidence`) and

        - `p_top`: the chance of the head, given what was measured, to be in the top set of these
          documents; 1 or 0 once every window was measured (too sure where `.attrs["tails"]` warns);
        - `exact`: windows measured;
        - `tied_with_next`: other documents of this kind may turn the head and the next: the
          interval of their difference, documents being drawn, contains 0 (as measured, an
          untied pair stands the wrong way in at most 5%);
        - `kurtosis`, `tail_share` (what the largest 5% of its windows hold of the size of all) and
          `carried_by` (the fewest windows that hold half) of the values of a race.

        `.attrs["stopped"]` says why the race ended: "settled", "budget", or "documents" (the last
        contenders were measured on every window); `.attrs["evaluations"]` what it cost;
        `.attrs["guarantee"]` is "exact" where the metric is bounded, which makes intervals and set
        right in every sample size; "asymptotic" where the range of values was taken from those
        seen, once every head had `.attrs["enough"]` windows, more of them the more heads and the
        surer; "few windows" where the budget did not pay those: nothing is settled then, and no
        error is stated. `.attrs["tails"]` warns of scores that a few windows carry (`["kurtosis"]`
        and `["tail_share"]` are the largest around the top); `.attrs["first"]` counts the windows
        that every head was measured on first, because to first order they carry much of some head
        (a pass over all windows, made where it costs little beside the budget);
        `.attrs["design_effect"]` how many times larger the variance of a score is when documents
        are drawn rather than windows. Every head has at least 16 exact windows; where a budget does
        not pay them, gradients choose the heads that get them, and `.attrs["screened"]` counts the
        others, given two windows each and ranked last: the confidence is conditional on that
        choice. `analysis.ranking_words.summary` says all of this in a line.

    Under `torchrun` or `accelerate launch` the windows are shared out.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.
    """
    check_choice("method", method, (*METHODS, BY_SCREEN))
    network, docs = loaded_with(model, data)
    heads, windows = len(units_of(network)), len(docs.windows)
    if not 1 <= top < heads:
        raise MidusError(f"top is {top}; it must be between 1 and {heads - 1} (heads less one)")
    if not 0 < confidence < 1:
        raise MidusError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does")
    work = current()
    in_time = work is not None and work.limited
    allowed: int | None
    if method == BY_SCREEN:
        allowed = _allowed_to_screen(budget, heads * windows, in_time)
        planned(heads, windows, top, allowed, min(MINIMUM, windows))
    else:
        allowed = _allowed(budget, top, heads, windows, in_time)
    how: dict[str, Any] = {
        "baseline": baseline, "metric": metric, "seed": seed, "progress": progress,
    }  # fmt: skip
    if method not in ("ablation", BY_SCREEN) or allowed is None:
        if confidence != CONFIDENCE:
            raise MidusError(
                f"confidence is {confidence}; only a race has one, and method {method!r} with "
                f"budget {budget!r} measures every window; leave confidence out"
            )
        table = head_importance(network, docs, method=method, **how)
        return _sorted(table, top, windows if method == "ablation" else 0)
    cost = _cost(docs, top, allowed)
    if method == BY_SCREEN:
        cost = replace(cost, beside=lambda model, _, count: screening_passes(model, count))
    subject = prepared(network, docs, cost=cost, **how)

    def race_of(subject: Subject, first: Sequence[int] = ()) -> Race:
        clusters = [window.unit for window in subject.docs.windows]
        weights, bound = subject.window_weights, subject.metric.bound
        return Race(
            len(subject.units), weights, clusters, top, confidence, seed, bound=bound, first=first
        )

    if method == BY_SCREEN:

        def raced(part: Subject, measure: Measure, budget: int) -> pd.DataFrame:
            race = race_of(part)
            _run(race, part, budget, progress, measure=measure)
            return _table(race, part)

        exact, order = partial(measured, subject), race_of(subject).order
        return screened(subject, raced, exact, order, top, allowed, min(MINIMUM, windows), seed)
    if in_time:
        return _raced_in_time(race_of, subject, allowed, top, progress)
    race = race_of(subject, _heavy(subject, allowed, confidence))
    _run(race, subject, allowed, progress)
    return _table(race, subject)


def _sized(model: Any, units: Sequence[Unit], windows: int, allowed: int) -> bool:
    """Whether a first-order pass over all windows costs little beside the evaluations allowed."""
    passes = FIRST_ORDER * windows
    return passes <= SIZING * allowed * evaluation_passes(model, units)


def _heavy(subject: Subject, allowed: int, confidence: float) -> list[int]:
    """Windows that carry much of some head to first order, where looking for them pays.

    A bounded metric has no rare window that the race does not know the size of.
    """
    units, windows = subject.units, len(subject.docs.windows)
    drawn = max(MINIMUM, enough(len(units), confidence))
    room = allowed // len(units) - drawn
    if subject.metric.bound is not None or room < 1 or windows <= drawn:
        return []
    if not _sized(subject.model, units, windows, allowed):
        return []
    return heavy_windows(first_order_by_window(subject), most=room // 2)


def _allowed_to_screen(budget: Any, full: int, in_time: bool) -> int:
    """Evaluations allowed to a screen and what follows it."""
    if in_time:
        raise MidusError(
            f"method {BY_SCREEN!r} keeps to a budget of evaluations, not to a time; give budget "
            "and leave within out"
        )
    given = BUDGET if budget is None else budget
    found = _evaluations(given, full)
    if found is None:
        raise MidusError(
            f"budget is {budget!r}; method {BY_SCREEN!r} takes a number of evaluations, or a share "
            "of all there are such as 0.1"
        )
    return min(full, found)


def _evaluations(budget: Any, full: int) -> int | None:
    """A budget as a number of evaluations: a whole number, or a share of all; None of another."""
    if isinstance(budget, int | np.integer) and not isinstance(budget, bool):
        return int(budget)
    share = isinstance(budget, float | np.floating) and 0 < budget <= 1
    return int(budget * full) if share else None


def _allowed(budget: Any, top: int, heads: int, windows: int, in_time: bool) -> int | None:
    """Evaluations allowed; None for all of them, without a race."""
    full = heads * windows
    if budget is None:  # within a time there is no other limit, however short windows become
        return sys.maxsize if in_time else min(full, PER_HEAD * heads)
    if isinstance(budget, str) and budget == "all":
        if in_time:
            raise MidusError("within chooses the budget; leave budget 'all' out")
        return None
    least = least_budget(top, heads, windows)
    allowed = _evaluations(budget, full) or 0
    if allowed < least:
        raise MidusError(
            f"budget is {budget!r}; it must be at least {least} evaluations (that pays "
            f"{min(MINIMUM, windows)} windows for {top + 1} of {heads} heads and a look at the "
            "others), a share such as 0.25 of all there are, or 'all'"
        )
    return min(full, allowed)


# ---------------------------------------------------------------- the race on a model


def _cost(docs: Documents, top: int, allowed: int) -> Cost:
    """What a race does: at most all the evaluations allowed."""
    windows, longest = len(docs.windows), max(len(window.ids) for window in docs.windows)
    free = not any(item.is_task for item in docs)

    def passes(model: Any, units: Sequence[Unit]) -> dict[str, float]:
        count = min(allowed, len(units) * windows)
        found = {STAGE: count * evaluation_passes(model, units) / windows}
        return found | ({SCREENING: FIRST_ORDER} if _sized(model, units, windows, count) else {})

    def cheaper(seconds: float, forward: float, metric: Metric) -> list[Cheaper]:
        found = []
        if free and longest > 128:
            each = 128 / (sum(len(window.ids) for window in docs.windows) / windows)
            found.append(Cheaper("context=128", "--context 128", seconds * each))
        if metric.smooth:
            found.append(Cheaper("method='gradient'", "--method gradient", 4 * forward))
        return found + a_time(seconds)

    known = method_cost({"name": "ablation"})
    return replace(
        known,
        text="ranking, at most" if allowed < sys.maxsize else "ranking",
        passes=passes,
        options=cheaper,
        limit=False,
        fit=partial(raced_documents, top=top, allowed=allowed),
    )


def _run(
    race: Race,
    subject: Subject,
    allowed: int,
    progress: Progress | None,
    may: May | None = None,
    step: int = ROUND,
    measure: Measure | None = None,
) -> None:
    """Race the subject's heads; `measure`: by values that come otherwise than from ablation now."""
    every = min(allowed, race.heads * race.windows)

    work = current()
    within = None if work is None else work.within

    def told(spent: int, racing: int) -> None:
        if progress and is_main():
            if work is None or within is None:
                progress(spent, every, f"{STAGE}, {racing} heads in the race")
            else:  # the time ends it, not the evaluations
                used = round(100 * (1 - max(work.time_left, 0.0) / within))
                progress(used, 100, f"{STAGE}, % of the time")

    if may is None and allowed < race.heads * race.minimum:
        sizes = first_order(subject, race.order[:SCREEN].tolist())
        race.screen(best_first(sizes), allowed)
    race.run(measure or partial(measured, subject), every, told, may, step)


def _raced_in_time(
    race_of: Callable[[Subject], Race],
    subject: Subject,
    allowed: int,
    top: int,
    progress: Progress | None,
) -> pd.DataFrame:
    """The ranking that the time of the measurement under way holds."""
    work = current()
    assert work is not None
    entry: Entry = entered(work, subject, race_of(subject).order, top, allowed)
    raced = replace(subject, units=[subject.units[index] for index in entry.heads])
    race = race_of(raced)
    if entry.kind == SCREENED:
        assert entry.sizes is not None
        race.screen(best_first(entry.sizes), entry.evaluations)
    step = windows_at_once(work, race, raced)
    _run(race, raced, allowed, progress, permission(work, race, raced), step)
    work.record["race"]["evaluations"] = race.spent
    whole = int((race.counts >= race.minimum).sum())
    work.facts |= {"heads": whole, "heads_of": len(subject.units)}
    if few := race.heads - whole:
        least = int(race.counts.min())
        work.leave_out(
            f"the {race.minimum} windows that {few} heads should have (at least {least})"
        )
    if out := len(subject.units) - race.heads:
        work.leave_out(f"exact ablation of {out} of {len(subject.units)} heads")
    if race.stopped == "budget" and race.spent + FOCUS <= allowed:  # it was the time that ended
        work.leave_out("evaluations that would settle the top set")
    table = _table(race, raced)
    if entry.kind == BARE:
        assert entry.sizes is not None
        table = _with_the_others(table, subject, entry.sizes)
    elif entry.sizes is not None:
        table = _beside(table, subject, entry.sizes)
    return table


def measured(subject: Subject, heads: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """What ablating each head adds to each window's metric: [heads, windows]."""
    _, processes = rank_and_size()
    values = np.zeros((len(heads), len(windows)))
    passes = 1 + sum(ablation_passes(subject.model, [subject.units[head] for head in heads]))
    for part in share(
        _parts(len(windows), min(subject.plan.windows, -(-len(windows) // processes)))
    ):
        values[:, part], _ = subject.ablated(windows[part].tolist(), heads.tolist())
        tokens = sum(len(subject.docs.windows[index].ids) for index in windows[part])
        did(STAGE, processes * tokens * passes)
    return reduced(values)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


# ---------------------------------------------------------------- tables


def _table(race: Race, subject: Subject) -> pd.DataFrame:
    order = race.ranking()
    screened = int(race.screened.sum())
    attrs = subject.describe(method="ablation") | {
        "table": "ranking",
        "top": race.top,
        "confidence": race.confidence,
        "stopped": race.stopped,
        "evaluations": race.spent,
        "exhaustive": race.heads * race.windows,
        "minimum": race.minimum,
        "screened": screened,
        "enough": race.enough,
        "guarantee": race.guarantee,
        "first": race.known,
        "design_effect": design_effect(race),
    }
    attrs["interval"] = (
        f"confidence sequence over these documents, corrected over heads, {attrs['guarantee']}"
    )
    if screened:
        attrs["conditional"] = f"on a screen by gradient that left out {screened} heads"
    table = head_table(
        subject.units,
        by_cluster(race, len(subject.docs.units)),
        subject.weights,
        attrs,
        intervals=race.intervals(),
    )
    table["p_top"] = p_top(race)
    table["exact"] = race.counts
    for name, values in tails(race).items():
        table[name] = values
    attrs = table.attrs
    table = table.iloc[order].reset_index(drop=True)
    table["tied_with_next"] = ties(race, order)
    table.attrs = attrs
    around = table.iloc[: 2 * race.top]
    table.attrs |= {"tails": tail_warning(table)} | {
        name: float(around[name].max()) for name in ("kurtosis", "tail_share")
    }
    return with_noise(table, subject, name="ablation")


def _beside(table: pd.DataFrame, subject: Subject, sizes: np.ndarray) -> pd.DataFrame:
    """The ranking with the first-order effects by which heads were screened."""
    named = {(u.layer, u.kind, u.head): size for u, size in zip(subject.units, sizes, strict=True)}
    rows = zip(table["layer"], table["kind"], table["head"], strict=True)
    attrs = table.attrs
    table = table.assign(first_order=[named[row] for row in rows])
    table.attrs = attrs
    return table


def _with_the_others(table: pd.DataFrame, subject: Subject, sizes: np.ndarray) -> pd.DataFrame:
    """The ranking with the heads that were not raced, last, by their first-order effects."""
    whole = with_the_others(table, subject.units, sizes)
    attrs, left = table.attrs, len(whole) - len(table)
    whole["exact"] = whole["exact"].fillna(0).astype(int)
    whole["tied_with_next"] = whole["tied_with_next"].eq(True)
    keys = ["layer", "kind", "head"]
    place = {key: at for at, key in enumerate(table[keys].itertuples(index=False, name=None))}
    at = [place.get(key, len(table)) for key in whole[keys].itertuples(index=False, name=None)]
    order = np.lexsort((-whole["first_order"], at))
    whole = whole.iloc[order].reset_index(drop=True)
    whole.attrs = attrs | {
        "screened": left,
        "conditional": f"on a screen by gradient that left out {left} heads",
    }
    return whole


def _sorted(table: pd.DataFrame, top: int, exact: int) -> pd.DataFrame:
    """A table of all documents as a ranking: of these documents the top set is known."""
    attrs = table.attrs
    order = best_first(table["score"])
    weights = weights_of(table) / weights_of(table).sum()
    scores = np.array(table["by_document"].tolist())[order]  # [heads, documents]
    table = table.iloc[order].reset_index(drop=True)
    table["p_top"] = (np.arange(len(table)) < top).astype(float)
    table["exact"] = exact
    leads = difference(table["score"][:-1], table["score"][1:])
    gaps = scores[:-1] - scores[1:]
    tied = [may_turn(lead, weights * (gap - lead)) for lead, gap in zip(leads, gaps, strict=True)]
    table["tied_with_next"] = [*tied, False]
    table.attrs = attrs | {
        "table": "ranking",
        "top": top,
        "confidence": CONFIDENCE,
        "stopped": "documents",
        "evaluations": exact * len(table),
        "screened": 0,
    }
    return table
