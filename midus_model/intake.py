"""What is handed over as a model, and whether a checkpoint is what its configuration says.

People hold their models in pipelines, adapters, compiled or parallel wrappers. What such a thing
computes is its model's own forward pass, so that is taken; what is none gets one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from kernels.errors import ModelError
from kernels.reading import in_one_line, said
from midus_model.trust import ADAPTER, adapter_config, check_adapter

WANTED = "give a folder, a hub id, a shipped name, or a loaded causal language model"
# wrappers whose forward pass is that of the module they hold, and where they hold it
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
# whose weights lie in pieces, or whose forward pass does what the model inside does not
OPAQUE = ("FullyShardedDataParallel", "DeepSpeedEngine")
ROUTED = ("XLORA", "POLY")  # adapters that the PeftModel's own forward pass steers


# ---------------------------------------------------------------- models in memory


def taken(model: Any) -> Any:
    """The plain module that `model` is or holds, as it computes: adapters stay live in it.

    A transformers pipeline, a `PeftModel`, a module of `torch.compile`, `DataParallel` and
    `DistributedDataParallel`, one in another too. Any other module is returned as it is.

    Raises ModelError for what is no model, or is one whose inside alone computes something else.
    """
    while not isinstance(model, nn.Module) or _held(model) is not None:
        inside = _held(model)
        if inside is None:
            raise ModelError(_no_model(model))
        model = inside
    for kind in type(model).__mro__:
        if kind.__name__ in OPAQUE:
            raise ModelError(
                f"a {kind.__name__} has its model's weights in pieces; gather them and "
                "hand over the model itself"
            )
    return model


def _held(model: Any) -> Any:
    """What a known wrapper holds; None where `model` is none."""
    for kind in type(model).__mro__:
        library = kind.__module__.partition(".")[0]
        if library == "torch" and kind.__name__ in WRAPPERS:
            return getattr(model, WRAPPERS[kind.__name__])
        if library == "transformers" and kind.__name__ == "Pipeline":
            return model.model
        if library == "peft" and kind.__name__ in ("PeftModel", "PeftMixedModel"):
            return _adapted(model)
    return None


def _adapted(model: Any) -> Any:
    """The model inside a PeftModel with its adapter's layers in place."""
    for config in model.peft_config.values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        invoked = getattr(config, "alora_invocation_tokens", None)
        if config.is_prompt_learning or kind in ROUTED or invoked:
            raise ModelError(
                f"a PeftModel of type {'aLoRA' if invoked else kind} computes what no layer of its "
                "model does; merge it, or hand over a model adapted by LoRA"
            )
    return model.get_base_model()


def _no_model(thing: Any) -> str:
    if isinstance(thing, type):
        name = thing.__name__
        return f"{name} is a class; give an instance, such as {name}.from_pretrained(...)"
    if isinstance(thing, str | Path):
        return f"{str(thing)!r} is a name; load it first: midus_model.load({str(thing)!r})"
    if isinstance(thing, PreTrainedConfig):
        return (
            f"a {type(thing).__name__} has no weights; {WANTED}, such as "
            "AutoModelForCausalLM.from_config(config)"
        )
    inside = getattr(thing, "model", None)
    hint = "; its .model may be one" if isinstance(inside, nn.Module) else ""
    return f"a {type(thing).__name__} is no model{hint}; {WANTED}"


def config_of(model: Any) -> Any:
    """The configuration of a model that `taken` takes, or of whatever else has one; None if not."""
    inside = _held(model)
    return getattr(model if inside is None else taken(inside), "config", None)


def adapter_parts(model: nn.Module) -> list[str]:
    """Names of the modules that a live adapter was put around, in order."""
    return [
        name
        for name, module in model.named_modules()
        if any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
        and (hasattr(module, "base_layer") or hasattr(module, "original_module"))
    ]


# ---------------------------------------------------------------- checkpoints


def check_loaded(info: dict[str, Any], name: str) -> None:
    """Raises ModelError where tensors and model do not fit, by the loading info of transformers.

    Tensors that have no place in the model are as bad as missing ones: biases that a configuration
    hides, or layers that it does not count, would be dropped without a word.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, stored, wanted = mismatched[0]
        raise ModelError(
            f"the weights of {name!r} do not fit its config.json: {_tensors(len(mismatched))} of "
            f"another shape, {key} first ({list(stored)}, not {list(wanted)})"
        )
    if missing:
        raise ModelError(
            f"the weights of {name!r} are incomplete: {_tensors(len(missing))} missing, "
            f"{missing[0]} first"
        )
    if unexpected:
        raise ModelError(
            f"the weights of {name!r} do not fit its config.json: {_tensors(len(unexpected))} "
            f"without a place in the model, {unexpected[0]} first"
        )


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"


def adapter_base(place: str | Path) -> str | None:
    """What the adapter in folder `place` was made for; None where no adapter lies there.

    A relative path counts from the working directory, or else from the adapter's folder.

    Raises ModelError where that is not said, or leads round to the adapter itself.
    """
    found = base = _named_base(place)
    seen = {os.path.realpath(place)}
    while base is not None:  # an adapter of an adapter's folder, and so on
        inside = os.path.realpath(os.path.expanduser(base))
        if inside in seen:
            raise ModelError(
                f"{Path(place) / ADAPTER} says that it adapts {found!r}, which leads to its own "
                "folder; keep the adapter in a folder apart from its model"
            )
        seen.add(inside)
        base = _named_base(inside)
    return found


def _named_base(place: str | Path) -> str | None:
    """The base that the adapter in one folder names."""
    path = Path(place) / ADAPTER
    if not path.is_file():
        return None
    name = adapter_config(Path(place)).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{path} does not say which model it adapts; load that model, put the adapter on it "
            "(PeftModel.from_pretrained) and hand it over"
        )
    beside, known = Path(place) / name, os.path.expanduser(name)
    return str(beside) if beside.is_dir() and not os.path.exists(known) else name


def with_adapter(place: str, load_base: Callable[[str], Any]) -> Any:
    """The base of the adapter in folder `place`, with the adapter live in it.

    Raises ModelError where one of the two, or peft, is missing or does not fit.
    """
    check_adapter(Path(place))
    model = load_base(str(adapter_base(place)))

    def line(error: BaseException) -> ModelError:
        if isinstance(error, ImportError):
            return ModelError(f"{place!r} holds an adapter, which needs peft: pip install peft")
        return ModelError(f"the adapter {place!r} cannot be put on its model: {said(error)}")

    with in_one_line(line):  # a damaged file raises kinds of peft's and of safetensors' own
        info = model.load_adapter(
            place,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below
        )
    check_loaded(info.to_dict(), place)
    return model.eval()
