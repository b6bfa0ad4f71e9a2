"""Prefill and decoding of a random 1B base, of LLaMA Pro and of MIDUS: tokens a second.

Eager, with the cache that grows, as Hugging Face generates by default; and the step alone as a CUDA
graph over a cache of fixed size.
"""

from __future__ import annotations

import time
from functools import partial
from inspect import signature
from typing import Any

import torch

from midus_model.bench.device.clocks import Clock, NotCapturable, captured
from midus_model.bench.device.models import KINDS, model_of, peak, start_peak, synchronize
from midus_model.bench.device.stage import Run, one_line

SIZES = ((1, 512), (16, 512), (64, 512), (1, 8192))  # batch and prompt
STEPS = 24
ROOM = 256  # tokens of a fixed cache beyond the prompt: more than replays, should each move on


def run(run: Run) -> None:
    sizes = ((2, 5),) if run.tiny else SIZES
    made: dict[str, Any] = {}
    run.each(
        (
            f"{kind}, batch {batch}, prompt {prompt}",
            partial(decoded, run, made, kind, batch, prompt),
        )
        for kind in KINDS
        for batch, prompt in sizes
    )


@torch.no_grad()
def decoded(run: Run, made: dict[str, Any], kind: str, batch: int, prompt: int) -> dict[str, Any]:
    """Seconds of the prefill and of a decoded token, eager; of the step as a graph."""
    device = run.device
    if kind not in made:
        made.clear()
        made[kind] = model_of(kind, torch.bfloat16, device, run.tiny).eval()
    model, steps = made[kind], 3 if run.tiny else STEPS
    ids = torch.randint(model.config.vocab_size, (batch, prompt), device=device)
    start_peak(device)
    model(input_ids=ids, logits_to_keep=1)  # what is compiled or chosen once
    prefill, ms = _eager(model, ids, steps, device)
    row = {
        "model": kind,
        "batch": batch,
        "prompt": prompt,
        "prefill_ms": prefill,
        "prefill_tokens_per_s": batch * prompt / (1e-3 * prefill),
        "ms": ms,
        "tokens_per_s": batch / (1e-3 * ms),
        "peak_gb": peak(device),
    }
    try:
        graph = _fixed(model, ids, device)
    except Exception as error:  # transformers' caches change; the eager figures hold all the same
        spoilt = not isinstance(error, NotCapturable)
        return row | {"graph_error": one_line(error), "spoilt": spoilt}
    return row | {"graph_ms": graph, "graph_tokens_per_s": batch / (1e-3 * graph)}


def _eager(model: Any, ids: torch.Tensor, steps: int, device: str) -> tuple[float, float]:
    """Milliseconds of the prefill and of a decoded token of every sequence."""
    synchronize(device)
    begun = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    synchronize(device)
    prefilled = time.perf_counter()
    warm = 2 if steps > 3 else 1
    for index in range(steps + warm):
        if index == warm:
            synchronize(device)
            since = time.perf_counter()
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    synchronize(device)
    return 1e3 * (prefilled - begun), 1e3 * (time.perf_counter() - since) / steps


def _fixed(model: Any, ids: torch.Tensor, device: str) -> float:
    """Milliseconds of the step over a cache of fixed size: as a graph on a GPU, else eager."""
    from transformers import StaticCache

    batch, prompt = ids.shape
    cache = StaticCache(config=model.config, max_cache_len=prompt + ROOM)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = ids[:, -1:].clone()
    place = torch.full((batch, 1), prompt, device=device)

    more: dict[str, Any] = {}
    if "cache_position" in signature(model.model.forward).parameters:  # else read from the device
        more["cache_position"] = place[0]

    def step() -> torch.Tensor:
        out = model(
            input_ids=token, position_ids=place, past_key_values=cache, use_cache=True, **more
        )
        return out.logits[:, -1:].argmax(-1)

    clock = Clock(device, 0.1 if device == "cuda" else 0.0)
    return clock.hot(captured(step) if device == "cuda" else step)
