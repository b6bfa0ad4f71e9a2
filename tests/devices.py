"""Devices that are not there: tensors on the CPU that say they lie elsewhere, and refuse to mix.

Real accelerators raise where two devices meet in one operation. So do these, with real numbers in
them, so that a model split over two devices can be measured where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyDeviceGuard

FIRST, SECOND = torch.device("privateuseone:0"), torch.device("privateuseone:1")
aten = torch.ops.aten
MOVING = (aten._to_copy.default, aten.copy_.default)
ITEMS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, *ITEMS)
WHOLE = (*ITEMS, F.scaled_dot_product_attention)  # C++ would make tensors on the device in them


class Elsewhere(torch.Tensor):
    """`inner`, a tensor on the CPU, that says it lies on `device`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner}, {self.device})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Devices(TorchFunctionMode):
    """Inside, tensors can be made on the devices that are not there, and brought to them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in WHOLE:
            return _run(func, args, kwargs)
        places = [*args, kwargs.get("device")]
        asked = next((place for place in places if _is_pretended(place)), None)
        if asked is None:
            return func(*args, **kwargs)
        if func is torch.Tensor.to:
            rest = [x for x in args[1:] if not _is_pretended(x)]
            kwargs.pop("device", None)
            bare = args[0].inner if isinstance(args[0], Elsewhere) else args[0]
            same = isinstance(args[0], Elsewhere) and args[0].device == torch.device(asked)
            kept = bare.to(*rest, **kwargs) if rest or kwargs else bare
            return args[0] if same and kept is bare else Elsewhere(kept, torch.device(asked))
        if "device" not in kwargs:
            return func(*args, **kwargs)
        data = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, args)
        return Elsewhere(func(*data, **(kwargs | {"device": "cpu"})), torch.device(asked))


def _is_pretended(place: Any) -> bool:
    if isinstance(place, str):
        return place.partition(":")[0] == FIRST.type
    return isinstance(place, torch.device) and place.type == FIRST.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = {leaf.device for leaf in leaves if isinstance(leaf, Elsewhere)}
    here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere) and leaf.ndim]
    if func not in MOVING and (len(there) > 1 or (there and here and func not in INDEXING)):
        raise RuntimeError(f"{func} of tensors on {sorted(map(str, there))}, {len(here)} here")
    target = kwargs.get("device") or next(iter(there), None)
    if func is aten.copy_.default:
        target = args[0].device
    if _is_pretended(kwargs.get("device")):
        kwargs = kwargs | {"device": torch.device("cpu")}
    bare, named = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    found = func(*bare, **named)
    if not _is_pretended(target):
        return found
    for leaf in leaves:  # what is changed in place stays itself
        if isinstance(leaf, Elsewhere) and found is leaf.inner:
            return leaf
    return tree_map(lambda x: Elsewhere(x, target) if isinstance(x, torch.Tensor) else x, found)


@cache
def _guarded() -> None:
    """PyTorch asks a device's guard even where nothing is run there; one that does nothing."""
    torch._C._acc.register_python_privateuseone_device_guard(_DummyDeviceGuard())


class _Brings(AlignDevicesHook):
    """Accelerate's hook, less what it does to parameters, which lie there already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


@contextmanager
def split(model: Any) -> Iterator[Any]:
    """A model whose later half of blocks, final norm and unembedding lie on a second device.

    Hooks bring inputs along as those of `accelerate.dispatch_model` do.
    """
    half = len(model.model.layers) // 2
    second = [*model.model.layers[half:], model.model.norm, model.lm_head]
    _guarded()
    with Devices():
        for part in second:
            _place(part, SECOND)
        for part in (model.model.embed_tokens, model.model.rotary_emb, *model.model.layers[:half]):
            _place(part, FIRST)
        yield model


def _place(part: nn.Module, device: torch.device) -> None:
    for module in part.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = Elsewhere(parameter.data, device)
                module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer, device)
        add_hook_to_module(module, _Brings(execution_device=device))
