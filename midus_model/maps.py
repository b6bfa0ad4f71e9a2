"""The one guard over a model's weights: what a module multiplies by, whatever holds it.

A layer's `.weight` is not its map where the layer is quantised, carries a live adapter, is
parametrised, or lies on disk. Whoever reads or changes weights asks here; whoever can, calls the
module instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from kernels.errors import ModelError
from midus_model.intake import taken
from midus_model.placement import at_hand, device_of, offload_hook

PROBES = 3  # inputs on which a map that was read is compared with its module
HALF_BITS = torch.finfo(torch.float16).eps

_LOAD = "load the model in bfloat16 or float32, without quantization_config"
_MERGE = "merge the adapter into the weights first, by merge_and_unload()"
_WHOLE = "load the model whole, without offloading"
_REMOVE = "make it a plain weight first, by remove_parametrizations, remove_weight_norm or the like"
_PLAIN = "give a model of transformers' own classes with plain weights"


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is a plain linear map: an `nn.Linear` whose `.weight` is what it applies."""
    return type(module) is nn.Linear and holds_weight(module)


def holds_weight(module: nn.Module) -> bool:
    """Whether `.weight` is the module's own float parameter, and nobody replaced its `forward`.

    Not where a hook makes the weight anew at each call, as pruning and the old weight norm do.
    """
    weight = module._parameters.get("weight")
    return (
        type(weight) is nn.Parameter
        and weight.is_floating_point()
        and not weight.is_meta
        and "forward" not in vars(module)
    )


@torch.no_grad()
def weight_of(module: Any) -> torch.Tensor:
    """What a module multiplies by: [out, in] of a linear map, [d] of an RMSNorm. Not to be changed.

    A plain layer's own parameter. Else a tensor without gradient: fetched from where it was
    offloaded, dequantised, with active adapters merged in, and compared with what the module gives
    for a few inputs. A bias is no part of it. Of a map that rounds what it is given (8-bit) it is
    the map without that rounding.

    Raises:
        ModelError: where the map cannot be read, saying what to do.
    """
    if isinstance(module, nn.Linear) and is_plain(module):
        return module.weight
    try:
        with at_hand(module):
            weight = _read(module)
            agrees = _agrees(module, weight)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, RuntimeError) as error:  # neither a map nor a norm
        raise _unreadable(module, _PLAIN) from error
    if not agrees:
        raise ModelError(
            f"a {type(module).__name__} does not compute what its weights say, so they cannot "
            f"be read; {_PLAIN}"
        )
    return weight


@dataclass(frozen=True)
class Obstacle:
    """Why a module's own weights are not plain parameters, and what to do about it."""

    kind: str  # "offloaded" | "adapter" | "parametrised" | "bitsandbytes" | "quantised" | "unknown"
    what: str
    remedy: str


def check_writable(
    model: nn.Module, doing: str = "changed or saved", but: Sequence[str] = ()
) -> None:
    """Raises ModelError, naming the first module, where weights cannot be changed, copied or saved.

    Every weight inside must be a plain parameter of its module; it may be on the meta device.
    `but`: kinds of `Obstacle` that do no harm.
    """
    for name, module in taken(model).named_modules():
        found = obstacle(module)
        if found is not None and found.kind not in but:
            place = name or "the model"
            raise ModelError(
                f"{place} is {found.what}, so its weights cannot be {doing}; {found.remedy}"
            )


def obstacle(module: nn.Module) -> Obstacle | None:
    """What stands against reading a module's own weights as they are; None where nothing does."""
    name = type(module).__name__
    if offload_hook(module) is not None:
        return Obstacle("offloaded", "offloaded", _WHOLE)
    if is_of("peft", module):
        return Obstacle("adapter", f"an adapter (peft {name})", _MERGE)
    if is_parametrized(module) or weight_is_made(module):
        return Obstacle("parametrised", "parametrised", _REMOVE)
    if is_of("bitsandbytes", module):
        return Obstacle("bitsandbytes", f"quantised ({name})", _LOAD)
    if not all(map(_is_ordinary, module._parameters.values())) or _has_packed_buffers(module):
        return Obstacle("quantised", f"quantised ({name})", _LOAD)
    own = type(module).__module__.partition(".")[0] in ("torch", "midus_model")
    if isinstance(module, nn.Linear) and not own:
        return Obstacle("unknown", f"a {name}, which is not known here", _PLAIN)
    return None


def depends_on_batch(model: nn.Module) -> bool:
    """Whether a layer rounds what it is given by what else is in the batch, as LLM.int8() does.

    A channel with one value above the threshold, in any row, is computed apart for all rows.
    """
    return any(
        is_of("bitsandbytes", module) and getattr(module.state, "threshold", 0) > 0
        for module in taken(model).modules()
        if hasattr(module, "state")
    )


_with_gradients: WeakSet[nn.Module] = WeakSet()


def check_gradients(model: nn.Module) -> None:
    """Raises ModelError where a quantised or adapted layer passes gradients unlike its map's.

    bitsandbytes' 4-bit kernel for processors with AVX-512 BF16 passes none.
    """
    if model in _with_gradients:
        return
    for name, module in model.named_modules():
        odd = is_of("peft", module) or is_of("bitsandbytes", module)
        linear = odd and isinstance(_innermost(module), nn.Linear)
        if linear and not _passes_gradients(module):
            raise ModelError(
                f"{name} ({type(module).__name__}) gives no right gradient on this machine; "
                f"measure by ablation, or {_LOAD}"
            )
    _with_gradients.add(model)


def _passes_gradients(module: Any) -> bool:
    """Whether <y, W x> is <W^T y, x> for y = W x, the second made by a backward pass."""
    given = _probes(module, _innermost(module).in_features, device_of(_innermost(module)))
    with torch.no_grad():
        made = _applied(module, given)
    with torch.enable_grad():
        leaf = given.clone().requires_grad_()
        again = _applied(module, leaf)
        if not again.requires_grad:
            return False
        (back,) = torch.autograd.grad(again, leaf, made, allow_unused=True)
        if back is None:
            return False
    forth, back = made.square().sum(), (back * given).to(made).sum()
    return bool((forth - back).abs() <= _allowed(module, given) * forth)


# ---------------------------------------------------------------- reading


def _read(module: Any) -> torch.Tensor:
    """The map of a module whose weights are at hand, by the rules of its kind."""
    if is_of("peft", module):
        return _adapted(module)
    if is_of("bitsandbytes", module):
        return _dequantised(module)
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and hasattr(weight, "full_tensor"):  # a sharded parameter
        weight = weight.full_tensor()
    if type(weight) not in (nn.Parameter, torch.Tensor) or not weight.is_floating_point():
        raise _unreadable(module, _LOAD)
    if weight.is_meta:
        raise ModelError(f"a {type(module).__name__} has no data (meta device); {_WHOLE}")
    if weight_is_made(module):
        raise _unreadable(module, _REMOVE)
    return weight.detach()


def _unreadable(module: nn.Module, remedy: str) -> ModelError:
    return ModelError(f"the weights of a {type(module).__name__} cannot be read; {remedy}")


def _adapted(module: Any) -> torch.Tensor:
    """The base's map with what the active LoRA adapters add, in fp32 at least."""
    inner = _saved_instead(module)
    if inner is not None:
        return weight_of(inner)
    merged, off = bool(module.merged_adapters), bool(module._disable_adapters)
    variants = getattr(module, "lora_variant", None)
    if variants is None or not hasattr(module, "lora_A") or (merged and off):
        raise _unreadable(module, _MERGE)
    base = weight_of(module.base_layer)
    active = [name for name in module.active_adapters if name in module.lora_A]
    if merged or off or not active:
        return base.detach()
    if any(name in variants for name in active) or getattr(module, "fan_in_fan_out", False):
        raise _unreadable(module, _MERGE)
    total = base.detach().to(_wide(base))
    for name in active:
        a, b = (part[name].weight.to(total) for part in (module.lora_A, module.lora_B))
        total = total + module.scaling[name] * (b @ a)
    return total


def _saved_instead(module: Any) -> nn.Module | None:
    """The module that peft calls in place of one it trains whole (`modules_to_save`)."""
    if not hasattr(module, "modules_to_save") or not hasattr(module, "original_module"):
        return None
    if module._disable_adapters or not module.active_adapters:
        return module.original_module
    return module.modules_to_save[module.active_adapters[0]]


def _dequantised(module: Any) -> torch.Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    _applied(module, _probes(module, module.in_features, module.weight.device))
    # Only now are weights packed as that call reads them.
    weight, kind = module.weight, type(module.weight).__name__
    if kind == "Int8Params" and weight.dtype == torch.int8 and row_scales(module) is not None:
        return weight.detach().float() * (row_scales(module).float()[:, None] / 127)
    if kind == "Params4bit" and weight.quant_state is not None:
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            return by_unit_vectors(module)
        return dequantize_bnb_weight(weight).detach()
    raise _unreadable(module, _LOAD)


def row_scales(module: Any) -> torch.Tensor | None:
    """Of an 8-bit layer, the largest weight of each row: on the weight, or after a call moved."""
    found = getattr(module.weight, "SCB", None)
    return module.state.SCB if found is None else found


def by_unit_vectors(module: Any) -> torch.Tensor:
    """A linear map from what it makes of zero and of every unit vector: [out, in]."""
    width = module.in_features
    units = torch.eye(width, dtype=_called_with(module), device=module.weight.device)
    return torch.cat([_applied(module, part) for part in units.split(1024)]).T


# ---------------------------------------------------------------- comparing with the module


def _agrees(module: Any, weight: torch.Tensor) -> bool:
    """Whether a module does to a few inputs what `weight` would, but for rounding."""
    given = _probes(module, weight.shape[-1], weight.device)
    found, expected = _applied(module, given), given.to(_wide(weight))
    if weight.ndim == 1:
        mean_square = expected.square().mean(-1, keepdim=True)
        expected = expected * torch.rsqrt(mean_square + module.variance_epsilon) * weight
    else:
        expected = expected @ weight.to(expected).T
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= _allowed(module, given) * expected.norm())


def _probes(module: Any, width: int, device: torch.device) -> torch.Tensor:
    """A few inputs, [PROBES, width]."""
    generator = torch.Generator().manual_seed(0)
    if _rounds_inputs(module):  # unit vectors are rounded exactly
        rows = torch.eye(width)[torch.randperm(width, generator=generator)[:PROBES]]
    else:
        rows = torch.randn(PROBES, width, generator=generator)
    return rows.to(device, _called_with(module))


def _applied(module: Any, given: torch.Tensor) -> torch.Tensor:
    """What a module makes of inputs [n, in] less its bias, in fp32 at least: [n, out]."""
    with torch.autocast(given.device.type, enabled=False):
        # `forward`, and not the call: hooks belong to whoever measures.
        every = module.forward(torch.cat([torch.zeros_like(given[:1]), given]))
    every = every.to(_wide(every))
    return every[1:] - every[:1]


def _allowed(module: Any, given: torch.Tensor) -> float:
    """How far off rounding may be, of the whole; norms round to fp32 inside, whatever the dtype."""
    return 8 * _rounding(module, given.dtype) + 64 * torch.finfo(torch.float32).eps


def _called_with(module: Any) -> torch.dtype:
    """The dtype of what a module is called with: its weights', or what they were before packing."""
    weight = _innermost(module).weight
    if weight.is_floating_point():
        return weight.dtype
    state = getattr(weight, "quant_state", None)
    return torch.float16 if state is None else state.dtype


def _innermost(module: Any) -> Any:
    """The layer that adapters wrap."""
    inner = _saved_instead(module) or module._modules.get("base_layer")
    return module if inner is None else _innermost(inner)


def _rounding(module: nn.Module, dtype: torch.dtype) -> float:
    """The coarsest rounding on a module's way: of its input, its parameters, or inside."""
    dtypes = {dtype, *(p.dtype for p in module.parameters() if p.is_floating_point())}
    inside = {getattr(part, "compute_dtype", None) for part in module.modules()}
    found = [torch.finfo(kind).eps for kind in dtypes | inside if isinstance(kind, torch.dtype)]
    return max([*found, HALF_BITS] if _rounds_inputs(module) else found)


def _rounds_inputs(module: nn.Module) -> bool:
    return any(type(part).__name__ == "Linear8bitLt" for part in module.modules())


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


# ---------------------------------------------------------------- telling kinds apart


def is_of(library: str, module: Any) -> bool:
    """Whether the module's class is of `library`, which is then imported already."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(module).__mro__)


def _is_ordinary(parameter: Any) -> bool:
    """Whether a parameter holds plain numbers: no packed ones, and no class of its own."""
    if parameter is None or hasattr(parameter, "full_tensor"):
        return True
    return type(parameter) is nn.Parameter and parameter.is_floating_point()


def _has_packed_buffers(module: nn.Module) -> bool:
    """Whether a module holds matrices of whole numbers, as GPTQ's and AWQ's layers do."""
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    return any(b.ndim > 1 and b.dtype in (torch.int32, torch.int8, torch.uint8) for b in buffers)


def weight_is_made(module: nn.Module) -> bool:
    """Whether a hook makes `.weight` at each call: pruning, the old weight and spectral norm."""
    return "weight" not in module._parameters and isinstance(
        vars(module).get("weight"), torch.Tensor
    )
