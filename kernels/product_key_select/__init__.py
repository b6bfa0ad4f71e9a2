"""Product-key selection: see README.md in this folder."""

from __future__ import annotations

import torch

from kernels.backend import direct, resolve
from kernels.product_key_select import eager, op


def product_key_select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best slots of every token and head, and the softmax of their scores.

    Args:
        query: [T, H, D], any float dtype.
        row_keys: [H, n, D/2], matched with the first half of the query.
        col_keys: [H, n, D/2], matched with the second half.
        k: slots to select, 1 <= k <= n.

    Returns:
        weights [T, H, k] fp32 (float64 for float64 inputs), best first, summing to 1; and
        indices [T, H, k] int64, slot = row * n + column. Order: score descending, then lowest slot.

    Raises:
        ValueError: on shapes that do not fit, or k outside 1..n.
        BackendUnavailable: see `use_backend`.
    """
    check_keys(query, row_keys, col_keys, k)
    backend = resolve(query)
    if direct(backend, query, row_keys, col_keys):
        return eager.select(query, row_keys, col_keys, k)
    return op.select(query, row_keys, col_keys, k, backend)


def check_keys(query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int) -> None:
    """Raises ValueError, naming the argument, where shapes do not fit or k is outside 1..n."""
    if query.ndim != 3 or row_keys.ndim != 3 or row_keys.shape != col_keys.shape:
        raise ValueError(
            "query must be [T, H, D] and row_keys, col_keys both [H, n, D/2]; got "
            f"{list(query.shape)}, {list(row_keys.shape)}, {list(col_keys.shape)}"
        )
    heads, n, half = row_keys.shape
    if query.shape[1] != heads or query.shape[2] != 2 * half:
        raise ValueError(
            f"query {list(query.shape)} does not fit keys of {heads} heads and half size {half}"
        )
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be between 1 and the {n} sub-keys of a half")
