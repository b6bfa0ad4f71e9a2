"""The rows of the benchmark: each op, layer and block against its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from kernels import headwise_memory, latent_bag, product_key_select
from kernels.headwise_memory import naive as memory_naive
from kernels.product_key_select import naive as select_naive
from midus_model.bench import floors
from midus_model.bench.shapes import Inputs, Shape, blocks_of, slots_of
from midus_model.bench.timing import SECONDS, interleaved, peak_bytes, ratios

Function = Callable[[], Any]
SLOW_TOKENS = 512  # beyond, plain versions and a block's backward take minutes on a CPU


@dataclass(frozen=True)
class Machine:
    """What floors are made from."""

    device: str
    bandwidth: float  # bytes a second of a copy
    rates: dict[torch.dtype, float]  # FLOPs a second of a matrix product
    seconds: float = SECONDS  # that a row may take


@dataclass(frozen=True)
class Case:
    """One row to be: mine and its peers, the floor, and what it is called."""

    labels: dict[str, Any]
    functions: dict[str, Function]
    floor: floors.Floor
    dtype: torch.dtype


def measured(case: Case, machine: Machine) -> dict[str, Any]:
    """Time a case; the first function is ours."""
    times = interleaved(case.functions, machine.device, machine.seconds)
    (mine, first), *peers = times.items()
    floor_ms = case.floor.ms(machine.bandwidth, machine.rates[case.dtype])
    row = {
        **case.labels,
        "ms": first.median,
        "ms_min": min(first.ms),
        "ms_max": max(first.ms),
        "runs": len(first.ms),
        "bytes": case.floor.bytes,
        "flops": case.floor.flops,
        "floor_ms": floor_ms,
        "floor_fraction": floor_ms / first.median,
        "gb_per_s": case.floor.bytes / (1e6 * first.median),
        "peak_mb": peak_bytes(case.functions[mine], machine.device) / 2**20,
    }
    if "gathered_bytes" in row:
        row["gathered_gb_per_s"] = row["gathered_bytes"] / (1e6 * first.median)
    for name, peer in peers:
        row[f"{name}_ms"] = peer.median
        low_high = ratios(first, peer)
        row |= dict(zip((f"x_{name}", f"x_{name}_min", f"x_{name}_max"), low_high, strict=True))
    if "ffn" in case.functions:
        row["ffn_peak_mb"] = peak_bytes(case.functions["ffn"], machine.device) / 2**20
    return row


def _slow(tokens: int, device: str) -> bool:
    return tokens > SLOW_TOKENS and device == "cpu"


def _directions(function: Function, leaves: list[torch.Tensor]) -> dict[str, Function]:
    """The function forward without gradients, and forward and backward."""

    def forward() -> Any:
        with torch.no_grad():
            return function()

    grads: list[torch.Tensor] = []

    def both() -> None:
        for leaf in leaves:
            leaf.requires_grad_(leaf.is_floating_point())
        out = function()
        out = out[0] if isinstance(out, tuple) else out
        if not grads:
            grads.append(torch.randn_like(out))
        out.backward(grads[0])
        for leaf in leaves:  # kept, their release would hide as much of the next run's peak
            leaf.grad = None

    return {"forward": forward, "forward+backward": both}


def _labels(op: str, direction: str, given: Inputs, **more: Any) -> dict[str, Any]:
    labels = {
        "op": op,
        "direction": direction,
        "shape": given.shape.name,
        "tokens": given.tokens,
        "batch": 1,
        "context": 0,
        "dtype": str(given.dtype).removeprefix("torch."),
        "slots": "from queries",
    }
    return labels | more


def op_cases(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Selection, read and layer, forward and with backward."""
    given, k, s = Inputs(shape, tokens, dtype, device), shape.top_k, dtype.itemsize
    slow = _slow(tokens, device)
    selecting: dict[str, Function] = {
        "ours": lambda: product_key_select(*given.selection, k),
        "naive": lambda: select_naive.product_key_select(*given.selection, k),
    }
    layer: dict[str, Function] = {
        "ours": lambda: headwise_memory(*given.memory, k),
        "ffn": given.feed_forward,
        "naive": lambda: memory_naive.headwise_memory(*given.memory, k),
    }
    if slow:
        del selecting["naive"], layer["naive"]
    with torch.no_grad():
        distinct = len(product_key_select(*given.selection, k)[1].unique())
    for direction in ("forward", "forward+backward"):
        back = direction != "forward"
        leaves = given.every()
        yield Case(
            _labels("product_key_select", direction, given),
            {name: _directions(f, leaves)[direction] for name, f in selecting.items()},
            floors.select(shape, tokens, s, back),
            dtype,
        )
        yield Case(
            _labels("headwise_memory", direction, given),
            {name: _directions(f, leaves)[direction] for name, f in layer.items()},
            floors.memory(shape, tokens, s, distinct, back),
            dtype,
        )
    yield from bag_cases(given)


def bag_cases(given: Inputs) -> Iterator[Case]:
    """The read over uniform and skewed slots, each way of making the bank's gradient.

    Forward, the peer `gather` is an embedding bag without weights: it reads the same rows.
    """
    shape, tokens, device = given.shape, given.tokens, given.device
    slow = _slow(tokens, device)  # PyTorch's atomic version makes [T, H, k, r]
    for kind in ("uniform", "zipf"):
        indices = slots_of(kind, shape, tokens, device)
        weights = torch.rand(indices.shape, device=device)
        flat = indices.view(-1, shape.top_k)
        distinct = len(indices.unique())

        def torchs(flat: torch.Tensor = flat, weights: torch.Tensor = weights) -> torch.Tensor:
            parts = weights.view(flat.shape).to(given.bank.dtype)
            return F.embedding_bag(flat, given.bank, per_sample_weights=parts, mode="sum")

        def gather(flat: torch.Tensor = flat) -> torch.Tensor:
            return F.embedding_bag(flat, given.bank, mode="sum")

        for direction in ("forward", "forward+backward"):
            back = direction != "forward"
            for mode in ("sorted", "atomic") if back and not slow else ("sorted",):

                def mine(
                    indices: torch.Tensor = indices,
                    weights: torch.Tensor = weights,
                    mode: str = mode,
                ) -> torch.Tensor:
                    return latent_bag(given.bank, indices, weights, bank_grad=mode)

                leaves = [given.bank, weights]
                functions: dict[str, Function] = {"ours": mine, "embedding_bag": torchs}
                more: dict[str, Any] = {"slots": kind, "bank_grad": mode if back else ""}
                if not back:  # every read counted, as a bank beyond the cache moves them
                    functions["gather"] = gather
                    more["gathered_bytes"] = flat.numel() * given.bank[0].nbytes
                yield Case(
                    _labels("latent_bag", direction, given, **more),
                    {name: _directions(f, leaves)[direction] for name, f in functions.items()},
                    floors.bag(
                        shape, tokens, given.dtype.itemsize, distinct, len(given.bank), back
                    ),
                    given.dtype,
                )


def block_cases(
    shape: Shape, dtype: torch.dtype, device: str, sizes: list[tuple[int, int, int]]
) -> Iterator[Case]:
    """Memory block against a copied layer: (batch, tokens, context), context > 0 being decoding."""
    copied, block, rotary = blocks_of(shape, dtype, device)
    for batch, tokens, context in sizes:
        hidden = torch.randn(batch, tokens, shape.hidden, device=device).to(dtype)
        places = torch.arange(context, context + tokens, device=device)[None]
        position = rotary(hidden, places)
        ours = _block_calls(block, 1, shape, hidden, position, context)
        peer = _block_calls(copied, 0, shape, hidden, position, context)
        distinct = min(shape.slots, batch * tokens * shape.heads * shape.top_k)
        for direction in ours:
            back = direction == "forward+backward"
            if back and _slow(batch * tokens, device):
                continue
            yield Case(
                {
                    "op": "block",
                    "direction": direction,
                    "shape": shape.name,
                    "tokens": tokens,
                    "batch": batch,
                    "context": context,
                    "dtype": str(dtype).removeprefix("torch."),
                    "slots": "from queries",
                },
                {"ours": ours[direction], "copied_layer": peer[direction]},
                floors.block(shape, batch, tokens, context, dtype.itemsize, distinct, back),
                dtype,
            )


def _block_calls(
    layer: Any,
    index: int,
    shape: Shape,
    hidden: torch.Tensor,
    position: Any,
    context: int,
) -> dict[str, Function]:
    """A decoder block's calls: prefill in both directions, or decoding after `context` tokens."""
    if not context:

        def prefill() -> Any:
            return layer(hidden, position_embeddings=position, attention_mask=None)

        return _directions(prefill, [hidden, *layer.parameters()])
    from transformers import DynamicCache

    cache = DynamicCache()
    size = (hidden.shape[0], shape.kv_heads, context, shape.head_dim)
    past = torch.randn(size, device=hidden.device).to(hidden.dtype)
    for layer_index in range(index + 1):
        cache.update(past, past, layer_index)

    def decode() -> Any:
        with torch.no_grad():
            out = layer(
                hidden,
                position_embeddings=position,
                attention_mask=None,
                past_key_values=cache,
                use_cache=True,
            )
        cache.layers[index].crop(-hidden.shape[1])  # forget the new tokens
        return out

    return {"decode": decode}


def large_bank_cases(
    device: str, num_keys: int = 1024, sizes: tuple[int, ...] = (256, 4096)
) -> Iterator[Case]:
    """The read from a bank far beyond any cache: 1,048,576 slots of 512 in bf16, uniform slots.

    256 tokens read few rows twice, so that what is compulsory is what is gathered; 4,096 read each
    row four times, which no cache holds: there `gathered_gb_per_s` says how fast memory is read.
    """
    shape = Shape("large-bank", 64, 32, 8, 64, 64, num_keys=num_keys, top_k=32, latent=512)
    called = {"slots": f"uniform of {shape.slots:,}, r = {shape.latent}"}
    for tokens in sizes:
        given = Inputs(shape, tokens, torch.bfloat16, device)
        for case in bag_cases(given):
            if case.labels["slots"] == "uniform":
                yield replace(case, labels=case.labels | called)
