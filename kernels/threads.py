"""Threads on a CPU: ops that stay on the calling thread, and work shared by threads of our own.

PyTorch splits every op over its threads, and each op waits for the slowest. A layer has dozens of
ops: where other work uses the cores too, each of those waits may last a scheduler's slice, which is
more than a few tokens take. So few tokens stay on one thread, and many are shared a chunk at a
time: one wait in all, and whoever is held up takes fewer chunks. PyTorch's number of threads, which
is the user's, stays what it is.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Part = TypeVar("Part")
MOST = 1024  # threads


@lru_cache
def _setters() -> tuple[Callable[[int], object], Callable[[int], int] | None] | None:
    """OpenMP's and MKL's thread counts of the calling thread alone; None where they are not had.

    Looked up in the libraries that PyTorch itself is linked with.
    """
    library = ctypes.PyDLL(torch._C.__file__)
    openmp = getattr(library, "omp_set_num_threads", None)
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)
    if openmp is None or (mkl is None and torch.backends.mkl.is_available()):
        return None
    return openmp, mkl


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread's ops on CPU tensors start no others; other threads are not touched.

    Both counts belong to the calling thread (OpenMP's nthreads-var, MKL's local number). Does
    nothing where PyTorch was built without OpenMP, or hides it.
    """
    setters, before = _setters(), torch.get_num_threads()  # whose first call sets the number
    if setters is None or before == 1:
        yield
        return
    openmp, mkl = setters
    openmp(1)
    mkl_before = mkl(1) if mkl is not None else 0
    try:
        yield
    finally:
        openmp(before)
        if mkl is not None:
            mkl(mkl_before)


def is_observed() -> bool:
    """Whether something follows the calling thread's ops, and would miss another's or numpy's."""
    return (
        is_in_torch_dispatch_mode()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )


@lru_cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: one takes as long to start as a few tokens take, and keeps no memory."""
    return ThreadPoolExecutor(MOST, thread_name_prefix="midus")  # made as they are asked for


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share(work: Callable[[Part], None], parts: Sequence[Part], threads: int | None = None) -> None:
    """`work(part)` for every part, on this thread and others: `threads` in all, or as PyTorch has.

    Each of them runs its ops alone; gradients are off in the others. An error of any is raised
    here, and what has not begun by then is not done.
    """
    count = torch.get_num_threads() if threads is None else threads
    count = min(count, len(parts))
    if count <= 1 or _setters() is None or is_observed():
        with one_thread() if threads == 1 else nullcontext():
            for part in parts:
                work(part)
        return
    waiting, errors = deque(parts), list[BaseException]()
    inference = torch.is_inference_mode_enabled()

    def run() -> None:
        with one_thread(), torch.inference_mode(inference), torch.no_grad():
            while waiting:
                try:
                    part = waiting.popleft()
                except IndexError:  # another took the last one
                    return
                try:
                    work(part)
                except BaseException as error:
                    errors.append(error)
                    waiting.clear()

    pool = _pool()
    others = [pool.submit(run) for _ in range(count - 1)]
    try:
        run()
    finally:
        waiting.clear()
        for other in others:
            if not other.cancel():  # begun: another call may keep the pool's threads from it
                other.result()
    if errors:
        raise errors[0]
