"""Whatever people hold as a model is taken as it computes, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, TextGenerationPipeline

from kernels.errors import ModelError, UnsupportedArchitecture, UpscaleError
from midus_model import (
    SHIPPED,
    blocks,
    budgets,
    check_writable,
    depends_on_batch,
    head_sites,
    input_device,
    load,
    load_config,
    load_tokenizer,
    row_sparse_optimizers,
    set_query_keys,
    upscale,
    where,
)
from midus_model.intake import adapter_parts, taken
from midus_model.optim import new_parameter_names, param_groups
from tests.models import tiny, tokens

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora(model: Any, **how: Any) -> Any:
    """A PeftModel around `model`, its adapter live with random weights."""
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(r=4, init_lora_weights=False, target_modules=PROJECTIONS, **how)
    ).eval()


def pipeline(model: Any) -> Any:
    return TextGenerationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(PICO))


PICO = SHIPPED["pico"]
WRAPPED: dict[str, Callable[[Any], Any]] = {
    "pipeline": pipeline,
    "peft": lora,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "compiled peft": lambda model: torch.compile(lora(model), backend="eager"),
    "pipeline of peft": lambda model: pipeline(lora(model)),
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=tokens()).logits


# ---------------------------------------------------------------- in memory


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("method", ["base", "midus", "llama-pro"])
def test_a_wrapped_model_is_taken_as_it_computes(how: str, method: str) -> None:
    model = tiny("llama")
    if method != "base":
        model = upscale(model, method, **(SMALL if method == "midus" else {}))
    wrapped = WRAPPED[how](model)
    inside = load(wrapped)
    assert inside is taken(wrapped) is model
    if "compiled" not in how:  # which takes seconds to compile
        expected = logits(wrapped.model if how.startswith("pipeline") else wrapped)
        assert torch.equal(logits(inside), expected)
    assert len(adapter_parts(inside)) == ("peft" in how) * sum(
        len(PROJECTIONS) - hasattr(block, "memory") for block in blocks(model)
    )
    assert head_sites(wrapped) == head_sites(model)
    assert blocks(wrapped) is model.model.layers
    if method != "base":
        assert new_parameter_names(wrapped) == new_parameter_names(model)
        assert param_groups(wrapped, 1e-3)


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_model_is_up_scaled_or_its_adapter_asked_to_be_merged(how: str) -> None:
    model = tiny("llama")
    expected, wrapped = logits(model), WRAPPED[how](model)
    if "peft" in how:
        for method in ("midus", "llama-pro"):
            with pytest.raises(UpscaleError, match=r"0\.self_attn\.q_proj .*merge_and_unload"):
                upscale(wrapped, method)
    else:
        assert torch.equal(logits(upscale(wrapped, **SMALL)), expected)


@pytest.mark.parametrize("how", WRAPPED)
def test_what_is_said_and_set_of_a_wrapped_model_is_of_the_model(how: str) -> None:
    plain = upscale(tiny("llama"), **SMALL)
    wrapped = WRAPPED[how](upscale(tiny("llama"), **SMALL))
    assert where(wrapped) == where(plain)
    assert input_device(wrapped) == input_device(plain)
    assert not depends_on_batch(wrapped)
    if "peft" in how:
        with pytest.raises(ModelError, match="merge_and_unload"):
            check_writable(wrapped)
    else:
        check_writable(wrapped)
    ids = tokens()
    set_query_keys(plain, ids)
    set_query_keys(wrapped, ids)
    if "peft" not in how:  # else its queries are other ones
        for found, wanted in zip(blocks(wrapped), blocks(plain), strict=True):
            if hasattr(wanted, "memory"):
                assert torch.equal(found.memory.row_keys, wanted.memory.row_keys)
    row_sparse_optimizers(wrapped, 1e-3, train="all")
    assert {b.memory.bank_grad for b in blocks(wrapped) if hasattr(b, "memory")} == {"sparse"}
    ranking = pd.DataFrame({"layer": [0, 1], "head": [0, 1], "score": [2.0, 1.0]})
    sizes = {"num_keys": 4, "top_k": 2, "latent_dim": 8}
    base = tiny("llama")
    assert budgets(ranking, WRAPPED[how](tiny("llama")), **sizes) == budgets(ranking, base, **sizes)


def test_a_merged_adapter_is_up_scaled() -> None:
    peft = lora(tiny("llama"))
    live = logits(peft)
    merged = peft.merge_and_unload()
    assert torch.equal(logits(upscale(merged, **SMALL)), logits(merged))
    assert (logits(merged) - live).abs().max() < 2e-5


class Sharded(nn.Module):
    """Stands for torch's own, which needs a process group to be made."""


Sharded.__name__ = "FullyShardedDataParallel"


def things() -> list[tuple[Any, list[str]]]:
    model = tiny("llama")
    prefix = get_peft_model(tiny("llama"), PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=3))
    activated = lora(tiny("llama"), alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM")
    return [
        (type(model), ["LlamaForCausalLM is a class", "from_pretrained"]),
        (model.config, ["LlamaConfig has no weights", "from_config"]),
        (None, ["NoneType is no model", "hub id"]),
        (model.state_dict(), ["OrderedDict is no model"]),
        (3, ["int is no model"]),
        (["pico"], ["list is no model"]),
        (AutoTokenizer.from_pretrained(PICO), ["is no model"]),
        (type("Trainer", (), {"model": model})(), ["Trainer is no model", ".model may be one"]),
        (prefix, ["PREFIX_TUNING"]),
        (activated, ["aLoRA"]),
        (Sharded(), ["in pieces", "FullyShardedDataParallel"]),
    ]


def test_what_is_no_model_is_refused_in_one_line() -> None:
    for thing, says in things():
        for action in (load, upscale, head_sites):
            with pytest.raises(ModelError) as caught:
                action(thing)
            message = str(caught.value)
            assert "\n" not in message and len(message) < 300
            for part in says:
                assert part in message, message
    with pytest.raises(ModelError, match=r"midus_model\.load\('pico'\)"):
        head_sites("pico")
    with pytest.raises(UnsupportedArchitecture, match="LlamaModel"):
        head_sites(tiny("llama").model)


# ---------------------------------------------------------------- adapters on disk


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder `adapter` beside its base, `base`, an up-scaled model."""
    base = upscale(tiny("llama"), heads=[(1, 0), (1, 1), (1, 2)], **SMALL)
    base.save_pretrained(tmp_path / "base")
    lora(load(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_folder_of_an_adapter_is_its_base_with_the_adapter_live(adapter: Path) -> None:
    expected = logits(PeftModel.from_pretrained(load(adapter.parent / "base"), adapter))
    model = load(adapter)
    assert torch.equal(logits(model), expected) and not model.training
    assert (expected - logits(load(adapter.parent / "base"))).abs().max() > 0.1
    assert model.name_or_path == str(adapter) and adapter_parts(model)
    assert load_config(adapter).layer_map == model.config.layer_map
    half = load(adapter, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_an_adapter_finds_its_base_and_its_tokenizer(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(adapter.parent / "base")

    def names(base: Any) -> None:
        text = json.dumps(config | {"base_model_name_or_path": base})
        (adapter / "adapter_config.json").write_text(text)

    expected = logits(load(adapter))
    for base in ("../base", "base"):  # from the adapter's folder, from the working directory
        names(base)
        monkeypatch.chdir(adapter.parent)
        assert torch.equal(logits(load("adapter")), expected)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(adapter)
    AutoTokenizer.from_pretrained(PICO).save_pretrained(adapter.parent / "base")
    assert load_tokenizer(adapter)("def")["input_ids"] == load_tokenizer("pico")("def")["input_ids"]
    for base, says in (("gone", "no model at 'gone'"), (None, "which model it adapts")):
        names(base)
        with pytest.raises(ModelError, match=says):
            load(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="adapter_config.json is damaged"):
        load(adapter)


def test_an_adapter_that_does_not_fit_its_base(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = load_file(weights)
    name = next(name for name in whole if "layers.2.self_attn.k_proj.lora_B" in name)
    shorter = {key: value for key, value in whole.items() if key != name}
    for tensors, says in (
        (shorter, "1 tensor is missing"),
        (whole | {name: whole[name][:-1].clone()}, "shape"),
        (whole | {name.replace("layers.2", "layers.9"): whole[name].clone()}, "without a place"),
    ):
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=says) as caught:
            load(adapter)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load(adapter)


def test_an_adapter_is_not_put_on_an_offloaded_base(adapter: Path) -> None:
    """There transformers loses the adapter's weights, and the base's, without a word."""
    whole = logits(load(adapter))
    with pytest.raises(ModelError, match="load it whole") as caught:
        load(adapter, device_map="disk")
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(load(adapter, device_map="cpu")), whole)


@pytest.mark.parametrize("base", [".", "../adapter", None])
def test_an_adapter_of_its_own_folder_is_refused(
    adapter: Path, base: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    name = str(adapter) if base is None else base
    text = json.dumps(config | {"base_model_name_or_path": name})
    (adapter / "adapter_config.json").write_text(text)
    for read in (load, load_config, load_tokenizer):
        with pytest.raises(ModelError, match="its own folder"):
            read(adapter)


@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json"])
def test_a_file_that_holds_something_else_is_one_line(tmp_path: Path, file: str) -> None:
    shutil.copytree(PICO, tmp_path / "model")
    (tmp_path / "model" / file).write_text("[]")
    with pytest.raises(ModelError) as caught:
        (load_tokenizer if file == "tokenizer.json" else load)(tmp_path / "model")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- checkpoints and their tensors


def change_config(place: Path, **changes: Any) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))


HIDDEN: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("llama", {"attention_bias": True}, {"attention_bias": False}, "self_attn.k_proj.bias"),
    ("qwen3", {"attention_bias": True}, {"attention_bias": False}, "self_attn.k_proj.bias"),
    ("llama", {"mlp_bias": True}, {"mlp_bias": False}, "mlp.down_proj.bias"),
    ("llama", {}, {"num_hidden_layers": 3}, "model.layers.3.input_layernorm.weight"),
    ("qwen3", {}, {"model_type": "llama"}, "self_attn.k_norm.weight"),
]


@pytest.mark.parametrize("grown", [False, True], ids=["base", "up-scaled"])
@pytest.mark.parametrize(("family", "fields", "hides", "first"), HIDDEN)
def test_tensors_without_a_place_are_refused(
    family: str, fields: Any, hides: Any, first: str, grown: bool, tmp_path: Path
) -> None:
    model = tiny(family, **fields)
    if grown and not {"num_hidden_layers", "model_type"} & set(hides):
        model = upscale(model, **SMALL)
    model.save_pretrained(tmp_path)
    load(tmp_path)
    change_config(tmp_path, **hides)
    with pytest.raises(ModelError, match="without a place in the model") as caught:
        load(tmp_path)
    assert first in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_the_class_itself_passes_over_are_none(tmp_path: Path) -> None:
    """Older checkpoints of every Llama hold frequencies that are made anew."""
    for model in (tiny("llama"), upscale(tiny("llama"), **SMALL)):
        model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(4)}
        save_file(load_file(weights) | old, weights, metadata={"format": "pt"})
        assert torch.equal(logits(load(tmp_path)), logits(model))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    change_config(tmp_path, vocab_size=130)
    with pytest.raises(ModelError, match=r"embed_tokens.*\[128, 64\], not \[130, 64\]|lm_head"):
        load(tmp_path)


# ---------------------------------------------------------------- names and folders


@pytest.fixture
def pico_elsewhere(tmp_path: Path) -> Path:
    """pico up-scaled, in a folder with a name of 80 characters."""
    place = tmp_path / "models" / ("a-name-of-eighty-characters" + "-long" * 11)[:80]
    upscale(load("pico"), **SMALL).save_pretrained(place)
    load_tokenizer("pico").save_pretrained(place)
    assert len(place.name) == 80
    return place


def test_names_of_folders(pico_elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, home = pico_elsewhere, pico_elsewhere.parents[1]
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    relative = Path("models") / place.name
    given = [place, str(place), f"{place}/", relative, f"{relative}/", f"./{relative}"]
    given += [f"~/{relative}", Path("~") / relative]
    for name in given:
        model = load(name)
        assert model.name_or_path == model.config.name_or_path == str(place), name
        assert load_config(name).layer_map == model.config.layer_map
        assert load_tokenizer(name)("def").input_ids == load_tokenizer("pico")("def").input_ids
    for name in ("~/absent", "~no-such-user/absent", "~no-such-user/deep/absent"):
        with pytest.raises(ModelError, match=f"no model at '{name}'"):
            load(name)


def test_a_loaded_model_finds_its_tokenizer_from_another_folder(
    pico_elsewhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = pico_elsewhere
    monkeypatch.chdir(place.parent)
    model = load(place.name)
    shutil.copytree(PICO, tmp_path / "its base")
    monkeypatch.chdir(tmp_path)
    base = load("its base")
    grown = upscale(base, **SMALL)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for network in (model, base, grown):
        assert load_tokenizer(network.name_or_path)("def").input_ids
    grown.save_pretrained("deeper")
    for file in Path("deeper").iterdir():  # what is saved knows no folders of this machine
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert load("deeper").config.base_model_name == "its base"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_adapters_that_adapt_each_other_are_one_line(length: int, tmp_path: Path) -> None:
    """Each names the next, and the last the first."""
    folders = [tmp_path / f"adapter{number}" for number in range(length)]
    for folder, following in zip(folders, [*folders[1:], folders[0]], strict=True):
        folder.mkdir()
        named = json.dumps({"base_model_name_or_path": str(following)})
        (folder / "adapter_config.json").write_text(named)
    for reading in (load, load_config):
        with pytest.raises(ModelError, match="own folder") as caught:
            reading(folders[0])
        assert "\n" not in str(caught.value)
