"""Configurations: every rotary setting and family through up-scaling, saving and generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from analysis.costs import parameter_formula
from midus_model import MidusConfig, blocks, lean_blocks, load, upscale
from midus_model.config import layer_map_of
from tests.models import FAMILIES, tiny, tokens

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
CONTEXT, ORIGINAL, HALF = 14, 10, 8  # tokens, of them those of the first training; D / 2
LONG = [1.0 + 0.3 * at for at in range(HALF)]
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 16.0},
    "longrope": {
        "factor": 4.0, "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * HALF, "long_factor": LONG,
    },
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.5, "factor": 2.0},
}  # fmt: skip
SHIFTING = ("dynamic", "longrope", "yarn")  # frequencies or a scale of their own
SETTINGS = [("llama", rope, "new") for rope in ROPES]
SETTINGS += [(family, rope, "new") for family in ("qwen3", "mistral") for rope in SHIFTING]
SETTINGS += [("llama", "llama3", "old")]
REST = [(family, rope, "new") for family in ("qwen3", "mistral") for rope in ROPES]
REST += [("llama", rope, "old") for rope in ROPES if rope not in ("default", "proportional")]
CASES = SETTINGS + [
    pytest.param(*rest, marks=pytest.mark.verify) for rest in REST if rest not in SETTINGS
]
SHORT, PAST = tokens(2, 8), tokens(2, 24)  # within the first context, and past both


def base_of(family: str, rope: str, spelling: str = "new") -> Any:
    """A tiny model, its rotary setting as configurations write it now or wrote it before."""
    theta, fields = 5000.0, ROPES[rope]
    if spelling == "old":
        given: dict[str, Any] = {"rope_scaling": {"type": rope, **fields}, "rope_theta": theta}
    else:
        given = {"rope_parameters": {"rope_type": rope, "rope_theta": theta, **fields}}
    return tiny(family, num_hidden_layers=2, max_position_embeddings=CONTEXT, **given)


@torch.no_grad()
def passes(model: Any) -> list[torch.Tensor]:
    """Logits of a short text, of one past the context, and of the short one again: [B, T, V]."""
    return [model(ids, use_cache=False).logits for ids in (SHORT, PAST, SHORT)]


def generated(model: Any) -> torch.Tensor:
    """Greedily, from within the first context to past both."""
    model(SHORT)  # as if new: dynamic frequencies go back to where they started
    mask = torch.ones_like(SHORT)
    how = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    return model.generate(SHORT, attention_mask=mask, **how)


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_every_rotary_setting_of_transformers_is_tried() -> None:
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(("family", "rope", "spelling"), CASES)
def test_every_rotary_setting(family: str, rope: str, spelling: str, tmp_path: Path) -> None:
    base = base_of(family, rope, spelling)
    expected, text = passes(base), generated(base)
    if rope != "default":  # it does something, and past the context too
        other = passes(base_of(family, "default"))
        assert not torch.equal(expected[1], other[1])
    new, copies = upscale(base, **SMALL), upscale(base, "llama-pro")
    for model in (new, copies):
        assert equal(passes(model), expected)
        assert torch.equal(generated(model), text)
        assert model.model.rotary_emb.config is model.config
    config = new.config
    assert config.rope_parameters == base.config.rope_parameters
    assert MidusConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    new.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    kept = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    assert {key: again.get(key) for key in kept} == kept
    for read in (load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        assert equal(passes(read), expected)
        assert torch.equal(generated(read), text)


@torch.no_grad()
@pytest.mark.parametrize("rope", ROPES)
def test_lean_blocks_turn_by_the_same_angles(rope: str) -> None:
    model = upscale(base_of("qwen3", rope), **SMALL)
    expected = passes(model)
    with lean_blocks(blocks(model)):
        assert sum("forward" in vars(block) for block in blocks(model)) == 2
        found = passes(model)
    for lean, plain in zip(found, expected, strict=True):
        assert 0 < (lean - plain).abs().max() < 2e-5


def test_the_first_context_beside_the_rotary_setting() -> None:
    """As Phi-3 and those after it write it: it goes before what the setting itself says."""
    fields = {k: v for k, v in ROPES["longrope"].items() if not k.startswith(("orig", "factor"))}
    base = tiny(
        "llama",
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, **fields},
    )
    new = upscale(base, **SMALL)
    assert new.model.rotary_emb.attention_scaling > 1
    assert equal(passes(new), passes(base))
    config = MidusConfig.from_dict(new.config.to_dict())
    assert config.rope_parameters["original_max_position_embeddings"] == ORIGINAL


def test_older_spellings_are_read_once() -> None:
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    config = MidusConfig(base_model_type="llama", partial_rotary_factor=0.5, **old)
    wanted = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    assert config.rope_parameters == {"type": "linear", **wanted}
    assert "rope_theta" not in vars(config) and "rope_scaling" not in config.to_dict()
    fewer = MidusConfig(rope_parameters={"rope_type": "llama3", **ROPES["llama3"]})
    assert fewer.rope_parameters["rope_theta"] == 10000.0


# ---------------------------------------------------------------- other fields of the families

FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("qwen3", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": None, "max_position_embeddings": 2048}),  # Llama's default
    ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5}),
    ("llama", {"tie_word_embeddings": True, "pad_token_id": None, "eos_token_id": [2, 5, 7]}),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True, "hidden_act": "gelu"}),
]


@torch.no_grad()
@pytest.mark.parametrize("method", ["midus", "llama-pro"])
@pytest.mark.parametrize(("family", "fields"), FIELDS)
def test_a_familys_fields_stay(
    family: str, fields: dict[str, Any], method: str, tmp_path: Path
) -> None:
    base = tiny(family, **fields)
    base.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"  # as published: top_k without sampling
    known = json.loads(path.read_text()) | {"eos_token_id": [2, 5], "top_k": 7}
    path.write_text(json.dumps(known))
    base = load(tmp_path / "base")
    new = upscale(base, method, **(SMALL if method == "midus" else {}))
    new.save_pretrained(tmp_path / "new")
    read = load(tmp_path / "new")
    counted = {"num_hidden_layers", "layer_types"}
    theirs = {k: v for k, v in base.config.to_dict().items() if k not in counted}
    for model in (new, read):
        mine = model.config.to_dict()
        differ = {key for key in theirs if mine.get(key, ...) != theirs[key]}
        assert differ <= {"model_type", "architectures", "_name_or_path", "dtype"}, differ
        if (kinds := getattr(base.config, "layer_types", None)) is not None:
            sources = [entry["source"][0] for entry in layer_map_of(model.config)]
            assert model.config.layer_types == [kinds[at] for at in sources]
        assert model.generation_config.eos_token_id == [2, 5]
        assert model.generation_config.top_k == 7
        assert torch.equal(model(PAST).logits, base(PAST).logits)


@torch.no_grad()
def test_embeddings_that_a_checkpoint_parts_stay_apart(tmp_path: Path) -> None:
    """The configuration calls them tied, the weights are not: transformers believes the weights."""
    base = tiny("llama")
    base.config.tie_word_embeddings = True
    base.save_pretrained(tmp_path / "base", state_dict=base.state_dict())
    base = load(tmp_path / "base")
    if base.lm_head.weight is base.model.embed_tokens.weight:
        pytest.fail("this test needs a base whose embeddings are apart")
    for method in ("midus", "llama-pro"):
        new = upscale(base, method, **(SMALL if method == "midus" else {}))
        new.save_pretrained(tmp_path / method)
        for model in (new, load(tmp_path / method)):
            assert torch.equal(model(SHORT).logits, base(SHORT).logits)


# ---------------------------------------------------------------- published configurations

LLAMA3 = {
    "model_type": "llama", "vocab_size": 128256, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "bos_token_id": 128000, "eos_token_id": 128001, "attention_bias": False,
    "mlp_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# name -> config.json as published, parameters
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (
        LLAMA3 | {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
            "tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE | {"factor": 32.0},
        },
        1_235_814_400,
    ),
    "Llama-3.1-8B": (
        LLAMA3 | {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "tie_word_embeddings": False, "rope_scaling": LLAMA3_ROPE | {"factor": 8.0},
        },
        8_030_261_248,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
            "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
            "rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
            "max_window_layers": 28, "bos_token_id": 151643, "eos_token_id": 151645,
            "attention_bias": False, "torch_dtype": "bfloat16",
        },
        596_049_920,
    ),
    "Mistral-7B-v0.3": (
        {
            "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
        },
        7_248_023_552,
    ),
    "SmolLM2-135M": (
        {
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
            "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 100000,
            "rope_scaling": None, "rope_interleaved": False, "is_llama_config": True,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
            "initializer_range": 0.041666666666666664, "torch_dtype": "bfloat16",
        },
        134_515_008,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str, tmp_path: Path) -> None:
    fields, count = PUBLISHED[name]
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert base.num_parameters() == parameter_formula(base.config) == count
    layers, d = fields["num_hidden_layers"], fields["hidden_size"]
    heads, groups = fields["num_attention_heads"], fields["num_key_value_heads"]
    size = fields.get("head_dim", d // heads)
    new = upscale(base)
    assert all(parameter.is_meta for parameter in new.parameters())
    attention = d + d * heads * size + 2 * d * groups * size  # input norm, query, keys, values
    attention += 2 * size if fields["model_type"] == "qwen3" else 0
    memory = heads * 256 * size + 256 * 256 * 128 + heads * 128 * size
    memory += 0 if heads * size == d else d * heads * size  # heads that do not fill the stream
    assert new.num_parameters() == count + layers // 2 * (attention + memory)
    new.config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    for key, value in fields.items():
        if key not in ("model_type", "num_hidden_layers", "torch_dtype", "rope_scaling"):
            found = read.rope_parameters[key] if key == "rope_theta" else getattr(read, key)
            assert found == value, key
    scaled = fields.get("rope_scaling") or {"rope_type": "default"}
    assert read.rope_parameters == scaled | {"rope_theta": fields["rope_theta"]}
    assert set(FAMILIES) >= {read.base_model_type}
