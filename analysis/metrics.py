"""What a head is measured by: the loss, or another measure of the next-token predictions.

A metric gives one value a counted position. Scores are its change when a head is ablated, with the
sign that makes a helping head positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from kernels.errors import DataError, MidusError

if TYPE_CHECKING:
    from analysis.documents import Documents
    from analysis.engine import Batch


@dataclass(frozen=True)
class Rows:
    """What a metric sees of S counted positions.

    logits [S, V], fp32 at least; targets [S], the next tokens; foils [S], a task's wrong tokens
    (where the metric wants a foil); clean [S, V], the clean run's logits (where it wants them).
    """

    logits: torch.Tensor
    targets: torch.Tensor
    foils: torch.Tensor | None = None
    clean: torch.Tensor | None = None


@dataclass(frozen=True)
class Metric:
    """A measure of next-token predictions.

    Args:
        name: how tables and figures call it.
        function: from `Rows` to one value a position, [S].
        unit: of a score.
        better: "lower" (a loss) or "higher".
        per: "token" (every scored position counts) or "task" (each document counts once).
        wants: "" or what it needs beside logits and targets: "foil" or "clean".
        smooth: whether it has a first derivative in the gates that says something.
        whole: of a task's answer, whether all positions must hold (the values being 0 or 1).
        bound: the most that two values may differ by; None where nothing bounds them.
    """

    name: str
    function: Callable[[Rows], torch.Tensor]
    unit: str
    better: str = "lower"
    per: str = "token"
    wants: str = ""
    smooth: bool = True
    whole: bool = False
    bound: float | None = None
    known: bool = True  # False of a bare function, which its name does not tell from another

    def __post_init__(self) -> None:
        choices = {
            "better": ("lower", "higher"), "per": ("token", "task"), "wants": ("", "foil", "clean"),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise MidusError(
                    f"a Metric's {name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(map(repr, allowed))}"
                )

    @property
    def sign(self) -> int:
        """+1 where lower is better, -1 where higher is."""
        return 1 if self.better == "lower" else -1

    @property
    def copies(self) -> int:
        """How many arrays [S, V] it holds at once, the logits among them."""
        return 7 if self.wants == "clean" else 3

    def positions(self, batch: Batch) -> torch.Tensor:
        """The positions that count, [W, T-1]."""
        return batch.foils >= 0 if self.wants == "foil" else batch.scored

    def losses(self, rows: Rows) -> torch.Tensor:
        """The values [S] with the sign of a loss, checked."""
        found = self.function(rows)
        size = tuple(rows.targets.shape)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != size:
            given = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise MidusError(
                f"metric {self.name!r} gave {given}; it must give a tensor with one value a "
                f"position, {list(size)}"
            )
        return self.sign * found


def _loss(rows: Rows) -> torch.Tensor:
    return F.cross_entropy(rows.logits, rows.targets, reduction="none")


def _logit_difference(rows: Rows) -> torch.Tensor:
    assert rows.foils is not None
    both = rows.logits.gather(1, torch.stack([rows.targets, rows.foils], 1))
    return both[:, 0] - both[:, 1]


def _kl(rows: Rows) -> torch.Tensor:
    assert rows.clean is not None
    clean, now = rows.clean.log_softmax(-1), rows.logits.log_softmax(-1)
    return (clean.exp() * (clean - now)).sum(-1)


def _accuracy(rows: Rows) -> torch.Tensor:
    return (rows.logits.argmax(-1) == rows.targets).to(rows.logits.dtype)


LOSS = Metric("loss", _loss, "nats/token")
LOGIT_DIFFERENCE = Metric(
    "logit_difference", _logit_difference, "logits/task", "higher", per="task", wants="foil"
)
KL = Metric("kl", _kl, "nats/token", wants="clean", smooth=False)
ACCURACY = Metric("accuracy", _accuracy, "accuracy", "higher", smooth=False, bound=1.0)
METRICS = {metric.name: metric for metric in (LOSS, LOGIT_DIFFERENCE, KL, ACCURACY)}


def metric_of(metric: Any, docs: Documents) -> Metric:
    """The metric asked for, fit to these documents.

    A name of METRICS, a `Metric`, or a function of (logits [S, V], targets [S]) to one value a
    position, of which lower is better.

    Raises MidusError for anything else, DataError where the documents lack what it needs.
    """
    if not isinstance(metric, Metric):
        metric = _named(metric)
    if metric is ACCURACY:
        tasks = sum(item.is_task for item in docs)
        if 0 < tasks < len(docs):
            raise DataError(
                f"{docs.name} has {tasks} tasks and {len(docs) - tasks} texts, whose accuracy is "
                "not one number; give the two apart"
            )
        metric = replace(metric, per="task", whole=True) if tasks else metric
    if metric.wants == "foil":
        _check_foils(metric, docs)
    if metric.per == "task":
        _check_whole_answers(metric, docs)
    return metric


def _named(metric: Any) -> Metric:
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)

        def values(rows: Rows) -> torch.Tensor:
            return metric(rows.logits, rows.targets)

        return Metric(name, values, f"{name}/token", known=False)
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    raise MidusError(
        f"metric is {metric!r}; it must be one of {', '.join(METRICS)}, a Metric, or a function of "
        "logits and targets"
    )


def _check_foils(metric: Metric, docs: Documents) -> None:
    for item in docs:
        if item.decision is None:
            why = "no foil" if item.foil is None else "a foil that never parts from its answer"
            raise DataError(
                f"metric {metric.name!r} sets a task's answer against its foil, and document "
                f"{item.id!r} of {docs.name} has {why}; give rows of prompt, answer and foil"
            )


def _check_whole_answers(metric: Metric, docs: Documents) -> None:
    if len(docs.windows) == len(docs):
        return
    seen: set[int] = set()
    for window in docs.windows:
        if window.document in seen:
            name = docs[window.document].id
            raise DataError(
                f"metric {metric.name!r} counts each document once, and what is scored of {name!r} "
                f"does not fit a window of {docs.context} tokens; shorten it, or use metric 'loss'"
            )
        seen.add(window.document)
