"""What a stranger's model folder may not do: run code, fetch it, or read weights elsewhere.

Looked at before any library acts on the folder, so that the refusal is one line that names the
cause. No loading call of this project trusts remote code; see SECURITY.md.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kernels.errors import ModelError
from kernels.reading import read_json, said

SAFE, SAFE_INDEX = ".safetensors", ".safetensors.index.json"
WEIGHTS, INDEX = f"model{SAFE}", f"model{SAFE_INDEX}"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", f"adapter_model{SAFE}"
# Implementations that lie in transformers or in an installed package; other names are fetched.
FLASH = tuple(f"flash_attention_{version}" for version in (2, 3, 4))
ATTENTIONS = ("eager", "sdpa", "flex_attention", *FLASH)
EXPERTS = ("eager", "batched_mm", "grouped_mm")
IMPLEMENTATIONS = {"attn_implementation": ATTENTIONS, "experts_implementation": EXPERTS}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Lines that convert: pickles are opened as tensors alone; -P imports nothing from where they run.
_FROM_BIN = (
    "from transformers import AutoModelForCausalLM as M; f = {folder!r}; "
    "M.from_pretrained(f, use_safetensors=False, trust_remote_code=False).save_pretrained(f)"
)
_FROM_HUB = (
    "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; f, to = {name!r}, "
    "{to!r}; M.from_pretrained(f, use_safetensors=False, trust_remote_code=False)"
    ".save_pretrained(to); T.from_pretrained(f, trust_remote_code=False).save_pretrained(to)"
)
_FROM_TENSORS = (
    "import torch, safetensors.torch as s; w = torch.load({file!r}, 'cpu', weights_only=True); "
    "s.save_file({{k: v.clone() for k, v in w.items()}}, {to!r}, {{'format': 'pt'}})"
)
_FROM_GGUF = (
    "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; f, to = {folder!r}, "
    "{to!r}; a = dict(gguf_file={file!r}, trust_remote_code=False); "
    "m = M.from_pretrained(f, dtype='float32', **a); m.config.__dict__.pop('quantization_config'); "
    "m.hf_quantizer = None; m.save_pretrained(to); T.from_pretrained(f, **a).save_pretrained(to)"
)


# ---------------------------------------------------------------- configurations


def check_config(config: dict[str, Any], name: str) -> None:
    """Raises ModelError for what a config.json says that would fetch code or open a pickle.

    Kernels named for attention or experts, quantisers other than bitsandbytes, and weights under
    another name than a safetensors file's of the folder, wherever in the configuration they stand.
    Also for a precision that is none, and code that is named in no known way.
    """
    for key in ("dtype", "torch_dtype"):
        _check_dtype(config.get(key), name)
    named = config.get("auto_map") or {}
    if not isinstance(named, dict) or not all(isinstance(one, str) for one in named.values()):
        raise ModelError(
            f"the auto_map in the config.json of {name!r} is damaged; take it out: the code that "
            "it names is never run"
        )
    for key, value in _entries(config):
        kind = key.removeprefix("_").removesuffix("_internal")
        if kind in IMPLEMENTATIONS:
            _check_implementation(kind, value, name)
        elif key == "quantization_config" and value is not None:
            _check_quantiser(value, name)
        elif key == "transformers_weights" and value is not None:
            _check_file(value, f"the config.json of {name!r}", (SAFE, SAFE_INDEX))


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, of configurations inside it too."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from ((str(key), value) for key, value in part.items())
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_dtype(value: Any, name: str) -> None:
    found = getattr(torch, str(value).removeprefix("torch."), None)
    if value is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ModelError(
            f"the config.json of {name!r} gives the dtype {value!r}; it must be a floating-point "
            "one, such as float32 or bfloat16"
        )


def _check_implementation(kind: str, value: Any, name: str) -> None:
    for one in value.values() if isinstance(value, dict) else [value]:
        if one is not None and one not in IMPLEMENTATIONS[kind]:
            raise ModelError(
                f"{name!r} asks for {kind} {one!r}, and kernels are never fetched; take the entry "
                f"out of its config.json, or give one of {', '.join(IMPLEMENTATIONS[kind])}"
            )


def _check_quantiser(value: Any, name: str) -> None:
    given = value if isinstance(value, dict) else {}
    method = given.get("quant_method")
    if str(method).startswith("bitsandbytes"):
        return
    if method is None and (given.get("load_in_4bit") or given.get("load_in_8bit")):
        return  # as transformers wrote it before methods had names
    raise ModelError(
        f"{name!r} is quantised by {method or 'a method without a name'!r}; models quantised by "
        "bitsandbytes can be read, and unquantised ones: give the original"
    )


def own_code(folder: Path, file: str, key: str | None = None) -> str:
    """The classes that `auto_map` in one of a folder's files names, as a text; "" for none."""
    try:
        found = read_json(folder / file)["auto_map"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
    if key is not None and isinstance(found, dict):
        found = found.get(key)
    listed = list(found.values()) if isinstance(found, dict) else found
    listed = listed if isinstance(listed, list) else [listed]
    return ", ".join(dict.fromkeys(str(one) for one in listed if one))[:80]


def say_unused(code: str, name: str, instead: str) -> None:
    """Warn that a folder brings code which is not run."""
    if code:
        warnings.warn(
            f"{name!r} names code of its own ({code}), which is never run; it is read as {instead}",
            stacklevel=4,
        )


def reason(error: BaseException, code: str = "") -> str:
    """An error of transformers in one line, its beginning; without its advice to trust a folder.

    `code`: what the folder names as its own.
    """
    text = " ".join(str(error).split())
    if "trust_remote" + "_code" in text or "contains custom code" in text:
        return f"it needs code of its own{f' ({code})' if code else ''}, which is never run"
    return said(error)


def weights_reason(error: BaseException, name: str) -> str:
    """As `reason`, of weights; of a hub's repository without safetensors, how to convert them."""
    if "use_safetensors" not in str(error):
        return reason(error)
    code = _FROM_HUB.format(name=name, to=name.rpartition("/")[2])
    return f"they are no safetensors, and pickles are never opened; convert them: {_command(code)}"


# ---------------------------------------------------------------- files


def check_weights(place: str, name: str, explicit: Any = None) -> None:
    """Raises ModelError where the weights in a folder, or of a hub id, are no safetensors files.

    `explicit`: the file that the configuration names. A file may be a link, as all are in the
    hub's cache: it is read as safetensors whatever it leads to.
    """
    folder = Path(place)
    if not folder.is_dir():
        _check_hub(place, explicit)
        return
    file = explicit or next((one for one in (WEIGHTS, INDEX) if (folder / one).is_file()), None)
    if file is None:
        raise ModelError(f"{name!r} {_what_lies_there(folder)}")
    if file.endswith(SAFE_INDEX):
        for part in _indexed(folder / file):
            if not (folder / part).is_file():
                raise ModelError(
                    f"{folder / file} names {part!r}, which is not there; copy it beside the index"
                )


def _check_hub(name: str, explicit: Any) -> None:
    """As `check_weights`; transformers would put an adapter of the repository on its model."""
    from transformers.utils import cached_file, find_adapter_config_file

    if find_adapter_config_file(name):
        raise ModelError(
            f"{name!r} holds an adapter, which is read from a folder only: hf download {name} "
            f"--local-dir {name.partition('/')[2]}"
        )
    index = cached_file(
        name,
        explicit if explicit and explicit.endswith(SAFE_INDEX) else INDEX,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is not None:
        _indexed(Path(index))


def _indexed(path: Path) -> list[str]:
    """The files that an index of weights names, each right beside it."""
    try:
        index = read_json(path)
        files = sorted(set(index["weight_map"].values()), key=str)
        if not isinstance(index["metadata"], dict):
            raise TypeError("metadata is no object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no index of weights: {reason(error)}") from error
    for file in files:
        _check_file(file, str(path), (SAFE,))
    return files


def _check_file(file: Any, where: str, endings: tuple[str, ...]) -> None:
    plain = isinstance(file, str) and file == Path(file).name and "\\" not in file
    if not plain or not file.endswith(endings):
        raise ModelError(
            f"{where} names the weights {file!r}; it may name safetensors files in its own folder "
            "only, without a path"
        )


def _what_lies_there(folder: Path) -> str:
    """Why a folder has no weights, and how what lies there is converted."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pickles = [p for p in files if p.suffix in PICKLES and p.name != "training_args.bin"]
    whole = [p for p in pickles if p.name.startswith("pytorch_model") and p.suffix == ".bin"]
    if whole:
        return _pickled(whole[0], _FROM_BIN.format(folder=str(folder)))
    if pickles:
        return _pickled(pickles[0], _tensors(pickles[0], folder / WEIGHTS))
    packed = [p for p in files if p.suffix == ".gguf"]
    if packed:
        return f"has its weights in {packed[0].name}, {gguf_hint(packed[0])}"
    others = [p.name for p in files if p.suffix in (SAFE, ".h5", ".msgpack")]
    held = f"has its weights in {others[0]}" if others else "holds no weights"
    return f"{held}; give a folder with {WEIGHTS}, or with {INDEX} and its files"


def _pickled(file: Path, code: str) -> str:
    return (
        f"has its weights in {file.name}, and pickles are never opened; convert them once: "
        f"{_command(code)}"
    )


def _tensors(file: Path, to: Path) -> str:
    return _FROM_TENSORS.format(file=str(file), to=str(to))


def _command(code: str) -> str:
    return f"python -P -c {shlex.quote(code)}"


def gguf_hint(file: Path) -> str:
    """What to do with a GGUF file: it is converted into a folder beside it."""
    to = str(file.with_suffix(""))
    code = _FROM_GGUF.format(folder=str(file.parent), file=file.name, to=to)
    return f"llama.cpp's form; convert it once, which needs gguf, to {to}: {_command(code)}"


def check_adapter(folder: Path) -> None:
    """Raises ModelError for an adapter without safetensors weights, or one that imports modules."""
    pickled = (folder / ADAPTER_WEIGHTS).with_suffix(".bin")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        how = f"has no {ADAPTER_WEIGHTS}; save it as safetensors"
        if pickled.is_file():
            how = _pickled(pickled, _tensors(pickled, folder / ADAPTER_WEIGHTS))
        raise ModelError(f"the adapter {str(folder)!r} {how}")
    if adapter_config(folder).get("megatron_config"):
        raise ModelError(
            f"the adapter {str(folder)!r} was made for Megatron, whose modules it would import; "
            "give one made for the Hugging Face model"
        )


def adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter's folder says of it. Raises ModelError where that cannot be read."""
    path = folder / ADAPTER
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {said(error)}; restore it") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged: it is no JSON object; restore it")
    return found
