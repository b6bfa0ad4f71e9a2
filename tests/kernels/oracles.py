"""What the ops are held to: float64, given the chosen slots, with autograd's own gradients."""

from __future__ import annotations

import torch

from kernels.latent_bag import naive as bag


def pair_scores(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor
) -> torch.Tensor:
    """float64 scores of all pairs, [T, H, N]."""
    half = row_keys.shape[-1]
    q = query.double()
    row = torch.einsum("thd,hnd->thn", q[..., :half], row_keys.double())
    col = torch.einsum("thd,hnd->thn", q[..., half:], col_keys.double())
    return (row[..., :, None] + col[..., None, :]).flatten(-2)


def values(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """[T, H, D] in float64, the slots being given."""
    weights = pair_scores(query, row_keys, col_keys).gather(-1, slots).softmax(-1)
    read = bag.latent_bag(bank.double(), slots, weights)
    return torch.einsum("thr,hrd->thd", read, head_proj.double())


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square of the difference over that of the truth; 0 where there is nothing."""
    if not want.numel():
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    difference = (got - want).square().mean().sqrt()
    scale = want.square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)
