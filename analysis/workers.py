"""Tasks side by side on a CPU: a thread a task, each with its share of PyTorch's threads.

Tasks that are independent keep every core busy. An operation split over the cores does not: at the
end of each, all wait for the slowest, and between two of them Python runs on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Barrier, BrokenBarrierError
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from kernels.backend import current_backend

MOST = 8  # Python's own lock makes more threads than that wait for each other


def worker_count() -> int:
    """How many tasks may run side by side, from `torch.get_num_threads()`; 1: in the caller.

    A thread of its own would not see what holds for the calling thread alone: autocast, inference
    mode, a mode that watches every operation, PyTorch's profiler. Triton's interpreter takes one
    thread only.
    """
    bound = (
        current_backend() == "triton"
        or torch.is_autocast_enabled("cpu")
        or torch.is_inference_mode_enabled()
        or torch.is_grad_enabled()
        or is_in_torch_dispatch_mode()
        or torch._C._len_torch_function_stack() > 0
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )
    return 1 if bound else min(torch.get_num_threads(), MOST)


@contextmanager
def side_by_side(
    function: Callable[..., Any], tasks: Sequence[tuple], count: int
) -> Iterator[Iterator[Any]]:
    """What `function` gives for each task's arguments, as they are done, up to `count` at a time.

    Gradients are off in the threads. An error in a task is raised where its result is asked for;
    leaving the context drops the tasks that wait and waits for those that run.

    >>> with side_by_side(pow, [(2, 3), (3, 2)], 2) as found:
    ...     sorted(found)
    [8, 9]
    """
    every = torch.get_num_threads()
    # As many as leave fewest cores idle: of 12 threads and up to 8 tasks, 6 tasks of 2 threads.
    most = max(1, min(count, len(tasks)))
    count = max(range(1, most + 1), key=lambda c: (c * (every // c), c))
    if count == 1:
        yield (function(*task) for task in tasks)
        return
    ready = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first call to it would undo what was set before
        torch.set_num_threads(every // count)
        with suppress(BrokenBarrierError):
            ready.wait()

    with ThreadPoolExecutor(count, "midus", begin) as pool:
        try:
            quiet = torch.no_grad()(function)
            waiting = [pool.submit(copy_context().run, quiet, *task) for task in tasks]
            ready.wait()
            torch.set_num_threads(every)  # threads yet to come would take over the workers' number
            yield (done.result() for done in as_completed(waiting))
        finally:
            ready.abort()
            torch.set_num_threads(every)
            pool.shutdown(wait=False, cancel_futures=True)
