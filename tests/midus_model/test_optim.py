"""Optimiser groups: what moves first, what is decayed, how fast the bank goes, what is frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kernels.errors import UpscaleError
from midus_model import MidusForCausalLM, param_groups, row_sparse_optimizers, upscale
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks, memories

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
LR = 1e-3


def new_names(model: Any) -> set[str]:
    inserted = [
        f"model.layers.{layer}."
        for layer, entry in enumerate(model.config.layer_map)
        if entry["kind"] != "base"
    ]
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(inserted))}


def moved_after(model: Any, steps: int, train: str = "new") -> set[str]:
    """Names of the parameters that differ after AdamW steps at a constant rate, without decay."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(param_groups(model, LR, weight_decay=0.0, train=train))
    for step in range(steps):
        ids = tokens(2, 16, seed=step)
        model(ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize("heads", [None, [(0, 1), (3, 0), (3, 2)]], ids=["all", "some"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bank_moves_first_and_then_all_that_was_inserted(family: str, heads: Any) -> None:
    model = upscale(tiny(family), heads=heads, **SMALL)
    banks = {name for name in new_names(model) if name.endswith("memory.bank")}
    assert len(banks) == 2
    assert moved_after(model, 1) == banks
    model = upscale(tiny(family), heads=heads, **SMALL)
    assert moved_after(model, 3) == new_names(model)


def test_llama_pro_opens_its_zeroed_projections_first() -> None:
    zeroed = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    model = upscale(tiny("llama"), "llama-pro")
    assert moved_after(model, 1) == {name for name in new_names(model) if name.endswith(zeroed)}
    model = upscale(tiny("llama"), "llama-pro")
    assert moved_after(model, 3) == new_names(model)


@pytest.mark.parametrize("train", ["new", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_rates_and_decay(family: str, train: str) -> None:
    model = upscale(tiny(family), **SMALL)
    groups = param_groups(model, LR, bank_lr_multiplier=7.0, weight_decay=0.05, train=train)
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {g["name"]: [by_id[id(p)] for p in g["params"]] for g in groups}
    listed = [name for names in found.values() for name in names]
    expected = new_names(model) if train == "new" else set(by_id.values())
    assert len(listed) == len(set(listed)) and set(listed) == expected
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "decay": (LR, 0.05),
        "no_decay": (LR, 0.0),
        "bank": (pytest.approx(7 * LR), 0.0),
    }
    assert set(found["bank"]) == {name for name in expected if name.endswith("memory.bank")}
    keys = {name for name in expected if name.endswith(("row_keys", "col_keys"))}
    norms = {name for name in expected if "norm" in name}
    assert set(found["no_decay"]) == keys | norms
    flags = {name for name, value in model.named_parameters() if value.requires_grad}
    assert flags == expected
    torch.optim.AdamW(groups)


def test_biases_are_not_decayed_and_a_frozen_base_gets_no_gradient() -> None:
    model = upscale(tiny("llama", attention_bias=True), **SMALL)
    groups = {g["name"]: g["params"] for g in param_groups(model, LR)}
    biases = [
        p for name, p in model.named_parameters() if name.endswith("bias") and p.requires_grad
    ]
    assert len(biases) == 6  # of query, key and value projection in two blocks
    assert all(any(bias is p for p in groups["no_decay"]) for bias in biases)
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    inserted = new_names(model)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == inserted


def test_all_trains_the_base_too() -> None:
    model = upscale(tiny("llama"), **SMALL)
    param_groups(model, LR)  # freezes the base
    every = {name for name, _ in model.named_parameters()}
    assert moved_after(model, 3, train="all") == every
    base = tiny("llama")
    assert moved_after(base, 1, train="all") == {name for name, _ in base.named_parameters()}
    tied = upscale(tiny("llama", tie_word_embeddings=True), **SMALL)
    counted = [p for group in param_groups(tied, LR, train="all") for p in group["params"]]
    assert sum(p.numel() for p in counted) == tied.num_parameters()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    ids = tokens()
    found = []
    for checkpointing in (False, True):
        model: MidusForCausalLM = upscale(tiny("llama"), **SMALL).train()
        param_groups(model, LR, train="all")
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_what_cannot_be_trained() -> None:
    with pytest.raises(UpscaleError, match="train is 'some'"):
        param_groups(upscale(tiny("llama"), **SMALL), LR, train="some")
    base = tiny("llama")
    with pytest.raises(UpscaleError, match="no inserted blocks"):
        param_groups(base, LR)
    assert all(p.requires_grad for p in base.parameters())


def test_row_sparse_step_touches_only_rows_read() -> None:
    """First step: the rows read move as Adam would move them, the others not at all."""
    model = fill_banks(upscale(tiny(), blocks=[1], num_keys=16, top_k=2, latent_dim=8))
    dense = copy.deepcopy(model)
    batch = tokens(1, 6)
    ((_, memory),), ((_, other),) = memories(model), memories(dense)
    before = memory.bank.detach().clone()

    optimizers = row_sparse_optimizers(model, 1e-3, betas=(0.9, 0.999))
    model(batch, labels=batch).loss.backward()
    read = memory.bank.grad.coalesce().indices()[0]
    assert 0 < len(read) < len(before)
    for optimizer in optimizers:
        optimizer.step()

    groups = param_groups(dense, 1e-3)
    dense(batch, labels=batch).loss.backward()
    torch.optim.AdamW(groups).step()

    unread = torch.ones(len(before), dtype=torch.bool)
    unread[read] = False
    assert torch.equal(memory.bank[unread], before[unread])
    assert not optimizers[-1].state[memory.bank]["exp_avg"][unread].any()
    torch.testing.assert_close(memory.bank[read], other.bank[read])
    torch.testing.assert_close(memory.head_proj, other.head_proj)
