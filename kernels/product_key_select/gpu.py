"""Product-key selection in Triton: one launch forward, two backward; see README.md.

A score and its index travel as one int64, as in `eager.py`, so that `tl.topk`, which returns values
alone, gives the best scores, where they are and the order of ties. The number of tokens specialises
no kernel: another one compiles nothing.
"""

# A kernel's arguments have types of Triton's own.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.backend import interpreted
from kernels.layout import rows_dense
from kernels.product_key_select.pairs import contending
from kernels.tuning import tuned

# The most slots a head that one program keeps in registers; beyond, PyTorch selects.
MAX_K = 64
TOKENS = 16  # tokens a program; the smallest side of a matrix product
NARROW = 16  # columns that `tl.gather` needs: on fewer it does not compile, nor `tl.topk` on AMD
LANES = 64 if torch.version.hip else 32  # of a warp
# Programs of the keys' gradient worth having; a constant, so that no machine sums in another order.
PROGRAMS = 1024


# Constants below are literals, as the interpreter does not unwrap a global constexpr: 0x7FFFFFFF
# are the 31 bits beside an fp32 score, 0x7FC00000 is the positive NaN, which orders above infinity.


@triton.jit
def _pack(score, index):
    """fp32 scores and int32 indices -> int64: score descending, then lowest index."""
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(score == 0.0, 0, bits)  # -0.0 ties with 0.0
    bits = tl.where(score != score, 0x7FC00000, bits)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _unpack(packed):
    """int64 -> fp32 scores and int32 indices."""
    ordered = (packed >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), 0x7FFFFFFF - (packed & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _tile_best(
    query_ptr,
    inside,
    keys_ptr,
    start,
    N: tl.constexpr,
    HALF: tl.constexpr,
    NB: tl.constexpr,
    KP: tl.constexpr,
    DC: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """The KP best of NB sub-keys for BT query halves, packed, best first: [BT, KP]."""
    subkeys = start + tl.arange(0, NB)
    scores = tl.zeros([inside.shape[0], NB], tl.float32)
    for first in range(0, HALF, DC):
        dims = first + tl.arange(0, DC)
        mask = inside[:, None] & (dims[None, :] < HALF)
        query = tl.load(query_ptr[:, None] + dims[None, :], mask=mask, other=0.0)  # [BT, DC]
        mask = (subkeys[None, :] < N) & (dims[:, None] < HALF)
        at = keys_ptr + subkeys[None, :] * HALF + dims[:, None]
        keys = tl.load(at, mask=mask, other=0.0)  # [DC, NB]
        if NATIVE:  # products of 16-bit numbers are exact in fp32
            scores = tl.dot(query, keys, scores)
        else:
            query, keys = query.to(tl.float32), keys.to(tl.float32)
            scores = tl.dot(query, keys, scores, input_precision="ieee")
    index = tl.broadcast_to(subkeys[None, :], scores.shape)
    packed = tl.where(index < N, _pack(scores, index), -0x8000000000000000)
    return tl.topk(packed, KP)


@triton.jit
def _half_best(
    query_ptr,
    inside,
    keys_ptr,
    N: tl.constexpr,
    HALF: tl.constexpr,
    NB: tl.constexpr,
    KP: tl.constexpr,
    DC: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """The KP best sub-keys of one half, packed, best first: [BT, KP]; query_ptr is [BT]."""
    best = _tile_best(query_ptr, inside, keys_ptr, 0, N, HALF, NB, KP, DC, NATIVE)
    for start in range(NB, N, NB):
        tile = _tile_best(query_ptr, inside, keys_ptr, start, N, HALF, NB, KP, DC, NATIVE)
        best = tl.topk(tl.reshape(tl.join(best, tile), [best.shape[0], 2 * KP]), KP)
    return best


@triton.jit
def _select_tile(
    query_ptr,
    inside,
    row_keys_ptr,
    col_keys_ptr,
    pairs_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    HALF: tl.constexpr,
    NB: tl.constexpr,
    KP: tl.constexpr,
    PP: tl.constexpr,
    DC: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Weights (fp32) and slots (int64) of a tile of tokens, best first, and which are slots.

    `query_ptr` [BT] points at each token's query of this head, the keys' pointers at this head's.
    All three results are [BT, KP]; beyond K they are no slots.
    """
    row_best = _half_best(query_ptr, inside, row_keys_ptr, N, HALF, NB, KP, DC, NATIVE)
    col_best = _half_best(query_ptr + HALF, inside, col_keys_ptr, N, HALF, NB, KP, DC, NATIVE)

    ranks = tl.arange(0, PP)
    row_rank = tl.load(pairs_ptr + ranks)[None, :]
    col_rank = tl.load(pairs_ptr + PP + ranks)[None, :]
    row_rank = tl.broadcast_to(row_rank, [row_best.shape[0], PP])
    col_rank = tl.broadcast_to(col_rank, [row_best.shape[0], PP])
    row_score, row = _unpack(tl.gather(row_best, row_rank, 1))  # [BT, PP]
    col_score, col = _unpack(tl.gather(col_best, col_rank, 1))
    packed = _pack(row_score + col_score, row * N + col)
    packed = tl.where(ranks[None, :] < PAIRS, packed, -0x8000000000000000)
    scores, slots = _unpack(tl.topk(packed, KP))  # [BT, KP]

    place = tl.arange(0, KP)[None, :]
    valid = tl.broadcast_to(place < K, scores.shape)
    top = tl.sum(tl.where(place == 0, scores, 0.0), 1)  # the best comes first
    powers = tl.where(valid, tl.exp(scores - top[:, None]), 0.0)
    weights = powers / tl.sum(powers, 1)[:, None]
    return weights, slots.to(tl.int64), valid


@triton.jit(do_not_specialize=["tokens"])
def _select_kernel(
    query_ptr,
    row_keys_ptr,
    col_keys_ptr,
    pairs_ptr,
    weights_ptr,
    indices_ptr,
    tokens,
    heads,
    token_stride,
    head_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    HALF: tl.constexpr,
    BT: tl.constexpr,
    NB: tl.constexpr,
    KP: tl.constexpr,
    PP: tl.constexpr,
    DC: tl.constexpr,
    NATIVE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    head = tl.program_id(1).to(tl.int64)
    inside = token < tokens
    weights, slots, valid = _select_tile(
        query_ptr + token * token_stride + head * head_stride,
        inside,
        row_keys_ptr + head * N * HALF,
        col_keys_ptr + head * N * HALF,
        pairs_ptr,
        N,
        K,
        PAIRS,
        HALF,
        NB,
        KP,
        PP,
        DC,
        NATIVE,
    )
    out = ((token * heads + head) * K)[:, None] + tl.arange(0, KP)[None, :]
    mask = valid & inside[:, None]
    tl.store(weights_ptr + out, weights, mask=mask)
    tl.store(indices_ptr + out, slots, mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _score_gradient_kernel(
    grad_ptr,
    weights_ptr,
    indices_ptr,
    row_keys_ptr,
    col_keys_ptr,
    d_scores_ptr,
    d_query_ptr,
    tokens,
    heads,
    N: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BT: tl.constexpr,
    KC: tl.constexpr,
    DP: tl.constexpr,
):
    """Gradients of the K scores, by the softmax, and of the query: selected keys weighted by them.

    Only k keys a half are read, so no dense gradient over the n sub-keys is needed here.
    """
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    head = tl.program_id(1).to(tl.int64)
    inside = token < tokens
    bag = token * heads + head  # [BT]
    reads = tl.arange(0, KC)[None, :]
    mean = tl.zeros([BT], tl.float32)
    for start in range(0, K, KC):
        at = (bag * K + start)[:, None] + reads
        mask = inside[:, None] & (start + reads < K)
        weight = tl.load(weights_ptr + at, mask=mask, other=0.0)
        mean += tl.sum(weight * tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32), 1)

    dims = tl.arange(0, DP)[None, :]
    half = inside[:, None] & (dims < HALF)
    row_keys = row_keys_ptr + head * N * HALF + dims
    col_keys = col_keys_ptr + head * N * HALF + dims
    row_sum = tl.zeros([BT, DP], tl.float32)
    col_sum = tl.zeros([BT, DP], tl.float32)
    for j in tl.range(0, K, loop_unroll_factor=4):
        at = bag * K + j
        weight = tl.load(weights_ptr + at, mask=inside, other=0.0)
        d_weight = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d_score = weight * (d_weight - mean)  # [BT]
        tl.store(d_scores_ptr + at, d_score, mask=inside)
        slot = tl.load(indices_ptr + at, mask=inside, other=0).to(tl.int32)
        row = (slot // N)[:, None] * HALF
        col = (slot % N)[:, None] * HALF
        row_key = tl.load(row_keys + row, mask=half, other=0.0).to(tl.float32)  # [BT, DP]
        col_key = tl.load(col_keys + col, mask=half, other=0.0).to(tl.float32)
        row_sum += d_score[:, None] * row_key
        col_sum += d_score[:, None] * col_key
    out = d_query_ptr + (bag * 2 * HALF)[:, None] + dims
    tl.store(out, row_sum.to(d_query_ptr.dtype.element_ty), mask=half)
    tl.store(out + HALF, col_sum.to(d_query_ptr.dtype.element_ty), mask=half)


@triton.jit(do_not_specialize=["tokens", "split"])
def _key_gradient_kernel(
    d_scores_ptr,
    indices_ptr,
    query_ptr,
    partial_ptr,
    tokens,
    heads,
    token_stride,
    head_stride,
    split,
    N: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BT: tl.constexpr,
    NB: tl.constexpr,
    DP: tl.constexpr,
):
    """Gradient of NB sub-keys of one head and half over `split` tokens: dense dS^T times query."""
    head = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (N + NB - 1) // NB
    side = tl.program_id(1) // tiles  # 0: rows, 1: columns
    subkeys = (tl.program_id(1) % tiles) * NB + tl.arange(0, NB)
    part = tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, DP)[None, :]
    total = tl.zeros([NB, DP], tl.float32)
    for start in range(0, split, BT):
        token = part * split + start + tl.arange(0, BT)
        inside = (token < tokens) & (start + tl.arange(0, BT) < split)
        reads = (token * heads + head) * K  # [BT]
        dense = tl.zeros([NB, BT], tl.float32)
        for j in tl.range(0, K, loop_unroll_factor=4):
            d_score = tl.load(d_scores_ptr + reads + j, mask=inside, other=0.0)
            slot = tl.load(indices_ptr + reads + j, mask=inside, other=0).to(tl.int32)
            subkey = tl.where(side == 0, slot // N, slot % N)
            dense += tl.where(subkeys[:, None] == subkey[None, :], d_score[None, :], 0.0)
        at = (token * token_stride + head * head_stride + side * HALF)[:, None] + dims
        query = tl.load(query_ptr + at, mask=inside[:, None] & (dims < HALF), other=0.0)
        total += tl.dot(dense, query.to(tl.float32), input_precision="ieee")
    out = (((part * 2 + side) * heads + head) * N + subkeys)[:, None] * HALF + dims
    tl.store(partial_ptr + out, total, mask=(subkeys[:, None] < N) & (dims < HALF))


@lru_cache(maxsize=64)
def pair_table(k: int, device: torch.device) -> torch.Tensor:
    """The contending pairs' ranks, int32 [2, PP], padded with zeros to a power of two."""
    pairs = contending(k)
    padding = [(0, 0)] * (pair_width(k) - len(pairs))
    return torch.tensor(pairs + padding, dtype=torch.int32, device=device).T.contiguous()


def pair_width(k: int) -> int:
    """The power of two that holds the contending pairs of k, and what is kept of them."""
    return triton.next_power_of_2(max(NARROW, k, len(contending(k))))


def native(left: torch.dtype, right: torch.dtype) -> bool:
    """Whether a product runs on 16-bit operands as they are; the interpreter has no bf16."""
    return left == right and left in (torch.bfloat16, torch.float16) and not interpreted()


def padded(size: int) -> int:
    """The power of two that a side of a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


@lru_cache(maxsize=256)
def tile_config(n: int, half: int, k: int, query: torch.dtype, keys: torch.dtype) -> dict[str, Any]:
    """Constants of `_select_tile`; kept."""
    as_is = native(query, keys)
    # fp32 products run without tensor cores, on operands in registers: 16 dimensions at a time.
    dims = min(64, padded(half)) if as_is else 16
    kept = max(NARROW, triton.next_power_of_2(k))
    return {
        "N": n,
        "K": k,
        "PAIRS": len(contending(k)),
        "HALF": half,
        "NB": min(256, padded(n)),
        "KP": kept,
        "PP": pair_width(k),
        "DC": dims,
        "NATIVE": as_is,
    }


def tile_warps(tile: dict[str, Any], lanes: int) -> int:
    """Warps whose registers hold a tile of packed scores, and fp32 operands beside it.

    256 lanes at most, one a number of the smallest tile: with more, AMD's pairs do not compile.
    """
    return min(4 if tile["NATIVE"] and tile["PP"] <= 256 else 8, 256 // lanes)


@lru_cache(maxsize=256)
def select_config(
    n: int, half: int, k: int, query: torch.dtype, keys: torch.dtype, lanes: int = LANES
) -> dict[str, Any]:
    """Constants and options of `_select_kernel`; kept, so not to be changed in place."""
    tile = tile_config(n, half, k, query, keys)
    return {**tile, "BT": TOKENS, "num_warps": tile_warps(tile, lanes), "num_stages": 1}


@lru_cache(maxsize=256)
def score_gradient_config(n: int, half: int, k: int) -> dict[str, Any]:
    """Constants and options of `_score_gradient_kernel`; kept."""
    chunk = min(32, triton.next_power_of_2(k))
    sizes = {"N": n, "K": k, "HALF": half, "BT": TOKENS, "KC": chunk, "DP": padded(half)}
    return {**sizes, "num_warps": 4, "num_stages": 2}


@lru_cache(maxsize=256)
def key_gradient_config(n: int, half: int, k: int) -> dict[str, Any]:
    """Constants and options of `_key_gradient_kernel`; kept."""
    sizes = {"N": n, "K": k, "HALF": half, "BT": 32, "NB": min(64, padded(n)), "DP": padded(half)}
    return {**sizes, "num_warps": 4, "num_stages": 1}


def check_sizes(n: int) -> None:
    """Slots must leave room for an fp32 score in an int64."""
    if n * n >= 2**31:
        raise ValueError(f"{n} * {n} slots do not fit 31 bits; use the backend 'torch'")


def select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and indices [T, H, k]; see `kernels.product_key_select`. No gradient."""
    tokens, heads, _ = query.shape
    _, n, half = row_keys.shape
    check_sizes(n)
    if k > MAX_K:
        from kernels.product_key_select import eager

        return eager.select(query, row_keys, col_keys, k)
    weights = torch.empty((tokens, heads, k), dtype=torch.float32, device=query.device)
    indices = torch.empty((tokens, heads, k), dtype=torch.int64, device=query.device)
    if weights.numel() == 0:
        return weights, indices
    query, row_keys, col_keys = rows_dense(query), row_keys.contiguous(), col_keys.contiguous()
    keys = torch.promote_types(row_keys.dtype, col_keys.dtype)
    config = tuned("select", select_config(n, half, k, query.dtype, keys), tokens)
    with torch.cuda.device_of(query):
        _select_kernel[(triton.cdiv(tokens, config["BT"]), heads)](
            query,
            row_keys.to(keys),
            col_keys.to(keys),
            pair_table(k, query.device),
            weights,
            indices,
            tokens,
            heads,
            query.stride(0),
            query.stride(1),
            **config,
        )
    return weights, indices


def _splits(tokens: int, programs: int, tile: int) -> tuple[int, int]:
    """Into how many parts of how many tokens the keys' gradient cuts the tokens."""
    parts = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(tokens, tile))
    split = triton.cdiv(triton.cdiv(tokens, parts), tile) * tile
    return triton.cdiv(tokens, split), split


def select_backward(
    grad: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, row_keys and col_keys from the weights' gradient [T, H, k]."""
    tokens, heads, _ = query.shape
    _, n, half = row_keys.shape
    k = weights.shape[-1]
    d_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if weights.numel() == 0:
        return d_query, torch.zeros_like(row_keys), torch.zeros_like(col_keys)
    grad, weights, indices = grad.contiguous(), weights.contiguous(), indices.contiguous()
    query = rows_dense(query)
    d_scores = torch.empty(weights.shape, dtype=torch.float32, device=query.device)
    config = tuned("key_gradient", key_gradient_config(n, half, k), tokens)
    score = tuned("score_gradient", score_gradient_config(n, half, k), tokens)
    blocks = 2 * triton.cdiv(n, config["NB"])
    parts, split = _splits(tokens, heads * blocks, config["BT"])
    partial = torch.empty((parts, 2, heads, n, half), dtype=torch.float32, device=query.device)
    with torch.cuda.device_of(query):
        _score_gradient_kernel[(triton.cdiv(tokens, score["BT"]), heads)](
            grad,
            weights,
            indices,
            row_keys.contiguous(),
            col_keys.contiguous(),
            d_scores,
            d_query,
            tokens,
            heads,
            **score,
        )
        _key_gradient_kernel[(heads, blocks, parts)](
            d_scores,
            indices,
            query,
            partial,
            tokens,
            heads,
            query.stride(0),
            query.stride(1),
            split,
            **config,
        )
    # Summed in a fixed order: the same bits on every run. Apart, as results may share no memory.
    rows, cols = partial[:, 0].sum(0), partial[:, 1].sum(0)
    return d_query, rows.to(row_keys.dtype), cols.to(col_keys.dtype)
