"""Which implementation the ops run: "torch", "triton", or "auto" (the fastest there is).

"auto" takes the Triton kernels for tensors on a GPU and PyTorch everywhere else, and where a kernel
fails (`kernels.fallback`). float64 always runs in PyTorch: the kernels compute in fp32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "torch", "triton")

_current: ContextVar[str | None] = ContextVar("midus_kernels_backend", default=None)


class BackendUnavailable(RuntimeError):
    """The backend asked for has no implementation of an op on this machine."""


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
    return name


@torch.compiler.assume_constant_result
def current_backend() -> str:
    """The backend in force: the innermost `use_backend`, else MIDUS_KERNELS, else "auto".

    A compiled function keeps the backend that was in force when it was compiled.
    """
    return _current.get() or _checked(os.environ.get("MIDUS_KERNELS", "auto"), "MIDUS_KERNELS")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the block with backend `name`: "auto", "torch" or "triton".

    >>> with use_backend("torch"):
    ...     current_backend()
    'torch'
    """
    token = _current.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _current.reset(token)


@lru_cache
def has_triton() -> bool:
    """Whether the package is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@torch.compiler.assume_constant_result
def _resolved(device: str, wide: bool) -> str:
    name = current_backend()
    if wide or name == "torch":
        return "torch"
    if name == "auto":
        return "auto" if device == "cuda" and has_triton() else "torch"
    if not has_triton():
        raise BackendUnavailable("the backend 'triton' needs the package triton; use 'torch'")
    if device != "cuda" and not interpreted():
        raise BackendUnavailable(
            f"the backend 'triton' runs on a GPU, and the tensors are on {device!r}; use 'torch', "
            "or set TRITON_INTERPRET=1 before Python starts"
        )
    return name


def resolve(tensor: torch.Tensor) -> str:
    """What runs an op on a tensor like this one: "torch", "triton", or "auto", Triton if it can.

    Raises:
        BackendUnavailable: where "triton" is asked for and cannot run.
    """
    return _resolved(tensor.device.type, tensor.dtype == torch.float64)


def direct(backend: str, *tensors: torch.Tensor) -> bool:
    """Whether PyTorch's version may be called as it is, past the operator that wraps it.

    That saves 40 microseconds a call, of 700 for a token. The operator is needed for gradients, by
    the compiler, under autocast, and for tensors that are not plain ones (fake, distributed).
    """
    if backend != "torch" or torch.compiler.is_compiling():
        return False
    device = tensors[0].device.type
    if device == "meta" or torch.is_autocast_enabled(device):
        return False
    if any(type(tensor) not in (torch.Tensor, torch.nn.Parameter) for tensor in tensors):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
