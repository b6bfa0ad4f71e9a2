"""A ranking of heads that says how sure it is: exact ablation, raced window by window.

The statistics are in `analysis.race`, the reasons and the evidence in `docs/ranking.md`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.distributed import is_main, rank_and_size, reduced, share
from analysis.engine import Progress
from analysis.importance import head_importance
from analysis.memory_plan import plan_for
from analysis.methods import METHODS
from analysis.metrics import LOSS
from analysis.noise import with_noise
from analysis.race import DRAWS, MINIMUM, Race, least_budget
from analysis.subject import Subject, check_choice, loaded_with, prepared, units_of
from analysis.tables import head_table, weights_of
from analysis.ties import best_first, first_equal
from kernels.errors import MidusError

PER_HEAD = 56  # evaluations a head, on average, of the default budget
SCREENING = 32  # windows of gradients behind a screen


def rank_heads(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: Any = "loss",
    top: int = 16,
    confidence: float = 0.95,
    budget: int | float | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Heads by importance, best first, with the chance that each belongs to the top set.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes, a task included; by default pico's held-out text.
        method: "ablation" (exact, raced), or another of `head_importance`, whose table is sorted.
        baseline, metric: as `head_importance` takes them.
        top: size of the top set, at least 1 and below the number of heads.
        confidence: that the whole top set is right, where the race ends settled.
        budget: exact evaluations at most, a head on a window each: a whole number, a share of all
            there are (0.25), or "all", the exhaustive sweep without a race. By default 56 a head.
        seed: of the order of windows.
        progress: called with (done, total, text).

    Returns:
        A row a head, columns of `head_importance` (`by_document` holds NaN where a document was not
        reached; intervals are confidence sequences for the mean over these documents, together
        right with `confidence`) and `p_top`, `exact` (windows measured), `tied_with_next` (the
        paired 95% interval of the difference to the next row, documents being the unit, contains
        0). `.attrs["stopped"]` says why the race ended: "settled", "budget", or "documents" (the
        last contenders were measured on every window); `.attrs["evaluations"]` what it cost;
        `.attrs["design_effect"]` how many times larger the variance of a score is when documents
        are drawn rather than windows. Every head has at least 16 exact windows; where a budget
        does not pay them, gradients choose the heads that get them, and `.attrs["screened"]` counts
        the others, given two windows each and ranked last: the confidence is conditional on that
        choice.

    Under `torchrun` or `accelerate launch` the windows are shared out.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.
    """
    check_choice("method", method, METHODS)
    network, docs = loaded_with(model, data)
    heads, windows = len(units_of(network)), len(docs.windows)
    if not 1 <= top < heads:
        raise MidusError(f"top is {top}; it must be between 1 and {heads - 1} (heads less one)")
    if not 0 < confidence < 1:
        raise MidusError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does")
    allowed = _allowed(budget, top, heads, windows)
    how: dict[str, Any] = {
        "baseline": baseline, "metric": metric, "seed": seed, "progress": progress,
    }  # fmt: skip
    if method != "ablation" or allowed is None:
        table = head_importance(network, docs, method=method, **how)
        return _sorted(table, top, confidence, windows if method == "ablation" else 0)
    subject = prepared(network, docs, **how)
    clusters = [window.unit for window in docs.windows]
    race = Race(heads, subject.window_weights, clusters, top, confidence, seed)
    _run(race, subject, allowed, progress)
    return _table(race, subject)


def _allowed(budget: Any, top: int, heads: int, windows: int) -> int | None:
    """Evaluations allowed; None for all of them, without a race."""
    full = heads * windows
    if budget is None:
        return min(full, PER_HEAD * heads)
    if isinstance(budget, str) and budget == "all":
        return None
    least = least_budget(top, heads, windows)
    whole = isinstance(budget, int | np.integer) and not isinstance(budget, bool)
    share = isinstance(budget, float | np.floating) and 0 < budget <= 1
    allowed = int(budget) if whole else int(budget * full) if share else 0
    if allowed < least:
        raise MidusError(
            f"budget is {budget!r}; it must be at least {least} evaluations (that pays "
            f"{min(MINIMUM, windows)} windows for {top + 1} of {heads} heads and a look at the "
            "others), a share such as 0.25 of all there are, or 'all'"
        )
    return min(full, allowed)


# ---------------------------------------------------------------- the race on a model


def _run(race: Race, subject: Subject, allowed: int, progress: Progress | None) -> None:
    """Race the subject's heads."""

    def told(spent: int, racing: int) -> None:
        if progress and is_main():
            progress(spent, allowed, f"exact ablation, {racing} heads in the race")

    if allowed < race.heads * race.minimum:
        race.screen(_by_gradient(subject, race.order[:SCREENING]), allowed)
    race.run(lambda heads, windows: measured(subject, heads, windows), allowed, told)


def measured(subject: Subject, heads: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """What ablating each head adds to each window's metric: [heads, windows]."""
    _, processes = rank_and_size()
    values = np.zeros((len(heads), len(windows)))
    for part in share(
        _parts(len(windows), min(subject.plan.windows, -(-len(windows) // processes)))
    ):
        values[:, part], _ = subject.ablated(windows[part].tolist(), heads.tolist())
    return reduced(values)


def _by_gradient(subject: Subject, windows: np.ndarray) -> np.ndarray:
    """Heads by the mean size of the loss's gradient (Michel et al.), largest first."""
    longest = max(len(window.ids) for window in subject.docs.windows)
    plan = plan_for(subject.model, longest, LOSS, gradients=True)
    smooth = replace(subject, metric=LOSS, plan=plan)
    size = np.zeros(len(subject.units))
    for part in _parts(len(windows), plan.windows):
        size += np.abs(smooth.gradients(windows[part].tolist())).sum(1)
    return best_first(size)


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
        "interval": "confidence sequence over these documents, corrected over heads",
        "design_effect": race.design_effect(),
    }
    if screened:
        attrs["conditional"] = f"on a screen by gradient that left out {screened} heads"
    table = head_table(
        subject.units,
        race.by_cluster(len(subject.docs.units)),
        subject.weights,
        attrs,
        intervals=race.intervals(),
        seed=race.seed,
    )
    table["p_top"] = race.p_top()
    table["exact"] = race.counts
    attrs = table.attrs
    table = table.iloc[order].reset_index(drop=True)
    table["tied_with_next"] = race.ties(order)
    table.attrs = attrs
    return with_noise(table, subject, name="ablation")


def _sorted(table: pd.DataFrame, top: int, confidence: float, exact: int) -> pd.DataFrame:
    """A table of all documents as a ranking: documents are resampled for `p_top` and ties."""
    attrs = table.attrs
    scores = np.array(table["by_document"].tolist())  # [heads, documents]
    count = scores.shape[1]
    weights = weights_of(table)
    rng = np.random.default_rng(attrs["seed"])
    drawn = rng.multinomial(count, [1 / count] * count, DRAWS) * weights
    total, twin = drawn.sum(1, keepdims=True), first_equal(scores)
    means = (drawn @ scores.T / total)[:, twin]  # [draws, heads]; of equal heads the same
    best = np.argsort(-means, axis=1, kind="stable")[:, :top]
    table["p_top"] = np.bincount(best.ravel(), minlength=len(table)) / DRAWS
    table["exact"] = exact
    order = best_first(table["score"])
    gaps = drawn @ (scores[order[:-1]] - scores[order[1:]]).T / total
    tied = np.quantile(gaps, 0.025, axis=0) <= 0
    table = table.iloc[order].reset_index(drop=True)
    table["tied_with_next"] = [*tied.tolist(), False]
    table.attrs = attrs | {
        "table": "ranking",
        "top": top,
        "confidence": confidence,
        "stopped": "documents",
        "evaluations": exact * len(table),
        "screened": 0,
        "interval": "bootstrap over documents",
    }
    return table
