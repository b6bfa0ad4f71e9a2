"""Head importance: how much each head helps, by its loss or another metric, on every document."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.agreement import sample_passes, with_agreement
from analysis.conventions import convention_table
from analysis.engine import Progress
from analysis.estimates import Cheaper, a_first_order_method, a_time, timed
from analysis.few_heads import chosen_in_part, with_few_heads, with_the_others
from analysis.intervals import Interval, by_document, shares_by_document, t_interval
from analysis.methods import (
    CHEAP,
    FIRST_ORDER,
    METHODS,
    PER_DOCUMENT,
    Method,
    check_method,
    method_passes,
    method_text,
    per_document,
)
from analysis.metrics import LOSS, Metric
from analysis.noise import with_noise
from analysis.subject import Subject, Unit, check_choice, prepared
from analysis.sweep import swept
from analysis.tables import ENDS, head_table, weights_of
from analysis.within import Cost, Sampled
from kernels.errors import MidusError

NORMALISATIONS = ("none", "layer", "share")


@timed
def head_importance(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: Any = "loss",
    stage: str = "output",
    group: str = "head",
    convention: str | None = None,
    normalise: str = "none",
    retrieval: str = "frozen",
    permutations: int = 8,
    limit: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    agreement: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The importance of every head of a base or up-scaled model; positive means the head helps.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes; by default pico's held-out text. A task (prompt,
            answer, foil) is measured on its answer alone.
        method: with L the loss and g the gate on a head, out = b + g * (z - b), b its baseline:
            "ablation": L(g = 0) - L, exact.
            "gradient": mean over documents of abs(dL/dg) (Michel et al. 2019, 1905.10650, eq. 2).
            "taylor": -dL/dg at g = 1, ablation to first order (attribution patching).
            "integrated_gradients": -dL/dg along all gates from 0 to 1, at 32 Gauss-Legendre nodes
            (Sundararajan et al. 2017, 1703.01365); `.attrs["completeness"]` says by how much the
            scores miss the loss of ablating all heads.
            "fisher": mean over documents of (dL/dg) squared.
            "dla": the head's direct effect on the next token's logit through the final norm, that
            norm's scale held, in logits.
            "shapley": Shapley value by sampled orders of ablation, with its sampling error.
            "atp_star", "relp": see `analysis.first_order`. AtP* has no sign.
        baseline: "mean" (the head's mean output over these documents), "zero", or "resample" (its
            output at the same position of another document).
        metric: what takes the place of L: "loss" (nats a token); "logit_difference" (of a task's
            answer and foil, where they part); "kl" (of the clean predictions from the ablated);
            "accuracy" (of next tokens; of a task's whole answers); a function of logits [S, V] and
            targets [S] to one loss a position, [S]; or an `analysis.Metric`.
        stage: "output", or "query": a memory head's query is gated, and other slots are read.
        group: "head", or "kv": the query heads that share a key-value head, together.
        convention: of "gradient" with baseline "zero", "michel" or "bertology": the arithmetic of
            that published code, its normalisation included; see `analysis.conventions`.
        normalise: "none"; "layer": each block's scores over their L2 norm (Michel et al.); "share":
            max(score, 0) over the sum of these, `.attrs["negative_mass"]` being what was clipped.
            `by_document` stays as measured.
        retrieval: for integrated gradients of memory heads, "frozen" (slots and weights of the
            clean run, so that the path is smooth) or "free".
        permutations: orders of "shapley", an even number from 4: each is used backwards too.
        limit: at most that many documents.
        seed: of the resampled baseline, and of sampled orders.
        memory_budget: bytes that arrays may take beside the weights; by default 1 GiB on a CPU,
            half of what is free on a GPU.
        agreement: of a method that stands in for exact ablation (all but "ablation" and "shapley"):
            measure on a sample of heads how far it does. `.attrs["agreement"]`, described in
            `analysis.agreement.with_agreement`, is shown on figures and in the app. It costs about
            as much as the table on few windows, and little on many. A `convention` has none.
        checkpoint: a file that keeps the sums so far: the same call goes on where it was killed. It
            stays, so that the table can be made again until it is saved; remove it then.
        within: seconds that all of this may take. As many documents as fit are measured, those
            that `limit` would choose; below 8 of them, only the first tokens of each; and of
            "ablation" only the heads of largest first-order effect (column `first_order`), the
            others having no score: see `analysis.within`. `.attrs["within"]` says what was left
            out; given as `within`, it makes the same choice again without a clock. Nothing is then
            kept at `checkpoint`.
        progress: called with (done, total, text); with total 0 it tells an estimate of the time.
            Without it a measurement of more than a minute warns (`analysis.EstimateWarning`).

    Returns:
        A row a head in model order, columns as in `analysis.tables`, 95% intervals over documents
        (of a single one, over its windows; of "shapley", over its orders): see
        `analysis.intervals` and docs/statistics.md. How it was made stands in `.attrs`. Of a model
        in bf16 or fp16 also `below_noise`: see `analysis.noise`.

    Under `torchrun` or `accelerate launch` the windows are shared out, and every process returns
    the table that one would.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.

    >>> table = head_importance("pico", limit=2)  # doctest: +SKIP
    """
    check_choice("normalise", normalise, NORMALISATIONS)
    check_choice("method", method, METHODS)
    if convention is not None and normalise != "none":
        raise MidusError(
            f"convention {convention!r} has its own normalisation; leave normalise out"
        )
    options: dict[str, Any] = {
        "name": method, "convention": convention, "retrieval": retrieval,
        "permutations": permutations, "seed": seed,
    }  # fmt: skip
    subject = prepared(
        model,
        data,
        baseline=baseline,
        metric=metric,
        stage=stage,
        group=group,
        limit=limit,
        seed=seed,
        memory_budget=memory_budget,
        gradients=method in (*FIRST_ORDER, "integrated_gradients"),
        progress=progress,
        cost=method_cost(options, agreement=agreement),
    )
    every, first_order = subject.units, None
    if chosen_in_part():
        if normalise != "none" or convention is not None:
            raise MidusError("the time holds some of the heads only, which cannot be normalised")
        subject, first_order = with_few_heads(subject)
    measure = Method(subject=subject, **options)
    totals = swept(
        subject,
        measure,
        measure.text,
        forwards=measure.forwards,
        checkpoint=checkpoint,
        identity=options,
        by_window=measure.by_window,
        progress=progress,
    )
    attrs = subject.describe(method=method) | measure.found(totals)
    clean = float(totals["values"].sum() / subject.weights.sum()) * subject.metric.sign
    attrs["clean_loss" if subject.metric is LOSS else "clean"] = clean
    if convention is not None:
        return convention_table(convention, totals["effects"], subject.units, subject.docs, attrs)
    scores, weights = totals["effects"] / subject.weights, subject.weights
    if method in PER_DOCUMENT:
        scores, weights = per_document(method, scores), np.ones_like(weights)
        attrs["weighting"] = "documents"
    intervals = measure.intervals(totals)
    table = head_table(subject.units, scores, weights, attrs, intervals=intervals)
    table = with_noise(table, subject, **options)
    if agreement:
        table = with_agreement(table, subject, progress, **options)
    table = normalised(table, normalise)
    if first_order is not None:
        table = with_the_others(table, every, first_order)
    return table


def method_cost(options: Mapping[str, Any], agreement: bool = False) -> Cost:
    """What a measurement of all heads by a method does; `options`: of `Method`.

    agreement: whether it is set against exact ablation afterwards.
    """
    name = options["name"]

    def sample(subject: Subject) -> Sampled:
        measure = Method(subject=subject, **options)
        return measure.text, measure, measure.forwards

    def passes(model: Any, units: Sequence[Unit]) -> float:
        return method_passes(name, model, units, options.get("permutations", 8))

    def sampled(model: Any, units: Sequence[Unit], windows: int) -> dict[str, float]:
        return sample_passes(passes(model, units), model, units, windows)

    def cheaper(seconds: float, forward: float, metric: Metric) -> list[Cheaper]:
        known = metric.smooth and name not in FIRST_ORDER
        return (a_first_order_method(forward) if known else []) + a_time(seconds)

    return Cost(
        method_text(name),
        lambda model, units: {method_text(name): passes(model, units)},
        sample,
        heads=name == "ablation",
        options=cheaper,
        half=passes,
        beside=sampled if agreement and name in CHEAP else None,
        check=lambda metric, how: check_method(
            metric, how, name, options.get("convention"), options.get("retrieval", "frozen")
        ),
    )


def normalised(table: pd.DataFrame, how: str) -> pd.DataFrame:
    """Scores over their layer's norm or the positive total: see `head_importance`; "none" changes
    nothing. Intervals are those of the quotient, its denominator measured on the same documents; of
    scores over sampled orders ("shapley") the denominator is held."""
    if how == "none":
        return table
    table, attrs = table.copy(), table.attrs
    if how == "layer":
        norms = table.groupby("layer")["score"].transform(lambda part: np.linalg.norm(part))
    else:
        clipped = table["score"].clip(lower=0)
        norms = pd.Series(clipped.sum(), index=table.index)
        attrs = attrs | {"negative_mass": float((clipped - table["score"]).sum())}
    columns = ["score", "stderr", *ENDS]
    table[columns] = table[columns].div(norms.where(norms > 0), axis=0)
    if (table["unit"] != "order").all():
        table.attrs = attrs
        for name, part in _quotients(table, how).columns().items():
            table[name] = part
    if how == "share":
        for name in ("score", *ENDS):
            table[name] = table[name].clip(lower=0)
    table.attrs = attrs | {"normalise": how, "unit": "share" if how == "share" else "layer norms"}
    return table


def _quotients(table: pd.DataFrame, how: str) -> Interval:
    scores, weights = np.array(table["by_document"].tolist()), weights_of(table)
    if how == "share":
        return t_interval(shares_by_document(scores, weights), weights, finite=False)
    layers = table["layer"].to_numpy()
    members = (layers[:, None] == layers).astype(float)  # [heads, heads]

    def over_norms(means: np.ndarray) -> np.ndarray:
        """[times, heads] -> [times, heads]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return means / np.sqrt(means**2 @ members)

    return t_interval(by_document(over_norms, [scores], weights), weights, finite=False)
