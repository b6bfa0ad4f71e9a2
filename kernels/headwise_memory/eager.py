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
    read = latent_bag(bank, indices, weights, bank_grad=bank_grad)  # [T, H, r]
    values = torch.bmm(read.transpose(0, 1), head_proj).transpose(0, 1)  # one product a head
    values = values.to(query.dtype)
    return values if residual is None else residual + values
