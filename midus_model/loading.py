"""Models by shipped name, directory or hub id; one clear line for what cannot be loaded."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from kernels.errors import MidusError, ModelError, UnsupportedArchitecture
from midus_model.config import SUPPORTED_BASES
from midus_model.intake import ADAPTER, adapter_base, check_loaded, taken, with_adapter

_HERE = Path(__file__).resolve().parent
SHIPPED = {"pico": _HERE / "pico", "pico-midus": _HERE / "pico_midus"}
# Transformers patches torch while it loads; two loads at once lose each other's tied weights.
_LOADING = threading.Lock()


def resolve(name: str | Path) -> str:
    """Where `name` lies: a shipped model's directory, the directory given, or a hub id as it is."""
    if str(name) in SHIPPED:
        return str(SHIPPED[str(name)])
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", ADAPTER)):
            raise ModelError(f"{path} holds no config.json; give a Hugging Face model directory")
        return os.path.abspath(path)  # found from another working directory too
    if path.is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise ModelError(
            f"no model at {str(name)!r}; give a directory, a hub id, or one of {', '.join(SHIPPED)}"
        )
    return str(name)


def config_place(name: str | Path) -> str:
    """Where the configuration of `name` lies: as `resolve`, of an adapter that of its base."""
    place = resolve(name)
    base = adapter_base(place)
    return place if base is None else config_place(base)


def load(model: str | Path | nn.Module, *, dtype: torch.dtype | None = None) -> Any:
    """A causal language model in eval mode.

    Args:
        model: a shipped name ("pico", "pico-midus"), a directory, a hub id, or a model, which is
            returned as it is, out of its wrapper (see `intake.taken`). The directory of a peft
            adapter gives its base with the adapter live in it.
        dtype: of the weights; by default the stored one, fp16 being read as fp32.

    Raises:
        ModelError: where there is none, or it is damaged, or no causal language model.
        UnsupportedArchitecture: where its family is not known.

    >>> load("pico").config.num_hidden_layers
    6
    """
    if not isinstance(model, str | Path):
        return taken(model)
    place = resolve(model)
    if adapter_base(place) is not None:
        loaded = with_adapter(place, lambda base: load(base, dtype=dtype))
        loaded.name_or_path = loaded.config.name_or_path = place
        return loaded
    config = _read_config(place, str(model))
    if dtype is None:
        dtype = torch.float32 if config.dtype in (None, torch.float16) else config.dtype
    try:
        with _LOADING:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"the weights of {str(model)!r} cannot be read: {_line(error)}") from error
    check_loaded(info, str(model))
    name = str(model) if str(model) in SHIPPED else place
    loaded.name_or_path = loaded.config.name_or_path = name
    return loaded.eval()


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer that lies beside a model's weights; raises ModelError where there is none.

    Of an adapter that has none, its base's.
    """
    place = resolve(model)
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
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
