"""The ops and the layer against their peers: eager and as CUDA graphs, in cache and not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from midus_model.bench.device.clocks import Clock, compared
from midus_model.bench.device.stage import Run
from midus_model.bench.device.stages.ceilings import machine_of
from midus_model.bench.device.stages.verify import verified
from midus_model.bench.rows import Case, Machine, large_bank_cases, op_cases
from midus_model.bench.shapes import SHAPES
from midus_model.bench.timing import peak_bytes

Size = tuple[str, str, int]  # shape, dtype, tokens
PLAIN = 128  # tokens up to which the plain version is a peer: it makes all k * k pairs
ONE, EIGHT = "llama-3.2-1b", "llama-3.1-8b"
# Shape, dtype and tokens, those that say most first: a run may end anywhere.
SIZES = (
    [(ONE, "bfloat16", tokens) for tokens in (1, 2048, 16, 512, 8192)]
    + [(EIGHT, "bfloat16", tokens) for tokens in (1, 2048, 16, 512, 8192)]
    + [(ONE, "float32", tokens) for tokens in (1, 2048, 16, 512)]
    + [(EIGHT, "float32", tokens) for tokens in (1, 2048, 512)]
    + [(ONE, "bfloat16", tokens) for tokens in (128, 32768)]
)
ORDER = ("headwise_memory", "product_key_select", "latent_bag")


def run(run: Run) -> None:
    machine = machine_of(run)
    clock = Clock(run.device, 0.01 if run.device == "cuda" else 0.002)
    sizes = [("tiny", "bfloat16", 1), ("tiny", "float32", 5)] if run.tiny else SIZES
    run.each(_cases(run, clock, machine, sizes))


def _cases(
    run: Run, clock: Clock, machine: Machine, sizes: list[Size]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Keys and what measures them. A size's tensors are made once, when its first case is run."""
    made = _Made(run.device)

    def measured(size: Size | None, index: int) -> dict[str, Any]:
        found = row(made.case(size, index), clock, machine)
        return found if size is None else found | {"verified": verified(run, *size[:2])}

    for size in sizes:
        for index, name in enumerate(_named(*size)):
            yield name, partial(measured, size, index)
    if not run.tiny:
        for index in range(6):
            yield f"large bank {index}", partial(measured, None, index)


def _named(shape: str, dtype: str, tokens: int) -> list[str]:
    """Keys of a size's cases in the order in which they are run."""
    parts = [f"{op}, {way}" for op in ORDER[:2] for way in ("forward", "forward+backward")]
    for slots in ("uniform", "zipf"):
        parts.append(f"latent_bag, forward, {slots}")
        parts += [f"latent_bag, forward+backward, {slots}, {x}" for x in ("sorted", "atomic")]
    return [f"{part}, {shape}, {dtype}, {tokens} tokens" for part in parts]


class _Made:
    """The cases of the size at hand (None: the large bank); those of the one before are let go."""

    def __init__(self, device: str):
        self.device = device
        self.size: Size | None | str = ""
        self.cases: list[Case] = []

    def case(self, size: Size | None, index: int) -> Case:
        if size != self.size:
            self.cases, self.size = [], ""
            self.cases, self.size = self._of(size), size
        return self.cases[index]

    def _of(self, size: Size | None) -> list[Case]:
        if size is None:
            return list(large_bank_cases(self.device))
        shape, dtype, tokens = size
        found = op_cases(SHAPES[shape], tokens, getattr(torch, dtype), self.device)
        return sorted(found, key=lambda case: ORDER.index(case.labels["op"]))


def row(case: Case, clock: Clock, machine: Machine, rounds: int = 3) -> dict[str, Any]:
    """A case's times in every way, its ratios and its floor.

    `ms` and the ratios `x_...` are of the case in cache, as a graph where there is one: what the
    device takes; `times` has every way, of peers too.
    """
    functions = dict(case.functions)
    if case.labels["tokens"] * case.labels["batch"] > PLAIN:
        functions.pop("naive", None)
    found = compared(functions, clock, rounds)
    ours, *peers = functions
    way = "graph_hot" if "graph_hot" in found["ms"][ours] else "hot"
    ms, floor = found["ms"][ours][way], case.floor
    floor_ms = floor.ms(machine.bandwidth, machine.rates[case.dtype])
    made = {
        **case.labels,
        "way": way,
        "tuned": "MIDUS_TUNING" in os.environ,
        "ms": ms,
        "times": found["ms"],
        "ratios": found["ratios"],
        "not_captured": found["not_captured"],
        "spoilt": found["spoilt"],
        "bytes": floor.bytes,
        "flops": floor.flops,
        "floor_ms": floor_ms,
        "floor_fraction": floor_ms / ms,
        "gb_per_s": floor.bytes / (1e6 * ms),
        "peak_mb": peak_bytes(case.functions[ours], machine.device) / 2**20,
    }
    for peer in peers:
        shared = found["ratios"][peer]
        made[f"x_{peer}"] = shared.get(way, shared["hot"])
    if "ffn" in functions:
        made["ffn_peak_mb"] = peak_bytes(functions["ffn"], machine.device) / 2**20
    if "gathered_bytes" in case.labels:
        made["gathered_gb_per_s"] = case.labels["gathered_bytes"] / (1e6 * ms)
    return made
