"""Head-wise memory in plain PyTorch: select, read in rank r, expand after."""

from __future__ import annotations

import torch

from kernels.latent_bag.naive import latent_bag
from kernels.product_key_select.naive import product_key_select


def headwise_memory(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
) -> torch.Tensor:
    """[T, H, D] -> [T, H, D]; see `kernels.headwise_memory`."""
    weights, indices = product_key_select(query, row_keys, col_keys, k)
    read = latent_bag(bank, indices, weights)  # [T, H, r]
    return torch.einsum("thr,hrd->thd", read, head_proj).to(query.dtype)
