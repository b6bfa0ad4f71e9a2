"""Times of a call in four ways: eager or as a CUDA graph, its data in cache or not.

A call repeated at once finds its data in the L2 cache; within a model, whose other layers go
through that cache in between, it does not. "cold" writes a buffer larger than the cache before
every call. On a CPU there are no graphs, and calls are timed by the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from midus_model.bench.device.stage import one_line

Function = Callable[[], Any]
ROUND = 0.02  # seconds that one way of one function takes in a round, about
MOST_CALLS = 200
FLUSH = 256  # MiB written; at least four times the cache


class NotCapturable(RuntimeError):
    """A call that waits for the device, or makes tensors on the host, each time."""


class Clock:
    """Times calls on one device."""

    def __init__(self, device: str, seconds: float = ROUND):
        self.device, self.seconds = device, seconds
        size = FLUSH * 2**20
        if device == "cuda":
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            size = max(size, 4 * cache)
        else:
            size = 2**22
        self._flushed = torch.empty(size // 4, dtype=torch.int32, device=device)

    def flush(self) -> None:
        self._flushed.zero_()

    def hot(self, function: Function) -> float:
        """Milliseconds a call of many in a row: what an eager loop takes, the host's work too."""
        calls = self._calls(self._row(function, 1))
        return self._row(function, calls)

    def cold(self, function: Function) -> float:
        """Median milliseconds of single calls, each after a flush, behind which launches queue."""
        first = self._after_flush(function, 1)[0]
        return statistics.median(self._after_flush(function, max(3, self._calls(first) // 4)))

    def _calls(self, ms: float) -> int:
        return max(1, min(MOST_CALLS, int(1e3 * self.seconds / max(ms, 1e-3))))

    def _row(self, function: Function, calls: int) -> float:
        if self.device != "cuda":
            begun = time.perf_counter()
            for _ in range(calls):
                function()
            return 1e3 * (time.perf_counter() - begun) / calls
        start, stop = _events()
        start.record()
        for _ in range(calls):
            function()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / calls

    def _after_flush(self, function: Function, calls: int) -> list[float]:
        if self.device != "cuda":
            found = []
            for _ in range(calls):
                self.flush()
                found.append(self._row(function, 1))
            return found
        pairs = [_events() for _ in range(calls)]
        for start, stop in pairs:
            self.flush()
            start.record()
            function()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop in pairs]


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def captured(function: Function) -> Function:
    """The call as a CUDA graph: what replays it.

    Raises:
        NotCapturable: where the call waits for the device, before a capture is tried, as one that
            fails may spoil the process.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
        side.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            function()
        except Exception as error:
            raise NotCapturable(one_line(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def compared(
    functions: dict[str, Function], clock: Clock, rounds: int = 3, graphs: bool = True
) -> dict[str, Any]:
    """Times of every function in every way, in turn; the first is ours, the others its peers.

    Returns:
        `ms`: {name: {way: median}}; `ratios`: {peer: {way: median over rounds of ours / peer's}};
        `not_captured`: {name: why}; `spoilt`: whether a capture failed that had been tried.
    """
    ways: dict[str, dict[str, Callable[[], float]]] = {}
    missing: dict[str, str] = {}
    spoilt = False
    for name, function in functions.items():
        function()
        function()
        ways[name] = {"hot": _bound(clock.hot, function), "cold": _bound(clock.cold, function)}
        if clock.device != "cuda" or not graphs:
            continue
        try:
            replay = captured(function)
        except Exception as error:  # whatever a capture raises: the eager times still hold
            missing[name] = one_line(error)
            spoilt |= not isinstance(error, NotCapturable)
            continue
        ways[name] |= {
            "graph_hot": _bound(clock.hot, replay),
            "graph_cold": _bound(clock.cold, replay),
        }
    found: dict[str, dict[str, list[float]]] = {
        name: {way: [] for way in of} for name, of in ways.items()
    }
    for _ in range(rounds):
        for name, of in ways.items():
            for way, measure in of.items():
                found[name][way].append(measure())
    ours = next(iter(functions))
    return {
        "ms": {n: {w: statistics.median(x) for w, x in of.items()} for n, of in found.items()},
        "ratios": {
            peer: {
                way: statistics.median(a / b for a, b in zip(found[ours][way], times, strict=True))
                for way, times in of.items()
                if way in found[ours]
            }
            for peer, of in found.items()
            if peer != ours
        },
        "not_captured": missing,
        "spoilt": spoilt,
    }


def _bound(measure: Callable[[Function], float], function: Function) -> Callable[[], float]:
    return lambda: measure(function)
