"""A lean forward pass is the block's own, to rounding, and steps aside where somebody looks in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from midus_model import blocks, lean_blocks, upscale
from tests.models import FAMILIES, tiny

IDS = torch.arange(60).view(4, 15) * 7 % 128


def lean_of(model: Any) -> list[bool]:
    with lean_blocks(blocks(model)):
        return ["forward" in vars(block) for block in blocks(model)]


def hidden_of(model: Any, **more: Any) -> torch.Tensor:
    return model.model(input_ids=IDS, use_cache=False, **more).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_hugging_face(family: str) -> None:
    more = {"attention_bias": True} if family != "mistral" else {}
    model = tiny(family, **more)
    expected = hidden_of(model)
    with lean_blocks(blocks(model)):
        assert all("forward" in vars(block) for block in blocks(model))
        found = hidden_of(model)
    assert not any("forward" in vars(block) for block in blocks(model))
    # not the very same computation, or nothing was put in its place
    assert 0 < (found - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_sliding_window_is_kept() -> None:
    model, wide = (tiny("mistral", sliding_window=size) for size in (8, None))
    expected = hidden_of(model)
    with lean_blocks(blocks(model)):
        torch.testing.assert_close(hidden_of(model), expected)
    assert (hidden_of(wide) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_left_is_kept() -> None:
    model, mask = tiny("llama"), torch.ones_like(IDS)
    mask[0, :5] = 0
    expected = hidden_of(model, attention_mask=mask)
    with lean_blocks(blocks(model)):
        torch.testing.assert_close(hidden_of(model, attention_mask=mask), expected)


def test_gradients_go_the_usual_way() -> None:
    model, usual = tiny("llama"), tiny("llama")
    with lean_blocks(blocks(model)):
        hidden_of(model).sum().backward()
    hidden_of(usual).sum().backward()
    for mine, its in zip(model.parameters(), usual.parameters(), strict=True):
        assert mine.grad is None or torch.equal(mine.grad, its.grad)


@torch.no_grad()
def test_memory_blocks_and_half_precision_stay_as_they_are() -> None:
    midus = upscale(tiny("llama"), num_keys=8, top_k=4, latent_dim=8)
    assert lean_of(midus) == [not hasattr(block, "memory") for block in blocks(midus)]
    assert not any(lean_of(tiny("llama", torch.bfloat16)))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["mlp", "self_attn", "input_layernorm", "mlp.act_fn", "mlp.up_proj", "self_attn.o_proj"]
)
def test_a_watched_part_is_seen(name: str) -> None:
    model, seen = tiny("llama"), []
    part = model.model.layers[1].get_submodule(name)
    part.register_forward_hook(lambda *_: seen.append(1))
    assert lean_of(model) == [True, False, True, True]
    with lean_blocks(blocks(model)):
        hidden_of(model)
    assert seen == [1]


@torch.no_grad()
def test_what_enters_a_linear_map_can_be_changed() -> None:
    model = tiny("llama")

    def halve(_: nn.Module, args: tuple) -> tuple:
        return (args[0] / 2,)

    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(halve)
    expected = hidden_of(model)
    assert all(lean_of(model))
    with lean_blocks(blocks(model)):
        torch.testing.assert_close(hidden_of(model), expected)


@torch.no_grad()
def test_left_behind_by_an_error_is_nothing() -> None:
    model = tiny("llama")
    with pytest.raises(ZeroDivisionError), lean_blocks(blocks(model)):
        raise ZeroDivisionError
    assert not any("forward" in vars(block) for block in blocks(model))
