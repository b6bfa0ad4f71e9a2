"""One pass over all windows: totals by document, kept on disc so that a killed pass goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.array_files import load_arrays, save_arrays
from analysis.distributed import agreed, is_main, rank_and_size, reduced, share
from analysis.documents import Documents
from analysis.engine import Progress, batches
from analysis.estimates import Work, current, did
from analysis.memory_plan import is_out_of_memory
from analysis.shortened import fair_order, passes_of
from analysis.subject import Subject
from analysis.within import PIECE
from kernels import files, locks
from kernels.errors import DataError, ModelError

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
        checkpoint: file that holds the sums so far, to be removed once what is made of them is
            saved. One of another measurement (other `identity`) is refused with a DataError.
        by_window: sum effects by window, not by document.

    Returns "effects" [G, documents or windows] and "values" [documents], and the other arrays.

    Raises ModelError where a value is not finite; nothing is kept of that batch.
    """
    work = current()
    if work is not None and work.limited and work.begun:
        return _in_time(work, subject, measure, text, forwards, by_window, progress)
    if checkpoint is None:
        return _whole(subject, measure, text, forwards, by_window, progress, None)
    kept = _Checkpoint(Path(checkpoint), subject, identity or {})
    with locks.hold(kept.path, error=DataError):
        files.sweep(kept.path.parent, kept.path.name)  # of one that was killed
        return _whole(subject, measure, text, forwards, by_window, progress, kept)


def _whole(
    subject: Subject,
    measure: Measure,
    text: str,
    forwards: float,
    by_window: bool,
    progress: Progress | None,
    kept: _Checkpoint | None,
) -> Totals:
    """Every batch of this process, from where `kept` was."""
    docs, heads, work = subject.docs, len(subject.units), current()
    todo = share(batches(docs.windows, subject.plan.windows))
    totals, first = kept.read() if kept else ({}, 0)
    done, every = _evaluations(subject, todo[:first]), _evaluations(subject, todo)
    report = _Report(progress, done, every, text)
    cells = _cells(subject, by_window)
    everyone = rank_and_size()[1]
    if work is not None and first:
        work.skipped(text, everyone * _passes(docs, todo[:first], forwards))
    for number, indices in enumerate(todo[first:], first):
        report.begins(everyone * _passes(docs, [indices], forwards), len(indices) * heads)
        _add(totals, _measured(measure, indices, report), cells, indices)
        if kept:
            kept.write(totals, number + 1, last=number + 1 == len(todo))
        report.to(_evaluations(subject, todo[: number + 1]))
        report.ends()
    return _together(totals, subject, measure, cells)


# ---------------------------------------------------------------- within a time

Groups = list[list[list[int]]]  # batches of windows, by what is kept or left out together


def _in_time(
    work: Work,
    subject: Subject,
    measure: Measure,
    text: str,
    forwards: float,
    by_window: bool,
    progress: Progress | None,
) -> Totals:
    """`swept`, document by document in the order of `limit`, as far as the time goes.

    What was not reached is taken out of the subject: whole documents, or windows where these are
    what intervals are over. Nothing is kept for a killed process: the time has gone on meanwhile.
    """
    docs = subject.docs
    groups = _groups(docs, _at_once(work, subject, text, forwards))
    every = _evaluations(subject, [batch for group in groups for batch in group])
    report = _Report(progress, 0, every, text)
    rank, size = rank_and_size()
    totals: Totals = {}
    each, done = np.arange(len(docs.windows)), 0
    cells = dict.fromkeys(_cells(subject, by_window), each)  # apart, until it is known how far
    while done < len(groups):
        turn = groups[done : done + size]
        ahead = max(_passes(docs, group, forwards) for group in turn)
        if done and not work.goes_on(text, done, ahead * len(turn)):
            work.cut(text, done)
            break
        for indices in turn[rank] if rank < len(turn) else []:
            passes = _passes(docs, [indices], forwards)
            report.begins(passes * len(turn), len(indices) * len(subject.units))
            _add(totals, _measured(measure, indices, report), cells, indices)
            report.ends()
        done += len(turn)
        report.to(_evaluations(subject, [batch for group in groups[:done] for batch in group]))
    totals = _together(totals, subject, measure, cells)
    reached = sorted(index for group in groups[:done] for batch in group for index in batch)
    totals |= {name: totals[name][..., reached] for name in cells if name in totals}
    if done < len(groups):
        left = len(docs.windows) - len(reached)
        work.leave_out(f"{left:,} windows that the time did not reach ({text})")
        subject.keep(reached)
        work.facts |= {"documents": len(subject.docs), "windows": len(reached)}
    for name, cell in _cells(subject, by_window).items():  # from windows to what is asked for
        if name not in totals:
            continue
        whole = np.zeros((*totals[name].shape[:-1], int(cell.max()) + 1))
        np.add.at(whole.T, cell, totals[name].T)
        totals[name] = whole
    return totals


def _groups(docs: Documents, size: int) -> Groups:
    """The windows, in the order of `limit`, in batches of at most `size`.

    Where intervals are over documents, a group is of whole ones; else it is a batch.
    """
    windows: dict[int, list[int]] = {}
    for index, window in enumerate(docs.windows):
        windows.setdefault(window.document, []).append(index)
    groups: list[list[int]] = [[]]
    for document in fair_order(docs):
        if len(groups[-1]) >= size:
            groups.append([])
        groups[-1] += windows[document]
    if docs.unit == "window" and not any(item.is_task for item in docs):
        every = [index for group in groups for index in group]
        groups = [every[start : start + size] for start in range(0, len(every), size)]
    return [
        [group[start : start + size] for start in range(0, len(group), size)] for group in groups
    ]


def _at_once(work: Work, subject: Subject, text: str, forwards: float) -> int:
    """Windows a batch: as many as end soon, so that the time can be kept to."""
    chosen = work.record.setdefault("batch", {})
    if work.repeat is not None:
        chosen[text] = work.repeat["batch"][text]
    else:
        docs = subject.docs
        window = passes_of(docs) / len(docs.windows) * forwards * work.speed(text)
        most = int(PIECE * (work.within or 0.0) / max(window, 1e-9))
        chosen[text] = agreed(max(1, min(subject.plan.windows, most)))
    return int(chosen[text])


# ---------------------------------------------------------------- sums and reports


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
            f"memory does not hold a batch of {len(indices)} windows; a smaller context would do"
        ) from error


def _cells(subject: Subject, by_window: bool) -> dict[str, np.ndarray]:
    """What each window's effects and values are summed into, by name: [windows]."""
    units = np.array([window.unit for window in subject.docs.windows])
    return {"effects": np.arange(len(units)) if by_window else units, "values": units}


def _add(
    totals: Totals,
    found: Mapping[str, np.ndarray],
    cells: Mapping[str, np.ndarray],
    indices: Sequence[int],
) -> None:
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise ModelError(
                "the losses are not finite: the model's weights, dtype or metric is at fault"
            )
        if name in cells:
            count = int(cells[name].max()) + 1
            whole = totals.setdefault(name, np.zeros((*array.shape[:-1], count)))
            np.add.at(whole.T, cells[name][list(indices)], array.T)
        else:
            totals[name] = totals.get(name, 0) + array


def _together(
    totals: Totals, subject: Subject, measure: Measure, cells: Mapping[str, np.ndarray]
) -> Totals:
    """Summed over processes; one that had no batch of its own brings zeros of the same shapes."""
    if rank_and_size()[1] == 1:
        return totals
    if not totals:
        first = batches(subject.docs.windows, subject.plan.windows)[0]
        _add(totals, measure(first, lambda _: None), cells, first)
        totals = {name: np.zeros_like(array) for name, array in totals.items()}
    return {name: reduced(np.asarray(totals[name], dtype=float)) for name in sorted(totals)}


class _Report:
    """Counts evaluations, a head on a window each, and tells of them and of the time they take."""

    def __init__(self, progress: Progress | None, done: int, every: int, text: str) -> None:
        self.progress, self.done, self.every, self.text = progress, done, every, text
        self.passes = self.reported = 0.0
        self.first, self.count = done, 1

    def begins(self, passes: float, evaluations: int) -> None:
        """A batch of so many passes and evaluations."""
        self.passes, self.reported = passes, 0.0
        self.first, self.count = self.done, max(evaluations, 1)

    def ends(self) -> None:
        did(self.text, self.passes - self.reported)
        self.reported = self.passes

    def __call__(self, more: int) -> None:
        self.to(self.done + more)
        # Heads are ablated from the first block on, and what runs again gets less and less.
        left = max(0.0, 1 - (self.done - self.first) / self.count)
        so_far = self.passes * (1 - left**2)
        did(self.text, so_far - self.reported)
        self.reported = so_far

    def to(self, done: int) -> None:
        if done != self.done and self.progress and is_main():
            self.progress(done, self.every, self.text)
        self.done = done


def _evaluations(subject: Subject, groups: Sequence[Sequence[int]]) -> int:
    return sum(map(len, groups)) * len(subject.units)


def _passes(docs: Documents, groups: Sequence[Sequence[int]], forwards: float) -> float:
    """What batches of windows take, in tokens times forward passes."""
    return forwards * sum(len(docs.windows[i].ids) for group in groups for i in group)


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
        totals, known = load_arrays(self.path)
        if known.get("identity") == self.identity:
            return totals, int(known["done"])
        raise DataError(
            f"the checkpoint {self.path} belongs to another measurement (model, documents, "
            "options, memory_budget or number of processes differ); give another path, or remove "
            "it to begin anew"
        )

    def write(self, totals: Totals, done: int, last: bool) -> None:
        if not last and time.monotonic() - self.written < SAVE_SECONDS:
            return
        save_arrays(self.path, totals, {"identity": self.identity, "done": str(done)})
        self.written = time.monotonic()
