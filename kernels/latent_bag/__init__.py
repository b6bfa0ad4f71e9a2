"""Weighted sum of latent bank rows: see README.md in this folder."""

from __future__ import annotations

import torch

from kernels.backend import direct, resolve
from kernels.latent_bag import eager, op

BANK_GRADS = ("sorted", "atomic", "sparse")


def latent_bag(
    bank: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    *,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """Read the bank: z[t, h] = sum over j of weights[t, h, j] * bank[indices[t, h, j]].

    Args:
        bank: [N, r], any float dtype.
        indices: [T, H, k] integer slots in 0..N-1.
        weights: [T, H, k].
        bank_grad: how the bank's gradient is made. "sorted" sorts the reads by slot and sums each
            row in a fixed order: the same bits on every run. "atomic" adds them as they come.
            "sparse" sorts too and gives a row-sparse gradient of the rows read, for an optimiser
            such as `torch.optim.SparseAdam` that steps those rows alone.

    Returns:
        [T, H, r] in the bank's dtype, summed in fp32 at least.

    Raises:
        ValueError: on shapes that do not fit, or a `bank_grad` that is none.
        BackendUnavailable: see `use_backend`.
    """
    check_bank_grad(bank_grad)
    if bank.ndim != 2 or indices.ndim != 3 or indices.shape != weights.shape:
        raise ValueError(
            "bank must be [N, r] and indices, weights both [T, H, k]; got "
            f"{list(bank.shape)}, {list(indices.shape)}, {list(weights.shape)}"
        )
    backend = resolve(bank)
    if direct(backend, bank, indices, weights):
        return eager.bag(bank, indices, weights)
    if bank_grad == "sparse":
        return op.RowSparseBag.apply(bank, indices, weights, backend)
    return op.bag(bank, indices, weights, bank_grad, backend)


def check_bank_grad(bank_grad: str) -> None:
    """Raises ValueError where `bank_grad` is none of BANK_GRADS."""
    if bank_grad not in BANK_GRADS:
        raise ValueError(f"bank_grad is {bank_grad!r}; it must be one of {', '.join(BANK_GRADS)}")
