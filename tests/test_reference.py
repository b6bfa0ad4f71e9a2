"""The float64 oracle itself: no fp32 islands, so finite differences agree with autograd to 1e-7."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from midus_model import upscale
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks, float64_reference, watched

STEP = 1e-5


def model_of(family: str, up_scaled: bool) -> Any:
    model = tiny(family)
    return fill_banks(upscale(model, num_keys=4, top_k=3, latent_dim=8)) if up_scaled else model


@pytest.mark.parametrize("up_scaled", [False, True], ids=["base", "midus"])
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_differences_agree_with_autograd(family: str, up_scaled: bool) -> None:
    reference = float64_reference(model_of(family, up_scaled))
    ids = tokens(2, 20)
    names = dict(reference.named_parameters())
    clean = reference(ids, labels=ids).loss
    assert clean.dtype == torch.float64
    gradients = torch.autograd.grad(clean, list(names.values()))
    slopes = {}
    for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        losses, chosen = [], []
        for step in (STEP, -STEP):
            with torch.no_grad(), watched(reference) as choices:
                parameter.add_(direction, alpha=step)
                losses.append(float(reference(ids, labels=ids).loss))
                parameter.sub_(direction, alpha=step)
            chosen.append(choices)
        assert chosen[0].same_slots(chosen[1]), f"{name}: the step switched slots"
        difference = (losses[0] - losses[1]) / (2 * STEP)
        slopes[name] = float((gradient * direction).sum()), difference
    for name, (exact, difference) in slopes.items():
        assert abs(exact - difference) < 1e-7, f"{name}: {exact} against {difference}"
    assert max(abs(exact) for exact, _ in slopes.values()) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_same_model(family: str) -> None:
    model = model_of(family, True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = float64_reference(model)
    ids = tokens(2, 20)
    with torch.no_grad():
        assert (model(ids).logits - reference(ids).logits).abs().max() < 1e-4
        assert abs(model(ids, labels=ids).loss - reference(ids, labels=ids).loss) < 1e-5
    assert model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_plain_double_has_islands_that_the_reference_has_not() -> None:
    """The reason for the oracle: rounding of 1e-16 becomes 1e-8 in a model made double alone."""
    model = tiny("llama")
    plain, reference = model.double(), float64_reference(model)
    ids = tokens(1, 12)
    with torch.no_grad():
        difference = (plain(ids).logits - reference(ids).logits).abs().max()
    assert difference > 1e-9
