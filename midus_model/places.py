"""Lists of whole numbers as tensors, moved to a device once: a move at every call waits for a GPU,
and cannot be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


def on_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [len(values)] on `device`: one tensor for all that ask for the same, not to be changed.

    Under the compiler, and where tensors are fake or traced, a new one each time.
    """
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return torch.tensor(list(values), device=device)
    return _kept(tuple(values), device)


@lru_cache(maxsize=4096)
def _kept(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # else autograd may not save it later
        return torch.tensor(values, dtype=torch.int64, device=device)
