"""Loading: shipped models work, and whatever cannot be loaded gets one clear line."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from analysis import costs, documents
from kernels.errors import ModelError, UnsupportedArchitecture
from midus_model import SHIPPED, load, load_tokenizer, upscale
from tests.models import tiny, tokens


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(place: Any, *says: str, error: type[ModelError] = ModelError) -> None:
    """`load` raises `error` with one line that holds each of `says`."""
    with pytest.raises(error) as caught:
        load(place)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for part in says:
        assert part in message, message


def change_config(place: Path, **changes: Any) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))


@torch.no_grad()
def test_pico_predicts_its_held_out_text_as_its_card_says() -> None:
    model = load("pico")
    assert not model.training and model.dtype == torch.float32 and model.name_or_path == "pico"
    spread = documents(model="pico").windows[::24]  # from all documents; windows differ by 0.6 nats
    windows = [window for window in spread if len(window.ids) == 256]
    assert len(windows) >= 40
    ids = torch.stack([window.ids for window in windows])
    loss = float(model(ids, labels=ids).loss)
    card = json.loads((SHIPPED["pico"] / "scores.json").read_text())
    assert abs(loss - card["loss"]) < 0.25, (loss, card["loss"])


def test_every_shipped_model_loads_with_its_tokenizer() -> None:
    for name, place in SHIPPED.items():
        model, tokenizer = load(name), load_tokenizer(name)
        ids = tokenizer("def f(x):\n    return x\n", return_tensors="pt").input_ids
        assert torch.isfinite(model(ids).logits).all()
        assert len(tokenizer) == model.config.vocab_size, place


def test_models_load_in_threads_at_once() -> None:
    names = ["pico", "pico-midus"] * 4
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(load, names):
            assert model.lm_head.weight is model.model.embed_tokens.weight


def test_threads_that_compute_meanwhile_keep_their_default_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is one for the whole process: what is stored in fp16 and read as fp32 never changes it."""
    seen, real = set(), torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda d: (seen.add(d), real(d)))
    tiny("llama", torch.float16).save_pretrained(tmp_path)
    for place in (tmp_path, "pico", "pico-midus"):
        model = load(place)
        costs(place)
        if place != "pico-midus":
            upscale(model)
    assert seen == {torch.float32}


def test_models_of_many_dtypes_are_made_in_threads_at_once(tmp_path: Path) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    for dtype in dtypes:
        tiny("llama", dtype).save_pretrained(tmp_path / str(dtype))

    def make(dtype: torch.dtype) -> torch.dtype:
        model = load(tmp_path / str(dtype), dtype=dtype)
        assert costs(tmp_path / str(dtype), dtype=dtype)["parameters"].sum() > 0
        return upscale(model).dtype

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, dtypes * 3)) == dtypes * 3
    assert torch.get_default_dtype() == torch.float32


def test_a_module_comes_back_as_it_is() -> None:
    model = tiny("llama").train()
    assert load(model) is model and model.training
    linear = torch.nn.Linear(2, 2)
    assert load(linear) is linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_dtype_is_kept_and_fp16_read_as_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny("llama", dtype)
    model.save_pretrained(tmp_path)
    expected = torch.float32 if dtype == torch.float16 else dtype
    assert load(tmp_path).dtype == load(str(tmp_path)).dtype == expected
    assert load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    stored, read = model.state_dict(), load(tmp_path).state_dict()
    assert all(torch.equal(value.to(expected), read[name]) for name, value in stored.items())


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    refused(tmp_path, "no config.json")
    refused(tmp_path / "absent", "no model at", "pico")
    refused("picoo", "no model at 'picoo'", "pico")
    refused("./models/absent", "no model at")
    refused("a/b/c", "no model at")
    refused("nobody/no-such-model", "nobody/no-such-model")
    (tmp_path / "file.txt").write_text("text")
    refused(tmp_path / "file.txt", "no model at")


def test_a_damaged_config(saved: Path) -> None:
    whole = (saved / "config.json").read_text()
    for text in ("", "{", "[1, 2]", "5", whole[: len(whole) // 2]):
        (saved / "config.json").write_text(text)
        refused(saved, "config.json")
    (saved / "config.json").write_bytes(b"\xff\xfe\x00bad")
    refused(saved, "config.json")
    (saved / "config.json").write_text(whole)
    change_config(saved, hidden_size="wide")
    refused(saved, "hidden_size")


def test_models_that_are_no_causal_language_model(tmp_path: Path) -> None:
    small = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(small).save_pretrained(tmp_path / "classifier")
    refused(tmp_path / "classifier", "LlamaForSequenceClassification", "ForCausalLM")
    LlamaModel(small).save_pretrained(tmp_path / "backbone")
    refused(tmp_path / "backbone", "LlamaModel", "ForCausalLM")
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "'bert'", "llama, qwen3, mistral", error=UnsupportedArchitecture)


def test_families_that_are_not_known(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    refused(tmp_path, "'gpt2'", "llama, qwen3, mistral", error=UnsupportedArchitecture)
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    refused(tmp_path, "'unheard-of'", error=UnsupportedArchitecture)
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "None", error=UnsupportedArchitecture)


def test_damaged_weights(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 64):
        weights.write_bytes(content)
        refused(saved, str(saved))
    weights.unlink()
    refused(saved, str(saved))
    torch.save(tiny("llama").state_dict(), saved / "pytorch_model.bin")  # pickles are not read
    refused(saved, str(saved))


def test_missing_and_misshapen_tensors(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.k_proj.weight"
    fewer = {key: value for key, value in tensors.items() if key != name}
    save_file(fewer, weights, metadata={"format": "pt"})
    refused(saved, "incomplete", "1 tensor is missing", name)
    narrow = tensors | {name: tensors[name][:-1].clone()}
    save_file(narrow, weights, metadata={"format": "pt"})
    refused(saved, str(saved))
    save_file(tensors, weights, metadata={"format": "pt"})
    load(saved)


def test_an_up_scaled_model_that_is_damaged(tmp_path: Path) -> None:
    upscale(tiny("llama"), num_keys=4, top_k=3, latent_dim=8).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    bank = "model.layers.2.memory.bank"
    save_file({k: v for k, v in tensors.items() if k != bank}, weights, metadata={"format": "pt"})
    refused(tmp_path / "model", "incomplete", bank)
    save_file(tensors, weights, metadata={"format": "pt"})
    model = load(tmp_path / "model")
    assert torch.equal(model(tokens()).logits, tiny("llama")(tokens()).logits)
    for changes, says in (
        ({"base_model_type": "gpt2"}, "gpt2"),
        ({"num_keys": 5}, str(tmp_path)),
        ({"memory_sizes": [None]}, "memory_sizes"),
        ({"memory_sizes": [None, None, {"num_keys": 4}, None, None, None]}, "memory_sizes"),
        ({"layer_map": [{"kind": "base", "source": [0], "heads": None}]}, "layer_map"),
    ):
        shutil.copytree(tmp_path / "model", tmp_path / "copy")
        change_config(tmp_path / "copy", **changes)
        refused_any(tmp_path / "copy", says)
        shutil.rmtree(tmp_path / "copy")


def test_memory_for_chosen_heads_needs_the_rows_of_those_heads(tmp_path: Path) -> None:
    new = upscale(tiny("llama"), heads=[(1, 0), (1, 2)], num_keys=4, top_k=3, latent_dim=8)
    new.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.2.self_attn.q_proj.weight"
    assert tensors[name].shape == (2 * 16, 64)
    whole = tensors | {name: tiny("llama").model.layers[1].self_attn.q_proj.weight.detach().clone()}
    save_file(whole, weights, metadata={"format": "pt"})
    refused(tmp_path, str(tmp_path))


def refused_any(place: Path, says: str) -> None:
    """A configuration that does not hold together may also be an up-scaling's error."""
    with pytest.raises(ValueError) as caught:
        load(place)
    assert type(caught.value).__module__ == "kernels.errors", caught.value
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tokenizer(saved: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no model at"):
        load_tokenizer("picoo")
