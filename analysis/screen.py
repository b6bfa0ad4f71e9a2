"""Screen, then ablate: cheap scores choose the candidates, exact ablation decides among them.

1. Taylor and RelP nominate in turn, by size: the mean over windows of the size of a head's effect
   on each, in which effects of both signs do not cancel (Kramar et al. 2024, arXiv 2403.00745,
   eq. 5). They miss different heads, and signs to first order mislead: `docs/first-order.md`.
2. The first nominated are candidates. Of the others, the screened-out, some are drawn at random.
3. A trial of two rounds (sequential halving: Karnin, Koren and Somekh 2013): candidates and drawn
   heads are ablated on the same few windows, the better of them on as many again.
4. The best of the trial, drawn heads among them, are raced on the rest of the budget, in the same
   order of windows: what the trial measured is not measured again.

What the screen missed is estimated from the drawn heads: as many of the screened-out belong to the
top set as in proportion of the drawn do, with the exact interval of drawing without replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.distributed import reduced, share
from analysis.engine import batches
from analysis.estimates import did
from analysis.few_heads import SCREENING, with_the_others
from analysis.memory_plan import plan_for
from analysis.methods import Method, method_passes
from analysis.metrics import LOSS
from analysis.subject import Subject
from analysis.ties import best_first
from kernels.errors import MidusError

NAME = "screen"
BUDGET = 0.1  # of all evaluations, by default
NOMINATING = ("taylor", "relp")
WINDOWS = 32  # for nominations, at most
TRIED, RACED = 4, 1.5  # heads in the trial and in the race, for a place in the top set
ROUND = 2, 32  # windows of a round, at least and at most
SHARE = 0.65  # of the budget, for the trial at most
DRAWN = 1 / 6  # of the trial's heads
CONFIDENCE = 0.95

# Exact values [heads, windows] of indices of heads and of windows.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
# The ranking of a subject's units on a budget of evaluations, by values as `Measure` gives them.
Raced = Callable[[Subject, Measure, int], pd.DataFrame]


@dataclass(frozen=True)
class Plan:
    """How a budget is spent.

    candidates, drawn: heads in the trial's first round; second, raced: heads in the second round
    and in the race; trial: windows of a round; race: evaluations up to the end of the race, those
    of its heads in the trial among them.
    """

    candidates: int
    drawn: int
    second: int
    raced: int
    trial: int
    race: int


def planned(heads: int, windows: int, top: int, budget: int, minimum: int) -> Plan:
    """The spending of a budget; `minimum`: exact windows of every raced head.

    As many windows a round as the budget holds; else fewer heads in the race, then in the trial.

    Raises MidusError where the budget does not hold the least: top + 2 heads in the trial, and
    top + 1 in the race.
    """
    shortest, longest = min(ROUND[0], windows // 2), min(ROUND[1], windows // 2)

    def cost(tried: int, raced: int, trial: int) -> tuple[int, int]:
        """Evaluations of the trial, and of the race's minimum beyond it."""
        second = round((tried * raced) ** 0.5)
        return (tried + second) * trial, raced * max(minimum - 2 * trial, 0)

    most, fewest = min(TRIED * top, heads), min(top + 2, heads)
    wide = min(max(round(RACED * top), top + 1), most)
    ways = [(most, raced) for raced in range(wide, top, -1)]
    ways += [(tried, top + 1) for tried in range(most - 1, fewest - 1, -1)]
    for tried, raced in ways:
        lengths = [
            trial
            for trial in range(longest, shortest - 1, -1)
            if sum(cost(tried, raced, trial)) <= budget
            and (cost(tried, raced, trial)[0] <= SHARE * budget or trial == shortest)
        ]
        if lengths:
            trial, second = lengths[0], round((tried * raced) ** 0.5)
            drawn = min(max(round(DRAWN * tried), 1), tried - top - 1) if tried < heads else 0
            left = budget - cost(tried, raced, trial)[0] + 2 * trial * raced
            return Plan(tried - drawn, drawn, second, raced, trial, left)
    least = sum(cost(fewest, top + 1, shortest))
    raise MidusError(
        f"budget is {budget} evaluations; method {NAME!r} needs {least} (a race of {top + 1} heads "
        f"on {minimum} windows, and a trial); give more, more documents or a smaller top"
    )


@dataclass(frozen=True)
class Chosen:
    """Indices of heads: candidates, drawn (ascending) from the others (`out`), and who is raced."""

    candidates: np.ndarray
    drawn: np.ndarray
    out: np.ndarray
    raced: np.ndarray


def chosen(
    plan: Plan, order: np.ndarray, windows: np.ndarray, known: Known, rng: np.random.Generator
) -> Chosen:
    """Who is ablated, of all heads in the order of their nomination; windows in theirs."""
    candidates, out = order[: plan.candidates], order[plan.candidates :]
    drawn = np.sort(rng.choice(out, plan.drawn, replace=False))
    staying = np.concatenate([candidates, drawn])
    for rounds, count in ((1, plan.second), (2, plan.raced)):
        scores = known(staying, windows[: rounds * plan.trial]).sum(1)
        staying = staying[best_first(scores)[:count]]
    return Chosen(candidates, drawn, out, np.sort(staying))


class Known:
    """Exact values of heads on windows, each measured once.

    `evaluations`: how many were.
    """

    def __init__(self, heads: int, windows: int, measure: Measure) -> None:
        self.values = np.full((heads, windows), np.nan)
        self.measure = measure

    @property
    def evaluations(self) -> int:
        return int(np.isfinite(self.values).sum())

    @property
    def counts(self) -> np.ndarray:
        """Windows of every head."""
        return np.isfinite(self.values).sum(1)

    def __call__(self, heads: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Values [heads, windows] of indices of heads and of windows."""
        lacking = np.isnan(self.values[np.ix_(heads, windows)])
        patterns, at = np.unique(lacking, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if pattern.any():
                some, new = heads[at.ravel() == number], windows[pattern]
                self.values[np.ix_(some, new)] = self.measure(some, new)
        return self.values[np.ix_(heads, windows)]


def screened(
    subject: Subject,
    race: Raced,
    measure: Measure,
    windows: np.ndarray,
    top: int,
    budget: int,
    minimum: int,
    seed: int,
) -> pd.DataFrame:
    """The ranking by screen, trial and race, on `budget` evaluations.

    windows: all of them, in the race's order.

    A row a head: the raced ones by the race, then the tried, then the screened-out, by their size
    to first order (column `first_order`); these two have no score. Column `screen` says which:
    "raced", "tried", "drawn" or "out". `.attrs["screen"]` is described in `found_by`.
    """
    heads, count = len(subject.units), len(windows)
    plan = planned(heads, count, top, budget, minimum)
    rng = np.random.default_rng(seed)
    seen = np.sort(rng.choice(count, min(WINDOWS, count), replace=False))
    order, sizes = nominated(subject, seen.tolist())
    known = Known(heads, count, measure)
    who = chosen(plan, order, windows, known, rng)
    part = replace(subject, units=[subject.units[head] for head in who.raced])
    table = race(part, lambda some, at: known(who.raced[some], at), plan.race)
    return _whole(table, subject, sizes, who, plan, known)


def nominated(subject: Subject, windows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """All heads in the order of their nomination, and their Taylor sizes, nats a token: [units].

    Of the loss, whatever the metric, which may have no gradient. Under `torchrun` the windows are
    shared out.
    """
    docs = subject.docs
    plan = plan_for(subject.model, max(len(w.ids) for w in docs.windows), LOSS, gradients=True)
    smooth = replace(subject, metric=LOSS, plan=plan)
    methods = [Method(name, smooth) for name in NOMINATING]
    sizes = np.zeros((len(methods), len(subject.units)))
    chosen = [docs.windows[index] for index in windows]
    for part in share(batches(chosen, plan.windows)):
        here = [int(windows[index]) for index in part]
        for row, method in enumerate(methods):
            sizes[row] += np.abs(method(here, lambda _: None)["effects"]).sum(1)
            did(SCREENING, method.forwards * sum(len(docs.windows[index].ids) for index in here))
    sizes = reduced(sizes) / sum(int(window.scored.sum()) for window in chosen)
    return in_turn([best_first(size) for size in sizes]), sizes[0]


def in_turn(orders: Sequence[np.ndarray]) -> np.ndarray:
    """The first of every order, then the second, ..., each index once."""
    every = np.stack(orders, axis=1).ravel()
    _, first = np.unique(every, return_index=True)
    return every[np.sort(first)]


def screening_passes(model: Any, windows: int) -> dict[str, float]:
    """The nominations in an estimate, in passes over so many windows."""
    each = sum(method_passes(name, model, []) for name in NOMINATING)
    return {SCREENING: each * min(WINDOWS, windows) / windows}


def missed(drawn: int, hits: int, population: int) -> tuple[float, int]:
    """Of `population` screened-out heads, how many belong to the top set: estimate, upper bound.

    `hits` of `drawn` did. The bound holds with 95%, exactly: the largest number of which so few
    hits among the drawn are not improbable (hypergeometric).
    """
    if not drawn:
        return 0.0, 0
    numbers = np.arange(hits, population - (drawn - hits) + 1)
    likely = stats.hypergeom.cdf(hits, population, numbers, drawn) > 1 - CONFIDENCE
    return population * hits / drawn, int(numbers[likely].max())


def _whole(
    table: pd.DataFrame,
    subject: Subject,
    sizes: np.ndarray,
    who: Chosen,
    plan: Plan,
    known: Known,
) -> pd.DataFrame:
    """All heads: the race's rows in its order, then the others, larger first-order sizes first."""
    attrs, top = table.attrs, int(table.attrs["top"])
    kinds = np.full(len(sizes), "out", dtype=object)
    kinds[who.candidates], kinds[who.drawn], kinds[who.raced] = "tried", "drawn", "raced"
    whole = with_the_others(table, subject.units, sizes).assign(screen=kinds)
    whole["exact"] = known.counts
    whole["tied_with_next"] = whole["tied_with_next"].eq(True)
    keys = ["layer", "kind", "head"]
    place = {key: at for at, key in enumerate(table[keys].itertuples(index=False, name=None))}
    rows = list(whole[keys].itertuples(index=False, name=None))
    at = np.array([place.get(key, len(table)) for key in rows])
    hits = int((at[who.drawn] < top).sum())
    found = found_by(plan, hits, len(who.out), top)
    found["out"] = [[int(row[0]), int(row[2])] for row, kind in zip(rows, kinds, strict=True)
                    if kind == "out"]  # fmt: skip
    order = np.lexsort((-sizes, whole["screen"].eq("out"), at))
    whole = whole.iloc[order].reset_index(drop=True)
    whole.attrs = attrs | {
        "method": NAME,
        "evaluations": known.evaluations,
        "exhaustive": len(rows) * len(subject.docs.windows),
        "screened": len(rows) - len(table),
        "screen": found,
        "conditional": f"on a screen to first order: {screen_words(found)}",
    }
    return whole


def found_by(plan: Plan, hits: int, population: int, top: int) -> dict[str, Any]:
    """`.attrs["screen"]` of a ranking.

    candidates, drawn, second, raced, trial: as in `Plan`; population: heads that first order
    screened out, the drawn among them; hits: drawn heads that came into the top set; missed: about
    how many of the heads that nobody ablated belong there, missed_high: at most, with 95%; recall,
    recall_low: the share of the top set that is therefore there; out: the heads not ablated.
    """
    estimate, high = missed(plan.drawn, hits, population)
    left = {"missed": estimate - hits, "missed_high": high - hits}
    shares = {
        "recall": max(0.0, 1 - left["missed"] / top),
        "recall_low": max(0.0, 1 - left["missed_high"] / top),
    }
    spent = {
        name: getattr(plan, name) for name in ("candidates", "drawn", "second", "raced", "trial")
    }
    return {**spent, "population": population, "hits": hits, **left, **shares}


def screen_words(found: dict[str, Any]) -> str:
    """What was screened out and what may be missed, for the last line of a ranking."""
    out = found["population"] - found["drawn"]
    return (
        f"{out} heads were not ablated at all; of {found['drawn']} drawn from the "
        f"{found['population']} that it left out {found['hits']} came into the top set, so about "
        f"{found['missed']:.0f} and at most {found['missed_high']} (95%) of those not ablated "
        "belong there, as far as the trial tells"
    )
