"""The latent read and its gradients in PyTorch, by embedding bags in both directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _rows(bank: torch.Tensor, indices: torch.Tensor, wide: torch.dtype) -> tuple[torch.Tensor, ...]:
    """A bank in `wide` and indices into it: the whole bank, or only the rows read where few are."""
    if bank.dtype == wide or 4 * indices.numel() > bank.shape[0]:
        return bank.to(wide), indices
    places = torch.arange(indices.numel(), device=bank.device).view_as(indices)
    return bank[indices.reshape(-1)].to(wide), places


def bag(bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, r], [T, H, k] twice -> [T, H, r]; see `kernels.latent_bag`. No gradient.

    embedding_bag wants weights in the bank's dtype, and sums 16-bit rows in fp32. Rounding the
    weights of a bf16 bank errs less than rounding the result does, and saves widening the bank.
    """
    tokens, heads, k = indices.shape
    bags = F.embedding_bag(
        indices.reshape(-1, k),
        bank,
        per_sample_weights=weights.reshape(-1, k).to(bank.dtype),
        mode="sum",
    )
    return bags.view(tokens, heads, bank.shape[1])


def weight_gradient(grad: torch.Tensor, bank: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gradient of the weights [T, H, k]: each read row times its bag's gradient [T, H, r]."""
    tokens, heads, k = indices.shape
    wide = torch.promote_types(bank.dtype, torch.float32)
    if not indices.numel():
        return grad.new_zeros(indices.shape, dtype=wide)
    rows, places = _rows(bank, indices, wide)
    bags = torch.arange(tokens * heads, device=grad.device)
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad.reshape(-1, bank.shape[1]).to(wide),
        rows,
        places.reshape(-1),
        bags * k,
        bags.repeat_interleave(k),
        0,  # mode "sum"
    )
    return found.view(tokens, heads, k)


def _sum_by_row(
    grad: torch.Tensor, order: torch.Tensor, weights: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """One row a segment of the sorted reads: the bags' gradients, weighted, in reading order."""
    k, width = weights.shape[-1], grad.shape[-1]
    wide = torch.promote_types(grad.dtype, torch.float32)
    return F.embedding_bag(
        order.div(k, rounding_mode="floor"),
        grad.reshape(-1, width).to(wide),
        starts,
        per_sample_weights=weights.reshape(-1)[order].to(wide),
        mode="sum",
    )


def bank_gradient(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, slots: int, mode: str
) -> torch.Tensor:
    """Gradient of the bank [N, r] in fp32 at least; `mode` "sorted" or "atomic"."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    width = grad.shape[-1]
    if not indices.numel():
        return grad.new_zeros((slots, width), dtype=wide)
    if mode == "atomic":
        parts = weights[..., None].to(wide) * grad[..., None, :].to(wide)  # [T, H, k, r]
        total = grad.new_zeros((slots, width), dtype=wide)
        return total.index_add_(0, indices.reshape(-1), parts.view(-1, width))
    narrow = torch.int32 if slots < 2**31 else torch.int64  # sorts in 0.6 of the time
    rows, order = indices.reshape(-1).to(narrow).sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(slots, dtype=narrow, device=rows.device))
    return _sum_by_row(grad, order, weights, starts)


def unique_row_gradient(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows read, ascending [U], and their gradients [U, r]: what a row-sparse step needs."""
    sorted_rows, order = indices.reshape(-1).sort(stable=True)
    rows, counts = sorted_rows.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    if not len(rows):
        return rows, grad.new_zeros((0, grad.shape[-1]))
    return rows, _sum_by_row(grad, order, weights, starts)
