"""Whole numbers on a device: moved once, and safe wherever a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from midus_model import places, upscale
from tests.models import tiny, tokens

CPU = torch.device("cpu")
CHOSEN = {
    "all heads": {},
    "even groups": {"heads": [(1, 0), (1, 1), (1, 2), (1, 3)][:2]},
    "uneven groups": {"heads": [(0, 0), (0, 1), (0, 2), (1, 3)]},
    "slots and columns by head": {
        "heads": [(1, 0), (1, 2)],
        "num_keys": {1: 6},
        "top_k": {(1, 0): 2, (1, 2): 4},
        "latent_dim": {(1, 0): 3, (1, 2): 5},
    },
}


@pytest.mark.parametrize("options", CHOSEN.values(), ids=CHOSEN)
def test_a_model_makes_no_tensor_on_the_host_at_a_second_call(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a wait for a GPU, and ends the capture of a CUDA graph."""
    sizes = {"num_keys": 6, "top_k": 3, "latent_dim": 4} if "num_keys" not in options else {}
    model = upscale(tiny("llama"), **sizes, **options).eval()
    ids = tokens()
    want = model(ids, use_cache=False).logits  # a cache of transformers makes its own at each call

    def made(*given: Any, **more: Any) -> torch.Tensor:
        raise AssertionError(f"torch.tensor{given} at a second call")

    monkeypatch.setattr(torch, "tensor", made)
    assert torch.equal(model(ids, use_cache=False).logits, want)


def test_kept_tensors_may_be_saved_for_backward() -> None:
    places._kept.cache_clear()
    with torch.inference_mode():
        places.on_device([2, 0], CPU)
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    x.index_select(1, places.on_device([2, 0], CPU)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 0.0, 1.0]] * 2))


def test_fake_tensors_are_not_kept() -> None:
    places._kept.cache_clear()
    with FakeTensorMode():
        fake = places.on_device([1, 2], CPU)
    real = places.on_device([1, 2], CPU)
    assert type(fake) is not torch.Tensor and type(real) is torch.Tensor
    with FakeTensorMode():
        assert type(places.on_device([1, 2], CPU)) is not torch.Tensor
    assert places.on_device([1, 2], CPU) is real
