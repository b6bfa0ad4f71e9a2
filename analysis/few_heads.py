"""Some heads exactly, the others not at all: where a time does not hold all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.distributed import agreed, reduced, share
from analysis.engine import batches
from analysis.estimates import FIRST_ORDER, Work, current, did
from analysis.memory_plan import plan_for
from analysis.methods import ablation_passes, method_text
from analysis.metrics import LOSS
from analysis.subject import Subject, Unit
from analysis.ties import best_first
from analysis.within import SHARE, too_short
from kernels.errors import MidusError

SCREENING = "first order"  # the stage


def first_order(subject: Subject, windows: Sequence[int]) -> np.ndarray:
    """The mean size of the loss's gradient at each gate (Michel et al.), nats a token: [units]."""
    longest = max(len(window.ids) for window in subject.docs.windows)
    plan = plan_for(subject.model, longest, LOSS, gradients=True)
    work = current()
    if work is not None and work.limited:
        plan.windows = 1  # whatever memory holds: so that it can be repeated elsewhere
    smooth = replace(subject, metric=LOSS, plan=plan)
    size = np.zeros(len(subject.units))
    for start in range(0, len(windows), plan.windows):
        part = [int(index) for index in windows[start : start + plan.windows]]
        size += np.abs(smooth.gradients(part)).sum(1)
        did(SCREENING, 3.0 * sum(len(subject.docs.windows[index].ids) for index in part))
    tokens = sum(int(subject.docs.windows[index].scored.sum()) for index in windows)
    return size / max(tokens, 1)


def first_order_by_window(subject: Subject) -> np.ndarray:
    """The size of the loss's gradient at each gate on each window: [units, windows], nats.

    Under `torchrun` the windows are shared out; every process has the same numbers.
    """
    windows = subject.docs.windows
    plan = plan_for(subject.model, max(len(w.ids) for w in windows), LOSS, gradients=True)
    smooth = replace(subject, metric=LOSS, plan=plan)
    size = np.zeros((len(subject.units), len(windows)))
    for part in share(batches(windows, plan.windows)):
        size[:, part] = np.abs(smooth.gradients(part))
        did(SCREENING, FIRST_ORDER * sum(len(windows[index].ids) for index in part))
    return reduced(size)


def chosen_in_part() -> bool:
    """Whether the time of the measurement under way holds only some of the heads."""
    work = current()
    return work is not None and work.limited and work.record.get("heads") is not None


def with_few_heads(subject: Subject) -> tuple[Subject, np.ndarray]:
    """The subject with the heads that the time holds, in model order; first-order sizes of all.

    Raises MidusError where it holds none.
    """
    work = current()
    assert work is not None
    docs, units = subject.docs, subject.units
    sizes = first_order(subject, range(len(docs.windows)))
    order = best_first(sizes)
    tokens = sum(len(window.ids) for window in docs.windows)
    count = int(work.repeat["heads"]) if work.repeat else _affordable(work, subject, order, tokens)
    work.record["heads"] = count
    if count < 1:
        stage = method_text("ablation")
        least = tokens * (1 + ablation_passes(subject.model, [units[order[0]]])[0])
        smooth = subject.metric.smooth
        raise too_short(work, stage, len(docs), None, least * work.speed(stage), smooth)
    work.facts |= {"heads": count, "heads_of": len(units)}
    work.leave_out(f"exact ablation of {len(units) - count} of {len(units)} heads")
    chosen = sorted(order[:count].tolist())
    return replace(subject, units=[units[index] for index in chosen]), sizes


def _affordable(work: Work, subject: Subject, order: np.ndarray, tokens: int) -> int:
    """How many heads, from the largest first-order effect down, the time holds."""
    stage = method_text("ablation")
    costs = np.array(ablation_passes(subject.model, subject.units))[order].cumsum() + 1
    seconds = costs * tokens * work.speed(stage)
    return agreed(int((seconds <= SHARE * (work.time_left - work.reserve)).sum()))


def with_the_others(table: pd.DataFrame, units: Sequence[Unit], sizes: np.ndarray) -> pd.DataFrame:
    """The table with rows for all units, without a score where there was no time for one.

    `first_order` is the size of each head's gradient, by which the others were chosen: in nats a
    token to first order, and no estimate of the score.
    """
    names = ["layer", "kind", "head", "source_layer"]
    every = pd.DataFrame({name: [getattr(unit, name) for unit in units] for name in names})
    whole = every.merge(table, how="left", on=names, sort=False)
    documents = len(table.attrs["documents"])
    whole["by_document"] = [
        found if isinstance(found, list) else [np.nan] * documents for found in whole["by_document"]
    ]
    if "below_noise" in whole.columns:
        whole["below_noise"] = whole["below_noise"].eq(True)
    whole["first_order"] = sizes
    whole.attrs = table.attrs
    return whole


def all_heads(table: pd.DataFrame, what: str) -> None:
    """Raises MidusError where heads of the table have no score."""
    if table["score"].isna().any():
        missing = int(table["score"].isna().sum())
        raise MidusError(
            f"{what} needs a score of every head, and {missing} of {len(table)} have none "
            "(measured within a time); give it more time, or a first-order method"
        )
