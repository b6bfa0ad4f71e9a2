"""Up-scaling: equal to the base bit for bit, saved and loaded, generating as without a cache."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from analysis.costs import parameter_formula
from kernels.errors import (
    HeadError,
    MidusError,
    ModelError,
    UnsupportedArchitecture,
    UpscaleError,
)
from midus_model import MidusConfig, MidusForCausalLM, load, param_groups, upscale
from midus_model.keys import set_query_keys
from tests.models import FAMILIES, HEADS, LAYERS, tiny, tokens
from tests.reference import fill_banks, watched

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
MARGIN = 1e-5


def grown(model: Any, method: str = "midus", **options: Any) -> Any:
    return upscale(model, method, **(SMALL | options if method == "midus" else options))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model(ids, **inputs).logits


def fingerprint(model: Any) -> str:
    """Hash of every parameter, buffer and flag, and of the configuration."""
    digest = hashlib.sha256(repr(sorted(model.config.to_dict().items(), key=str)).encode())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, value in tensors:
        raw = value.detach().contiguous().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {value.dtype} {value.requires_grad}".encode() + raw)
    return digest.hexdigest()


def a_few_steps(model: Any, steps: int = 3, lr: float = 1e-2) -> Any:
    """Train the inserted blocks a little; returns the model in eval mode."""
    optimiser = torch.optim.AdamW(param_groups(model, lr, weight_decay=0.0))
    for step in range(steps):
        ids = tokens(2, 16, seed=100 + step)
        model(ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


# ---------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("method", ["midus", "llama-pro"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_base_bit_for_bit(family: str, dtype: torch.dtype, method: str) -> None:
    base = tiny(family, dtype)
    new = grown(base, method)
    ids = tokens(2, 24)
    assert torch.equal(logits(new, ids), logits(base, ids))
    assert new.dtype == dtype and len(new.model.layers) == LAYERS + LAYERS // 2
    padded = ids.clone()
    mask = torch.ones_like(ids)
    padded[0, :7], mask[0, :7] = 0, 0
    inputs = {"attention_mask": mask}
    assert torch.equal(logits(new, padded, **inputs), logits(base, padded, **inputs))


PLACES: list[tuple[dict[str, Any], list[int]]] = [
    # options, source layer of every block where 10 + i is what was inserted for layer i
    ({}, [0, 1, 11, 2, 3, 13]),
    ({"blocks": 1}, [0, 1, 2, 3, 13]),
    ({"blocks": 3}, [0, 10, 1, 11, 2, 3, 13]),
    ({"blocks": 4}, [0, 10, 1, 11, 2, 12, 3, 13]),
    ({"blocks": [0, 3]}, [0, 10, 1, 2, 3, 13]),
    ({"blocks": [2], "placement": "before"}, [0, 1, 12, 2, 3]),
    ({"blocks": 2, "placement": "before"}, [0, 11, 1, 2, 13, 3]),
]


@pytest.mark.parametrize("method", ["midus", "llama-pro"])
@pytest.mark.parametrize(("options", "order"), PLACES)
def test_blocks_and_placement(options: dict[str, Any], order: list[int], method: str) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    base = tiny("qwen3", sliding_window=8, use_sliding_window=True, layer_types=kinds)
    new = grown(base, method, **options)
    inserted = "memory" if method == "midus" else "copy"
    assert new.config.layer_map == [
        {"kind": inserted if at >= 10 else "base", "source": [at % 10], "heads": None}
        for at in order
    ]
    assert new.config.layer_types == [kinds[at % 10] for at in order]
    assert new.config.num_hidden_layers == len(order) == len(new.model.layers)
    assert [block.self_attn.layer_idx for block in new.model.layers] == list(range(len(order)))
    ids = tokens(2, 24)
    assert torch.equal(logits(new, ids), logits(base, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_for_chosen_heads_only(family: str) -> None:
    base = tiny(family)
    new = grown(base, heads=[(2, 3), (0, 1), (2, 0)])
    kinds = [(entry["kind"], entry["source"], entry["heads"]) for entry in new.config.layer_map]
    assert kinds == [
        ("base", [0], None),
        ("memory", [0], [1]),
        ("base", [1], None),
        ("base", [2], None),
        ("memory", [2], [0, 3]),
        ("base", [3], None),
    ]
    assert new.model.layers[4].memory.row_keys.shape[0] == 2
    ids = tokens(2, 24)
    assert torch.equal(logits(new, ids), logits(base, ids))
    table = pd.DataFrame({"layer": [2, 0, 2, 1], "head": [3, 1, 0, 2]})
    table.attrs["top"] = 3
    assert grown(base, heads=table).config.layer_map == new.config.layer_map


def test_a_memory_block_starts_from_its_source() -> None:
    base = tiny("qwen3-wide")
    new = grown(base, blocks=[1])
    block, source = new.model.layers[2], base.model.layers[1]
    assert torch.equal(block.input_layernorm.weight, source.input_layernorm.weight)
    for name, value in source.self_attn.state_dict().items():
        if name == "o_proj.weight":
            assert torch.equal(block.memory.out_proj.weight, value)
        else:
            assert torch.equal(block.self_attn.state_dict()[name], value), name
    names = {name.removeprefix("memory.") for name, _ in block.named_parameters()}
    assert {"row_keys", "col_keys", "bank", "head_proj", "out_proj.weight"} <= names
    assert not [name for name in names if "mlp" in name or "o_proj" in name]
    assert block.memory.bank.abs().max() == 0
    assert block.memory.head_proj.std() > 0 and block.memory.row_keys.std() > 0


def test_the_base_and_the_global_random_state_are_left_as_they_were() -> None:
    base = tiny("llama")
    base.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before, state = fingerprint(base), torch.get_rng_state()
    for method in ("midus", "llama-pro"):
        new = grown(base, method)
        assert fingerprint(base) == before
        shared = {p.data_ptr() for p in new.parameters()} & {
            p.data_ptr() for p in base.parameters()
        }
        assert not shared
        a_few_steps(new, steps=1)
        assert fingerprint(base) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["midus", "llama-pro"])
def test_how_the_base_generates_is_kept_apart(method: str) -> None:
    base = tiny("llama")
    base.generation_config.update(temperature=0.3, do_sample=True, eos_token_id=[2, 5])
    new = grown(base, method)
    assert new.generation_config.to_dict() == base.generation_config.to_dict()
    assert new.generation_config.temperature == 0.3
    new.generation_config.temperature = 0.9
    new.generation_config.eos_token_id.append(7)
    assert base.generation_config.temperature == 0.3
    assert base.generation_config.eos_token_id == [2, 5]


def test_the_seed_alone_sets_keys_and_head_projections() -> None:
    base = tiny("llama")
    first, second, other = (grown(base, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)
    keys = [first.model.layers[layer].memory.row_keys for layer in (2, 5)]
    assert not torch.equal(*keys)
    assert upscale(base.train(), **SMALL).training


@pytest.mark.parametrize("form", ["rows", "list"])
def test_keys_from_what_the_heads_ask(form: str) -> None:
    base, ids = tiny("llama"), tokens(6, 24)
    given = ids if form == "rows" else [ids[0, :9], *ids[1:]]
    new = grown(base, key_init="queries", calibration=given, seed=3)
    plain = grown(base, seed=3)
    assert new.config.key_init == "queries" and plain.config.key_init == "uniform"
    assert torch.equal(logits(new, ids), logits(base, ids))
    set_query_keys(plain, given, seed=3)
    assert all(torch.equal(value, plain.state_dict()[n]) for n, value in new.state_dict().items())
    uniform = grown(base, seed=3).state_dict()
    differ = {n for n, value in new.state_dict().items() if not torch.equal(value, uniform[n])}
    assert differ == {f"model.layers.{at}.memory.{k}_keys" for at in (2, 5) for k in ("row", "col")}


def test_tied_embeddings_stay_tied() -> None:
    base = tiny("llama", tie_word_embeddings=True)
    for method in ("midus", "llama-pro"):
        new = grown(base, method)
        assert new.lm_head.weight is new.model.embed_tokens.weight
        assert new.lm_head.weight is not base.lm_head.weight


def test_left_padding_does_not_reach_the_memory() -> None:
    model = fill_banks(grown(tiny("llama")))
    ids = tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(17) >= 5).long()[None]
    with watched(model) as choices:
        alone = logits(model, ids)
    assert choices.margin > MARGIN
    positions = (torch.arange(17) - 5).clamp(min=0)[None]
    moved = logits(model, padded, attention_mask=mask, position_ids=positions)
    assert (moved[:, 5:] - alone).abs().max() < 1e-4


# ---------------------------------------------------------------- generation


def agree(model: Any, ids: torch.Tensor, with_cache: torch.Tensor, without: torch.Tensor) -> None:
    """Equal tokens, but past a position of a row whose logit or slot margin is below 1e-5."""
    assert with_cache.shape == without.shape
    for row, other in zip(with_cache, without, strict=True):
        differ = (row != other).nonzero()
        if len(differ) == 0:
            continue
        first = int(differ[0])
        with watched(model) as choices:
            best = logits(model, other[None, :first])[0, -1].topk(2).values
        assert min(float(best[0] - best[1]), choices.margin) < MARGIN, f"token {first} differs"


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_with_a_cache_equals_without(family: str, trained: bool) -> None:
    base = tiny(family)
    model = grown(base)
    if trained:
        model = a_few_steps(model)
        assert all(memory.bank.abs().max() > 0 for memory in [model.model.layers[2].memory])
    ids = tokens(2, 10)
    how = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    mask = torch.ones_like(ids)
    runs = [model.generate(ids, attention_mask=mask, use_cache=c, **how) for c in (True, False)]
    agree(model, ids, *runs)
    of_base = base.generate(ids, attention_mask=mask, **how)
    assert torch.equal(runs[0], of_base) != trained
    if family == "llama":
        mask[0, :4] = 0
        runs = [model.generate(ids, attention_mask=mask, use_cache=c, **how) for c in (True, False)]
        assert torch.equal(*runs)


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_is_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny(family, dtype).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    assert base.dtype == dtype
    model = fill_banks(grown(base, heads=[(1, 2), (3, 0)] if family == "mistral" else None))
    model.save_pretrained(tmp_path / "new")
    ids = tokens(2, 24)
    expected = logits(model, ids)
    assert not torch.equal(expected, logits(base, ids))
    for read in (
        load(tmp_path / "new"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "new"),
        MidusForCausalLM.from_pretrained(tmp_path / "new"),
    ):
        assert isinstance(read, MidusForCausalLM) and read.dtype == dtype
        assert torch.equal(logits(read.eval(), ids), expected)
        assert read.config.layer_map == model.config.layer_map
    config = AutoConfig.from_pretrained(tmp_path / "new")
    assert isinstance(config, MidusConfig)
    assert config.base_model_type == base.config.model_type
    assert config.rope_parameters == base.config.rope_parameters
    assert (config.num_keys, config.memory_top_k, config.latent_dim) == (4, 3, 8)


def test_tied_embeddings_are_saved_once(tmp_path: Path) -> None:
    model = fill_banks(grown(tiny("llama", tie_word_embeddings=True)))
    model.save_pretrained(tmp_path)
    read = load(tmp_path)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert torch.equal(logits(read, tokens()), logits(model, tokens()))


PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["ids"]).logits}, sys.argv[3])
assert type(model).__name__ == "LlamaForCausalLM" and len(model.config.layer_map) == 6
assert not [name for name in sys.modules if name.startswith("midus_model")]
"""


def test_llama_pro_is_a_plain_llama_to_others(tmp_path: Path) -> None:
    model = a_few_steps(grown(tiny("llama"), "llama-pro"))
    assert type(model) is LlamaForCausalLM
    model.save_pretrained(tmp_path / "model")
    save_file({"ids": tokens()}, tmp_path / "ids")
    command = [sys.executable, "-c", PLAIN, "model", "ids", "logits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "logits")["logits"], logits(model, tokens()))
    assert load(tmp_path / "model").config.layer_map == model.config.layer_map


# ---------------------------------------------------------------- sizes

LLAMA_1B = {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("shape", "count"), [(LLAMA_1B, 1_235_814_400), (LLAMA_8B, 8_030_261_248)], ids=["1B", "8B"]
)
def test_parameter_counts_on_the_meta_device(shape: dict[str, Any], count: int) -> None:
    common = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**common, **shape))
    assert base.num_parameters() == parameter_formula(base.config) == count
    layers, d, size = shape["num_hidden_layers"], shape["hidden_size"], shape["head_dim"]
    new = upscale(base)
    assert all(parameter.is_meta for parameter in new.parameters())
    assert len(new.model.layers) == layers + layers // 2
    attention = d + d * 32 * size + 2 * d * 8 * size  # input norm, query, keys and values
    memory = 32 * 256 * size + 256 * 256 * 128 + 32 * 128 * size  # keys, bank, head projections
    assert new.num_parameters() == count + layers // 2 * (attention + memory)
    assert new.num_parameters() == parameter_formula(new.config)
    copies = upscale(base, "llama-pro")
    assert copies.num_parameters() == parameter_formula(copies.config)
    some = upscale(base, heads=[(3, 1), (3, 7), (9, 0)], output_mixing="linear")
    assert some.num_parameters() == parameter_formula(some.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_counts_every_family(family: str) -> None:
    for model in (tiny(family), grown(tiny(family)), grown(tiny(family), "llama-pro")):
        assert model.num_parameters() == parameter_formula(model.config)


# ---------------------------------------------------------------- what cannot be done

WRONG: list[tuple[dict[str, Any], type[MidusError], str]] = [
    ({"method": "solarium"}, UpscaleError, "method is 'solarium'"),
    ({"placement": "under"}, UpscaleError, "placement is 'under'"),
    ({"blocks": 0}, UpscaleError, "blocks is 0"),
    ({"blocks": LAYERS + 1}, UpscaleError, f"between 1 and {LAYERS}"),
    ({"blocks": []}, UpscaleError, "blocks is"),
    ({"blocks": [1, 1]}, UpscaleError, "once"),
    ({"blocks": [-1]}, UpscaleError, "0-3"),
    ({"blocks": [LAYERS]}, UpscaleError, "0-3"),
    ({"blocks": "two"}, UpscaleError, "blocks is 'two'"),
    ({"blocks": 1.5}, UpscaleError, "blocks is 1.5"),
    ({"blocks": True}, UpscaleError, "blocks is True"),
    ({"blocks": [0.5]}, UpscaleError, "blocks is"),
    ({"blocks": [1], "heads": [(1, 0)]}, UpscaleError, "not both"),
    ({"method": "llama-pro", "heads": [(1, 0)]}, UpscaleError, "heads="),
    ({"heads": []}, HeadError, "no heads"),
    ({"heads": [(0, HEADS)]}, HeadError, "does not exist"),
    ({"heads": [(LAYERS, 0)]}, HeadError, "does not exist"),
    ({"heads": [(0, -1)]}, HeadError, "does not exist"),
    ({"heads": [3]}, HeadError, "pairs"),
    ({"heads": 7}, HeadError, "pairs"),
    ({"heads": [(0.5, 1)]}, HeadError, "pairs"),
    ({"heads": "nowhere.json"}, HeadError, "nowhere.json"),
    ({"num_keys": 0}, UpscaleError, "num_keys"),
    ({"num_keys": 4, "top_k": 5}, UpscaleError, "top_k is 5"),
    ({"top_k": 0}, UpscaleError, "top_k is 0"),
    ({"top_k": 2.5}, UpscaleError, "top_k"),
    ({"num_keys": "many"}, UpscaleError, "num_keys"),
    ({"latent_dim": 0}, UpscaleError, "latent_dim is 0"),
    ({"output_mixing": "tangled"}, UpscaleError, "output_mixing is 'tangled'"),
    ({"key_init": "zero"}, UpscaleError, "key_init is 'zero'"),
    ({"key_init": "queries"}, UpscaleError, "give calibration="),
    ({"calibration": [[3, 4]]}, UpscaleError, "'queries' makes use of it"),
    (
        {"key_init": "queries", "calibration": [[3]], "method": "llama-pro"},
        UpscaleError,
        "has no keys",
    ),
]


@pytest.mark.parametrize(("options", "error", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_every_bad_argument_gets_one_clear_line(
    options: dict[str, Any], error: type[MidusError], says: str
) -> None:
    base = tiny("llama")
    before = fingerprint(base)
    with pytest.raises(error) as caught:
        upscale(base, **(SMALL | options))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert fingerprint(base) == before


def test_models_that_cannot_be_up_scaled() -> None:
    new = grown(tiny("llama"))
    with pytest.raises(UpscaleError, match="up-scaled already"):
        upscale(new)
    with pytest.raises(UpscaleError, match="up-scaled already"):
        upscale(grown(tiny("llama"), "llama-pro"))
    with pytest.raises(UpscaleError, match="'linear' would do"):
        upscale(tiny("qwen3-wide"), output_mixing="none")
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(ModelError, match=r"midus_model\.load\('pico'\)"):
        upscale("pico")
    for other in (gpt2, torch.nn.Linear(2, 2), tiny("llama").model):
        with pytest.raises(UnsupportedArchitecture, match="not supported"):
            upscale(other)


def wrong_sizes() -> list[Any]:
    """Entries of memory_sizes that do not fit a model with memory after layers 1 and 3."""
    right: dict[str, Any] = {"num_keys": 4, "top_k": [1, 2, 3, 4], "latent_dim": [8] * HEADS}
    wrong = [
        None, {}, 4, right | {"top_k": 3}, right | {"top_k": [3]}, right | {"num_keys": 3},
        right | {"latent_dim": [8, 8, 8, 0]}, right | {"num_keys": None}, right | {"extra": 1},
    ]  # fmt: skip
    maps = [[None, None, entry, None, None, right] for entry in wrong]
    return [*maps, [None] * 6, [right] * 6, [None, None, right], {"2": right}, []]


def test_configurations_that_do_not_hold_together() -> None:
    config = grown(tiny("llama")).config.to_dict()
    for changes, error in (
        ({"layer_map": config["layer_map"][:-1]}, UpscaleError),
        ({"base_model_type": "gpt2"}, UnsupportedArchitecture),
        ({"key_init": "zero"}, UpscaleError),
        *[({"memory_sizes": sizes}, UpscaleError) for sizes in wrong_sizes()],
    ):
        fields = {key: value for key, value in config.items() if key != "model_type"} | changes
        with pytest.raises(error):
            MidusConfig(**copy.deepcopy(fields))
