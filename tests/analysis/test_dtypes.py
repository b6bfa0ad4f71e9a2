"""Models in every precision: measured, and with the numbers that a plain hook loop gives there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance, rank_heads
from analysis.checks import _rounding
from midus_model import BlockEnd, blocks, head_sites, load, upscale
from midus_model.lean import rounds_to_fp32
from tests.analysis.samples import random_texts
from tests.models import FAMILIES, tiny
from tests.reference import fill_banks, float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of scores, in nats: what another batch may do to sums in that precision.
ALLOWED = {torch.float64: 1e-7, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def model_of(family: str, dtype: torch.dtype, memory: bool) -> Any:
    model = tiny(family, num_hidden_layers=2)
    if memory:
        # of one slot in half precision, which may decide either way which of several are the best
        n, k = (4, 3) if dtype.itemsize > 2 else (1, 1)
        model = fill_banks(upscale(model, blocks=[0], num_keys=n, top_k=k, latent_dim=8))
    return model.to(dtype)


def texts() -> Any:
    return random_texts([20, 12])


def loss(model: Any) -> torch.Tensor:
    losses = []
    for text in texts():
        logits = model(text.ids[None]).logits[0, :-1].double()
        losses.append(F.cross_entropy(logits, text.ids[1:], reduction="sum"))
    return torch.stack(losses).sum() / sum(len(text.ids) - 1 for text in texts())


def looped(model: Any, gate: torch.Tensor, measure: Any) -> list[float]:
    """`measure` of the loss with a plain hook's gate on each head in turn."""
    found = []
    for site in head_sites(model):

        def change(_: Any, args: tuple, site: Any = site) -> tuple:
            factor = torch.ones(args[0].shape[-1], dtype=args[0].dtype)
            span = torch.arange(site.start, site.stop)
            return (args[0] * factor.index_put((span,), gate.to(args[0].dtype)), *args[1:])

        hook = site.module.register_forward_pre_hook(change)
        found.append(float(measure(loss(model))))
        hook.remove()
    return found


# One family with memory, one without, in the ordinary run; all of them by `make verify`.
CASES = [
    pytest.param(
        family,
        memory,
        marks=() if (family, memory) in (("qwen3", False), ("llama", True)) else pytest.mark.verify,
        id=f"{family}-{'memory' if memory else 'base'}",
    )
    for family in FAMILIES
    for memory in (False, True)
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "memory"), CASES)
def test_scores_are_those_of_a_plain_loop(family: str, memory: bool, dtype: torch.dtype) -> None:
    model = model_of(family, dtype, memory)
    with torch.no_grad():
        clean = loss(model)
        want = looped(model, torch.zeros(()), lambda found: found - clean)
    found = head_importance(model, texts(), baseline="zero")
    assert np.abs(found["score"] - want).max() < ALLOWED[dtype]
    assert found.attrs["dtype"] == str(dtype).removeprefix("torch.")

    gate = torch.ones((), dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    want = looped(model, gate, lambda found: -torch.autograd.grad(found, gate)[0])
    found = head_importance(model, texts(), method="taylor", baseline="zero")
    assert np.abs(found["score"] - want).max() < ALLOWED[dtype]


@pytest.mark.parametrize("method", ["shapley", "integrated_gradients"])
def test_gates_of_a_float64_model_are_in_float64(method: str) -> None:
    """What heads sum to is what ablating all of them gives, far below fp32's rounding."""
    model = float64_reference(tiny(num_hidden_layers=2))
    found = head_importance(model, texts(), method=method)
    with torch.no_grad():
        # the mean outputs, by a hook of our own
        kept: dict[int, list[torch.Tensor]] = {0: [], 1: []}
        hooks = [
            block.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, layer=layer: kept[layer].append(args[0][0])
            )
            for layer, block in enumerate(blocks(model))
        ]
        clean = loss(model)
        for hook in hooks:
            hook.remove()
        means = {layer: torch.cat(parts).mean(0) for layer, parts in kept.items()}
        hooks = [
            block.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, layer=layer: (means[layer].expand_as(args[0]),)
            )
            for layer, block in enumerate(blocks(model))
        ]
        ablated = loss(model)
        for hook in hooks:
            hook.remove()
    allowed = 1e-10 if method == "shapley" else 1e-4
    assert float(found["score"].sum()) == pytest.approx(float(ablated - clean), abs=allowed)


@pytest.mark.parametrize("name", ["pico", "pico-midus"])
def test_shipped_models_in_float64(name: str) -> None:
    model, text = load(name).double(), ["def f(x):\n    return [x, x]\n" * 2]
    found = head_importance(model, text, method="taylor")
    want = head_importance(load(name), text, method="taylor")
    np.testing.assert_allclose(found["score"], want["score"], atol=1e-4)


def test_heads_of_a_float64_model_are_ranked() -> None:
    assert len(rank_heads(tiny(num_hidden_layers=2).double(), texts(), top=2)) == 8


def test_islands_are_found_and_not_made_where_there_are_none() -> None:
    """A norm that rounds to fp32 is called as it is; one that does not is computed as always."""
    hugging_face, exact = tiny().double(), float64_reference(tiny())
    for model, islands in ((hugging_face, True), (exact, False)):
        block = model.model.layers[0]
        assert rounds_to_fp32(model.model.norm) == islands
        assert (_rounding(model) > 1e-8) == islands
        states = torch.randn(2, 40, 64, dtype=torch.float64)
        assert BlockEnd(block, states, states, low_rank=True).low_rank is False  # with gradients
        with torch.no_grad():
            assert BlockEnd(block, states, states, low_rank=True).low_rank == (not islands)
    assert _rounding(tiny(dtype=torch.bfloat16)) == torch.finfo(torch.bfloat16).eps
