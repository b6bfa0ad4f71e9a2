"""Product-key selection in PyTorch, arranged for speed: see "How it is computed" in README.md."""

from __future__ import annotations

from functools import lru_cache

import torch

from kernels.product_key_select import naive
from kernels.product_key_select.doubled import join, joins, positive, split
from kernels.product_key_select.packed import LOW, canonical, columns, least, pack, unpack
from kernels.product_key_select.pairs import contending
from kernels.threads import share

# Rows of scores worked on at once (tokens x heads x 2): their packed copies stay in the cache.
ROWS = 1024
ALONE = 512  # rows for which no other thread is worth waking
TOKENS = 512  # of one head at once


@lru_cache(maxsize=64)
def contending_pairs(k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks i and ranks j of the contending pairs, [pairs] each."""
    rows, cols = torch.tensor(contending(k), device=device).unbind(1)
    return rows.contiguous(), cols.contiguous()


def best_slots(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, H, D] and keys [H, n, D/2], all fp32 -> weights and integer slots, [H, T, k] each."""
    tokens, heads, _ = query.shape
    _, n, half = row_keys.shape
    scores = query.new_empty((2, heads, tokens, n))
    by_head = query.transpose(0, 1)
    torch.bmm(by_head[..., :half], row_keys.transpose(1, 2), out=scores[0])
    torch.bmm(by_head[..., half:], col_keys.transpose(1, 2), out=scores[1])
    if not joins(scores, n * n, k):
        best, slots = _of_any(scores.neg_(), k)
        return best.softmax(-1), slots
    best, slots, right = _of_positive(scores, k)
    if not right.all():
        head, token = (~right).nonzero(as_tuple=True)
        best[head, token], others = _of_any(scores[:, head, token].neg_(), k)
        slots[head, token] = others.to(slots.dtype)
    return best.softmax(-1), slots


def _of_positive(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of halves [2, ..., n] -> the best sums and slots [..., k], and where they are right.

    Right where the best k of both halves are above zero.
    """
    n = scores.shape[-1]
    best = least(join(scores, torch.arange(n)), k)  # [2, ..., k]
    # A rank's score and index travel as one number through the gather of pairs.
    i, j = contending_pairs(k, scores.device)
    sums, rows = split(columns(best[0], i))  # [..., pairs]
    col_scores, cols = split(columns(best[1], j))
    slots = torch.add(cols, rows, alpha=n)
    return *split(least(join(sums.add_(col_scores), slots), k)), positive(best[..., -1]).all(0)


def _of_any(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from scores of the other sign, whatever they are: the least number is the best."""
    n = scores.shape[-1]
    index = torch.arange(n, device=scores.device)
    best = least(pack(canonical(scores), index), k)
    i, j = contending_pairs(k, scores.device)
    row_scores, rows = unpack(columns(best[0], i))
    col_scores, cols = unpack(columns(best[1], j))
    pairs = canonical(row_scores.add_(col_scores))
    sums, slots = unpack(least(pack(pairs, torch.add(cols, rows, alpha=n)), k))
    return sums.neg_(), slots


def fits(query: torch.Tensor, n: int) -> bool:
    """Whether a slot has room beside an fp32 score."""
    return query.dtype != torch.float64 and n * n <= LOW


def chunks(query: torch.Tensor) -> tuple[list[tuple[slice, slice]], int]:
    """Tokens and heads worked on at once, and by how many threads."""
    tokens, heads, _ = query.shape
    if query.device.type != "cpu":
        size = max(1, 128 * ROWS // heads)
        return [(slice(t, t + size), slice(None)) for t in range(0, tokens, size)], 1
    threads = 1 if 2 * tokens * heads <= ALONE else torch.get_num_threads()
    rows = min(ROWS, max(ALONE, 2 * tokens * heads // threads))  # few tokens: a chunk a thread
    together = max(1, rows // (2 * min(tokens, TOKENS) or 1))
    parts = [
        (slice(t, t + TOKENS), slice(h, h + together))
        for t in range(0, tokens, TOKENS)
        for h in range(0, heads, together)
    ]
    return parts, threads


def select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and indices [T, H, k]; see `kernels.product_key_select`. No gradient."""
    tokens, heads, _ = query.shape
    if not fits(query, row_keys.shape[1]):
        return naive.product_key_select(query, row_keys, col_keys, k)
    weights = query.new_empty((tokens, heads, k), dtype=torch.float32)
    indices = query.new_empty((tokens, heads, k), dtype=torch.int64)

    def work(part: tuple[slice, slice]) -> None:
        keys = row_keys[part[1]].float(), col_keys[part[1]].float()
        found = best_slots(query[part].float(), *keys, k)
        weights[part], indices[part] = (x.transpose(0, 1) for x in found)

    share(work, *chunks(query))
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
