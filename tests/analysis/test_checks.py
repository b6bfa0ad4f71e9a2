"""A model of another layout fails by name; a planted head gets exactly its score."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis import check_model, head_importance
from kernels.errors import ModelError, UnsupportedArchitecture
from midus_model import load, upscale
from tests.analysis.samples import memory_model, random_texts
from tests.models import FAMILIES, tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_passes(family: str, dtype: torch.dtype) -> None:
    for model in (
        tiny(family, dtype),
        upscale(tiny(family, dtype), num_keys=4, top_k=2, latent_dim=8),
        upscale(tiny(family, dtype), method="llama-pro"),
        memory_model(family, double=False, heads=[(0, 3), (2, 1)]).to(dtype),
    ):
        check_model(model)
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_shipped_models_pass() -> None:
    check_model(load("pico"))
    check_model(load("pico-midus"))


def residual_scale(block: Any) -> None:
    forward = type(block).forward
    block.forward = lambda *args, **kwargs: 0.5 * forward(block, *args, **kwargs)


def uncalled(block: Any) -> None:
    """The projection's weight is used, the module is not called."""
    attention, inner = block.self_attn, block.self_attn.o_proj

    class Quiet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = inner.weight

        def __call__(self, heads: torch.Tensor) -> torch.Tensor:  # past the hooks
            return heads @ self.weight.T

    attention.o_proj = Quiet()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (residual_scale, r"model\.layers\.2: its output is not its input"),
        (uncalled, r"^model\.layers\.2\.self_attn\.o_proj is not called"),
    ],
)
def test_a_layout_that_is_not_understood_fails_by_name(spoil: Any, named: str) -> None:
    model = tiny("llama")
    spoil(model.model.layers[2])
    with pytest.raises(UnsupportedArchitecture, match=named) as caught:
        head_importance(model, random_texts([12]))
    assert "\n" not in str(caught.value)


def test_what_is_hooked_in_is_looked_at_again() -> None:
    """A gain at the projection's input would be applied twice when a block is finished."""
    model = tiny("llama")
    check_model(model)
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, args: (2 * args[0],)
    )
    with pytest.raises(UnsupportedArchitecture, match=r"model\.layers\.1"):
        head_importance(model, random_texts([12]))
    hook.remove()
    assert head_importance(model, random_texts([12])) is not None
    mlp = model.model.layers[1].mlp
    inner = mlp.forward
    mlp.forward = lambda x: 0.25 * inner(x)
    table = head_importance(model, random_texts([20] * 6), baseline="zero")
    with torch.no_grad():
        mlp.down_proj.weight *= 0.25
    del mlp.forward
    folded = head_importance(model, random_texts([20] * 6), baseline="zero")
    assert np.abs(table["score"] - folded["score"]).max() < 1e-6


def test_training_mode_is_refused() -> None:
    model = tiny("llama", attention_dropout=0.3).train()
    with pytest.raises(ModelError, match=r"training mode.*model\.eval\(\)"):
        head_importance(model, random_texts([12]))


@pytest.mark.parametrize("gain", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_in_another_order_fail_by_name(dtype: torch.dtype, gain: float) -> None:
    """Attention whose output is reversed before the projection: head 0 is not at 0:D."""
    model = tiny("llama", dtype)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight *= gain
    block = model.model.layers[1]
    attend = block.self_attn.forward

    def reversed_heads(*args: Any, **kwargs: Any) -> Any:
        hook = block.self_attn.o_proj.register_forward_pre_hook(
            lambda _, a: (a[0].unflatten(-1, (4, -1)).flip(-2).flatten(-2),), prepend=True
        )
        try:
            return attend(*args, **kwargs)
        finally:
            hook.remove()

    block.self_attn.forward = reversed_heads
    with pytest.raises(UnsupportedArchitecture, match=r"model\.layers\.1: raising a key-value"):
        check_model(model)


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        head_importance(model, random_texts([12]))


def test_a_model_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    check_model(model)
    monkeypatch.setattr("analysis.checks.clean_run", lambda *_: pytest.fail("checked again"))
    check_model(model)
    with pytest.raises(BaseException, match="checked again"):
        check_model(copy.deepcopy(model))


# ---------------------------------------------------------------- planted


def planted(effect: float) -> Any:
    """A model in which one head alone sets the logits, the same at every position.

    Everything writes zero but head (2, 1), whose values are constant: it adds `effect` to the first
    coordinate of the stream after the embeddings' zero. So its effect is known by hand.
    """
    model = float64_reference(tiny("llama", hidden_size=64))
    size = model.config.head_dim
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        embed = model.model.embed_tokens.weight
        embed.zero_()
        embed[:, 0] = 1.0  # the same stream at every position
        block = model.model.layers[2]
        block.self_attn.v_proj.weight.zero_()
        block.input_layernorm.weight.fill_(1.0)
        # norm(x) = sqrt(64) at coordinate 0; head 1 reads key-value head 0.
        block.self_attn.v_proj.weight[0, 0] = 1 / 8
        block.self_attn.o_proj.weight[1, size] = effect  # head 1's first output, to coordinate 1
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[5, 1] = 1.0  # the head alone speaks for token 5
    return model


@pytest.mark.parametrize("effect", [0.5, -2.0])
def test_a_planted_head_gets_exactly_its_score(effect: float) -> None:
    model, data = planted(effect), random_texts([12, 9])
    eps = model.model.norm.variance_epsilon
    norm = np.sqrt(1 / 64 + eps)  # of the stream that the block reads
    value = (1 / norm) / 8
    written = effect * value
    logit = written / np.sqrt((1 + written**2) / 64 + eps)
    vocabulary = model.config.vocab_size
    # Loss with the head: token 5 has `logit`, all others 0; without it all are alike.
    with_head = np.log(vocabulary - 1 + np.exp(logit))
    for item in data:
        item.ids[3] = 5
    fives = [int((item.ids[1:] == 5).sum()) for item in data]
    tokens = [len(item.ids) - 1 for item in data]
    lost = [
        (n * np.log(vocabulary) - (n * with_head - k * logit)) / n
        for n, k in zip(tokens, fives, strict=True)
    ]
    table = head_importance(model, data, baseline="zero").set_index(["layer", "head"])
    assert table.loc[(2, 1), "by_document"] == pytest.approx(lost, abs=1e-9)
    others = table.drop(index=(2, 1))
    assert others["score"].abs().max() < 1e-12
    order = head_importance(model, data, baseline="zero", method="shapley", permutations=4)
    assert order.set_index(["layer", "head"]).loc[(2, 1), "score"] == pytest.approx(
        table.loc[(2, 1), "score"], abs=1e-9
    )
    direct = head_importance(model, data, baseline="zero", method="dla")
    at = direct.set_index(["layer", "head"]).loc[(2, 1), "score"]
    assert at == pytest.approx(sum(fives) / sum(tokens) * logit, abs=1e-9)
    # The head's output is the same everywhere: with its mean in its place nothing changes.
    mean = head_importance(model, data, baseline="mean")
    assert mean["score"].abs().max() < 1e-9
