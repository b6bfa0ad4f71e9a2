"""Jobs on several processes at once, none of which can take the others along.

For compiling: it takes seconds a kernel, leaves what it made in Triton's cache for all later
processes, and may crash or hang in a compiler.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from midus_model.bench.device.stage import die_with_parent, one_line

Job = tuple[str, tuple[Any, ...]]  # its key, and what the function is called with


@dataclass
class Result:
    """Of one job: what it returned, or the one line that says why not, and how long it took."""

    key: str
    value: Any
    error: str | None
    seconds: float


def workers_for(jobs: int) -> int:
    """As many processes as there are jobs and cores to spare."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(jobs, (cores or 1) - 1))


def _work(pipe: Any, function: Callable[..., Any]) -> None:
    die_with_parent()
    while True:
        arguments = pipe.recv()
        try:
            pipe.send((function(*arguments), None))
        except Exception as error:
            traceback.print_exc()
            pipe.send((None, one_line(error)))


class _Worker:
    def __init__(self, context: Any, function: Callable[..., Any]):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.since = 0.0

    def begin(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        self.pipe.send(job[1])

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


def results(
    function: Callable[..., Any],
    jobs: list[Job],
    *,
    context: str = "fork",
    left: Callable[[], float] = lambda: 1e9,
    longest: float = 60.0,
) -> Iterator[Result]:
    """What `function` makes of every job, as it comes; jobs begun in order, until `left()` is 0.

    A job that raises, takes more than `longest` seconds, or whose process dies, has an error, and
    another process takes the next. With "fork" the calling process must not have used the GPU.
    """
    made, waiting = get_context(context), list(jobs)
    busy: list[_Worker] = []
    idle = [_Worker(made, function) for _ in range(workers_for(len(jobs)))] if jobs else []
    try:
        while (waiting or busy) and left() > 0:
            while waiting and (idle or len(busy) < workers_for(len(jobs))):
                worker = idle.pop() if idle else _Worker(made, function)
                worker.begin(waiting.pop(0))
                busy.append(worker)
            wait([worker.pipe for worker in busy], max(0.0, min(0.5, left())))
            for worker in list(busy):
                result = _settled(worker, longest)
                if result is None:
                    continue
                busy.remove(worker)
                if result.error is None:
                    idle.append(worker)
                else:  # an error of the GPU stays with its process
                    worker.end()
                yield result
    finally:
        for worker in idle + busy:
            worker.end()


def _settled(worker: _Worker, longest: float) -> Result | None:
    """A worker's result, or None where it is still at work."""
    assert worker.job is not None
    key, seconds = worker.job[0], time.monotonic() - worker.since
    try:
        if worker.pipe.poll():
            value, error = worker.pipe.recv()
            return Result(key, value, error, seconds)
    except (EOFError, OSError):
        pass
    if not worker.process.is_alive():
        code = worker.process.exitcode
        return Result(key, None, f"its process ended with exit code {code}", seconds)
    if seconds > longest:
        return Result(key, None, f"took more than {longest:.0f} s", seconds)
    return None
