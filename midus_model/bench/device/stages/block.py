"""The memory block against a copied layer, in prefill and in decoding, by length and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from midus_model.bench import floors
from midus_model.bench.device.clocks import Clock
from midus_model.bench.device.stage import Run
from midus_model.bench.device.stages.ceilings import machine_of
from midus_model.bench.device.stages.rows import EIGHT, ONE, row
from midus_model.bench.device.stages.verify import verified
from midus_model.bench.rows import Case, Function, Machine, block_cases
from midus_model.bench.shapes import SHAPES, Shape, blocks_of

# Batch, new tokens, context before them; context > 0 is decoding.
DECODE = [(1, 1, 1024), (16, 1, 1024), (1, 1, 8192), (128, 1, 1024), (16, 1, 8192), (64, 1, 8192)]
PREFILL = [(1, 2048, 0), (1, 512, 0), (1, 8192, 0), (8, 1024, 0), (1, 32768, 0)]
Size = tuple[int, int, int]


def run(run: Run) -> None:
    machine = machine_of(run)
    clock = Clock(run.device, 0.01 if run.device == "cuda" else 0.002)
    run.each(_cases(run, clock, machine))


def _cases(
    run: Run, clock: Clock, machine: Machine
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    dtype = torch.bfloat16

    def measured(make: Callable[..., Case], *given: Any) -> dict[str, Any]:
        found = row(make(*given), clock, machine)
        return found | {"verified": verified(run, found["shape"], found["dtype"])}

    for name in ("tiny",) if run.tiny else (ONE, EIGHT):
        shape = SHAPES[name]
        decode, prefill = ([(2, 1, 6)], [(1, 5, 0)]) if run.tiny else (DECODE, PREFILL)
        for size in decode:
            key = f"decode, {name}, batch {size[0]}, context {size[2]}"
            yield key, partial(measured, decode_case, shape, dtype, run.device, size)
        for size in prefill:
            for way in ("forward", "forward+backward"):
                key = f"{way}, {name}, batch {size[0]}, {size[1]} tokens"
                yield key, partial(measured, prefill_case, shape, dtype, run.device, size, way)


def prefill_case(shape: Shape, dtype: torch.dtype, device: str, size: Size, way: str) -> Case:
    """A prompt through the block and through a copied layer, one way of both."""
    found = block_cases(shape, dtype, device, [size])
    return next(case for case in found if case.labels["direction"] == way)


class FixedCache:
    """Keys and values of one layer, [B, G, C + T, D]: new ones are written at the end, in place.

    As a cache of fixed size does that serves decoding; nothing is copied as it grows, and every
    call writes at the same place.
    """

    def __init__(self, shape: Shape, size: Size, dtype: torch.dtype, device: str):
        batch, tokens, context = size
        self.context = context
        held = (batch, shape.kv_heads, context + tokens, shape.head_dim)
        self.keys, self.values = (torch.randn(held, device=device).to(dtype) for _ in range(2))

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys[:, :, self.context :] = keys
        self.values[:, :, self.context :] = values
        return self.keys, self.values

    def get_seq_length(self, *_: Any) -> int:
        return self.context


def decode_case(shape: Shape, dtype: torch.dtype, device: str, size: Size) -> Case:
    """One decoded token of each sequence through the block, and through a copied layer."""
    batch, tokens, context = size
    copied, block, rotary = blocks_of(shape, dtype, device)
    hidden = torch.randn(batch, tokens, shape.hidden, device=device).to(dtype)
    position = rotary(hidden, torch.arange(context, context + tokens, device=device)[None])

    def call(layer: Any) -> Function:
        cache = FixedCache(shape, size, dtype, device)

        def decode() -> Any:
            with torch.no_grad():
                return layer(
                    hidden,
                    position_embeddings=position,
                    attention_mask=None,
                    past_key_values=cache,
                    use_cache=True,
                )

        return decode

    distinct = min(shape.slots, batch * tokens * shape.heads * shape.top_k)
    labels = {
        "op": "block",
        "direction": "decode",
        "shape": shape.name,
        "tokens": tokens,
        "batch": batch,
        "context": context,
        "dtype": str(dtype).removeprefix("torch."),
        "slots": "from queries",
    }
    floor = floors.block(shape, batch, tokens, context, dtype.itemsize, distinct)
    return Case(labels, {"ours": call(block), "copied_layer": call(copied)}, floor, dtype)
