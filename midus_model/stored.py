"""All that is stored of a model, wherever it lies: to count its numbers, and to tell it by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from midus_model.maps import is_of, row_scales, weight_is_made
from midus_model.placement import offload_hook


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of all parameters, in order of name, and of what quantised ones need beside.

    Then of weights that are made of others (parametrised, pruned). Offloaded ones are fetched one
    at a time, and have the names and values that they have in the model loaded whole.
    """
    for name, module, key in sorted(distinct_parameters(model), key=lambda entry: entry[0]):
        with _own_at_hand(module):
            parameter = module._parameters[key]
            yield name, parameter.detach()
            for more, tensor in _quantisation(module, parameter).items():
                yield f"{name}.{more}", tensor
    for place, module in model.named_modules():
        for key, tensor in _made(module).items():
            yield f"{place}.{key}", tensor


def distinct_parameters(model: nn.Module) -> list[tuple[str, Any, str]]:
    """Each parameter's name, module and name there, as `named_parameters` lists them.

    A tied one comes once, also where offloading parted it from its other half.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found: dict[int, tuple[str, Any, str]] = {}
    for place, module in model.named_modules():
        for key, parameter in module._parameters.items():
            name = f"{place}.{key}" if place else key
            if parameter is not None and not (name in tied and offload_hook(module)):
                found.setdefault(id(parameter), (name, module, key))
    return list(found.values())


def numbers_in(parameter: torch.Tensor) -> int:
    """How many numbers a parameter stands for, packed ones counted apart."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def settings(model: nn.Module) -> list[str]:
    """What tensors do not say: a line for each adapter and each layer of bitsandbytes."""
    lines = []
    for name, module in model.named_modules():
        if is_of("peft", module) or is_of("bitsandbytes", module):
            known = {key: getattr(module, key, None) for key in _SETTINGS}
            variants = dict(getattr(module, "lora_variant", None) or {})
            known["variants"] = {key: type(value).__name__ for key, value in variants.items()}
            threshold = getattr(getattr(module, "state", None), "threshold", None)
            lines.append(f"{name} {type(module).__name__} {known} {threshold}")
    return lines


_SETTINGS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


@contextmanager
def _own_at_hand(module: nn.Module) -> Iterator[None]:
    hook = offload_hook(module)
    if hook is not None:
        hook.pre_forward(module)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(module, None)


def _made(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that a module makes of its parameters."""
    if is_parametrized(module):
        names = sorted(module.parametrizations)  # type: ignore[arg-type]
        return {name: getattr(module, name).detach() for name in names}
    return {"weight": vars(module)["weight"].detach()} if weight_is_made(module) else {}


def _quantisation(module: Any, parameter: Any) -> dict[str, torch.Tensor]:
    """What a parameter of bitsandbytes is dequantised with."""
    if type(parameter).__name__ == "Params4bit" and parameter.quant_state is not None:
        state = parameter.quant_state.as_dict(packed=True)
        return {name: state[name].detach() for name in sorted(state)}
    if type(parameter).__name__ == "Int8Params":
        scales = row_scales(module)
        return {} if scales is None else {"SCB": scales.detach()}
    return {}
