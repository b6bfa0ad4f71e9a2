"""Head-wise memory as its two ops and HIVE: select, read in rank r, expand after."""

from __future__ import annotations

import torch

from kernels.latent_bag import latent_bag
from kernels.product_key_select import product_key_select


def headwise_memory(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    residual: torch.Tensor | None = None,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """[T, H, D] -> [T, H, D]; see `kernels.headwise_memory`."""
    weights, indices = product_key_select(query, row_keys, col_keys, k)
    values = realised(weights, indices, bank, head_proj, bank_grad).to(query.dtype)
    return values if residual is None else residual + values


def realised(
    weights: torch.Tensor,
    indices: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """What each head makes of the slots it retrieved: [T, H, k] twice -> [T, H, D]."""
    read = latent_bag(bank, indices, weights, bank_grad=bank_grad)  # [T, H, r]
    return torch.bmm(read.transpose(0, 1), head_proj).transpose(0, 1)  # one product a head
