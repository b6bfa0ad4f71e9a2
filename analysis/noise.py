"""What half precision does to scores: the same heads and windows in fp32, and the difference."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import psutil

from analysis.estimates import current, did
from analysis.memory_plan import is_out_of_memory, plan_for
from analysis.methods import PER_DOCUMENT, Method, per_document
from analysis.subject import NOISE, NOISE_WINDOWS, Subject, is_half, units_of
from kernels.errors import ModelError
from midus_model.maps import check_writable

WINDOWS = NOISE_WINDOWS  # on which both are measured
NO_ROOM = "memory does not hold an fp32 copy"


def with_noise(table: pd.DataFrame, subject: Subject, **options: Any) -> pd.DataFrame:
    """The table with a column `below_noise`, where the model is in bf16 or fp16.

    On a few windows the same method is run on the model and on an fp32 copy.
    `.attrs["dtype_noise"]` holds the median and the 95th percentile over heads of the scores'
    difference; a score whose size is below that percentile is marked.
    """
    if not is_half(subject.model) or not _has_time(subject, options):
        return table
    try:
        check_writable(subject.model, "copied in fp32")
    except ModelError as error:
        return _unmeasured(table, str(error))
    room = 4 * sum(parameter.numel() for parameter in subject.model.parameters())
    if subject.device.type == "cpu" and room > 0.8 * psutil.virtual_memory().available:
        return _unmeasured(table, NO_ROOM)
    try:
        noise = np.abs(_scores(subject, options) - _scores(_wide(subject), options))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _unmeasured(table, NO_ROOM)
    did(NOISE, _passes(subject, options))
    found = {
        "median": float(np.median(noise)),
        "p95": float(np.quantile(noise, 0.95)),
        "windows": len(_chosen(subject)),
        "unit": subject.metric.unit,
    }
    attrs = table.attrs | {"dtype_noise": found}
    table = table.assign(below_noise=table["score"].abs() < found["p95"])
    table.attrs = attrs
    return table


def _has_time(subject: Subject, options: dict[str, Any]) -> bool:
    """Whether a time budget, where there is one, holds this too; noted where not."""
    work = current()
    if work is None or not work.limited:
        return True
    like = Method(subject=subject, **options).text
    if work.holds(NOISE, like, _passes(subject, options)):
        return True
    work.leave_out("the noise of half precision")
    return False


def _passes(subject: Subject, options: dict[str, Any]) -> float:
    """What both measurements take, in tokens times forward passes."""
    tokens = sum(len(subject.docs.windows[index].ids) for index in _chosen(subject))
    return 2 * tokens * Method(subject=subject, **options).forwards


def _unmeasured(table: pd.DataFrame, why: str) -> pd.DataFrame:
    warnings.warn(f"the noise of half precision was not measured: {why}", stacklevel=4)
    return table


def _chosen(subject: Subject) -> list[int]:
    count = len(subject.docs.windows)
    rng = np.random.default_rng(subject.how["seed"])
    return sorted(rng.choice(count, min(WINDOWS, count), replace=False).tolist())


def _scores(subject: Subject, options: dict[str, Any]) -> np.ndarray:
    """Scores of every unit on the chosen windows alone."""
    chosen = _chosen(subject)
    method = Method(subject=subject, **options)
    effects = np.concatenate(
        [
            method(chosen[start : start + subject.plan.windows], lambda _: None)["effects"]
            for start in range(0, len(chosen), subject.plan.windows)
        ],
        axis=1,
    )  # [G, windows]
    weights = subject.window_weights[chosen]
    if method.name in PER_DOCUMENT:
        return per_document(method.name, effects / weights).mean(1)
    return effects.sum(1) / weights.sum()


def _wide(subject: Subject) -> Subject:
    """The same in fp32; the mean baseline stays the one that was measured."""
    model = copy.deepcopy(subject.model).float()
    group = {"query heads": "head", "kv groups": "kv"}[subject.how["heads_are"]]
    # Of the units that were measured: a time may have held some of them only.
    measured = {(unit.layer, unit.kind, unit.head) for unit in subject.units}
    every = units_of(model, group, subject.how["stage"])
    units = [unit for unit in every if (unit.layer, unit.kind, unit.head) in measured]
    sites = [site for unit in units for site in unit.sites]
    other = copy.copy(subject.baseline)
    other.model, other.sites = model, sites
    other.fixed = {layer: part.float() for layer, part in other.fixed.items()}
    longest = max(len(window.ids) for window in subject.docs.windows)
    plan = plan_for(model, longest, subject.metric, gradients=True)
    plan.windows = min(plan.windows, subject.plan.windows)
    return replace(subject, model=model, units=units, baseline=other, plan=plan)
