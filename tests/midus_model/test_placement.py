"""Devices and precisions by name, read off a model, and said in a line."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from analysis.tables import model_hash
from kernels.errors import ModelError, UpscaleError
from midus_model import input_device, load, resolve_device, resolve_dtype, upscale, where
from midus_model.placement import at_hand, check_weights, devices, held_bytes
from tests.devices import FIRST, SECOND, split
from tests.models import tiny, tokens

MISSING = [
    name
    for name in ("cuda", "cuda:7", "mps", "xpu", "cpu:3", "meta", "gpu", "", "cuda:x")
    if name not in devices()
]


def parts_on_disk(model: torch.nn.Module) -> dict[str, str]:
    """A device map with every second block on disk, and the final norm."""
    blocks = {f"model.layers.{i}": ("cpu", "disk")[i % 2] for i in range(len(model.model.layers))}
    rest = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head"), "cpu")
    return blocks | rest | {"model.norm": "disk"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---------------------------------------------------------------- by name


def test_auto_is_an_accelerator_where_there_is_one() -> None:
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert resolve_device("auto").type == (there.type if there else "cpu")
    assert resolve_device(None) == resolve_device("cpu") == torch.device("cpu")
    assert devices()[0] == "cpu" and all(resolve_device(name) for name in devices())


@pytest.mark.parametrize("name", MISSING)
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_device(name)
    message = str(caught.value)
    assert repr(name) in message and ", ".join(devices()) in message and "\n" not in message
    with pytest.raises(ModelError, match="this machine has cpu"):
        load("pico", device=name)
    with pytest.raises(ModelError, match="this machine has cpu"):
        load("pico", device_map={"": name})


def test_precisions_by_name() -> None:
    assert resolve_dtype(None) is None and resolve_dtype("auto") is None
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(name) == resolve_dtype(getattr(torch, name)) == getattr(torch, name)
    for wrong in ("int8", torch.int8, "half", 16):
        with pytest.raises(ModelError, match="must be one of auto, float32, bfloat16, float16"):
            resolve_dtype(wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device_map", [None, "cpu", "auto", "disk"])
def test_auto_is_the_stored_precision_but_fp16_on_a_cpu(
    tmp_path: Path, stored: torch.dtype, device_map: str | None
) -> None:
    tiny("llama", stored, num_hidden_layers=1).save_pretrained(tmp_path)
    expected = torch.float32 if stored == torch.float16 else stored
    for asked in (None, "auto"):
        model = load(tmp_path, dtype=asked, device_map=device_map)
        assert {p.dtype for p in model.parameters()} == {expected}
    assert load(tmp_path, dtype="float16", device_map=device_map).dtype == torch.float16


def test_a_loaded_model_is_moved_and_cast_in_place_where_asked() -> None:
    model = tiny("llama")
    assert load(model) is model and load(model, device="cpu", dtype="auto") is model
    assert load(model, dtype="bfloat16") is model and model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="give its name or folder"):
        load(model, device_map="auto")
    with pytest.raises(ModelError, match="give one of"):
        load("pico", device="cpu", device_map="auto")


@pytest.mark.parametrize("how", ["disk", "parts", "cpu_offload", "disk_offload"])
def test_an_offloaded_model_gives_the_same_logits_and_hash(
    saved: Path, tmp_path: Path, how: str
) -> None:
    whole = load(saved)
    if how == "cpu_offload":
        away = cpu_offload(copy.deepcopy(whole), execution_device="cpu")
    elif how == "disk_offload":
        away = disk_offload(copy.deepcopy(whole), tmp_path / "off", execution_device="cpu")
    else:
        away = load(saved, device_map="disk" if how == "disk" else parts_on_disk(whole))
    assert any(p.is_meta for p in away.parameters())
    assert input_device(away) == torch.device("cpu")
    with torch.no_grad():
        assert torch.equal(away(tokens()).logits, whole(tokens()).logits)
    assert model_hash(away) == model_hash(whole)
    assert "and disk" in where(away) or how == "cpu_offload"
    check_weights(away)
    with pytest.raises(UpscaleError, match="load it whole"):
        upscale(away)
    with pytest.raises(ModelError, match="load it anew"):
        load(away, dtype="bfloat16")


def test_the_folder_of_offloaded_weights_goes_with_the_model(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = load(saved, device_map="disk", dtype="bfloat16")
    assert list(tmp_path.glob("midus-offload-*"))
    del model
    gc.collect()
    assert not list(tmp_path.glob("midus-offload-*"))


def test_weights_are_at_hand_for_the_length_of_a_read(saved: Path) -> None:
    away, whole = load(saved, device_map="disk"), load(saved)
    part, same = away.model.layers[1].mlp.up_proj, whole.model.layers[1].mlp.up_proj
    with at_hand(part, whole.model.norm):
        assert torch.equal(part.weight, same.weight)
    assert part.weight.is_meta
    assert 0 < held_bytes(away) < held_bytes(whole)


def test_a_model_without_weights_is_told_from_one_on_disk() -> None:
    with torch.device("meta"):
        empty = type(tiny("llama"))(tiny("llama").config)
    with pytest.raises(ModelError, match="meta device"):
        check_weights(empty)


def test_ids_go_to_the_device_of_the_embeddings_of_a_split_model() -> None:
    with split(tiny("llama")) as model:
        assert input_device(model) == FIRST
        assert str(SECOND) in where(model) and where(model).endswith("float32")


# ---------------------------------------------------------------- the line


def test_the_line_says_where_how_and_what_is_needed_and_free() -> None:
    line = where(load("pico"), needs=123 * 10**7)
    threads = torch.get_num_threads()
    assert line.startswith(f"pico on cpu ({threads} thread") and ", float32: " in line
    assert "needs about 1.2 GB" in line and line.endswith("GB free")
    assert "bfloat16" in where(tiny("llama", torch.bfloat16))
