"""Where a model runs, and in what precision: by name, and read off a model as it stands.

A model may lie on one device, on several, or in part on disk (Accelerate's hooks then bring a
module's weights in for the length of its call, and leave placeholders of the "meta" device behind).
What reads a device off the first parameter is wrong on the last two; `input_device` is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels.errors import ModelError
from midus_model.intake import taken

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GB = 10**9


# ---------------------------------------------------------------- by name


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is meant: None the CPU, "auto" an accelerator where there is one.

    Raises ModelError where this machine has none of that name, saying what it has.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return torch.device("cpu")
    if isinstance(device, str) and device == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or not _is_there(found):
        raise ModelError(
            f"device is {str(device)!r}; this machine has {', '.join(devices())}: give one of "
            "these, or auto"
        )
    return found


def devices() -> list[str]:
    """The devices of this machine by name, the CPU first."""
    there = _accelerator()
    if there is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *([there.type] if count < 2 else [f"{there.type}:{i}" for i in range(count)])]


def _accelerator() -> torch.device | None:
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    return None if found is None else torch.device(found.type)


def _is_there(device: torch.device) -> bool:
    if device.type == "cpu":
        return not device.index
    there = _accelerator()
    if there is None or there.type != device.type:
        return False
    return device.index is None or device.index < torch.accelerator.device_count()


def resolve_dtype(dtype: str | torch.dtype | None = None) -> torch.dtype | None:
    """The precision that is meant; None for "auto": as it is stored.

    Raises ModelError for what is no floating-point precision.

    >>> resolve_dtype("bfloat16")
    torch.bfloat16
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype is {str(dtype)!r}; it must be one of auto, {', '.join(DTYPES)}")
    return found


# ---------------------------------------------------------------- read off a model


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its hook brings inputs to, else where its weights are."""
    for hook in _hooks(module):
        place = getattr(hook, "execution_device", None)
        if place is not None:
            return torch.device(place)
    held = [p.device for p in module.parameters() if not p.is_meta]
    if held:
        return held[0]
    inner = (hook for part in module.modules() if part is not module for hook in _hooks(part))
    places = (getattr(hook, "execution_device", None) for hook in inner)
    return torch.device(next((place for place in places if place is not None), "meta"))


def input_device(model: Any) -> torch.device:
    """Where token ids go, and where most else that a measurement makes belongs."""
    model = taken(model)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return device_of(model if embeddings is None else embeddings)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of a model's first floating-point weight, which stands for the model's own."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def is_offloaded(model: nn.Module) -> bool:
    """Whether a hook brings in weights for the length of a call, and the model keeps none."""
    return any(offload_hook(module) is not None for module in model.modules())


def check_weights(model: nn.Module) -> None:
    """Raises ModelError where a weight is nowhere: on the meta device, with no hook to fetch it."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.is_meta for p in own.values()) and offload_hook(module) is None:
            raise ModelError(
                f"the model is on the meta device and has no weights, {name} first; load them first"
            )


@contextmanager
def at_hand(*modules: nn.Module) -> Iterator[None]:
    """Inside, the offloaded weights of these modules and of their parts are where they are used."""
    with ExitStack() as stack:
        for module in modules:
            for part in module.modules():
                if (hook := offload_hook(part)) is not None:
                    hook.pre_forward(part)
                    stack.callback(hook.post_forward, part, None)
        yield


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """`values` in float64, on the CPU where their own device has none (mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def counting_device(device: torch.device) -> torch.device:
    """Where float64 sums of what a device computes are kept: there, but for mps, which has none."""
    return torch.device("cpu") if device.type == "mps" else device


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _hooks(module: nn.Module) -> list[Any]:
    """Accelerate's hooks of one module, if any."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def offload_hook(module: nn.Module) -> Any:
    """Accelerate's hook that brings a module's weights for each call; None where there is none."""
    offloads = any(getattr(part, "offload", False) for part in _hooks(module))
    return module._hf_hook if offloads else None  # one of several may stand for all


# ---------------------------------------------------------------- said in a line


def where(
    model: Any,
    needs: int | None = None,
    computed: str = "",
    device: torch.device | None = None,
) -> str:
    """Name, device and precision of a model in a line; with `needs`, bytes, what is free beside.

    `computed`: what else is to be said of the precision; `device`: where it will be brought.

    >>> from midus_model import load
    >>> where(load("pico")).startswith("pico on cpu")
    True
    """
    model = taken(model)
    name = Path(str(getattr(model, "name_or_path", "") or type(model).__name__)).name
    precision = str(dtype_of(model)).removeprefix("torch.")
    place = _places(model) if device is None else _told(device)
    line = f"{name} on {place}, {precision}{computed}"
    if needs is None:
        return line
    free = free_bytes(device or input_device(model))
    said = "" if free is None else f", {_size(free)} free"
    return f"{line}: needs about {_size(needs)}{said}"


def _places(model: Any) -> str:
    first = input_device(model)
    others = {str(device_of(block)) for block in model.model.layers} - {str(first)}
    found = [_told(first), *sorted(others)]
    if is_offloaded(model):
        kept = "disk" in getattr(model, "hf_device_map", {"": "disk"}).values()
        found.append("disk" if kept else "weights from the cpu")
    return " and ".join(found)


def _told(device: torch.device) -> str:
    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'s' if count > 1 else ''})"
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def held_bytes(model: nn.Module) -> int:
    """What a model's weights take; of those on disk the largest module's alone."""
    here = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)
    away = [
        sum(p.numel() * p.element_size() for p in module.parameters(recurse=False) if p.is_meta)
        for module in model.modules()
    ]
    return here + max(away, default=0)


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that is free; None where the system does not say."""
    with suppress(OSError, RuntimeError, AttributeError, ValueError):
        if device.type in ("cuda", "xpu"):
            return int(getattr(torch, device.type).mem_get_info(device)[0])
        if device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(found for found in (_available(), _left_of_group()) if found is not None)
    return None


def _available() -> int:
    """Of the CPU's memory: what may be had without swapping (Linux), else the unused pages."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_of_group() -> int | None:
    """What a container's limit leaves (cgroup v2), its page cache counted as free."""
    group = Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cache = sum(int(line.split()[1]) for line in lines if line.split()[0] == "inactive_file")
    return max(0, most - used + cache)


def _size(count: int) -> str:
    if count < GB / 10:
        return f"{count / 10**6:.0f} MB"
    return f"{count / GB:.1f} GB" if count < 9.95 * GB else f"{count / GB:.0f} GB"
