"""What the machine can do: the numbers that every other one is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from midus_model.bench.device.clocks import Clock
from midus_model.bench.device.stage import Run
from midus_model.bench.rows import Machine
from midus_model.bench.timing import copy_bandwidth, product_rate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SECONDS = 0.4  # that one of them takes, about


def run(run: Run) -> None:
    large = not run.tiny
    size, megabytes = (8192, 2048) if large else (128, 4)
    seconds = SECONDS if large else 0.01
    cases: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("copy", lambda: {"gb_per_s": copy_bandwidth(run.device, megabytes, seconds) / 1e9})
    ]
    for name, dtype in DTYPES.items():

        def product(dtype: torch.dtype = dtype) -> dict[str, Any]:
            return {"tflops": product_rate(run.device, size, dtype, seconds) / 1e12, "size": size}

        cases.append((f"product {name}", product))
    # A bank of 65,536 slots lies in the cache as a whole; one of 16 million in no cache.
    for where, slots in (("L2", 2**16), ("HBM", 2**24)) if large else (("L2", 2**6), ("HBM", 2**8)):

        def gather(slots: int = slots) -> dict[str, Any]:
            return gathered(run.device, slots, 2**16 if large else 2**4)

        cases.append((f"gather from {where}", gather))
    run.each(cases)


def gathered(device: str, slots: int, bags: int, width: int = 128, reads: int = 32) -> dict:
    """GB/s of rows of a bf16 bank [slots, width] at random places, summed or copied."""
    bank = torch.randn(slots, width, device=device, dtype=torch.bfloat16)
    places = torch.randint(slots, (bags, reads), device=device)
    flat = places[: max(1, bags // 4)].reshape(-1)
    clock = Clock(device)
    summed = clock.hot(lambda: F.embedding_bag(places, bank, mode="sum"))
    copied = clock.hot(lambda: bank.index_select(0, flat))
    row = width * bank.itemsize
    return {
        "slots": slots,
        "row_bytes": row,
        "gb_per_s": places.numel() * row / (1e6 * summed),
        "copied_gb_per_s": flat.numel() * row / (1e6 * copied),  # of rows read; as much is written
    }


def machine_of(run: Run) -> Machine:
    """Ceilings for the floors, as this stage found them, or else measured now and shortly."""
    known = {line["key"]: line for line in run.found("ceilings", "row")}
    large = not run.tiny

    def rate(name: str, dtype: torch.dtype) -> float:
        line = known.get(f"product {name}")
        return (
            1e12 * line["tflops"]
            if line
            else product_rate(run.device, 4096 if large else 64, dtype, 0.1 if large else 0.01)
        )

    copy = known.get("copy")
    bandwidth = (
        1e9 * copy["gb_per_s"]
        if copy
        else copy_bandwidth(run.device, 512 if large else 4, 0.1 if large else 0.01)
    )
    return Machine(run.device, bandwidth, {dtype: rate(n, dtype) for n, dtype in DTYPES.items()})
