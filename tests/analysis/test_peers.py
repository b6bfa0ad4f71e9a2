"""Head importance against TransformerLens and nnsight: oracles that nobody here wrote.

Where two slots' scores lie closer than MARGIN two right computations may choose different ones;
such heads are not compared, and are few.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnsight import NNsight
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from analysis import adapters, head_importance
from analysis.documents import Document, Documents, documents
from midus_model import HeadSite, head_sites, load, upscale
from tests.models import VOCABULARY, tiny
from tests.reference import fill_banks, float64_reference, watched

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

BASES = ["llama", "qwen3", "qwen3-wide", "mistral"]
MIDUS = ["midus-llama", "midus-qwen3", "midus-qwen3-wide", "midus-mistral", "midus-heads"]
SHIPPED = ["pico", pytest.param("pico-midus", marks=pytest.mark.verify)]
Logits = Callable[[torch.Tensor], torch.Tensor]
MARGIN = 1e-5


@lru_cache
def model_of(name: str) -> Any:
    """A tiny base of a family, one with memory and a random bank, or a shipped one."""
    small: dict[str, Any] = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
    if name in ("pico", "pico-midus"):
        return load(name)
    if name == "midus-heads":
        return fill_banks(upscale(tiny("mistral"), heads=[(0, 3), (2, 1), (2, 2)], **small))
    if name.startswith("midus-"):
        return fill_banks(upscale(tiny(name.removeprefix("midus-")), **small))
    return tiny(name)


def data_of(name: str) -> Documents:
    """Three random windows, one longer than Mistral's sliding window of 16; or two of real text."""
    if name in ("pico", "pico-midus"):
        first = documents(model=name, limit=2)
        items = [Document(d.id, d.ids[:n], d.sha256) for d, n in zip(first, (40, 23), strict=True)]
        return Documents("two short windows", items, 64)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (31, 11)]
    items = [Document(str(i), ids, f"{i:064x}") for i, ids in enumerate(texts)]
    return Documents("random", items, 24)


def matrix(table: Any) -> np.ndarray:
    return np.array(table["by_document"].tolist())


def loss(logits: torch.Tensor, window: Any) -> torch.Tensor:
    """Summed loss of one window's scored tokens in nats, from logits [T, V]."""
    scored, targets = window.scored, window.ids[1:]
    return F.cross_entropy(logits[:-1][scored], targets[scored], reduction="sum")


# ---------------------------------------------------------------- the peers
#
# All heads in one pass: a row a head, and in it that head alone zeroed.


def rows_of(model: Any) -> dict[str, list[tuple[int, HeadSite]]]:
    """By module, the rows in which one of its heads is zeroed; the last row stays clean."""
    found: dict[str, list[tuple[int, HeadSite]]] = {}
    for row, site in enumerate(head_sites(model)):
        found.setdefault(site.module_name, []).append((row, site))
    return found


def transformer_lens(model: Any) -> Logits:
    """Heads zeroed at `hook_z`, and at `hook_head_out` of a memory."""

    def zeroed(z: torch.Tensor, hook: Any, rows: list[tuple[int, HeadSite]]) -> torch.Tensor:
        for row, site in rows:
            z[row, :, site.head] = 0  # [B, T, H, D]
        return z

    hooks = []
    for rows in rows_of(model).values():
        _, site = rows[0]
        part = "attn.hook_z" if site.kind == "attention" else "memory.hook_head_out"
        hooks.append((f"blocks.{site.layer}.{part}", partial(zeroed, rows=rows)))
    bridge = adapters.bridge(model)
    return lambda ids: bridge.run_with_hooks(ids, fwd_hooks=hooks)


def nnsight(model: Any) -> Logits:
    """Heads zeroed in what goes into `o_proj`, and into `memory.out`."""
    envoy = NNsight(copy.deepcopy(model))
    modules = [(envoy.get(name), rows) for name, rows in rows_of(model).items()]

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        with envoy.trace(ids):
            for module, rows in modules:
                for row, site in rows:
                    module.input[row, :, site.start : site.stop] = 0
            logits = envoy.output.logits.save()
        return logits

    return logits_of


PEERS = {"transformer_lens": transformer_lens, "nnsight": nnsight}


@torch.no_grad()
def ablated_by(peer: str, model: Any, data: Documents) -> np.ndarray:
    """What zeroing each head adds to the loss, in nats a token: [heads, units]."""
    count, logits_of = len(head_sites(model)), PEERS[peer](model)
    effects = np.zeros((count, len(data.units)))
    for window in data.windows:
        logits = logits_of(window.ids.repeat(count + 1, 1))  # [heads + 1, T, V]
        nats = torch.stack([loss(row, window) for row in logits]).double()
        effects[:, window.unit] += (nats[:-1] - nats[-1]).numpy()
    return effects / [unit["tokens"] for unit in data.units]


@contextmanager
def softmax_in_float64() -> Iterator[None]:
    """TransformerLens asks for its softmax in fp32: the one fp32 island that a bridge adds.

    Its norms and rotary embeddings call the model's own, which `float64_reference` has changed.
    """
    original = AttentionBridge._masked_softmax

    def wide(self: Any, scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return original(self, scores, torch.promote_types(scores.dtype, dtype or scores.dtype))

    AttentionBridge._masked_softmax = wide
    try:
        yield
    finally:
        AttentionBridge._masked_softmax = original


@torch.no_grad()
def margin_of(model: Any, data: Documents, site: HeadSite) -> float:
    """The least margin between a slot chosen and one left out, clean and with the head zeroed."""

    def zeroed(_: Any, args: tuple) -> tuple:
        outputs = args[0].clone()
        outputs[..., site.start : site.stop] = 0
        return (outputs,)

    with watched(model) as choices:
        for window in data.windows:
            model(window.ids[None])
            hook = site.module.register_forward_pre_hook(zeroed)
            model(window.ids[None])
            hook.remove()
    return choices.margin


# ---------------------------------------------------------------- ablation


@lru_cache
def measured(name: str, exact: bool) -> tuple[Any, Documents, Any]:
    """A model, its documents, and our scores of its heads; `exact` is in float64."""
    model, data = model_of(name), data_of(name)
    model = float64_reference(model) if exact else model
    return model, data, head_importance(model, data, method="ablation", baseline="zero")


def compare(name: str, peer: str, exact: bool) -> None:
    tolerance, margin = (1e-9, 1e-10) if exact else (1e-5, MARGIN)
    model, data, table = measured(name, exact)
    sites, expected = head_sites(model), ablated_by(peer, model, data)
    assert [*zip(table["layer"], table["head"], strict=True)] == [(s.layer, s.head) for s in sites]
    apart = np.abs(matrix(table) - expected).max(1)
    others = [site for site, gap in zip(sites, apart, strict=True) if gap >= tolerance]
    assert len(others) <= len(sites) // 10
    assert all(margin_of(model, data, site) < margin for site in others), apart
    # no head is one whose ablation does nothing
    assert np.abs(expected).max(1).min() > 10 * tolerance and np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", [*BASES, *MIDUS, *SHIPPED])
def test_every_ablation_equals_the_peers(name: str, peer: str) -> None:
    compare(name, peer, exact=False)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", [*BASES, *MIDUS, *SHIPPED])
def test_every_ablation_equals_the_peers_in_float64(name: str, peer: str) -> None:
    with softmax_in_float64():
        compare(name, peer, exact=True)


def test_a_bridge_has_no_other_fp32_island() -> None:
    """Without the patch a float64 bridge is no more exact than fp32; with it, as float64."""
    model = float64_reference(model_of("midus-qwen3"))
    ids = data_of("midus-qwen3").windows[0].ids[None]
    bridge = adapters.bridge(model)
    with torch.no_grad():
        expected = model(ids).logits
        assert (bridge(ids) - expected).abs().max() > 1e-9
        with softmax_in_float64():
            assert (bridge(ids) - expected).abs().max() < 1e-12


# ---------------------------------------------------------------- gradients


def gradients_by_nnsight(model: Any, window: Any) -> np.ndarray:
    """dL/dgate at 1, baseline zero: the sum over the head's slice of gradient times output."""
    envoy = NNsight(copy.deepcopy(model))
    sites = {site.module_name: envoy.get(site.module_name) for site in head_sites(model)}
    modules = list(sites.values())
    with envoy.trace(window.ids[None]):
        outputs = []
        for module in modules:
            outputs.append(module.input)
        nats = loss(envoy.output.logits[0], window)
        products = []
        with nats.backward():
            for z in outputs[::-1]:
                products.append((z.grad * z).detach())
        products.save()
    by_module = dict(zip(sites, products[::-1], strict=True))
    return np.array(
        [
            float(by_module[site.module_name][..., site.start : site.stop].double().sum())
            for site in head_sites(model)
        ]
    )


@pytest.mark.parametrize("name", [*BASES, *MIDUS, *SHIPPED])
def test_gate_gradients_equal_nnsight(name: str) -> None:
    model, data = model_of(name), data_of(name)
    expected = np.zeros((len(head_sites(model)), len(data.units)))
    for window in data.windows:
        expected[:, window.unit] += gradients_by_nnsight(model, window)
    expected /= [unit["tokens"] for unit in data.units]
    taylor = head_importance(model, data, method="taylor", baseline="zero")
    assert np.abs(matrix(taylor) + expected).max() < 1e-5
    gradient = head_importance(model, data, method="gradient", baseline="zero")
    assert np.abs(matrix(gradient) - np.abs(expected)).max() < 1e-5
    assert np.abs(gradient["score"] - np.abs(expected).mean(1)).max() < 1e-5
    assert np.abs(expected).max() > 1e-2
