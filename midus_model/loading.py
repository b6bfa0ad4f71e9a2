"""Models by shipped name, directory or hub id; one clear line for what cannot be loaded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from kernels.errors import MidusError, ModelError, UnsupportedArchitecture
from midus_model.config import SUPPORTED_BASES
from midus_model.intake import ADAPTER, adapter_base, check_loaded, taken, with_adapter
from midus_model.ordinary import odd_entry
from midus_model.packaged import PACKAGED, packaged_folder
from midus_model.placement import (
    dtype_of,
    input_device,
    is_offloaded,
    resolve_device,
    resolve_dtype,
)

_HERE = Path(__file__).resolve().parent
SHIPPED = {"pico": _HERE / "pico", "pico-midus": _HERE / "pico_midus"}
# Transformers patches torch while it loads; two loads at once lose each other's tied weights.
_LOADING = threading.Lock()
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # over what there is


def resolve(name: str | Path) -> str:
    """Where `name` lies: the directory of a shipped or packaged model, that given, or a hub id."""
    if str(name) in SHIPPED:
        return str(SHIPPED[str(name)])
    if str(name) in PACKAGED:
        return str(packaged_folder(str(name)))
    path = Path(os.path.expanduser(name))  # which leaves an unknown user's as it is
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", ADAPTER)):
            raise ModelError(f"{path} holds no config.json; give a Hugging Face model directory")
        if (odd := odd_entry(path)) is not None:
            raise ModelError(f"{odd}, not a file; give a model directory of files alone")
        return os.path.abspath(path)  # found from another working directory too
    if path.is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        raise ModelError(
            f"no model at {str(name)!r}; give a directory, a hub id, or one of "
            f"{', '.join([*SHIPPED, *PACKAGED])}"
        )
    return str(name)


def config_place(name: str | Path) -> str:
    """Where the configuration of `name` lies: as `resolve`, of an adapter that of its base."""
    place = resolve(name)
    base = adapter_base(place)
    return place if base is None else config_place(base)


def load(
    model: str | Path | nn.Module,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Any:
    """A causal language model in eval mode.

    Args:
        model: a shipped name ("pico", "pico-midus"), one from a package ("smollm2"), a directory,
            a hub id, or a model. That is returned as it is, out of its wrapper (see
            `intake.taken`), in place moved to `device` and cast to `dtype` where these are given
            and differ. The directory of a peft adapter gives its base with the adapter live in it.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", an accelerator where there is one; by
            default the CPU.
        dtype: "float32", "bfloat16", "float16" or a torch.dtype, of the weights; by default, and
            with "auto", the stored one, fp16 being read as fp32 on a CPU.
        device_map: in place of `device`, Accelerate's: "auto", "disk", or module names -> device,
            "cpu" or "disk". Weights that go to the disk lie in a temporary folder as long as the
            model lives. No part of an adapter's base may be offloaded.

    Raises:
        ModelError: where there is none, or it is damaged, or no causal language model, or the
            device is not there.
        UnsupportedArchitecture: where its family is not known.

    >>> load("pico").config.num_hidden_layers
    6
    """
    if device is not None and device_map is not None:
        raise ModelError(
            f"device is {str(device)!r} and a device_map is given; give one of the two"
        )
    wanted, target = resolve_dtype(dtype), resolve_device(device)
    if not isinstance(model, str | Path):
        found = taken(model)
        if device_map is not None:
            raise ModelError("device_map places a model while it is read; give its name or folder")
        return _moved(found, None if device is None else target, wanted)
    place = resolve(model)
    if adapter_base(place) is not None:
        asked: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map}
        loaded = with_adapter(place, lambda base: _held_whole(load(base, **asked), str(model)))
        loaded.name_or_path = loaded.config.name_or_path = place
        return loaded
    config = _read_config(place, str(model))
    placed = _placed(target, device_map)
    if wanted is None:
        halved = config.dtype == torch.float16 and _on_cpu(placed)
        wanted = torch.float32 if config.dtype is None or halved else config.dtype
    loaded = _read_weights(place, str(model), config, wanted, placed)
    named = str(model) in SHIPPED or str(model) in PACKAGED
    loaded.name_or_path = loaded.config.name_or_path = str(model) if named else place
    return loaded.eval()


def _held_whole(base: Any, adapter: str) -> Any:
    """The base of an adapter; transformers puts none rightly on one that is offloaded."""
    if is_offloaded(base):
        raise ModelError(
            f"the base of the adapter {adapter!r} would lie in part on disk, where the adapter "
            "cannot be put on it; load it whole, with device= in place of device_map="
        )
    return base


def _placed(target: torch.device, device_map: Any) -> Any:
    """What `from_pretrained` takes as a device map; None for the CPU, where none is needed."""
    if device_map is None:
        return None if target.type == "cpu" else {"": target}
    if isinstance(device_map, Mapping):
        for place in device_map.values():
            if place != "disk" and not isinstance(place, int):
                resolve_device(place)
        return dict(device_map)
    if device_map in SPREAD:
        return device_map
    return {"": "disk" if device_map == "disk" else resolve_device(device_map)}


def _on_cpu(placed: Any) -> bool:
    if isinstance(placed, Mapping):
        return all(str(place).partition(":")[0] in ("cpu", "disk") for place in placed.values())
    return placed is None or resolve_device("auto").type == "cpu"


def _read_weights(place: str, name: str, config: Any, dtype: torch.dtype, placed: Any) -> Any:
    more: dict[str, Any] = {}
    if placed is not None:
        more = {"device_map": placed, "offload_folder": tempfile.mkdtemp(prefix="midus-offload-")}
    folder = more.get("offload_folder")
    try:
        with _LOADING:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **more,
            )
        check_loaded(info, name)
    except Exception as error:  # files that do not fit raise kinds of every sort
        _forget(folder)
        if isinstance(error, MidusError):
            raise
        raise ModelError(f"the weights of {name!r} cannot be read: {_line(error)}") from error
    if folder is not None:
        weakref.finalize(loaded, _forget, folder)
    return loaded


def _forget(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _moved(model: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """The model itself, where it is to be and in the precision that it is to have."""
    if device is not None and not _is_at(input_device(model), device):
        if len(set(map(str, getattr(model, "hf_device_map", {"": ""}).values()))) > 1:
            raise ModelError(
                "the model is spread over devices or the disk, and cannot be moved; load it anew "
                f"with device={str(device)!r}"
            )
        model = _cast(model, device)
    if dtype is not None and dtype_of(model) != dtype:
        model = _cast(model, dtype)
    return model


def _is_at(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and wanted.index in (None, found.index)


def _cast(model: Any, target: Any) -> Any:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            "the model lies on disk or has no weights, and cannot be changed in place; load it "
            "anew with the device or dtype wanted"
        )
    try:
        return model.to(target)
    except (ValueError, RuntimeError) as error:  # a quantised model stays as it was read
        raise ModelError(f"the model cannot be brought to {target}: {_line(error)}") from error


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer that lies beside a model's weights; raises ModelError where there is none.

    Of an adapter that has none, its base's.
    """
    place = resolve(model)
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # of its files, too, that lack what they should hold
        if (base := adapter_base(place)) is not None:
            return load_tokenizer(base)
        raise ModelError(f"{str(model)!r} has no tokenizer: {_line(error)}") from error


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of what `load` would load, without its weights; the same errors."""
    return _read_config(config_place(model), str(model))


def _read_config(place: str, name: str) -> PreTrainedConfig:
    path = Path(place) / "config.json"
    if path.is_file():
        _check_family(_read_json(path), name)
    try:
        config = AutoConfig.from_pretrained(place)
    except MidusError:
        raise
    except Exception as error:  # fields that do not fit raise kinds of huggingface_hub's own
        raise ModelError(f"the model {name!r} cannot be opened: {_line(error)}") from error
    _check_family(config.to_dict(), name)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is no valid JSON: {_line(error)}") from error


def _check_family(config: dict[str, Any], name: str) -> None:
    kind = config.get("model_type")
    if kind not in (*SUPPORTED_BASES, "midus"):
        raise UnsupportedArchitecture(
            f"{name!r} is of model type {kind!r}; supported are {', '.join(SUPPORTED_BASES)}, midus"
        )
    architectures = config.get("architectures") or []
    if architectures and not any(a.endswith("ForCausalLM") for a in architectures):
        raise ModelError(
            f"{name!r} is a {architectures[0]}, no causal language model; give a ...ForCausalLM"
        )


def _line(error: Exception) -> str:
    """An error that may have many lines in one, its beginning."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
