"""The published arithmetic, done again window by window with plain autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance
from kernels.errors import MidusError
from midus_model import head_sites
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
LENGTHS = [12, 30, 7, 20]


def contexts_and_gradients(model: Any, window: Any) -> dict[int, tuple[Any, Any]]:
    """By block, the heads' outputs and the gradient of the window's mean loss, [T, H*D] each."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: Any, args: tuple) -> None:
            args[0].retain_grad()
            kept[layer] = args[0]

        return hook

    modules = {site.layer: site.module for site in head_sites(model)}
    hooks = [module.register_forward_pre_hook(keep(layer)) for layer, module in modules.items()]
    logits = model(window.ids[None]).logits[0, :-1]
    F.cross_entropy(logits, window.ids[1:]).backward()
    for hook in hooks:
        hook.remove()
    found = {layer: (z.detach()[0], z.grad[0]) for layer, z in kept.items()}
    model.zero_grad()
    return found


def scores_by_hand(model: Any, data: Any, convention: str) -> np.ndarray:
    """[layers, heads], before the normalisation."""
    layers, size = len(model.model.layers), model.config.head_dim
    heads = model.config.num_attention_heads
    scores, piled = np.zeros((layers, heads)), np.zeros((layers, heads))
    for window in data.windows:
        for layer, (z, grad) in contexts_and_gradients(model, window).items():
            dot = (z * grad).unflatten(-1, (heads, size)).sum(-1).numpy()  # [T, H]
            if convention == "michel":
                scores[layer] += np.abs(dot).sum(0)
            else:
                piled[layer] += dot.sum(0)
        if convention == "bertology":
            scores += np.abs(piled)
    tokens = sum(len(window.ids) for window in data.windows)
    if convention == "michel":
        scores[:-1] /= tokens
        scores[-1] /= len(data.windows)
    else:
        scores /= tokens
    scores /= np.sqrt((scores**2).sum(1, keepdims=True)) + 1e-20
    if convention == "bertology":
        scores = (scores - scores.min()) / (scores.max() - scores.min())
    return scores


@pytest.mark.parametrize("name", ["llama", "qwen3", "midus"])
@pytest.mark.parametrize("convention", ["michel", "bertology"])
def test_published_arithmetic(convention: str, name: str) -> None:
    model = memory_model() if name == "midus" else float64_reference(tiny(name))
    data = random_texts(LENGTHS)
    table = head_importance(model, data, method="gradient", baseline="zero", convention=convention)
    expected = scores_by_hand(model, data, convention)
    assert np.abs(table["score"].to_numpy() - expected.reshape(-1)).max() < 1e-9
    assert table.attrs["convention"] == convention and table.attrs["unit"] == "relative"
    assert (table["ci_low"] <= table["score"] + 1e-9).all()
    plain = head_importance(model, data, method="gradient", baseline="zero")
    assert not np.allclose(plain["score"].rank(), table["score"].rank())


def test_bertology_depends_on_the_order_of_documents_and_the_others_do_not() -> None:
    model, data = float64_reference(tiny("llama")), random_texts(LENGTHS)
    turned = data.subset([3, 2, 1, 0])
    same = {}
    for convention in ("michel", "bertology", None):
        one, two = (
            head_importance(model, d, method="gradient", baseline="zero", convention=convention)
            for d in (data, turned)
        )
        same[convention] = np.allclose(one["score"], two["score"])
    assert same == {"michel": True, "bertology": False, None: True}


@pytest.mark.parametrize(
    "options",
    [{"method": "taylor", "baseline": "zero"}, {"method": "gradient", "baseline": "mean"}],
)
def test_conventions_are_of_gradients_with_a_mask(options: dict[str, Any]) -> None:
    with pytest.raises(MidusError, match="convention 'michel' is of method 'gradient'.*'zero'"):
        head_importance(tiny("llama"), random_texts([9]), convention="michel", **options)
    given = {"method": "gradient", "baseline": "zero"}
    with pytest.raises(MidusError, match="convention is 'lrp'.*bertology"):
        head_importance(tiny("llama"), random_texts([9]), convention="lrp", **given)
    with pytest.raises(MidusError, match="own normalisation"):
        head_importance(
            tiny("llama"), random_texts([9]), convention="michel", normalise="layer", **given
        )
