"""A positive score and its index as one float64's bits: half the passes of packed.py."""

from __future__ import annotations

import torch

from kernels.product_key_select.packed import numpy_sorts
from kernels.threads import is_observed

# A float64 holds an fp32 number's 24 bits of mantissa and 29 zeros. An index below 2**28 in them is
# less than half of the fp32 number's last bit, so that rounding to fp32 takes it away again.
FLIP = -(1 << 29)
INDEX = (1 << 28) - 1


def joins(scores: torch.Tensor, labels: int, k: int) -> bool:
    """Whether rows of scores are selected so: sorted by numpy, and the best k likely positive."""
    if scores.device.type != "cpu" or is_observed() or not numpy_sorts():
        return False
    fits = 4 * k <= scores.shape[-1] and labels <= INDEX
    return fits and bool(scores.sum().isfinite())  # no infinity, no NaN


def join(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """fp32 [..., c] and labels -> int64 that orders by score descending, then label.

    Of positive scores alone: the others come after them, in no order.
    """
    joined = scores.double().view(torch.int64)
    joined ^= labels | FLIP  # the sign bit of what is positive becomes that of the least integers
    return joined


def split(joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [..., c] -> fp32 scores and int64 labels, each [..., c]."""
    return (joined ^ FLIP).view(torch.float64).float(), joined & INDEX


def positive(joined: torch.Tensor) -> torch.Tensor:
    """Whether each is of a score above zero, and above -0.0."""
    return joined < FLIP
