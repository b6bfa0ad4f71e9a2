"""Models are made one at a time: Transformers changes torch for the whole process meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Two loads at once lose each other's tied weights, and leave each other's default dtype behind.
_ALONE = threading.RLock()


@contextmanager
def making(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """What makes a model goes in here; `dtype` is torch's default meanwhile, as for any thread.

    Where it is not fp32, nothing should be computed in other threads: tensors that they make
    without a dtype would have this one.
    """
    with _ALONE:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
