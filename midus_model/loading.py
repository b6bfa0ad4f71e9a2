"""Models by shipped name, directory or hub id; one clear line for what cannot be loaded."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from kernels.errors import MidusError, ModelError, UnsupportedArchitecture
from midus_model.config import SUPPORTED_BASES
from midus_model.packaged import PACKAGED, packaged_folder

_HERE = Path(__file__).resolve().parent
SHIPPED = {"pico": _HERE / "pico", "pico-midus": _HERE / "pico_midus"}
# Transformers patches torch while it loads; two loads at once lose each other's tied weights.
_LOADING = threading.Lock()


def resolve(name: str | Path) -> str:
    """Where `name` lies: the directory of a shipped or packaged model, that given, or a hub id."""
    if str(name) in SHIPPED:
        return str(SHIPPED[str(name)])
    if str(name) in PACKAGED:
        return str(packaged_folder(str(name)))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json; give a Hugging Face model directory")
        return str(path)
    if path.is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise ModelError(
            f"no model at {str(name)!r}; give a directory, a hub id, or one of "
            f"{', '.join([*SHIPPED, *PACKAGED])}"
        )
    return str(name)


def load(model: str | Path | nn.Module, *, dtype: torch.dtype | None = None) -> Any:
    """A causal language model in eval mode.

    Args:
        model: a shipped name ("pico", "pico-midus"), one from a package ("smollm2"), a directory,
            a hub id, or a model, which is returned as it is.
        dtype: of the weights; by default the stored one, fp16 being read as fp32.

    Raises:
        ModelError: where there is none, or it is damaged, or no causal language model.
        UnsupportedArchitecture: where its family is not known.

    >>> load("pico").config.num_hidden_layers
    6
    """
    if isinstance(model, nn.Module):
        return model
    place = resolve(model)
    config = _read_config(place, str(model))
    if dtype is None:
        dtype = torch.float32 if config.dtype in (None, torch.float16) else config.dtype
    try:
        with _LOADING:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"the weights of {str(model)!r} cannot be read: {_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"the weights of {str(model)!r} are incomplete: {len(missing)} tensors are missing, "
            f"{missing[0]} first"
        )
    loaded.name_or_path = loaded.config.name_or_path = str(model)
    return loaded.eval()


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer that lies beside a model's weights; raises ModelError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(resolve(model))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{str(model)!r} has no tokenizer: {_line(error)}") from error


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of what `load` would load, without its weights; the same errors."""
    return _read_config(resolve(model), str(model))


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
