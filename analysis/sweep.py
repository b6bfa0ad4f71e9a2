"""One pass over all windows: totals by document, kept on disc so that a killed pass goes on."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from analysis.distributed import is_main, rank_and_size, reduced, share
from analysis.engine import Progress, batches
from analysis.memory_plan import is_out_of_memory
from analysis.subject import Subject
from kernels.errors import DataError, ModelError
from midus_model.placement import synchronize

SAVE_SECONDS = 5.0  # a killed pass loses that much, and the batch it was at

Totals = dict[str, np.ndarray]
# From the windows of a batch: "effects" [G, W] and "values" [W], to be summed by document, and any
# other arrays, to be summed over batches. It is told how many evaluations were done on the way.
Measure = Callable[[Sequence[int], Callable[[int], None]], Mapping[str, np.ndarray]]


def swept(
    subject: Subject,
    measure: Measure,
    text: str,
    *,
    forwards: float,
    checkpoint: str | os.PathLike[str] | None = None,
    identity: Mapping[str, Any] | None = None,
    by_window: bool = False,
    progress: Progress | None = None,
) -> Totals:
    """The sums of what `measure` gives, over all windows and processes.

    Args:
        text: of the progress; forwards: what a window costs, in forward passes, for the estimate.
        checkpoint: file that holds the sums so far, to be removed by `forget` once they are used.
            One of another measurement (other `identity`) is refused with a DataError.
        by_window: sum effects by window, not by document.

    Returns "effects" [G, documents or windows] and "values" [documents], and the other arrays.

    Raises ModelError where a value is not finite; nothing is kept of that batch.
    """
    docs = subject.docs
    todo = share(batches(docs.windows, subject.plan.windows))
    kept = None if checkpoint is None else _Checkpoint(Path(checkpoint), subject, identity or {})
    totals, first = kept.read() if kept else ({}, 0)
    done, every = _evaluations(subject, todo[:first]), _evaluations(subject, todo)
    report = _Report(progress, done, every, text)
    if progress and is_main() and first < len(todo):
        seconds = _seconds(subject, todo[first:], forwards)
        progress(0, 0, f"{text}, {len(subject.units)} heads: about {duration(seconds)}")
    for number, indices in enumerate(todo[first:], first):
        found = _measured(measure, indices, report)
        _add(totals, found, subject, indices, by_window)
        if kept:
            kept.write(totals, number + 1, last=number + 1 == len(todo))
        report.to(_evaluations(subject, todo[: number + 1]))
    totals = _together(totals, subject, measure, by_window)
    return totals


def forget(checkpoint: str | os.PathLike[str] | None) -> None:
    """Remove a checkpoint whose table is made."""
    if checkpoint is not None:
        _own(Path(checkpoint)).unlink(missing_ok=True)


def _own(path: Path) -> Path:
    """This process's part of a checkpoint."""
    rank, size = rank_and_size()
    return path if size == 1 else path.with_name(f"{path.name}.{rank}")


def _measured(
    measure: Measure, indices: Sequence[int], report: Callable[[int], None]
) -> Mapping[str, np.ndarray]:
    try:
        return measure(indices, report)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"memory does not hold a batch of {len(indices)} windows; give a smaller "
            "memory_budget, or documents with a smaller context"
        ) from error


def duration(seconds: float) -> str:
    """A number of seconds as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _add(
    totals: Totals,
    found: Mapping[str, np.ndarray],
    subject: Subject,
    indices: Sequence[int],
    by_window: bool,
) -> None:
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise ModelError(
                "the losses are not finite: the model's weights, dtype or metric is at fault"
            )
        if name in ("effects", "values"):
            by_unit = name == "values" or not by_window
            cells = [subject.docs.windows[i].unit if by_unit else i for i in indices]
            count = len(subject.docs.units if by_unit else subject.docs.windows)
            whole = totals.setdefault(name, np.zeros((*array.shape[:-1], count)))
            np.add.at(whole.T, np.array(cells), array.T)
        else:
            totals[name] = totals.get(name, 0) + array


def _together(totals: Totals, subject: Subject, measure: Measure, by_window: bool) -> Totals:
    """Summed over processes; one that had no batch of its own brings zeros of the same shapes."""
    if rank_and_size()[1] == 1:
        return totals
    if not totals:
        first = batches(subject.docs.windows, subject.plan.windows)[0]
        _add(totals, measure(first, lambda _: None), subject, first, by_window)
        totals = {name: np.zeros_like(array) for name, array in totals.items()}
    return {name: reduced(np.asarray(totals[name], dtype=float)) for name in sorted(totals)}


class _Report:
    """Counts evaluations, a head on a window each, and tells of them."""

    def __init__(self, progress: Progress | None, done: int, every: int, text: str) -> None:
        self.progress, self.done, self.every, self.text = progress, done, every, text

    def __call__(self, more: int) -> None:
        self.to(self.done + more)

    def to(self, done: int) -> None:
        if done != self.done and self.progress and is_main():
            self.progress(done, self.every, self.text)
        self.done = done


def _evaluations(subject: Subject, groups: Sequence[Sequence[int]]) -> int:
    return sum(map(len, groups)) * len(subject.units)


def _seconds(subject: Subject, groups: Sequence[Sequence[int]], forwards: float) -> float:
    """About how long the batches take, from one forward pass over the smallest of them."""
    batch = subject.batch(groups[-1])
    if subject.device.type != "cpu":
        subject.clean(batch)  # kernels are loaded and compiled at the first call
        synchronize(subject.device)
    start = time.perf_counter()
    subject.clean(batch).values.cpu()
    tokens = sum(len(subject.docs.windows[i].ids) for group in groups for i in group)
    return (time.perf_counter() - start) / batch.tokens * tokens * forwards


class _Checkpoint:
    """Sums so far in one safetensors file, replaced whole."""

    def __init__(self, path: Path, subject: Subject, identity: Mapping[str, Any]) -> None:
        self.path = _own(path)
        if self.path.is_dir():
            raise DataError(f"the checkpoint {self.path} is a folder; give the path of a file")
        if not subject.metric.known:
            raise DataError(
                f"two functions called {subject.metric.name!r} cannot be told apart, so a sweep of "
                "one is not kept: give an analysis.Metric with a name, or no checkpoint"
            )
        config = subject.model.config.to_dict()  # what the weights' hash does not see
        described = (
            subject.describe()
            | dict(identity)
            | {
                "config": {key: value for key, value in config.items() if key != "_name_or_path"},
                "windows": subject.plan.windows,
                "processes": rank_and_size()[1],
            }
        )
        text = json.dumps(described, sort_keys=True, default=str)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.written = time.monotonic()

    def read(self) -> tuple[Totals, int]:
        if not self.path.exists():
            return {}, 0
        try:
            with safe_open(self.path, framework="np") as file:
                known = file.metadata() or {}
                if known.get("identity") == self.identity:
                    return {name: file.get_tensor(name) for name in file.keys()}, int(known["done"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise DataError(
                f"the checkpoint {self.path} is damaged ({error}); remove it to begin anew"
            ) from error
        raise DataError(
            f"the checkpoint {self.path} belongs to another measurement (model, documents, "
            "options, memory_budget or number of processes differ); give another path, or remove "
            "it to begin anew"
        )

    def write(self, totals: Totals, done: int, last: bool) -> None:
        if not last and time.monotonic() - self.written < SAVE_SECONDS:
            return
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {name: np.array(array, order="C") for name, array in totals.items()}
            save_file(arrays, draft, {"identity": self.identity, "done": str(done)})
            draft.replace(self.path)
        except OSError as error:
            raise DataError(
                f"cannot write the checkpoint {self.path}: {error.strerror or error}; "
                "give another path"
            ) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        self.written = time.monotonic()
