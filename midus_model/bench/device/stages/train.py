"""Training steps of a random 1B base, of LLaMA Pro and of MIDUS: time, memory, tokens a second."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

from midus_model import param_groups
from midus_model.bench.device.models import (
    KINDS,
    model_of,
    parameters,
    peak,
    start_peak,
    synchronize,
)
from midus_model.bench.device.stage import Run

BATCH, LENGTH, STEPS, WARM = 8, 1024, 6, 2
PRECISIONS = ("autocast", "bfloat16")  # fp32 parameters under bf16 autocast; all in bf16


def run(run: Run) -> None:
    run.each(
        (
            f"{kind}, {trained}, {precision}",
            partial(trained_row, run, kind, trained, precision),
        )
        for precision in PRECISIONS
        for kind, trained in [(kind, "new" if kind != "base" else "all") for kind in KINDS[::-1]]
    )


def trained_row(run: Run, kind: str, train: str, precision: str) -> dict[str, Any]:
    """Median step of forward, backward and AdamW, and the peak memory of all of it."""
    device = run.device
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model_of(kind, dtype, device, run.tiny).train()
    groups = param_groups(model, 1e-4, train=train)
    optimizer = torch.optim.AdamW(groups, fused=device == "cuda" or None)
    batch, length = (2, 8) if run.tiny else (BATCH, LENGTH)
    ids = torch.randint(model.config.vocab_size, (batch, length), device=device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    start_peak(device)
    losses, seconds = [], []
    for index in range(2 if run.tiny else STEPS):
        synchronize(device)
        begun = time.perf_counter()
        losses.append(step())
        synchronize(device)
        if run.tiny or index >= WARM:
            seconds.append(time.perf_counter() - begun)
    if not all(map(torch.isfinite, torch.tensor(losses))):
        raise AssertionError(f"the loss is not finite: {losses}")
    ms = 1e3 * statistics.median(seconds)
    return {
        "model": kind,
        "train": train,
        "precision": precision,
        "batch": batch,
        "tokens": length,
        "ms": ms,
        "tokens_per_s": batch * length / (1e-3 * ms),
        "peak_gb": peak(device),
        "losses": losses,
        **parameters(model),
    }
