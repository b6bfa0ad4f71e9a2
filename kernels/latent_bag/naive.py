"""The latent read in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def latent_bag(bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, r], [T, H, k] twice -> [T, H, r]; embedding_bag never makes the [T, H, k, r] rows."""
    tokens, heads, k = indices.shape
    wide = torch.promote_types(bank.dtype, torch.float32)
    bags = F.embedding_bag(
        indices.reshape(-1, k),
        bank.to(wide),
        per_sample_weights=weights.reshape(-1, k).to(wide),
        mode="sum",
    )
    return bags.view(tokens, heads, bank.shape[1]).to(bank.dtype)
