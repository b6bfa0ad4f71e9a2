"""Head-wise memory in one Triton launch, for inference: weights, slots and reads stay on chip."""

# A kernel's arguments have types of Triton's own.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.layout import rows_dense
from kernels.product_key_select.gpu import (
    LANES,
    MAX_K,
    TOKENS,
    _select_tile,
    check_sizes,
    native,
    padded,
    pair_table,
    tile_config,
    tile_warps,
)
from kernels.tuning import tuned

PROJ_BYTES = 16384  # of a head's projection held on chip at once


@triton.jit
def _read_tile(
    bank_ptr,
    bank_stride,
    weights,
    slots,
    column,
    wanted,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    RB: tl.constexpr,
):
    """Columns of the latent read [BT, RB] in fp32; weights and slots are [BT, KP]."""
    place = tl.arange(0, KP)[None, :]
    slots = slots.to(tl.int32)  # they fit, and move in half the instructions
    total = tl.zeros([BT, RB], tl.float32)
    for j in tl.range(0, K, loop_unroll_factor=4):
        slot = tl.sum(tl.where(place == j, slots, 0), 1)  # [BT]
        weight = tl.sum(tl.where(place == j, weights, 0.0), 1)
        rows = bank_ptr + slot.to(tl.int64)[:, None] * bank_stride + column[None, :]
        total += weight[:, None] * tl.load(rows, mask=wanted[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["tokens"])
def _headwise_kernel(
    query_ptr,
    row_keys_ptr,
    col_keys_ptr,
    pairs_ptr,
    bank_ptr,
    proj_ptr,
    residual_ptr,
    out_ptr,
    tokens,
    heads,
    token_stride,
    head_stride,
    bank_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    HALF: tl.constexpr,
    NB: tl.constexpr,
    KP: tl.constexpr,
    PP: tl.constexpr,
    DC: tl.constexpr,
    NATIVE: tl.constexpr,
    R: tl.constexpr,
    RB: tl.constexpr,
    DB: tl.constexpr,
    BT: tl.constexpr,
    NATIVE_PROJ: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    head = tl.program_id(1).to(tl.int64)
    inside = token < tokens
    weights, slots, _ = _select_tile(
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
    size: tl.constexpr = 2 * HALF
    dims = tl.arange(0, DB)
    values = tl.zeros([BT, DB], tl.float32)
    for start in range(0, R, RB):
        column = start + tl.arange(0, RB)
        wanted = column < R
        read = _read_tile(bank_ptr, bank_stride, weights, slots, column, wanted, K, KP, BT, RB)
        read = read.to(bank_ptr.dtype.element_ty)  # as an unfused read is stored
        proj = tl.load(
            proj_ptr + (head * R + column[:, None]) * size + dims[None, :],
            mask=wanted[:, None] & (dims[None, :] < size),
            other=0.0,
        )  # [RB, DB]
        if NATIVE_PROJ:
            values += tl.dot(read, proj)
        else:
            values += tl.dot(read.to(tl.float32), proj.to(tl.float32), input_precision="ieee")
    at = ((token * heads + head) * size)[:, None] + dims[None, :]
    mask = inside[:, None] & (dims[None, :] < size)
    if HAS_RESIDUAL:
        values += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty), mask=mask)


@lru_cache(maxsize=256)
def headwise_config(
    n: int,
    size: int,
    k: int,
    width: int,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype],
    residual: bool,
    lanes: int = LANES,
) -> dict[str, Any]:
    """Constants and options of `_headwise_kernel`; dtypes of query, keys, bank and projection.

    Kept, so not to be changed in place.
    """
    query, keys, bank, proj = dtypes
    tile = tile_config(n, size // 2, k, query, keys)
    as_is = native(bank, proj)
    dims = padded(size)
    fits = max(16, PROJ_BYTES // (dims * (2 if as_is else 4)))
    sizes = {"R": width, "RB": min(128, fits, padded(width)), "DB": dims, "BT": TOKENS}
    flags = {"NATIVE_PROJ": as_is, "HAS_RESIDUAL": residual}
    return {**tile, **sizes, **flags, "num_warps": tile_warps(tile, lanes), "num_stages": 1}


def headwise_memory(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, H, D] -> [T, H, D], plus the residual; see `kernels.headwise_memory`. No gradient."""
    tokens, heads, size = query.shape
    n, width = row_keys.shape[1], bank.shape[1]
    check_sizes(n)
    if k > MAX_K:
        from kernels.headwise_memory import eager

        return eager.headwise_memory(query, row_keys, col_keys, bank, head_proj, k, residual)
    dtype = query.dtype if residual is None else torch.promote_types(query.dtype, residual.dtype)
    out = torch.empty(query.shape, dtype=dtype, device=query.device)
    if out.numel() == 0:
        return out
    query, bank = rows_dense(query), rows_dense(bank)
    keys = torch.promote_types(row_keys.dtype, col_keys.dtype)
    dtypes = (query.dtype, keys, bank.dtype, head_proj.dtype)
    config = headwise_config(n, size, k, width, dtypes, residual is not None)
    config = tuned("headwise", config, tokens)
    with torch.cuda.device_of(query):
        _headwise_kernel[(triton.cdiv(tokens, config["BT"]), heads)](
            query,
            row_keys.contiguous().to(keys),
            col_keys.contiguous().to(keys),
            pair_table(k, query.device),
            bank,
            head_proj.contiguous(),
            out if residual is None else residual.contiguous(),  # not read where there is none
            out,
            tokens,
            heads,
            query.stride(0),
            query.stride(1),
            bank.stride(0),
            **config,
        )
    return out
