"""What runs an operation: PyTorch, Triton, or "auto": Triton, and PyTorch where a kernel fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from kernels.errors import MidusError

# Operations and sizes whose kernel failed in this process.
_failed: set[tuple[Any, ...]] = set()


def run(
    backend: str, name: str, eager: ModuleType, gpu: Callable[[], ModuleType], *arguments: Any
) -> Any:
    """`name(*arguments)` of module `eager` ("torch"), of module `gpu()` ("triton"), or "auto".

    With "auto" a kernel that does not compile or launch costs one warning: PyTorch's version then
    runs that operation at these sizes and dtypes, whatever the number of tokens, until the process
    ends. Memory that runs out is raised as it is, since PyTorch's version needs more of it; so is
    what the user is to mend, such as a tuning file that cannot be read.
    """
    if backend == "torch":
        return getattr(eager, name)(*arguments)
    if backend == "triton":
        return getattr(gpu(), name)(*arguments)
    operation = f"{eager.__name__.split('.')[-2]}.{name}"
    if _failed and (operation, *_sizes(arguments)) in _failed:
        return getattr(eager, name)(*arguments)
    try:
        return getattr(gpu(), name)(*arguments)
    except (torch.OutOfMemoryError, MidusError):
        raise
    except Exception as error:  # whatever Triton, its compilers and the driver raise
        _failed.add((operation, *_sizes(arguments)))
        warnings.warn(_told(operation, error), RuntimeWarning, stacklevel=2)
        return getattr(eager, name)(*arguments)


def _sizes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a kernel is compiled for: of tensors all but the first size, which may count tokens."""
    return tuple(
        (x.dtype, x.device.type, *x.shape[1:]) if isinstance(x, torch.Tensor) else x
        for x in arguments
    )


def _told(operation: str, error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    short = text if len(text) <= 300 else text[:300] + " ..."
    return (
        f"the Triton kernel of {operation} failed, and PyTorch's version runs in its place at "
        f"these sizes, more slowly: {short} (MIDUS_KERNELS=triton makes this an error)"
    )
