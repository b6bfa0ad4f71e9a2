"""Product-key selection in plain PyTorch: the truth that faster versions are held to."""

from __future__ import annotations

import torch

# Tokens selected at once, so that the [chunk, H, k * k] pairs stay small.
CHUNK = 1024


def half_scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[T, H, D/2] x [H, n, D/2] -> [T, H, n], in fp32 at least: bf16 would change the slots."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("thd,hnd->thn", query.to(wide), keys.to(wide))


def best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k best along the last dimension; NaN ranks first, ties go to the lowest."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


@torch.no_grad()
def select_slots(row: torch.Tensor, col: torch.Tensor, k: int) -> torch.Tensor:
    """[T, H, n] row and column scores -> [T, H, k] slots, score descending, then lowest slot."""
    n = row.shape[-1]
    rows, cols = best(row, k), best(col, k)  # the k best pairs lie in the k x k best of each half
    slots = (rows[..., :, None] * n + cols[..., None, :]).flatten(-2).sort(-1).values  # [T, H, k*k]
    pairs = row.gather(-1, slots // n) + col.gather(-1, slots % n)
    return slots.gather(-1, best(pairs, k))


def product_key_select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and indices [T, H, k]; see `kernels.product_key_select`."""
    half, n = row_keys.shape[-1], row_keys.shape[-2]
    row = half_scores(query[..., :half], row_keys)  # [T, H, n]
    col = half_scores(query[..., half:], col_keys)
    chunks = zip(row.split(CHUNK), col.split(CHUNK), strict=True)
    indices = torch.cat([select_slots(r, c, k) for r, c in chunks])  # [T, H, k]
    scores = row.gather(-1, indices // n) + col.gather(-1, indices % n)
    return scores.softmax(-1), indices
