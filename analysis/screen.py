"""Screen, then ablate: cheap scores choose the candidates, exact ablation decides among them.

1. Taylor and RelP nominate in turn, each by its score and by its size: the mean over windows of the
   size of its effect on each, in which effects of both signs do not cancel (Kramar et al. 2024,
   arXiv 2403.00745, eq. 5). They miss different heads: `docs/first-order.md`.
2. The first nominated are candidates. Of the others, the screened-out, some are drawn at random.
3. A trial: candidates and drawn heads are ablated on the same few windows.
4. The best of the trial, drawn heads among them, are raced on the rest of the budget.

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
TRIED = 4  # heads in the trial, for a place in the top set
TRIAL = 2, 32  # windows of the trial, at least and at most
SHARE = 0.45  # of the budget, for the trial
DRAWN = 1 / 6  # of the trial's heads
RACED = 2  # heads in the race at most, for a place in the top set
CONFIDENCE = 0.95

# The ranking of a subject's units on a budget of evaluations; exact values [units, windows].
Raced = Callable[[Subject, int], pd.DataFrame]
Exact = Callable[[Subject, np.ndarray, np.ndarray], np.ndarray]
Trial = Callable[[np.ndarray], np.ndarray]  # exact scores of heads on the trial's windows


@dataclass(frozen=True)
class Plan:
    """How a budget is spent: heads of each kind, windows of the trial, evaluations of the race."""

    candidates: int
    drawn: int
    trial: int
    raced: int
    race: int


def planned(heads: int, windows: int, top: int, budget: int, minimum: int) -> Plan:
    """The spending of a budget; `minimum`: exact windows of every raced head.

    Raises MidusError where the budget does not hold the least: a trial of top + 2 heads and a race
    of top + 1.
    """
    shortest = min(TRIAL[0], windows)
    least = minimum * (top + 1) + shortest * (top + 2)
    if budget < least:
        raise MidusError(
            f"budget is {budget} evaluations; method {NAME!r} needs {least} (a race of {top + 1} "
            f"heads on {minimum} windows, and a trial); give more, more documents or a smaller top"
        )
    raced = int(np.clip((1 - SHARE) * budget / minimum, top + 1, RACED * top))
    room = budget - minimum * raced  # for the trial
    tried = int(np.clip(room / shortest, top + 2, min(TRIED * top, heads)))
    tried = max(min(tried, heads), raced)
    trial = int(np.clip(min(SHARE * budget, room) / tried, shortest, min(TRIAL[1], windows)))
    drawn = min(max(round(DRAWN * tried), 1), tried - top - 1) if tried < heads else 0
    return Plan(tried - drawn, drawn, trial, raced, budget - tried * trial)


@dataclass(frozen=True)
class Chosen:
    """Indices of heads: candidates, drawn (ascending) from the others (`out`), and who is raced."""

    candidates: np.ndarray
    drawn: np.ndarray
    out: np.ndarray
    raced: np.ndarray


def chosen(plan: Plan, order: np.ndarray, trial: Trial, rng: np.random.Generator) -> Chosen:
    """Who is ablated, of all heads in the order of their nomination."""
    candidates, out = order[: plan.candidates], order[plan.candidates :]
    drawn = np.sort(rng.choice(out, plan.drawn, replace=False))
    tried = np.concatenate([candidates, drawn])
    raced = np.sort(tried[best_first(trial(tried))[: plan.raced]])
    return Chosen(candidates, drawn, out, raced)


def screened(
    subject: Subject, race: Raced, exact: Exact, top: int, budget: int, minimum: int, seed: int
) -> pd.DataFrame:
    """The ranking by screen, trial and race, on `budget` evaluations.

    A row a head: the raced ones by the race, then the tried, then the screened-out, by their size
    to first order (column `first_order`); these two have no score. Column `screen` says which:
    "raced", "tried", "drawn" or "out". `.attrs["screen"]` is described in `found_by`.
    """
    heads, windows = len(subject.units), len(subject.docs.windows)
    plan = planned(heads, windows, top, budget, minimum)
    rng = np.random.default_rng(seed)
    seen = np.sort(rng.choice(windows, min(WINDOWS, windows), replace=False))
    order, sizes = nominated(subject, seen.tolist())
    places = np.sort(rng.choice(windows, plan.trial, replace=False))

    def trial(tried: np.ndarray) -> np.ndarray:
        return exact(subject, tried, places).sum(1) / subject.window_weights[places].sum()

    who = chosen(plan, order, trial, rng)
    table = race(replace(subject, units=[subject.units[head] for head in who.raced]), plan.race)
    return _whole(table, subject, sizes, who, plan)


def nominated(subject: Subject, windows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """All heads in the order of their nomination, and their Taylor sizes, nats a token: [units].

    Of the loss, whatever the metric, which may have no gradient. Under `torchrun` the windows are
    shared out.
    """
    docs = subject.docs
    plan = plan_for(subject.model, max(len(w.ids) for w in docs.windows), LOSS, gradients=True)
    smooth = replace(subject, metric=LOSS, plan=plan)
    methods = [Method(name, smooth) for name in NOMINATING]
    total = np.zeros((2 * len(methods), len(subject.units)))
    chosen = [docs.windows[index] for index in windows]
    for part in share(batches(chosen, plan.windows)):
        here = [int(windows[index]) for index in part]
        for row, method in enumerate(methods):
            effects = method(here, lambda _: None)["effects"]
            total[2 * row] += effects.sum(1)
            total[2 * row + 1] += np.abs(effects).sum(1)
            did(SCREENING, method.forwards * sum(len(docs.windows[index].ids) for index in here))
    total = reduced(total) / sum(int(window.scored.sum()) for window in chosen)
    return in_turn([best_first(scores) for scores in total]), total[1]


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
) -> pd.DataFrame:
    """All heads: the race's rows in its order, then the others, larger first-order sizes first."""
    attrs, top = table.attrs, int(table.attrs["top"])
    kinds = np.full(len(sizes), "out", dtype=object)
    kinds[who.candidates], kinds[who.drawn], kinds[who.raced] = "tried", "drawn", "raced"
    whole = with_the_others(table, subject.units, sizes).assign(screen=kinds)
    whole["exact"] = whole["exact"].fillna(0).astype(int)
    whole.loc[whole["screen"].isin(["tried", "drawn"]), "exact"] = plan.trial
    whole["tied_with_next"] = whole["tied_with_next"].eq(True)
    keys = ["layer", "kind", "head"]
    place = {key: at for at, key in enumerate(table[keys].itertuples(index=False, name=None))}
    rows = list(whole[keys].itertuples(index=False, name=None))
    at = np.array([place.get(key, len(table)) for key in rows])
    hits = int((at[who.drawn] < top).sum())
    found = found_by(plan, hits, len(who.out), top)
    found["out"] = [[int(row[0]), int(row[2])] for row, kind in zip(rows, kinds, strict=True)
                    if kind == "out"]  # fmt: skip
    spent = int(table.attrs["evaluations"]) + plan.trial * (plan.candidates + plan.drawn)
    order = np.lexsort((-sizes, whole["screen"].eq("out"), at))
    whole = whole.iloc[order].reset_index(drop=True)
    whole.attrs = attrs | {
        "method": NAME,
        "evaluations": spent,
        "exhaustive": len(rows) * len(subject.docs.windows),
        "screened": len(rows) - len(table),
        "screen": found,
        "conditional": f"on a screen to first order: {screen_words(found)}",
    }
    return whole


def found_by(plan: Plan, hits: int, population: int, top: int) -> dict[str, Any]:
    """`.attrs["screen"]` of a ranking.

    candidates, drawn, trial, raced: heads by first order and drawn from the others, the windows
    they were tried on, the heads that were raced; population: heads that first order screened out,
    the drawn among them; hits: drawn heads that came into the top set; missed: about how many of
    the heads that nobody ablated belong there, missed_high: at most, with 95%; recall, recall_low:
    the share of the top set that is therefore there; out: the heads that were not ablated.
    """
    estimate, high = missed(plan.drawn, hits, population)
    left = {"missed": estimate - hits, "missed_high": high - hits}
    shares = {
        "recall": max(0.0, 1 - left["missed"] / top),
        "recall_low": max(0.0, 1 - left["missed_high"] / top),
    }
    spent = {name: getattr(plan, name) for name in ("candidates", "drawn", "trial", "raced")}
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
