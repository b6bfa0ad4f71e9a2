"""Which implementation the ops run: "torch", "triton", or "auto" (the fastest there is)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

BACKENDS = ("auto", "torch", "triton")

_current: ContextVar[str | None] = ContextVar("midus_kernels_backend", default=None)


class BackendUnavailable(RuntimeError):
    """The backend asked for has no implementation of an op on this machine."""


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
    return name


def current_backend() -> str:
    """The backend in force: the innermost `use_backend`, else MIDUS_KERNELS, else "auto"."""
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


def choose(op: str, implementations: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The implementation of `op` for the backend in force; "auto" takes the first listed."""
    name = current_backend()
    if name == "auto":
        return next(iter(implementations.values()))
    if name not in implementations:
        known = ", ".join(implementations)
        raise BackendUnavailable(f"{op} has no {name!r} backend here; available: {known}")
    return implementations[name]
