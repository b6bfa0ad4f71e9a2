"""The memory layer and its block against DESIGN §3 written out in loops, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from midus_model import upscale
from midus_model.memory import HeadwiseMemory
from tests.models import FAMILIES, HEADS, HIDDEN, KV_HEADS, tiny, tokens
from tests.reference import fill_banks, float64_reference, memories, watched

N_KEYS, TOP_K, LATENT = 4, 3, 8


def grown(family: str, **options: Any) -> Any:
    options = {"num_keys": N_KEYS, "top_k": TOP_K, "latent_dim": LATENT} | options
    return fill_banks(upscale(tiny(family), **options))


def by_hand(memory: HeadwiseMemory, head_outputs: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """[T, H*D] head outputs -> [T, H*D] float64: every slot of every head scored, one by one."""
    rows, cols, bank, proj = (
        x.detach().double()
        for x in (memory.row_keys, memory.col_keys, memory.bank, memory.head_proj)
    )
    size, n = memory.head_dim, rows.shape[1]
    result = torch.zeros(head_outputs.shape, dtype=torch.float64)
    for t, outputs in enumerate(head_outputs.double()):
        for m, h in enumerate(heads):
            query = outputs[h * size : (h + 1) * size]
            scores = {
                row * n + col: float(query[: size // 2] @ rows[m, row])
                + float(query[size // 2 :] @ cols[m, col])
                for row in range(n)
                for col in range(n)
            }
            best = sorted(scores, key=lambda slot: (-scores[slot], slot))[: memory.top_k]
            total = sum(math.exp(scores[slot]) for slot in best)
            latent = sum(math.exp(scores[slot]) / total * bank[slot] for slot in best)
            result[t, h * size : (h + 1) * size] = latent @ proj[m]
    return result


@pytest.mark.parametrize("heads", [None, [(1, 0), (1, 2)]], ids=["all", "two"])
@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_layer_equals_the_loops(
    dtype: torch.dtype, family: str, heads: list[tuple[int, int]] | None
) -> None:
    model = grown(family, **({"heads": heads} if heads else {"blocks": [1]})).to(dtype)
    ((_, memory),) = memories(model)
    width = memory.num_heads * memory.head_dim
    inputs = torch.randn(2, 7, width, dtype=dtype)
    with torch.no_grad(), watched(model) as choices:
        out = memory(inputs)
    assert choices.margin > 1e-5
    chosen = [head for _, head in heads] if heads else list(range(HEADS))
    expected = torch.stack([by_hand(memory, row, chosen) for row in inputs])
    assert expected.abs().max() > 0.1
    if family == "qwen3-wide":  # heads do not fill the stream: mixed by a projection
        expected = expected @ memory.out_proj.weight.detach().double().T
    assert out.shape == (2, 7, HIDDEN) and out.dtype == dtype
    assert (out.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)


def test_bf16_values_given_the_chosen_slots() -> None:
    """Scores are fp32 whatever the input, so bf16 rounds the values and leaves the slots alone."""
    model = grown("llama", blocks=[1])
    ((_, memory),) = memories(model.bfloat16())
    inputs = torch.randn(1, 16, HIDDEN).bfloat16()
    with torch.no_grad():
        out = memory(inputs)[0]
    expected = by_hand(memory, inputs[0], list(range(HEADS)))
    relative = (out.double() - expected).norm() / expected.norm()
    assert out.dtype == torch.bfloat16 and relative < 1e-2


def test_chosen_heads_write_their_own_slices_only() -> None:
    model = grown("llama", heads=[(2, 1), (2, 3)])
    ((layer, memory),) = memories(model)
    seen: dict[str, torch.Tensor] = {}
    memory.out.register_forward_pre_hook(lambda _, args: seen.__setitem__("out", args[0]))
    with torch.no_grad():
        model(tokens(2, 9))
    size = memory.head_dim
    written = [
        bool(seen["out"][..., h * size : (h + 1) * size].abs().max() > 0) for h in range(HEADS)
    ]
    assert layer == 3 and written == [False, True, False, True]


def rotated(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """RoPE of one head's vector [D] at a position."""
    half = len(x) // 2
    result = torch.empty_like(x)
    for i in range(half):
        # Hugging Face keeps the frequencies in fp32
        frequency = float(torch.tensor(1.0) / torch.tensor(theta) ** torch.tensor(i / half))
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        result[i] = x[i] * cos - x[i + half] * sin
        result[i + half] = x[i + half] * cos + x[i] * sin
    return result


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return norm.weight * x / math.sqrt(float((x * x).mean()) + norm.variance_epsilon)


def attention_by_hand(attention: Any, hidden: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attn' of [T, d]: grouped causal attention, one head and position at a time -> [T, H*D]."""
    size, theta = attention.head_dim, attention.config.rope_parameters["rope_theta"]

    def heads_of(projection: Any, count: int, norm: str, rotate: bool) -> list[list[torch.Tensor]]:
        found = []
        for t, x in enumerate(hidden):
            vectors = list((projection.weight @ x).view(count, size))
            if hasattr(attention, norm):
                vectors = [normed(v, getattr(attention, norm)) for v in vectors]
            found.append([rotated(v, t, theta) if rotate else v for v in vectors])
        return found

    queries = heads_of(attention.q_proj, HEADS, "q_norm", True)
    keys = heads_of(attention.k_proj, KV_HEADS, "k_norm", True)
    values = heads_of(attention.v_proj, KV_HEADS, "", False)
    result = torch.zeros(len(hidden), HEADS * size, dtype=hidden.dtype)
    for t in range(len(hidden)):
        first = 0 if window is None else max(0, t - window + 1)
        for h in range(HEADS):
            g = h * KV_HEADS // HEADS
            scores = [float(queries[t][h] @ keys[s][g]) / size**0.5 for s in range(first, t + 1)]
            weights = torch.tensor(scores, dtype=hidden.dtype).softmax(0)
            mixed = sum(w * values[first + i][g] for i, w in enumerate(weights))
            result[t, h * size : (h + 1) * size] = mixed
    return result


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_block_equals_the_design_by_hand(family: str) -> None:
    """M(x) = x + concat_h(o_h), from the block's input to its output."""
    model = float64_reference(grown(family, blocks=[1]))
    window = 5 if family == "mistral" else None
    if window:
        model.config.sliding_window = window
        for block in model.model.layers:
            block.self_attn.sliding_window = window
    block = model.model.layers[2]
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output

    block.register_forward_hook(keep, with_kwargs=True)
    with watched(model) as choices:
        model(tokens(1, 11))
    assert choices.margin > 1e-5
    x = seen["input"][0]
    normal = torch.stack([normed(row, block.input_layernorm) for row in x])
    written = by_hand(
        block.memory, attention_by_hand(block.self_attn, normal, window), list(range(HEADS))
    )
    if block.memory.out_proj is not None:
        written = written @ block.memory.out_proj.weight.T
    assert written.abs().max() > 0.1
    assert (seen["output"][0] - (x + written)).abs().max() < 1e-10
