"""Head sites: a head replaced at its site is the head silenced in the weights, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kernels.errors import HeadError, UnsupportedArchitecture
from midus_model import blocks, check_heads, chosen_heads, finish_block, head_sites, upscale
from tests.models import FAMILIES, HEADS, KV_HEADS, LAYERS, tiny, tokens
from tests.reference import fill_banks

KINDS = ["base", "midus", "midus-heads", "llama-pro"]


def model_of(family: str, kind: str) -> Any:
    base = tiny(family)
    if kind == "base":
        return base
    if kind == "llama-pro":
        model = upscale(base, "llama-pro")
        with torch.no_grad():
            for layer in (2, 5):
                model.model.layers[layer].self_attn.o_proj.weight.normal_(std=0.1)
                model.model.layers[layer].mlp.down_proj.weight.normal_(std=0.1)
        return model
    heads = [(0, 1), (2, 0), (2, 3)] if kind == "midus-heads" else None
    return fill_banks(upscale(base, heads=heads, num_keys=4, top_k=3, latent_dim=8))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@torch.no_grad()
def silenced(model: Any, layer: int, head: int, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits with a head's own weights zeroed: o_proj's columns, or its head projection."""
    block = model.model.layers[layer]
    if kind == "memory":
        weight = block.memory.head_proj
        index: Any = block.memory.heads.index(head)
    else:
        weight = block.self_attn.o_proj.weight
        size = block.self_attn.head_dim
        index = (slice(None), slice(head * size, (head + 1) * size))
    kept = weight[index].clone()
    weight[index] = 0
    result = logits(model, ids)
    weight[index] = kept
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_at_a_site_equal_zeroed_weights(family: str, kind: str) -> None:
    model, ids = model_of(family, kind), tokens(2, 12)
    clean = logits(model, ids)
    for site in head_sites(model):

        def replace(_: Any, args: tuple, site=site) -> tuple:
            outputs = args[0].clone()
            outputs[..., site.start : site.stop] = 0
            return (outputs, *args[1:])

        hook = site.module.register_forward_pre_hook(replace)
        hooked = logits(model, ids)
        hook.remove()
        expected = silenced(model, site.layer, site.head, site.kind, ids)
        assert (hooked - expected).abs().max() < 1e-5, site
        assert (hooked - clean).abs().max() > 1e-3, site
    assert torch.equal(logits(model, ids), clean)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_is_listed_once_in_order_with_its_source(family: str) -> None:
    listed = [
        (s.layer, s.kind, s.head, s.source_layer) for s in head_sites(model_of(family, "base"))
    ]
    every = range(HEADS)
    assert listed == [(layer, "attention", h, layer) for layer in range(LAYERS) for h in every]
    sources = [0, 1, 1, 2, 3, 3]
    for kind, inserted in (("midus", "memory"), ("llama-pro", "attention")):
        sites = head_sites(model_of(family, kind))
        assert [(s.layer, s.kind, s.head, s.source_layer) for s in sites] == [
            (layer, inserted if layer in (2, 5) else "attention", h, source)
            for layer, source in enumerate(sources)
            for h in every
        ]
    sites = head_sites(model_of(family, "midus-heads"))
    memory = [(s.layer, s.head, s.source_layer) for s in sites if s.kind == "memory"]
    assert memory == [(1, 1, 0), (4, 0, 2), (4, 3, 2)]
    assert len(sites) == HEADS * LAYERS + 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_names_its_module_and_slice(kind: str) -> None:
    model = model_of("qwen3-wide", kind)
    modules = dict(model.named_modules())
    for site in head_sites(model):
        assert modules[site.module_name] is site.module
        assert (site.start, site.stop) == (site.head * 24, (site.head + 1) * 24)
        if site.kind == "memory":
            assert not list(site.module.parameters())


@pytest.mark.parametrize("kind", ["base", "midus-heads"])
@torch.no_grad()
def test_a_site_names_the_key_value_head_that_its_head_reads(kind: str) -> None:
    """Doubling one key-value head's values changes the outputs of the heads that share it alone."""
    model, ids = model_of("llama", kind), tokens(1, 8)
    attention = [site for site in head_sites(model) if site.layer == 0]
    outputs: list[torch.Tensor] = []
    attention[0].module.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    logits(model, ids)
    for kv_head in range(KV_HEADS):
        weight = model.model.layers[0].self_attn.v_proj.weight.view(KV_HEADS, -1)
        weight[kv_head] *= 2
        logits(model, ids)
        weight[kv_head] /= 2
        pair = outputs[0], outputs[-1]
        moved = [not torch.equal(*(x[..., s.start : s.stop] for x in pair)) for s in attention]
        assert moved == [site.kv_head == kv_head for site in attention]
    grouped = {site.head: site.kv_head for site in attention}
    assert all(site.kv_head == grouped[site.head] for site in head_sites(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_finish_block_is_the_rest_of_the_block(family: str, kind: str) -> None:
    model = model_of(family, kind)
    stack = blocks(model)
    sites = {site.layer: site.module for site in head_sites(model)}
    inputs, heads, outputs = {}, {}, {}
    for layer, block in enumerate(stack):

        def around(_: Any, args: tuple, kwargs: dict, output: Any, layer: int = layer) -> None:
            inputs[layer] = args[0] if args else kwargs["hidden_states"]
            outputs[layer] = output

        block.register_forward_hook(around, with_kwargs=True)
        sites[layer].register_forward_pre_hook(
            lambda _, args, layer=layer: heads.__setitem__(layer, args[0])
        )
    logits(model, tokens(2, 12))
    assert len(outputs) == len(stack) == len(sites)
    with torch.no_grad():
        for layer, block in enumerate(stack):
            finished = finish_block(block, inputs[layer], heads[layer])
            assert torch.equal(finished, outputs[layer]), layer


def test_heads_from_pairs_a_ranking_or_its_json(tmp_path: Path) -> None:
    expected = [(0, 1), (2, 3)]
    assert chosen_heads([(2, 3), (0, 1), (2, 3)]) == expected
    assert chosen_heads(torch.tensor([[2, 3], [0, 1]])) == expected
    table = pd.DataFrame({"layer": [2, 0, 1], "head": [3, 1, 1], "score": [3.0, 2.0, 1.0]})
    assert chosen_heads(table) == [(0, 1), (1, 1), (2, 3)]
    table.attrs["top"] = 2
    assert chosen_heads(table) == expected
    assert chosen_heads(table.astype(float)) == expected
    for name, content in (("a", {"heads": [[2, 3], [0, 1]]}), ("b", [[2, 3], [0, 1]])):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        assert chosen_heads(path) == chosen_heads(str(path)) == expected


def test_heads_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"layers": []}')
    (tmp_path / "number.json").write_text("5")
    wrong: list[Any] = [5, [5], [(1, 2, 3)], [("a", "b")], [(0.5, 1)], [(float("nan"), 0)], []]
    wrong += [tmp_path / name for name in ("broken.json", "other.json", "number.json", "none.json")]
    wrong += [pd.DataFrame({"score": [1.0]}), pd.DataFrame({"layer": [], "head": []})]
    for heads in wrong:
        with pytest.raises(HeadError) as caught:
            chosen_heads(heads)
        assert "\n" not in str(caught.value)


def test_heads_that_the_model_does_not_have() -> None:
    base = tiny("llama")
    check_heads(base, [(0, 0), (LAYERS - 1, HEADS - 1)])
    for pair in ((LAYERS, 0), (0, HEADS), (-1, 0)):
        with pytest.raises(HeadError, match="layers 0-3 with heads 0-3"):
            check_heads(base, [(0, 0), pair])
    with pytest.raises(HeadError):
        check_heads(model_of("llama", "midus-heads"), [(1, 0)])  # a block with memory for head 1
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    for other in (gpt2, torch.nn.Linear(2, 2)):
        with pytest.raises(UnsupportedArchitecture, match="llama, qwen3, mistral"):
            head_sites(other)
