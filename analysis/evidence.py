"""Evidence for a ranking: what pruning by it does, how stable it is, what other methods say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.baselines import MEANS
from analysis.documents import Documents, documents
from analysis.engine import Progress
from analysis.estimates import a_time, current, timed
from analysis.gates import folded_values
from analysis.importance import head_importance, method_cost
from analysis.intervals import t_interval
from analysis.methods import METHODS, measured_first
from analysis.shortened import lessened
from analysis.statistics import weighted_mean
from analysis.subject import Subject, Unit, check_choice, prepared
from analysis.sweep import swept
from analysis.tables import weights_of
from analysis.ties import best_first, difference, spearman
from analysis.within import Cost
from kernels.errors import HeadError, MidusError
from midus_model import head_pairs

ORDERS = ("worst first", "best first", "random")
SPLITS = 100
PRUNING = "pruning"  # the stage
STEPS, DRAWS = 12, 5  # points of a curve, random orders
COLUMNS = (
    "kind", "first", "second", "spearman", "ci_low", "ci_high", "overlap", "area", "random_at",
)  # fmt: skip


@timed
def prune_curve(
    model: Any = None,
    ranking: Any = None,
    data: Any = None,
    *,
    baseline: str = "mean",
    metric: Any = "loss",
    steps: int = STEPS,
    draws: int = DRAWS,
    limit: int | None = None,
    seed: int = 0,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Loss as heads are ablated one after the other: worst first, best first, and at random.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        ranking: all heads of the model, best first: a ranking's table, (layer, head) pairs in that
            order, the path of their JSON, or None for exact ablation on the same data.
        data, limit, baseline, metric: as `head_importance` takes them.
        steps: points of a curve after the clean one, evenly spread up to all heads.
        draws: random orders.
        seed: of the random orders.
        within: seconds that all of this may take: as many documents as fit, as in
            `head_importance`; refused where the least does not.
        progress: called with (done, total, text).

    Returns:
        A row a point: order, draw, removed (heads), share of all heads, and the metric (the loss
        in nats a token): score, stderr, ci_low, ci_high (95%, over documents),
        by_document. `.attrs["areas"]`: by order, the mean over the curve of what was lost. A good
        ranking has a small area worst first and a large one best first.

    Raises:
        HeadError: where the ranking does not name every head once.
        MidusError: where another argument, the model or the data cannot be used.
    """
    for name, number in (("steps", steps), ("draws", draws)):
        if number < 1:
            raise MidusError(f"{name} is {number}; it must be at least 1")
    subject = prepared(
        model,
        data,
        baseline=baseline,
        metric=metric,
        limit=limit,
        seed=seed,
        progress=progress,
        cost=_prune_cost(steps, draws, baseline, ranking is None),
    )
    sites = subject.units
    order = _order_of(ranking, subject, metric, progress)
    counts = np.unique(np.linspace(0, len(sites), min(steps, len(sites)) + 1).round().astype(int))
    rng = np.random.default_rng(seed)
    curves: list[tuple[str, int, np.ndarray]] = [
        ("worst first", 0, order[::-1]),
        ("best first", 0, order),
        *(("random", draw, rng.permutation(len(sites))) for draw in range(draws)),
    ]
    states = np.ones((len(curves) * len(counts), len(sites)), dtype=np.float32)
    for row, ((_, _, heads), count) in enumerate(
        (curve, count) for curve in curves for count in counts
    ):
        states[row, heads[:count]] = 0
    losses = _losses(subject, states, progress)  # [states, documents]
    found = t_interval(losses, subject.weights, together=False)
    table = pd.DataFrame(
        {
            "order": [name for name, _, _ in curves for _ in counts],
            "draw": [draw for _, draw, _ in curves for _ in counts],
            "removed": np.tile(counts, len(curves)),
            "share": np.tile(counts / len(sites), len(curves)),
            "score": found.estimate,
            **found.columns(),
            "unit": subject.docs.unit,
            "by_document": losses.tolist(),
        }
    )
    table.attrs = subject.describe(table="prune_curve", areas=_areas(table, subject.metric.sign))
    return table


def _prune_cost(steps: int, draws: int, baseline: str, ranked: bool) -> Cost:
    """What a prune curve does; `ranked`: whether the heads are ranked first."""
    first = [("ablation", baseline)] if ranked else []

    def passes(model: Any, units: Sequence[Unit]) -> dict[str, float]:
        states = float((2 + draws) * (min(steps, len(units)) + 1))
        return {**measured_first(first, model, units), PRUNING: states}

    sample = method_cost({"name": "ablation"}).sample if ranked else None
    return Cost("pruning", passes, sample, options=lambda seconds, *_: a_time(seconds))


def _order_of(ranking: Any, subject: Subject, metric: Any, progress: Progress | None) -> np.ndarray:
    """Indices into the subject's heads, best first."""
    if ranking is None:
        table = head_importance(
            subject.model,
            subject.docs,
            baseline=subject.baseline.kind,
            metric=metric,
            seed=subject.how["seed"],
            progress=progress,
        )
        return best_first(table["score"])
    places = {(unit.layer, unit.head): index for index, unit in enumerate(subject.units)}
    wanted = head_pairs(ranking)
    if sorted(wanted) != sorted(places):
        raise HeadError(
            f"the ranking names {len(set(wanted))} heads, the model has {len(places)}; a prune "
            "curve needs every head of the model once, best first"
        )
    return np.array([places[pair] for pair in wanted])


def _losses(subject: Subject, states: np.ndarray, progress: Progress | None) -> np.ndarray:
    """The metric of every document under each gate setting, [states, documents]."""
    gates = torch.as_tensor(states, device=subject.device)

    @torch.no_grad()
    def measure(indices: Sequence[int], _: Any) -> dict[str, np.ndarray]:
        batch = subject.batch(indices)
        replacement = subject.baseline(indices, batch)
        clean = subject.clean(batch).hidden if subject.metric.wants == "clean" else None
        return {"effects": folded_values(subject.view, batch, replacement, gates, clean).numpy()}

    totals = swept(subject, measure, PRUNING, forwards=float(len(states)), progress=progress)
    return subject.metric.sign * totals["effects"] / subject.weights


def _areas(table: pd.DataFrame, sign: int) -> dict[str, float]:
    """Mean loss added along each order's curve, random draws averaged."""
    areas: dict[str, list[float]] = {}
    for (order, _), curve in table.groupby(["order", "draw"], sort=False):
        added = sign * (curve["score"] - curve["score"].iloc[0])
        areas.setdefault(str(order), []).append(float(np.trapezoid(added, curve["share"])))
    return {order: float(np.mean(found)) for order, found in areas.items()}


@timed
def evidence(
    model: Any = None,
    data: Any = None,
    *,
    methods: Sequence[str] = ("ablation", "gradient", "taylor"),
    baseline: str = "mean",
    metric: Any = "loss",
    top: int = 16,
    others: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How far to trust a ranking, in one table.

    Args:
        model, data, baseline, metric, limit: as `head_importance` takes them.
        methods: methods to set against each other; the first is the one under test.
        top: size of the top set that overlaps are counted in.
        others: further data sets by name, for the stability of the first method.
        seed: of the splits.
        within: seconds that all of this may take: as many documents as fit, as in
            `head_importance`; refused where the least does not.
        progress: called with (done, total, text).

    Returns:
        A row a comparison, columns:

        kind: "split half" (each method on random halves of the documents, Spearman-Brown
        corrected to the whole; 100 splits), "method", "data", or "pruning" (on the documents that
        the ranking comes from).
        first, second: what is compared.
        area: between the curves best first and worst first, in nats a token; random_at: where the
        random orders' curve lies between them, 0 worst first to 1 best first.
        spearman: rank correlation over heads; overlap: share of the top set in common; ci_low and
        ci_high: of the correlation, over splits (2.5% to 97.5%) or by Fisher's z (95%).

    Raises:
        MidusError: where an argument, the model or the data cannot be used.
    """
    for method in methods:
        check_choice("methods", method, METHODS)
    given: dict[str, Any] = {"baseline": baseline, "metric": metric, "seed": seed}
    cost = _evidence_cost(list(methods), baseline, len(others or {}))
    subject = prepared(model, data, limit=limit, progress=progress, cost=cost, **given)
    network, docs = subject.model, subject.docs
    heads = len(subject.units)
    if not methods or not 1 <= top < heads:
        raise MidusError(
            f"give at least one method, and a top between 1 and {heads - 1}; got {list(methods)} "
            f"and {top}"
        )
    given["progress"] = progress
    tables = {name: head_importance(network, docs, method=name, **given) for name in methods}
    main = methods[0]
    rows = [_split_half(table, name, top, seed) for name, table in tables.items()]
    for first, second in combinations(methods, 2):
        rows.append(_agreement("method", first, second, tables[first], tables[second], top))
    for name, other in (others or {}).items():
        other = _as_many(documents(other, model=network, limit=limit))
        table = head_importance(network, other, method=main, **given)
        rows.append(_agreement("data", docs.name, name, tables[main], table, top))
    ordered = tables[main].iloc[best_first(tables[main]["score"])]
    areas = prune_curve(network, ordered, docs, **given).attrs["areas"]
    span = float(difference(areas["best first"], areas["worst first"]))
    rows.append(
        {
            "kind": "pruning",
            "first": main,
            "second": "random",
            "area": span,
            "random_at": (areas["random"] - areas["worst first"]) / span if span else np.nan,
        }
    )
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    table.attrs = subject.describe(table="evidence", top=top, areas=areas, methods=list(methods))
    return table


def _as_many(other: Documents) -> Documents:
    """Of other data as many documents and tokens as the time gave the first."""
    work = current()
    if work is None or not work.limited:
        return other
    return lessened(other, work.record["limit"], work.record["tokens"])


def _evidence_cost(methods: Sequence[str], baseline: str, others: int) -> Cost:
    """What `evidence` does; other data are taken to be as long."""
    every = [(name, baseline) for name in [*methods, *list(methods[:1]) * others]]
    prune = _prune_cost(STEPS, DRAWS, baseline, ranked=False)

    def passes(model: Any, units: Sequence[Unit]) -> dict[str, float]:
        found = measured_first(every, model, units)
        if baseline == "mean":
            found[MEANS] += 1.0  # of the prune curve
        return {**found, **prune.passes(model, units)}

    sample = method_cost({"name": methods[0]}).sample if methods else None
    return Cost("evidence", passes, sample, options=lambda seconds, *_: a_time(seconds))


def _split_half(table: pd.DataFrame, method: str, top: int, seed: int) -> dict[str, Any]:
    """Reliability of the scores: correlation of halves, stepped up to the whole's length."""
    scores = np.array(table["by_document"].tolist())  # [heads, documents]
    weights = weights_of(table)
    count = scores.shape[1]
    row = {"kind": "split half", "first": method, "second": method}
    if count < 2:
        return row
    rng = np.random.default_rng(seed)
    whole, shared = [], []
    for _ in range(SPLITS):
        order = rng.permutation(count)
        halves = [
            weighted_mean(scores[:, part], weights[part])
            for part in (order[: count // 2], order[count // 2 :])
        ]
        correlation = spearman(*halves)
        # Spearman-Brown, which is of reliabilities: a negative correlation stays as it is.
        whole.append(2 * correlation / (1 + correlation) if correlation > 0 else correlation)
        shared.append(_overlap(halves[0], halves[1], top))
    low, high = np.quantile(whole, [0.025, 0.975])
    middle = float(np.median(whole))
    return row | {
        "spearman": middle, "ci_low": low, "ci_high": high, "overlap": float(np.mean(shared)),
    }  # fmt: skip


def _agreement(
    kind: str, first: str, second: str, a: pd.DataFrame, b: pd.DataFrame, top: int
) -> dict[str, Any]:
    one, two = a["score"].to_numpy(), b["score"].to_numpy()
    correlation = spearman(one, two)
    # Fisher's z with the standard error for ranks (Bonett and Wright 2000).
    reach = 1.96 * np.sqrt((1 + correlation**2 / 2) / max(len(one) - 3, 1))
    centre = np.arctanh(np.clip(correlation, -0.999999, 0.999999))
    return {
        "kind": kind,
        "first": first,
        "second": second,
        "spearman": correlation,
        "ci_low": float(np.tanh(centre - reach)),
        "ci_high": float(np.tanh(centre + reach)),
        "overlap": _overlap(one, two, top),
    }


def _overlap(one: np.ndarray, two: np.ndarray, top: int) -> float:
    best = (set(best_first(scores)[:top].tolist()) for scores in (one, two))
    return len(set.intersection(*best)) / top
