"""Models by shipped name, directory or hub id; one clear line for what cannot be loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from kernels.errors import DamagedTokenizer, ModelError, UnsupportedArchitecture
from kernels.reading import in_one_line, read_json
from midus_model import trust
from midus_model.config import SUPPORTED_BASES
from midus_model.intake import adapter_base, check_loaded, taken, with_adapter
from midus_model.making import making
from midus_model.ordinary import odd_entry
from midus_model.packaged import PACKAGED, packaged_folder
from midus_model.placement import (
    dtype_of,
    input_device,
    is_offloaded,
    resolve_device,
    resolve_dtype,
)
from midus_model.sizes import check_sizes
from midus_model.trust import ADAPTER, reason

_HERE = Path(__file__).resolve().parent
SHIPPED = {"pico": _HERE / "pico", "pico-midus": _HERE / "pico_midus"}
WEIGHTS = {  # sha256 of their model.safetensors
    "pico": "d7e90494bab1e58f968ee6330c003226dfc87fa94e17d380ce9f8483799c46cd",
    "pico-midus": "df89d738a68c1f0d2b9795cdc207787274ee774c25fc07169566cb65cef7ff7c",
}
TOKENIZER = (  # one of these lies in a folder that has a tokenizer
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # over what there is


def resolve(name: str | Path) -> str:
    """Where `name` lies: the directory of a shipped or packaged model, that given, or a hub id."""
    if str(name) in SHIPPED:
        _check_shipped(str(name))
        return str(SHIPPED[str(name)])
    if str(name) in PACKAGED:
        return str(packaged_folder(str(name)))
    path = Path(os.path.expanduser(name))  # which leaves an unknown user's as it is
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", ADAPTER)):
            packed = sorted(path.glob("*.gguf"))
            hint = f"; {packed[0].name} is {trust.gguf_hint(packed[0])}" if packed else ""
            raise ModelError(
                f"{path} holds no config.json; give a Hugging Face model directory{hint}"
            )
        if (odd := odd_entry(path)) is not None:
            raise ModelError(f"{odd}, not a file; give a model directory of files alone")
        return os.path.abspath(path)  # found from another working directory too
    if path.suffix == ".gguf" and path.is_file():
        raise ModelError(f"{path} is {trust.gguf_hint(path)}")
    if path.is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        raise ModelError(
            f"no model at {str(name)!r}; give a directory, a hub id, or one of "
            f"{', '.join([*SHIPPED, *PACKAGED])}"
        )
    return str(name)


@cache
def _check_shipped(name: str) -> None:
    """Raises ModelError where a shipped model's weights are not those that were shipped."""
    path = SHIPPED[name] / "model.safetensors"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the shipped model {name!r} has no weights: {error.strerror}") from error
    if found != WEIGHTS[name]:
        raise ModelError(
            f"the weights of the shipped model {name!r} are not as they were shipped (the checksum "
            f"of {path} differs); install the package again"
        )


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
    trust.check_weights(place, str(model), getattr(config, "transformers_weights", None))
    check_sizes(place, config, str(model))
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
        with making(), in_one_line(lambda error: _unread(error, place, name)):
            loaded, info = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **more,
            )
        check_loaded(info, name)
    except BaseException:  # an interruption too leaves no folder behind
        _forget(folder)
        raise
    if folder is not None:
        weakref.finalize(loaded, _forget, folder)
    return loaded


def _unread(error: BaseException, place: str, name: str) -> ModelError:
    why = trust.weights_reason(error, place)
    return ModelError(f"the weights of {name!r} cannot be read: {why}")


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
        raise ModelError(f"the model cannot be brought to {target}: {reason(error)}") from error


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer that lies beside a model's weights.

    Of an adapter that has none, its base's. Code of the folder's own is never run.

    Raises ModelError where there is none that can be used, DamagedTokenizer where it cannot be
    read.
    """
    place = resolve(model)
    found = [file for file in TOKENIZER if (Path(place) / file).is_file()]
    if not found and (base := adapter_base(place)) is not None:
        return load_tokenizer(base)
    code = trust.own_code(Path(place), "tokenizer_config.json", "AutoTokenizer")

    def line(error: BaseException) -> ModelError:
        why = reason(error, code)
        if not found or code or isinstance(error, ImportError):
            return ModelError(f"{str(model)!r} has no tokenizer: {why}")
        return DamagedTokenizer(
            f"the tokenizer of {str(model)!r} cannot be read: {why}; restore {', '.join(found)}"
        )

    with in_one_line(line):  # of files that lack what they should hold, of every kind
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise line(ValueError(f"model_max_length is {tokenizer.model_max_length!r:.40}"))
    trust.say_unused(code, str(model), f"a {type(tokenizer).__name__} of transformers")
    tokenizer.init_kwargs.pop("auto_map", None)  # what is saved of it asks for no code either
    return tokenizer


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of what `load` would load, without its weights; the same errors."""
    return _read_config(config_place(model), str(model))


def _read_config(place: str, name: str) -> PreTrainedConfig:
    path = Path(place) / "config.json"
    if path.is_file():
        _check_family(_read_json(path), name)
    config = read_config(place, name)
    _check_family(config.to_dict(), name)
    return config


def read_config(place: str, name: str) -> PreTrainedConfig:
    """The configuration in a folder, or of a hub id, of whatever family transformers knows.

    Code that it names is not run, and said to be not. Raises ModelError where it cannot be read,
    or asks for what is never fetched.
    """
    path, code = Path(place) / "config.json", trust.own_code(Path(place), "config.json")
    if path.is_file():
        trust.check_config(_read_json(path), name)
    with in_one_line(  # fields that do not fit raise kinds of huggingface_hub's own
        lambda error: ModelError(f"the model {name!r} cannot be opened: {reason(error, code)}")
    ):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if not path.is_file():  # on the hub, where it is read only now
        trust.check_config(config.__dict__ | config.to_dict(), name)
    trust.say_unused(code, name, f"transformers' own {config.model_type}")
    config.__dict__.pop("auto_map", None)  # what is saved of it asks for no code either
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no valid JSON: {reason(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is no configuration: it is no JSON object; restore it")
    return found


def _check_family(config: dict[str, Any], name: str) -> None:
    kind = config.get("model_type")
    if kind not in (*SUPPORTED_BASES, "midus"):
        raise UnsupportedArchitecture(
            f"{name!r} is of model type {kind!r}; supported are {', '.join(SUPPORTED_BASES)}, midus"
            f"{'; code that it names is never run' if config.get('auto_map') else ''}"
        )
    architectures = config.get("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    if names and not any(str(kind).endswith("ForCausalLM") for kind in names):
        raise ModelError(
            f"{name!r} is a {names[0]}, no causal language model; give a ...ForCausalLM"
        )
