"""A whole model: one backend equals the other, and compiled, hooked or fused it says the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import midus_model.memory
from kernels import use_backend
from midus_model import upscale
from tests.models import tiny, tokens
from tests.reference import fill_banks, memories, watched


@pytest.fixture
def model() -> Any:
    return fill_banks(upscale(tiny(), blocks=[1, 2], num_keys=6, top_k=3, latent_dim=16))


def next_token_nats(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """[B, T-1] losses."""
    logits = model(batch).logits[:, :-1].log_softmax(-1)
    return -logits.gather(-1, batch[:, 1:, None])[..., 0]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def test_backends_agree(model: Any) -> None:
    """Losses and gradients; every slot's margin is wide enough to be no matter of rounding."""
    model, batch = model.to(device()), tokens(1, 9).to(device())
    found = {}
    for backend in ("torch", "triton"):
        model.zero_grad()
        with use_backend(backend), watched(model) as choices:
            nats = next_token_nats(model, batch)
            nats.sum().backward()
        assert choices.margin > 1e-5
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        found[backend] = nats.detach(), grads
    torch.testing.assert_close(found["triton"][0], found["torch"][0], atol=2e-5, rtol=0)
    for name, grad in found["torch"][1].items():
        torch.testing.assert_close(found["triton"][1][name], grad, atol=1e-4, rtol=1e-3), name


@torch.no_grad()
def test_fused_inference_agrees_and_a_hook_turns_fusing_off(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model.to(device()), tokens(1, 9).to(device())
    fused = []
    plain = midus_model.memory.headwise_memory

    def spy(*args: Any, residual: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        fused.append(residual is not None)
        return plain(*args, residual=residual, **kwargs)

    monkeypatch.setattr(midus_model.memory, "headwise_memory", spy)
    with use_backend("torch"):
        want = next_token_nats(model, batch)
    assert fused == [False, False]
    with use_backend("triton"):
        torch.testing.assert_close(next_token_nats(model, batch), want, atol=2e-5, rtol=0)
        assert fused[2:] == [True, True]
        seen = []
        handle = memories(model)[0][1].out.register_forward_hook(
            lambda module, given, output: seen.append(output)
        )
        torch.testing.assert_close(next_token_nats(model, batch), want, atol=2e-5, rtol=0)
        handle.remove()
    assert fused[4:] == [False, True] and len(seen) == 1


def test_compiles_as_one_graph(model: Any) -> None:
    batch = tokens(1, 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(batch, use_cache=False).logits
    want = model(batch, use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    got.sum().backward()
    assert all(memory.bank.grad.any() for _, memory in memories(model))


def test_autocast_trains_fp32_parameters(model: Any) -> None:
    batch = tokens(1, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch, labels=batch).loss
    loss.backward()
    for _, memory in memories(model):
        assert memory.bank.grad.dtype == torch.float32 and memory.bank.grad.any()
    with torch.no_grad():
        torch.testing.assert_close(loss, model(batch, labels=batch).loss, atol=0.1, rtol=0)
