"""Weighted sum of latent bank rows: see README.md in this folder."""

from __future__ import annotations

import torch

from kernels.backend import choose
from kernels.latent_bag import naive


def latent_bag(bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Read the bank: z[t, h] = sum over j of weights[t, h, j] * bank[indices[t, h, j]].

    Args:
        bank: [N, r], any float dtype.
        indices: [T, H, k] integer slots in 0..N-1.
        weights: [T, H, k].

    Returns:
        [T, H, r] in the bank's dtype, summed in fp32 at least.

    Raises:
        ValueError: on shapes that do not fit.
    """
    if bank.ndim != 2 or indices.ndim != 3 or indices.shape != weights.shape:
        raise ValueError(
            "bank must be [N, r] and indices, weights both [T, H, k]; got "
            f"{list(bank.shape)}, {list(indices.shape)}, {list(weights.shape)}"
        )
    return choose("latent_bag", {"torch": naive.latent_bag})(bank, indices, weights)
