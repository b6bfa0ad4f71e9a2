"""A block's end for many replacements at once equals finishing it for each, whatever the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from midus_model import BlockEnd, Change, finish_block, upscale
from tests.models import FAMILIES, tiny
from tests.reference import fill_banks, float64_reference

SIZE = 16


def inputs_of(model: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's input [3, T, d] and head outputs [3, T, H*D], random."""
    wide = model.config.num_attention_heads * model.config.head_dim
    dtype = model.dtype
    return torch.randn(3, tokens, 64).to(dtype), torch.randn(3, tokens, wide).to(dtype)


def changes_of(model: Any, tokens: int) -> list[list[Change]]:
    """A head by a constant, one by its own value a position, two heads, and the last."""
    size = model.config.head_dim
    spans = [slice(h * size, (h + 1) * size) for h in range(4)]
    fixed, varied = torch.randn(1, 1, size), torch.randn(3, tokens, size)
    fixed, varied = fixed.to(model.dtype), varied.to(model.dtype)
    return [
        [Change(spans[0], fixed)],
        [Change(spans[1], varied)],
        [Change(spans[0], fixed), Change(spans[2], varied)],
        [Change(spans[3], torch.zeros_like(fixed))],
    ]


def by_hand(block: Any, hidden: torch.Tensor, heads: torch.Tensor, changes: Any) -> torch.Tensor:
    found = []
    for part in changes:
        replaced = heads.clone()
        for change in part:
            replaced[..., change.span] = change.values
        found.append(finish_block(block, hidden, replaced))
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 40], ids=["few tokens", "many"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_changes_side_by_side(family: str, biases: bool, tokens: int) -> None:
    more = {"attention_bias": True} if biases and family != "mistral" else {}
    more |= {"mlp_bias": True} if biases and family == "llama" else {}
    model = float64_reference(tiny(family, **more))
    if more:
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    block = model.model.layers[1]
    hidden, heads = inputs_of(model, tokens)
    end = BlockEnd(block, hidden, heads)
    assert end.low_rank == (tokens == 40)
    changes = changes_of(model, tokens)
    expected = by_hand(block, hidden, heads, changes)
    assert (end.changed(changes) - expected).abs().max() < 1e-12
    clean = finish_block(block, hidden, heads)
    assert (expected.chunk(4)[0] - clean).abs().max() > 1e-3


@torch.no_grad()
def test_single_precision_and_half() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.0)):
        model = tiny("llama", dtype)
        hidden, heads = inputs_of(model, 40)
        end = BlockEnd(model.model.layers[0], hidden, heads)
        assert end.low_rank == (dtype == torch.float32)
        changes = changes_of(model, 40)
        expected = by_hand(model.model.layers[0], hidden, heads, changes)
        assert (end.changed(changes) - expected).abs().max() <= tolerance


@torch.no_grad()
def test_memory_blocks_and_what_is_looked_into_take_the_plain_way() -> None:
    model = fill_banks(upscale(tiny("llama"), blocks=[1], num_keys=4, top_k=2, latent_dim=8))
    hidden, heads = inputs_of(model, 40)
    memory = BlockEnd(model.model.layers[2], hidden, heads)
    assert not memory.low_rank
    changes = changes_of(model, 40)
    expected = by_hand(model.model.layers[2], hidden, heads, changes)
    assert torch.equal(memory.changed(changes), expected)
    block = model.model.layers[0]
    seen: list[Any] = []
    hook = block.mlp.register_forward_hook(lambda *_: seen.append(1))
    end = BlockEnd(block, hidden, heads)
    end.changed(changes)
    hook.remove()
    assert not end.low_rank and seen, "a hook is called"
    block.mlp.forward = block.mlp.forward
    assert not BlockEnd(block, hidden, heads).low_rank, "another forward is not passed by"
    del block.mlp.forward
    block.mlp.gate_proj = torch.nn.Sequential(block.mlp.gate_proj)
    assert not BlockEnd(block, hidden, heads).low_rank
