"""Sizes by block and head: shared out by importance, counted to the last parameter, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.errors import HeadError, MidusError, UpscaleError
from midus_model import load, upscale
from midus_model.budgets import block_parameters, budgets, size_fields
from midus_model.config import map_entry
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks, memories

SMALL: dict[str, int] = {"num_keys": 16, "top_k": 4, "latent_dim": 8}


def ranking(rows: list[tuple[int, int, float]], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["layer", "head", "score"]).assign(**columns)


def added(base: Any, **options: Any) -> int:
    return upscale(base, **options).num_parameters() - base.num_parameters()


# ---------------------------------------------------------------- the rule

ROWS = [(1, 3, 0.8), (1, 0, 0.1), (3, 2, 0.2), (3, 1, -0.5), (0, 0, 0.0)]
# mean score (0.8 + 0.1 + 0.2) / 5 = 0.22: 0.8 is 3.6 means, 0.2 is 0.9, 0.1 is 0.45


def test_heads_that_matter_more_get_more_by_hand() -> None:
    found = budgets(ranking(ROWS), tiny("llama"), **SMALL)
    assert found["heads"] == [(0, 0), (1, 0), (1, 3), (3, 1), (3, 2)]
    assert found["top_k"] == {(1, 3): 8, (3, 2): 4, (1, 0): 2, (3, 1): 2, (0, 0): 2}
    assert found["latent_dim"] == {(1, 3): 16, (3, 2): 8, (1, 0): 4, (3, 1): 4, (0, 0): 4}
    # blocks: 0.9, 0.2 and 0 of a mean of 0.367, so shares 2.45, 0.55 and (at least) 0.25
    n = found["num_keys"]
    assert all(value % 2 == 0 for value in n.values())
    for layer, share in {3: 0.545, 0: 0.25}.items():
        assert abs(n[layer] - n[1] * (share / 2.4545) ** 0.5) <= 2
    assert n[1] > n[3] > n[0] >= 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", [None, 60_000, 150_000])
def test_the_sum_keeps_within_the_budget_and_uses_it(family: str, parameters: int | None) -> None:
    base = tiny(family)
    table = ranking(ROWS)
    found = budgets(table, base, parameters=parameters, **SMALL)
    limit = parameters or added(base, heads=[(a, b) for a, b, _ in ROWS], **SMALL)
    spent = added(base, **found)
    larger = found | {"num_keys": {layer: n + 2 for layer, n in found["num_keys"].items()}}
    assert spent <= limit < added(base, **larger)


def test_equal_scores_give_the_equal_sizes() -> None:
    rows = [(1, head, 0.3) for head in range(2)] + [(2, head, 0.3) for head in range(2)]
    for score in (0.3, 0.0, -1.0):
        found = budgets(ranking(rows).assign(score=score), tiny("llama"), **SMALL)
        assert set(found["num_keys"].values()) == {16}
        assert set(found["top_k"].values()) == {4} and set(found["latent_dim"].values()) == {8}
        assert upscale(tiny("llama"), **found).config.memory_sizes is None


def test_a_rankings_top_set_counts_and_its_order_does_not() -> None:
    table = ranking([*ROWS, (2, 2, 9.0)])
    table.attrs["top"] = len(ROWS)
    found = budgets(table, tiny("llama").config, **SMALL)
    assert found == budgets(ranking(ROWS[::-1]), tiny("llama"), **SMALL)
    assert budgets(ranking([(3, 0, 1.0), (5, 1, 0.5)]), "pico", **SMALL)["num_keys"].keys() == {
        3,
        5,
    }


WRONG: list[tuple[Any, dict[str, Any], type[MidusError], str]] = [
    ([(0, 0, 1.0)], {"parameters": 10}, UpscaleError, "parameters is 10, but the smallest"),
    ([(0, 0, 1.0)], {"num_keys": 0}, UpscaleError, "num_keys is 0"),
    ([(0, 0, 1.0)], {"top_k": 1.5}, UpscaleError, "top_k is 1.5"),
    ([(0, 0, float("nan"))], {}, HeadError, "not finite"),
    ([(0, 0, "much")], {}, HeadError, "must be numbers"),
    ([], {}, HeadError, "no heads"),
]


@pytest.mark.parametrize(("rows", "options", "error", "says"), WRONG)
def test_what_cannot_be_shared_out(
    rows: Any, options: dict[str, Any], error: type[MidusError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        budgets(ranking(rows), tiny("llama"), **(SMALL | options))
    assert "\n" not in str(caught.value)


def test_tables_that_say_nothing_of_the_bases_heads() -> None:
    with pytest.raises(HeadError, match="columns layer, head and score"):
        budgets(pd.DataFrame({"layer": [0], "head": [0]}), tiny("llama"))
    with pytest.raises(HeadError, match="columns layer, head and score"):
        budgets([(0, 0)], tiny("llama"))
    with pytest.raises(HeadError, match="up-scaled"):
        budgets(ranking(ROWS, kind="memory"), tiny("llama"))
    assert budgets(ranking(ROWS, kind="attention"), tiny("llama"), **SMALL)


# ---------------------------------------------------------------- accounting


@pytest.mark.parametrize("heads", [None, [0], [0, 1, 3], [1, 2]], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "biased"])
def test_a_block_is_counted_as_it_is_made(family: str, heads: list[int] | None) -> None:
    biased = family == "biased"
    base = tiny("llama", attention_bias=True) if biased else tiny(family)
    chosen = {"blocks": [1]} if heads is None else {"heads": [(1, head) for head in heads]}
    for mixing in (None, "linear"):
        new = upscale(base, **SMALL, **chosen, output_mixing=mixing)
        block = new.model.layers[2]
        counted = block_parameters(base.config, heads, 16, 8, mixing)
        assert counted == sum(parameter.numel() for parameter in block.parameters())
        assert counted == block_parameters(new.config, heads, 16, 8, new.config.output_mixing)


# ---------------------------------------------------------------- sizes by key

HEADS = [(1, 0), (1, 2), (3, 1)]
SIZES: dict[str, Any] = {
    "num_keys": {1: 6, 3: 4},
    "top_k": {(1, 0): 5, (1, 2): 2, (3, 1): 3},
    "latent_dim": {(1, 0): 4, (1, 2): 8, (3, 1): 6},
}


def test_every_block_and_head_gets_its_size() -> None:
    base = tiny("llama")
    new = upscale(base, heads=HEADS, **SIZES)
    assert new.config.memory_sizes == [
        None, None, {"num_keys": 6, "top_k": [5, 2], "latent_dim": [4, 8]},
        None, None, {"num_keys": 4, "top_k": [3], "latent_dim": [6]},
    ]  # fmt: skip
    assert (new.config.num_keys, new.config.memory_top_k, new.config.latent_dim) == (6, 5, 8)
    (_, first), (_, second) = memories(new)
    assert first.row_keys.shape == (2, 6, 8) and first.bank.shape == (36, 8)
    assert second.row_keys.shape == (1, 4, 8) and second.bank.shape == (16, 6)
    assert (first.head_top_k, first.head_latent_dim, first.top_k) == ([5, 2], [4, 8], 5)
    assert second.head_top_k is second.head_latent_dim is None and second.top_k == 3
    assert first.head_proj[0, 4:].abs().max() == 0 and first.head_proj[0, :4].abs().min() > 0
    with torch.no_grad():
        assert torch.equal(new(tokens()).logits, base(tokens()).logits)


def test_sizes_are_saved_and_loaded(tmp_path: Path) -> None:
    model = fill_banks(upscale(tiny("qwen3"), heads=HEADS, **SIZES))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["memory_sizes"] == model.config.memory_sizes
    read = load(tmp_path)
    assert read.config.memory_sizes == model.config.memory_sizes
    with torch.no_grad():
        assert torch.equal(read(tokens()).logits, model(tokens()).logits)


def test_one_size_under_many_keys_is_one_size() -> None:
    base = tiny("llama")
    numbers = {"num_keys": 6, "top_k": 3, "latent_dim": 8}
    by_key = {
        "num_keys": {np.int64(1): np.int64(6), 3: 6},
        "top_k": dict.fromkeys([(np.int64(1), 0), (1, 2), (3, 1)], 3),
        "latent_dim": dict.fromkeys(HEADS, np.int32(8)),
    }
    plain, keyed = (upscale(base, heads=HEADS, **sizes) for sizes in (numbers, by_key))
    assert keyed.config.to_dict() == plain.config.to_dict()
    assert all(torch.equal(a, plain.state_dict()[n]) for n, a in keyed.state_dict().items())


def test_all_heads_may_have_their_own_sizes() -> None:
    slots = {(layer, head): 1 + head for layer in (1, 3) for head in range(4)}
    new = upscale(tiny("llama"), num_keys=4, latent_dim=8, top_k=slots)
    assert [m.head_top_k for _, m in memories(new)] == [[1, 2, 3, 4]] * 2


WRONG_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"num_keys": {1: 6}}, "num_keys leaves out layer 3"),
    ({"num_keys": {1: 6, 3: 4, 2: 4}}, "num_keys names layer 2"),
    ({"top_k": {(1, 0): 2, (3, 1): 2}}, r"top_k leaves out head \(layer, head\) \(1, 2\)"),
    ({"latent_dim": dict.fromkeys([*HEADS, (0, 0)], 4)}, "latent_dim names head"),
    ({"num_keys": {1: 6, 3: 0}}, "num_keys is 0"),
    ({"num_keys": {1: 6, 3: "many"}}, "num_keys is 'many'"),
    ({"latent_dim": {(1, 0): 4, (1, 2): 2.5, (3, 1): 6}}, "latent_dim is 2.5"),
    ({"top_k": {(1, 0): 5, (1, 2): 2, (3, 1): 5}}, "top_k is 5; .* num_keys = 4"),
    ({"top_k": {}}, "top_k leaves out"),
]


@pytest.mark.parametrize(("options", "says"), WRONG_SIZES)
def test_sizes_that_do_not_fit_the_heads(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UpscaleError, match=says) as caught:
        upscale(tiny("llama"), heads=HEADS, **(SIZES | options))
    assert "\n" not in str(caught.value)


def test_fields_of_a_map_without_sizes_of_its_own() -> None:
    entries = [map_entry("base", 0), map_entry("memory", 0), map_entry("base", 1)]
    fields = size_fields(tiny("llama").config, entries, 8, 3, 16)
    assert fields == {"num_keys": 8, "memory_top_k": 3, "latent_dim": 16, "memory_sizes": None}
