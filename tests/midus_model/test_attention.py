"""Attn' of chosen heads: equal to the whole attention's, with no more than those heads need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from midus_model import head_sites, load, upscale
from midus_model.attention import unmixed
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks, memories, watched

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
HEADS, KV_HEADS = 8, 4
# Layer 1: heads 0 and 1 share a key-value head, 5 has its own (uneven); layer 2: two of each group;
# layer 3: one.
CHOSEN = {1: [0, 1, 5], 2: [2, 3, 6, 7], 3: [4]}
PAIRS = [(layer, head) for layer, heads in CHOSEN.items() for head in heads]
GROUPS = {1: [0, 2], 2: [1, 3], 3: [2]}
CACHED = {1: 3, 2: 2, 3: 1}  # key-value heads of the cache: a copy a head where groups are uneven

BASES = [*FAMILIES, "llama-biased"]


def base_of(family: str) -> Any:
    biased = {"attention_bias": True} if family == "llama-biased" else {}
    name = family.removesuffix("-biased")
    wide = {"head_dim": 12} if name == "qwen3-wide" else {"head_dim": 8}
    return tiny(name, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, **wide, **biased)


def grown(family: str, **options: Any) -> Any:
    return fill_banks(upscale(base_of(family), **(SMALL | {"heads": PAIRS} | options)))


def silenced(some: Any, family: str) -> Any:
    """Memory for all heads of the same layers, the others' projections zero."""
    every = upscale(base_of(family), blocks=list(CHOSEN), **SMALL)
    with torch.no_grad():
        for (_, mine), (_, theirs) in zip(memories(some), memories(every), strict=True):
            theirs.bank.copy_(mine.bank)
            theirs.head_proj.zero_()
            for name in ("row_keys", "col_keys", "head_proj"):
                getattr(theirs, name)[mine.heads] = getattr(mine, name)
    return every


def blocks_of(model: Any) -> dict[int, Any]:
    """Source layer -> its memory block."""
    entries = zip(model.config.layer_map, model.model.layers, strict=True)
    return {entry["source"][0]: block for entry, block in entries if entry["kind"] == "memory"}


@pytest.mark.parametrize("family", BASES)
def test_equal_to_all_heads_with_the_others_silenced(family: str) -> None:
    some = grown(family)
    every, ids = silenced(some, family), tokens(2, 24)
    with watched(some) as choices:
        found = some(ids, labels=ids)
    expected = every(ids, labels=ids)
    assert choices.margin > 1e-5
    assert (found.logits - expected.logits).abs().max() < 2e-5
    found.loss.backward()
    expected.loss.backward()
    theirs = blocks_of(every)
    for layer, block in blocks_of(some).items():
        size = block.self_attn.head_dim
        rows = {"q_proj": CHOSEN[layer], "k_proj": GROUPS[layer], "v_proj": GROUPS[layer]}
        for part, wanted in rows.items():
            mine, whole = (getattr(b.self_attn, part) for b in (block, theirs[layer]))
            for name, value in mine.named_parameters():
                full = dict(whole.named_parameters())[name]
                of_heads = full.grad.unflatten(0, (-1, size))[wanted].flatten(0, 1)
                assert value.grad.abs().max() > 1e-6
                assert (value.grad - of_heads).abs().max() < 1e-5, (layer, part, name)


@pytest.mark.parametrize("family", BASES)
def test_a_block_holds_the_rows_of_its_source_that_are_used(family: str) -> None:
    base = base_of(family)
    new = upscale(base, heads=PAIRS, **SMALL)
    ids = tokens(2, 24)
    with torch.no_grad():
        assert torch.equal(new(ids).logits, base(ids).logits)
    for layer, block in blocks_of(new).items():
        attention, source = block.self_attn, base.model.layers[layer].self_attn.state_dict()
        size = attention.head_dim
        rows = {"q_proj": CHOSEN[layer], "k_proj": GROUPS[layer], "v_proj": GROUPS[layer]}
        for name, value in attention.state_dict().items():
            wanted = rows.get(name.split(".")[0])
            kept = source[name]
            if wanted is not None:
                kept = kept.unflatten(0, (-1, size))[wanted].flatten(0, 1)
            assert torch.equal(value, kept), name
        assert {n for n in source if "o_proj" not in n} == set(attention.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing_and_holds_the_heads_in_use(family: str) -> None:
    model, ids = grown(family), tokens(2, 20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), watched(model) as choices:
        whole = model(ids, use_cache=False).logits
        parts = [model(ids[:, :9], past_key_values=cache, use_cache=True).logits]
        for at in range(9, 20):
            step = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            parts.append(step.logits)
    assert choices.margin > 1e-6
    assert (torch.cat(parts, 1) - whole).abs().max() < 2e-5
    for layer, block in blocks_of(model).items():
        held = cache.layers[block.self_attn.layer_idx].keys
        assert held.shape[1] == CACHED[layer]
    how = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    mask = torch.ones_like(ids)
    runs = [model.generate(ids, attention_mask=mask, use_cache=c, **how) for c in (True, False)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_gives_the_same_and_the_chosen_heads_patterns(family: str) -> None:
    model, ids = grown(family), tokens(2, 24)
    with torch.no_grad():
        expected = model(ids).logits
        model.set_attn_implementation("eager")
        found = model(ids, output_attentions=True)
    assert (found.logits - expected).abs().max() < 2e-5
    for layer, block in blocks_of(model).items():
        assert found.attentions[block.self_attn.layer_idx].shape[1] == len(CHOSEN[layer])


def test_what_goes_into_memory_has_every_heads_place() -> None:
    model = grown("llama")
    seen: dict[int, torch.Tensor] = {}
    for layer, block in blocks_of(model).items():
        block.memory.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.__setitem__(layer, args[0])
        )
    with torch.no_grad():
        model(tokens(2, 9))
    for layer, heads in CHOSEN.items():
        written = seen[layer].unflatten(-1, (HEADS, -1)).abs().amax((0, 1, 3)) > 0
        assert written.nonzero().flatten().tolist() == heads
    sites = [site for site in head_sites(model, "query") if site.kind == "memory"]
    assert [(site.source_layer, site.head) for site in sites] == PAIRS
    assert all(site.start == site.head * 8 and site.kv_head == site.head // 2 for site in sites)


def test_all_heads_of_a_layer_keep_the_whole_attention() -> None:
    base = base_of("llama")
    named = upscale(base, heads=[(1, head) for head in range(HEADS)], **SMALL)
    plain = upscale(base, blocks=[1], **SMALL)
    attention = named.model.layers[2].self_attn
    assert type(attention.k_proj) is nn.Linear and attention.group_of is None
    assert attention.o_proj is unmixed
    assert attention.num_key_value_groups == HEADS // KV_HEADS
    theirs = plain.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in named.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", BASES)
def test_saved_and_loaded_is_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base_of(family).to(dtype).save_pretrained(tmp_path / "base")
    model = fill_banks(upscale(load(tmp_path / "base"), heads=PAIRS, **SMALL))
    model.save_pretrained(tmp_path / "new")
    read, ids = load(tmp_path / "new"), tokens(2, 24)
    assert read.dtype == dtype
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert {n: p.shape for n, p in read.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
