"""Costs: counts equal to the real modules, FLOPs equal to torch's own counter, bytes by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from analysis.costs import COMPONENTS, MEASURES, costs, mean_keys, memory_flops, parameter_formula
from kernels.errors import MidusError, UnsupportedArchitecture
from midus_model import upscale
from tests.models import FAMILIES, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, tiny, tokens

DOCS = Path(__file__).parents[2] / "docs" / "costs.md"
COMMON = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
CONFIGS: dict[str, Any] = {
    "llama-3.2-1b": lambda: LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, intermediate_size=8192, tie_word_embeddings=True, **COMMON,
    ),
    "llama-3.1-8b": lambda: LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, intermediate_size=14336, tie_word_embeddings=False, **COMMON,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=3072, vocab_size=151936, tie_word_embeddings=True,
    ),
    "mistral-7b": lambda: MistralConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, intermediate_size=14336, vocab_size=32000,
    ),
    "llama with biases": lambda: LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, vocab_size=128, attention_bias=True, mlp_bias=True,
    ),
}  # fmt: skip
PUBLISHED = {"llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248}


# Layer 1 uses key-value head 0 once and head 1 twice, so that its cache holds three.
UNEVEN: dict[str, Any] = {
    "heads": [(1, 0), (1, 2), (1, 3), (3, 1)],
    "num_keys": {1: 8, 3: 4},
    "top_k": {(1, 0): 2, (1, 2): 5, (1, 3): 1, (3, 1): 3},
    "latent_dim": {(1, 0): 6, (1, 2): 3, (1, 3): 6, (3, 1): 8},
}


@cache
def on_meta(name: str, up_scaled: bool) -> Any:
    """The model of that shape without weights; up-scaled with the default blocks."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    return upscale(model, num_keys=256, top_k=32, latent_dim=128) if up_scaled else model


def total(table: pd.DataFrame, column: str = "parameters", component: str = "total") -> int:
    return int(table.set_index("component").loc[component, column])


@pytest.mark.parametrize("up_scaled", [False, True], ids=["base", "midus"])
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_the_instantiated_model(name: str, up_scaled: bool):
    model = on_meta(name, up_scaled)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert total(costs(model.config)) == total(costs(model)) == counted
    assert parameter_formula(model.config) == counted
    if name in PUBLISHED:
        assert up_scaled or counted == PUBLISHED[name]
        assert f"{counted:,}" in DOCS.read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_documented_table_is_what_costs_says(name: str):
    text = DOCS.read_text()
    for up_scaled in (False, True):
        table = costs(on_meta(name, up_scaled), context=1024, dtype="bfloat16")
        for column in ("weight_bytes_per_token", "kv_bytes_per_token"):
            assert f"| {total(table, column) / 1e6:,.1f} |" in text
        assert f"| {total(table, 'flops_per_token') / 1e9:.3f} |" in text
    assert f"| {total(table, 'parameters', 'memory'):,} |" in text
    copies = parameter_formula(upscale(on_meta(name, False), "llama-pro").config)
    assert f"{copies:,}" in text


@pytest.mark.parametrize(
    "changes",
    [{"heads": [(1, 2), (1, 3), (3, 0)]}, {"output_mixing": "linear"}, {"method": "llama-pro"},
     {"blocks": [0, 1, 2]}, UNEVEN],
    ids=["chosen heads", "linear", "llama-pro", "blocks", "uneven"],
)  # fmt: skip
def test_formula_knows_the_options(changes: dict[str, Any]):
    model = upscale(tiny(), **changes)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_formula(model.config) == total(costs(model)) == counted


@pytest.mark.parametrize("up_scaled", [False, True], ids=["base", "midus"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_equal_torchs_counter(family: str, up_scaled: bool):
    # A full square of S x S scores is the causal mean over C = 2 S - 1 positions, times S.
    length = 12
    changes = {"sliding_window": None} if family == "mistral" else {}
    model = tiny(family, attn_implementation="eager", **changes)
    model = upscale(model, num_keys=8, top_k=3, latent_dim=8) if up_scaled else model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(1, length))
    counts = counter.get_flop_counts()
    table = costs(model, context=2 * length - 1)
    of = {name: 0 for name in ("attention", "ffn", "memory", "lm_head")}
    paths = {"self_attn": "attention", "mlp": "ffn", "memory": "memory", "lm_head": "lm_head"}
    for module, ops in counts.items():
        last = module.split(".")[-1]
        if last in paths:
            of[paths[last]] += sum(ops.values())
    for layer in model.model.layers:
        if hasattr(layer, "memory"):  # additions and the gather are no matrix products
            heads, k, r = len(layer.memory.heads), 3, 8
            of["memory"] += length * heads * (k * k + 2 * k * r)
    for component, flops in of.items():
        assert total(table, "flops_per_token", component) * length == flops, component
    assert (of["memory"] > 0) == up_scaled


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_chosen_heads_equal_torchs_counter(family: str):
    length = 12
    changes = {"sliding_window": None} if family == "mistral" else {}
    model = upscale(tiny(family, attn_implementation="eager", **changes), **UNEVEN)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(1, length))
    counts = counter.get_flop_counts()
    table = costs(model, context=2 * length - 1)  # see above
    attention = sum(sum(ops.values()) for at, ops in counts.items() if at.endswith("self_attn"))
    assert total(table, "flops_per_token", "attention") * length == attention
    memory = sum(sum(ops.values()) for at, ops in counts.items() if at.endswith("memory"))
    for heads, k, r in ((3, 5, 6), (1, 3, 8)):  # as many for each head as for the largest
        memory += length * heads * (k * k + 2 * k * r)
    assert total(table, "flops_per_token", "memory") * length == memory


def test_bytes_of_chosen_heads_by_hand():
    model = upscale(tiny(), **UNEVEN)
    table = costs(model, context=20).set_index("component")
    size = HIDDEN // HEADS
    cached = LAYERS * KV_HEADS + 3 + 1
    assert table.loc["attention", "kv_bytes_per_token"] == 4 * 2 * size * 20 * cached
    read = 3 * size * (8 + 6) + 3 * 5 * 6 + size * (4 + 8) + 3 * 8
    assert table.loc["memory", "weight_bytes_per_token"] == 4 * read
    rows = LAYERS * (2 * HEADS + 2 * KV_HEADS) + (3 + 2 * 2) + (1 + 2 * 1)
    assert table.loc["attention", "parameters"] == rows * size * HIDDEN


def test_memory_flops_by_hand():
    memory = on_meta("llama-3.2-1b", True).model.layers[2].memory
    scores, pairs, gather, expand = 2 * 256 * 64, 32 * 32, 2 * 32 * 128, 2 * 128 * 64
    assert memory_flops(memory) == 32 * (scores + pairs + gather + expand)


@pytest.mark.parametrize(("context", "window"), [(1, None), (9, None), (9, 4), (4, 4), (3, 8)])
def test_mean_keys_counts_a_causal_mask(context: int, window: int | None):
    seen = [min(t, window or t) for t in range(1, context + 1)]
    assert mean_keys(context, window) == pytest.approx(sum(seen) / context)


def test_bytes_by_hand():
    model = upscale(tiny(), num_keys=8, top_k=3, latent_dim=8)  # 4 layers, 2 memory blocks
    table = costs(model, context=20, dtype="bfloat16").set_index("component")
    read = table["weight_bytes_per_token"]
    assert read["embeddings"] == 2 * HIDDEN
    assert read["lm_head"] == 2 * HIDDEN * VOCABULARY
    assert read["ffn"] == 2 * 4 * 3 * HIDDEN * 96
    size = HIDDEN // HEADS
    assert read["memory"] == 2 * 2 * (HEADS * 8 * size + HEADS * 3 * 8 + HEADS * 8 * size)
    cache = table["kv_bytes_per_token"]
    assert cache["attention"] == cache["total"] == 6 * 2 * KV_HEADS * size * 20 * 2
    assert costs(model, context=20).attrs["dtype"] == "float32"


def test_a_bank_is_read_at_most_whole():
    model = upscale(tiny(), num_keys=2, top_k=2, latent_dim=8)  # 8 reads of 4 slots
    table = costs(model)
    per_block = HEADS * 2 * 16 + 4 * 8 + HEADS * 8 * 16
    assert total(table, "weight_bytes_per_token", "memory") == 4 * 2 * per_block


def test_tied_output_matrix_counts_once_but_is_read():
    table = costs(tiny(tie_word_embeddings=True))
    assert total(table, "parameters", "lm_head") == 0
    assert total(table, "weight_bytes_per_token", "lm_head") == 4 * HIDDEN * VOCABULARY
    assert total(table, "flops_per_token", "lm_head") == 2 * HIDDEN * VOCABULARY


def test_sliding_window_bounds_scores_and_cache():
    near, far = costs(tiny("mistral"), context=16), costs(tiny("mistral"), context=64)
    row = 2 * KV_HEADS * 16 * 4
    assert total(near, "kv_bytes_per_token") == total(far, "kv_bytes_per_token") == 4 * 16 * row
    full = costs(tiny("mistral", sliding_window=None), context=64)
    assert total(full, "kv_bytes_per_token") == 4 * 64 * row
    assert total(full, "flops_per_token") > total(far, "flops_per_token")


def test_table_adds_up_and_says_what_it_is():
    model = upscale(tiny(), num_keys=8, top_k=3, latent_dim=8)
    table = costs(model, context=20)
    assert table["component"].tolist() == [*COMPONENTS, "total"]
    assert table.set_index("component")["blocks"].to_dict() == {
        "embeddings": 0, "attention": 6, "ffn": 4, "norms": 6, "memory": 2, "lm_head": 0,
        "total": 6,
    }  # fmt: skip
    for column in MEASURES:
        assert table[column].iloc[:-1].sum() == table[column].iloc[-1]
    assert table.attrs["context"] == 20 and table.attrs["latency_ms"] is None


@pytest.mark.parametrize("source", ["model", "config"])
def test_latency_is_measured(source: str):
    model = upscale(tiny(), num_keys=8, top_k=3, latent_dim=8)
    times = costs(model if source == "model" else model.config, context=8, latency=True).attrs[
        "latency_ms"
    ]
    assert times["prefill"] > 0 and times["decode"] > 0
    assert times["device"] == "cpu" and times["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("context", [1, 64])
def test_latency_at_the_ends_of_the_context(context: int):
    times = costs(tiny("mistral"), context=context, latency=True).attrs["latency_ms"]
    assert times["decode"] > 0


def test_default_is_a_shipped_name():
    table = costs("pico")
    assert table.attrs["model"] == "pico" and table.attrs["context"] == 256
    assert total(table) == 2_828_736


def test_the_configuration_is_left_as_it_was():
    config = CONFIGS["llama with biases"]()
    before = config.to_dict()
    costs(config, dtype="bfloat16")
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context is 0; it must be between 1 and the model's 64"),
        ({"context": 65}, "context is 65"),
        ({"context": "all"}, "whole number"),
        ({"dtype": "int8"}, "give a float type"),
        ({"dtype": "bf16"}, "give a float type"),
        ({"dtype": "bfloat16", "latency": True}, "convert the model first"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: dict[str, Any], message: str):
    with pytest.raises(MidusError, match=message) as raised:
        costs(tiny(), **arguments)
    assert "\n" not in str(raised.value)


def test_wrong_models_get_one_line():
    with pytest.raises(MidusError, match="got int"):
        costs(5)
    for given in (GPT2Config(), PreTrainedConfig()):
        with pytest.raises(UnsupportedArchitecture, match="supported are llama"):
            costs(given)
    with pytest.raises(UnsupportedArchitecture, match="no formula for model type 'gpt2'"):
        parameter_formula(GPT2Config())
    with pytest.raises(MidusError, match="meta device"):
        costs(on_meta("llama with biases", False), latency=True)
