"""Product-key selection in PyTorch, arranged for speed: see "How it is computed" in README.md."""

from __future__ import annotations

from functools import lru_cache

import torch

from kernels.product_key_select import naive
from kernels.product_key_select.pairs import contending

# Rows of scores worked on at once (tokens x heads x 2): their packed copy stays in the cache.
ROWS = 4096
LOW = 0x7FFFFFFF  # 31 bits beside an fp32 score: an index, the lowest first


@lru_cache(maxsize=64)
def contending_pairs(k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks i and ranks j of the contending pairs, [pairs] each."""
    rows, cols = torch.tensor(contending(k), device=device).unbind(1)
    return rows.contiguous(), cols.contiguous()


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """int32 that orders as the fp32 whose bits these are; its own inverse."""
    sign = bits >> 31
    sign &= LOW
    return sign.bitwise_xor_(bits)


def _canonical(scores: torch.Tensor) -> torch.Tensor:
    """-0.0 becomes 0.0 and every NaN the positive one, which ranks first and so is selected."""
    scores.add_(0.0)
    if scores.sum().isfinite():  # one pass where nothing is wrong
        return scores
    return scores.masked_fill_(scores.isnan(), torch.nan)


def _pack(scores: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """fp32 scores [..., c] and what breaks their ties, higher first, in one int64 [..., c]."""
    halves = torch.empty((*scores.shape, 2), dtype=torch.int32, device=scores.device)
    halves[..., 0] = low  # little-endian: the low word
    halves[..., 1] = _ordered(scores.view(torch.int32))
    return halves.view(torch.int64).squeeze(-1)


def _unpack(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [..., c] -> int32 bits of the scores and the low words, each [..., c]."""
    halves = packed.view(torch.int32).unflatten(-1, (-1, 2))
    return _ordered(halves[..., 1]), halves[..., 0]


def _select_tokens(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, H, D] and keys [H, n, D/2], all fp32 -> scores and slots, [H, T, k] each."""
    tokens, heads, _ = query.shape
    _, n, half = row_keys.shape
    scores = query.new_empty((2, heads, tokens, n))
    by_head = query.transpose(0, 1)
    torch.bmm(by_head[..., :half], row_keys.transpose(1, 2), out=scores[0])
    torch.bmm(by_head[..., half:], col_keys.transpose(1, 2), out=scores[1])
    last = torch.arange(n - 1, -1, -1, dtype=torch.int32, device=query.device)
    bits, low = _unpack(_pack(_canonical(scores), last).topk(k).values)  # [2, H, T, k]

    # A rank's score and index travel as one number through the gather of pairs.
    index = (n - 1) - low
    index[0] *= n
    best = torch.stack([index, bits], -1).view(torch.int64).squeeze(-1)
    i, j = contending_pairs(k, query.device)
    row, col = (
        part.index_select(-1, ranks).view(torch.int32).unflatten(-1, (-1, 2))
        for part, ranks in ((best[0], i), (best[1], j))
    )  # [H, T, pairs, 2]
    pairs = _canonical(row[..., 1].view(torch.float32) + col[..., 1].view(torch.float32))
    bits, low = _unpack(_pack(pairs, LOW - row[..., 0] - col[..., 0]).topk(k).values)
    return bits.view(torch.float32), LOW - low


def select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and indices [T, H, k]; see `kernels.product_key_select`. No gradient."""
    tokens, heads, _ = query.shape
    n = row_keys.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    if wide != torch.float32 or n * n > LOW:  # no room for a slot beside the score
        return naive.product_key_select(query, row_keys, col_keys, k)
    weights = query.new_empty((tokens, heads, k), dtype=torch.float32)
    indices = query.new_empty((tokens, heads, k), dtype=torch.int64)
    keys = row_keys.float(), col_keys.float()
    chunk = max(1, ROWS // (2 * heads))
    for start in range(0, tokens, chunk):
        part = slice(start, start + chunk)
        scores, slots = _select_tokens(query[part].float(), *keys, k)
        weights[part] = scores.softmax(-1).transpose(0, 1)
        indices[part] = slots.transpose(0, 1)
    return weights, indices


def select_backward(
    grad: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, row_keys and col_keys from the weights' gradient [T, H, k].

    The gradients of the k scores are laid out over the n sub-keys, [T, H, n], so that both matrix
    products are dense.
    """
    heads, n, half = row_keys.shape
    wide = weights.dtype
    d_scores = weights * (grad - (weights * grad).sum(-1, keepdim=True))  # [T, H, k]
    d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    d_keys = []
    rows = indices.div(n, rounding_mode="floor")
    chunk = max(1, 2 * ROWS // heads)
    for which, keys, subkeys in ((0, row_keys, rows), (1, col_keys, indices - rows * n)):
        side = slice(which * half, (which + 1) * half)
        total = keys.new_zeros(keys.shape, dtype=wide)
        for start in range(0, query.shape[0], chunk):
            part = slice(start, start + chunk)
            shape = (*d_scores[part].shape[:2], n)
            dense = d_scores.new_zeros(shape).scatter_add_(-1, subkeys[part], d_scores[part])
            dense = dense.transpose(0, 1)  # [H, T, n]
            d_query[part, :, side] = torch.bmm(dense, keys.to(wide)).transpose(0, 1)
            halves = query[part, :, side].to(wide).transpose(0, 1)  # [H, T, D/2]
            total.baddbmm_(dense.transpose(1, 2), halves)
        d_keys.append(total.to(keys.dtype))
    return d_query, d_keys[0], d_keys[1]
