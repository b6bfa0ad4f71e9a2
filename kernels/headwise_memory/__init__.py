"""Head-wise memory, the two ops and HIVE together: see README.md in this folder."""

from __future__ import annotations

import torch

from kernels.backend import resolve
from kernels.headwise_memory import eager, op
from kernels.headwise_memory.eager import realised
from kernels.latent_bag import check_bank_grad
from kernels.product_key_select import check_keys

__all__ = ["can_fuse", "headwise_memory", "realised"]


def headwise_memory(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    *,
    residual: torch.Tensor | None = None,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """Each head reads the shared bank with its own keys and realises the value its own way.

    Args:
        query: [T, H, D].
        row_keys, col_keys: [H, n, D/2].
        bank: [N, r] with N = n * n.
        head_proj: [H, r, D], HIVE's projection of each head.
        k: slots read by each head and token.
        residual: [T, H, D] to add the result to; on a GPU in the same launch.
        bank_grad: see `latent_bag`.

    Returns:
        [T, H, D] in the query's dtype, or in what that and the residual's promote to.
        Source: MIDUS (arXiv 2512.13751).

    Raises:
        ValueError: on shapes that do not fit, or k outside 1..n.
        BackendUnavailable: see `use_backend`.
    """
    check_keys(query, row_keys, col_keys, k)
    n = row_keys.shape[1]
    if bank.ndim != 2 or bank.shape[0] != n * n:
        raise ValueError(
            f"bank must be [N, r] with N = {n * n} slots for {n} sub-keys a half; "
            f"got {list(bank.shape)}"
        )
    if head_proj.shape != (query.shape[1], bank.shape[1], query.shape[2]):
        raise ValueError(
            f"head_proj is {list(head_proj.shape)}; it must be [H, r, D] = "
            f"{[query.shape[1], bank.shape[1], query.shape[2]]}"
        )
    if residual is not None and residual.shape != query.shape:
        raise ValueError(
            f"residual is {list(residual.shape)}; it must be like query, {list(query.shape)}"
        )
    check_bank_grad(bank_grad)
    given = (query, row_keys, col_keys, bank, head_proj)
    if can_fuse(*given, residual):
        return op.fused(*given, k, residual, resolve(query))
    return eager.headwise_memory(*given, k, residual, bank_grad)


def can_fuse(*tensors: torch.Tensor | None) -> bool:
    """Whether one launch can do it all: Triton runs, and no gradient is asked for."""
    given = [tensor for tensor in tensors if tensor is not None]
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return not recorded and resolve(given[0]) != "torch"
