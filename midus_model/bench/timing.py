"""Time and memory: functions in turn, A B A B, so that a drifting machine drifts for all."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

SECONDS = 4.0  # about how long one comparison may take
MOST = 30
WARM = 5  # calls of which the first, after another function, does not matter
BURST = 100.0  # milliseconds, less where `seconds` are few


@dataclass(frozen=True)
class Times:
    """Milliseconds of every counted run."""

    ms: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def _once(function: Callable[[], object], device: str, calls: int = 1) -> float:
    """Milliseconds a call, over so many calls one after the other."""

    def run() -> None:
        for _ in range(calls):
            function()

    if device == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / calls
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun) / calls


def interleaved(
    functions: dict[str, Callable[[], object]], device: str, seconds: float = SECONDS
) -> dict[str, Times]:
    """Runs all in turn after two uncounted rounds: 3 to 30 rounds, by what fits in `seconds`.

    Within a round a short function is called until BURST is full, and one that fills it in less
    than WARM calls once before, uncounted, so that caches and memory are as it leaves them itself,
    and the clock's and threads' waking do not count.
    """
    for function in functions.values():
        function()
    once = {name: _once(function, device) for name, function in functions.items()}
    burst = min(BURST, 100 * seconds)
    calls = {name: max(1, int(burst / max(ms, 1e-3))) for name, ms in once.items()}
    round_ms = sum((calls[name] + (calls[name] < WARM)) * ms for name, ms in once.items())
    rounds = max(3, min(MOST, int(1e3 * seconds / round_ms)))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if calls[name] < WARM:
                function()
            found[name].append(_once(function, device, calls[name]))
    return {name: Times(ms) for name, ms in found.items()}


def ratios(mine: Times, peer: Times) -> tuple[float, float, float]:
    """Median, least and greatest of this over the peer, round by round."""
    found = [a / b for a, b in zip(mine.ms, peer.ms, strict=True)]
    return statistics.median(found), min(found), max(found)


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most that was allocated at once by `function`, over what was there before.

    On a CPU by PyTorch, in the calling thread.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch._C._profiler import _EventType

    with (
        _quiet(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        function()
    waiting = list(profile.profiler.kineto_results.experimental_event_tree())
    sizes = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = most = 0
    for _, size in sorted(sizes, key=lambda entry: entry[0]):
        held += size
        most = max(most, held)
    return most


class Resident:
    """How much more of this process lies in memory than when this was made, whichever thread asked.

    On Linux; elsewhere `most()` is None. What the C library holds ready is given back first, so
    that taking it again counts.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        if sys.platform != "linux":
            return
        with suppress(OSError, AttributeError):  # a C library without it, or no /proc
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the highest yet is from now on
            self._before = self._read("VmRSS")

    def most(self) -> int | None:
        """The bytes at the highest point since."""
        return None if self._before is None else self._read("VmHWM") - self._before

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes lines of its own to the process's stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def copy_bandwidth(device: str, megabytes: int, seconds: float = 1.0) -> float:
    """Bytes a second that a copy reads and writes, together."""
    source = torch.ones(megabytes * 2**18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, device, seconds)
    return 2 * source.nbytes / (1e-3 * min(times["copy"].ms))


def product_rate(device: str, size: int, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOPs a second of a square matrix product."""
    a = torch.randn(size, size).to(device, dtype)
    times = interleaved({"product": lambda: a @ a}, device, seconds)
    return 2 * size**3 / (1e-3 * min(times["product"].ms))
