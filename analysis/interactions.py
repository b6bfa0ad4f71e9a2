"""Pairs of heads: what ablating both costs beyond what ablating each costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine import Progress
from analysis.estimates import timed
from analysis.intervals import t_interval
from analysis.methods import Method, ablation_passes
from analysis.subject import Subject, Unit, prepared
from analysis.sweep import swept
from analysis.within import Cost
from kernels.errors import HeadError
from midus_model import check_heads, chosen_heads

PAIRS = "pairs of heads"  # the stage


@timed
def head_interactions(
    model: Any = None,
    heads: Any = None,
    data: Any = None,
    *,
    baseline: str = "mean",
    metric: Any = "loss",
    limit: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Every pair of the given heads, ablated exactly: alone, and together.

    Args:
        model, data, baseline, metric, limit, memory_budget, checkpoint: as `head_importance` takes
            them.
        heads: (layer, head) pairs, a ranking (its top set), or its JSON; at least two.
        seed: of the resampled baseline.

    Returns:
        A row a pair: layer, head, other_layer, other_head; `first` and `second`, what each costs
        alone, and `both`; `score` = both - first - second with its stderr and 95% interval over
        documents, for itself and (`_all`) for all pairs together, in the metric's unit; `unit`,
        what intervals are over; by_document. A positive score: one stands in for the other
        (they back each other up); a negative one: they work on the same thing together.

    Raises:
        HeadError: where fewer than two heads are given, or one that the model does not have.
        MidusError: where another argument, the model or the data cannot be used.
    """
    subject = prepared(
        model,
        data,
        baseline=baseline,
        metric=metric,
        limit=limit,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
        cost=Cost(PAIRS, partial(_passes, [] if heads is None else chosen_heads(heads))),
    )
    pairs = [] if heads is None else chosen_heads(heads)
    check_heads(subject.model, pairs)
    if len(pairs) < 2:
        raise HeadError(f"an interaction needs two heads; got {pairs}: give (layer, head) pairs")
    known = {(unit.layer, unit.head): unit for unit in subject.units}
    singles = [known[pair] for pair in pairs]
    couples = list(combinations(range(len(pairs)), 2))
    subject = replace(subject, units=singles + [_both(singles, a, b) for a, b in couples])
    method = Method("ablation", subject)
    totals = swept(
        subject,
        method,
        PAIRS,
        forwards=method.forwards,
        checkpoint=checkpoint,
        identity={"pairs": [list(pair) for pair in pairs]},
        progress=progress,
    )
    return _table(subject, totals["effects"] / subject.weights, couples)


def _passes(pairs: list[tuple[int, int]], model: Any, units: Sequence[Unit]) -> dict[str, float]:
    """Passes of the heads alone and of every two of them, which begin at the lower one's block."""
    alone = [unit for unit in units if (unit.layer, unit.head) in pairs]
    together = [min(two, key=lambda unit: unit.layer) for two in combinations(alone, 2)]
    return {PAIRS: 1 + sum(ablation_passes(model, alone + together))}


def _both(singles: list[Unit], a: int, b: int) -> Unit:
    one, two = singles[a], singles[b]
    return replace(one, sites=(*one.sites, *two.sites))


def _table(subject: Subject, effects: np.ndarray, couples: list[tuple[int, int]]) -> pd.DataFrame:
    count = len(effects) - len(couples)
    first, second = np.array(couples).T
    both = effects[count:]
    by_document = both - effects[first] - effects[second]  # [pairs, documents]
    found = t_interval(by_document, subject.weights)
    mean = effects @ subject.weights / subject.weights.sum()
    heads = subject.units[:count]
    table = pd.DataFrame(
        {
            "layer": [heads[a].layer for a in first],
            "head": [heads[a].head for a in first],
            "other_layer": [heads[b].layer for b in second],
            "other_head": [heads[b].head for b in second],
            "first": mean[first],
            "second": mean[second],
            "both": mean[count:],
            "score": found.estimate,
            **found.columns(),
            "unit": subject.docs.unit,
            "by_document": by_document.tolist(),
        }
    )
    table.attrs = subject.describe(table="head_interactions", method="ablation")
    return table
