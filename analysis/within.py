"""The measurement that fits a time: which documents, how many tokens of each, which heads.

In this order things are given up, and `.attrs["within"]` says what was:

1. documents, down to 8: those that `limit` would choose;
2. tokens, down to the first 128 of each of the 8 (never of tasks, whose answers stand at the end);
3. where the measurement is of single heads: exactness. The heads with the largest first-order
   effect on these documents are measured exactly, as many as fit; the others have no score at all.

What is below that is refused with the time that it would take. Costs are measured: a short forward
pass, and a sample of the work itself. Should the work turn out slower, the documents that were not
reached are left out, whole ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.distributed import agreed
from analysis.documents import Documents
from analysis.estimates import (
    FIRST_ORDER,
    Cheaper,
    Options,
    Stage,
    Work,
    duration,
    now,
    seconds_a_pass,
    slowest,
)
from analysis.shortened import fair_order, lessened, passes_of
from analysis.tables import model_hash
from kernels.errors import MidusError

if TYPE_CHECKING:
    from analysis.metrics import Metric
    from analysis.subject import Subject, Unit

LEAST, SHORTEST = 8, 128  # documents, and tokens of each
SHARE = 0.85  # of the time, planned for; what is measured last ends the rest
SAMPLED = 0.03  # of the time, for a sample of the work
PIECE = 0.04  # of the time, that a batch takes at most where that is more than a window

# A measurement's work on a subject: the name of its stage, what `swept` calls, passes a token.
Sampled = tuple[str, Callable[..., Any], float]


Fit = Callable[..., Documents]  # takes what `fitted` takes


@dataclass(frozen=True)
class Cost:
    """What a measurement is going to do, for its estimate and for a time budget.

    text: what is measured; passes: by stage, forward passes over every token, of a model and units;
    sample: its main work on a subject of few documents, or None where the passes are known well;
    heads: whether single heads can be left out; options: from seconds in all, those of a forward
    pass over all documents, and the metric, what else would be cheaper; half: passes a token of
    what is repeated on a few windows for the noise of half precision; beside: stages that are
    measured on some of so many windows, in passes over all; limit: whether fewer documents are
    cheaper; fit: what chooses the documents within a time, `fitted` by default;
    check: refuses a metric, or what `Subject.how` says, before anything is timed; smooth: whether
    the metric has a gradient, so that first-order methods measure it too.
    """

    text: str
    passes: Callable[[Any, Sequence[Unit]], Mapping[str, float]]
    sample: Callable[[Subject], Sampled] | None = None
    heads: bool = False
    options: Callable[[float, float, Metric], Sequence[Cheaper]] | None = None
    half: Callable[[Any, Sequence[Unit]], float] | None = None
    beside: Callable[[Any, Sequence[Unit], int], Mapping[str, float]] | None = None
    limit: bool = True
    fit: Fit | None = None
    check: Callable[[Metric, Mapping[str, Any]], None] | None = None
    smooth: bool = True

    def cheaper(self, metric: Metric) -> Options | None:
        """`options` of a metric."""
        options = self.options
        if options is None:
            return None
        return lambda seconds, forward: options(seconds, forward, metric)


def fitted(
    work: Work,
    cost: Cost,
    docs: Documents,
    units: Sequence[Unit],
    stages: Mapping[str, float],
    model: Any,
    made: Callable[[Documents, Sequence[Unit]], Subject],
) -> Documents:
    """The documents that the measurement under way can take in its time.

    stages: passes a token, the baseline among them; made: a subject of some documents and units.

    Raises MidusError where the least does not fit.
    """
    work.facts |= {"documents_of": len(docs), "windows_of": len(docs.windows)}
    if work.repeat is not None:
        limit, tokens, few = (work.repeat.get(name) for name in ("limit", "tokens", "heads"))
    else:
        measure_speed(work, cost, docs, units, model, made)
        limit, tokens, few = _choice(work, cost, docs, stages)
    work.record |= {"limit": limit, "tokens": tokens, "heads": few}
    found = lessened(docs, limit, tokens)
    say_left_out(work, docs, found)
    work.begin(cost.text, work.rate or 0.0, _totals(stages, found))
    return found


def say_left_out(work: Work, docs: Documents, found: Documents) -> None:
    """Put into the facts which documents, tokens and windows are left out."""
    work.facts |= {"documents": len(found), "windows": len(found.windows)}
    if len(found) < len(docs):
        work.leave_out(f"{len(docs) - len(found):,} of {len(docs):,} documents")
    if (tokens := work.record["tokens"]) is not None:
        work.leave_out(f"all but the first {tokens} tokens of a document")
    if found.context < docs.context:
        work.leave_out(f"windows longer than {found.context} tokens")


def _totals(stages: Mapping[str, float], docs: Documents) -> dict[str, float]:
    return {name: passes * passes_of(docs) for name, passes in stages.items()}


def _choice(
    work: Work, cost: Cost, docs: Documents, stages: Mapping[str, float]
) -> tuple[int | None, int | None, int | None]:
    """`limit`, `tokens`, and 0 for `heads` where these are yet to be chosen."""
    each = sum(passes * work.speed(name) for name, passes in stages.items())  # seconds a token
    time_left = SHARE * (work.time_left - work.reserve)
    found = enough_documents(docs, agreed(int(time_left / each)))
    if found is not None:
        return *found, None
    limit, tokens = least_documents(docs)
    count = passes_of(lessened(docs, limit, tokens))
    main = list(stages)[-1]
    first = (sum(stages.values()) - stages[main] + FIRST_ORDER) * (work.rate or 0.0)
    least = min(2 * first, each) * count if cost.heads else each * count
    if cost.heads and agreed(int(time_left > least)):
        return limit, tokens, 0
    raise too_short(work, cost.text, limit or len(docs), tokens, least, cost.heads and cost.smooth)


def too_short(
    work: Work,
    text: str,
    documents: int,
    tokens: int | None,
    seconds: float,
    exact: bool = True,
) -> MidusError:
    """The error of a time that does not hold the least measurement, which takes `seconds`."""
    what = f"{documents} documents" + (f", the first {tokens} tokens of each" if tokens else "")
    needed = (seconds + (work.within or 0.0) - work.time_left + work.reserve) / SHARE
    return MidusError(
        f"within is {duration(work.within or 0.0)}, which does not hold the least of this "
        f"measurement ({text} on {what}): give about {duration(1.1 * needed, up=True)}"
        + (", or a first-order method such as 'taylor'" if exact else "")
    )


def enough_documents(
    docs: Documents, affordable: int, least: int = LEAST
) -> tuple[int | None, int | None] | None:
    """The most documents of so many tokens in all, or the least number, cut as far as it takes.

    Returns `limit` and `tokens`, None each where nothing is left out; or None where the least
    number of documents, of 128 tokens each, is too much.
    """
    order, least = fair_order(docs), min(least, len(docs))
    step = docs.context - 1
    costs = [len(docs[i].ids) + max(0, len(docs[i].ids) - 2) // step for i in order]
    count = int(np.searchsorted(np.cumsum(costs), affordable, side="right"))
    if count >= least:
        return (None if count == len(docs) else count), None
    limit, shortest = least_documents(docs, least)
    if passes_of(lessened(docs, limit, shortest)) > affordable or shortest is None:
        return None
    few = lessened(docs, limit)
    low, high = shortest, max(costs)
    while high - low > 1:
        middle = (low + high) // 2
        fits = passes_of(lessened(few, tokens=middle)) <= affordable
        low, high = (middle, high) if fits else (low, middle)
    return limit, low


def least_documents(docs: Documents, least: int = LEAST) -> tuple[int | None, int | None]:
    """`limit` and `tokens` of the fewest and shortest documents that a time is spent on."""
    limit = None if len(docs) <= least else least
    few = lessened(docs, limit)
    long = any(len(item.ids) > SHORTEST and not item.is_task for item in few)
    return limit, SHORTEST if long else None


# ---------------------------------------------------------------- what things cost here


def measure_speed(
    work: Work,
    cost: Cost,
    docs: Documents,
    units: Sequence[Unit],
    model: Any,
    made: Callable[[Documents, Sequence[Unit]], Subject],
) -> None:
    """Seconds a pass, of a forward pass and of a sample of the work; and what comes at the end."""
    work.rate = seconds_a_pass(model, docs)
    start = now()
    model_hash(model)  # as when the table is described
    work.reserve = slowest(3 * (now() - start)) + 0.01 * (work.within or 0.0)
    if cost.sample is not None:
        timed = sampled(work, cost.sample, docs, units, made)
        if timed is not None:
            work.stages.setdefault(timed[0], Stage()).trial = timed[1]


def sampled(
    work: Work,
    sample: Callable[[Subject], Sampled],
    docs: Documents,
    units: Sequence[Unit],
    made: Callable[[Documents, Sequence[Unit]], Subject],
    tokens: int = SHORTEST,
) -> tuple[str, float] | None:
    """A stage and its seconds a pass, from a window and the heads of some blocks.

    None where even that takes too much of the time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two documents are few
        few = lessened(docs, min(2, len(docs)), tokens)
        length, chosen, before = len(few.windows[0].ids), list(units), float("inf")
        while True:
            stage, measure, passes = sample(made(few, chosen))
            seconds = passes * length * (work.rate or 0.0)
            if agreed(int(seconds <= SAMPLED * (work.within or 0.0))):
                break
            layers = sorted({unit.layer for unit in chosen})
            if len(layers) < 2 or passes >= before:
                return None
            # Whole blocks: what is made once a block is shared by its heads.
            kept, before = set(layers[1::2]), passes
            chosen = [unit for unit in chosen if unit.layer in kept]
    start = now()
    measure([0], lambda _: None)
    return stage, slowest(now() - start) / (passes * length)
