"""The latent read and its gradients in Triton; see README.md.

Tiles are [bags, reads, columns], so that many rows of the bank are on their way at once. Addresses
are int64: a bank may hold more than 2**31 numbers. Configurations are kept, so not to be changed in
place. Counts of bags and rows specialise no kernel: other ones compile nothing.
"""

# A kernel's arguments have types of Triton's own.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.layout import rows_dense
from kernels.tuning import tuned

TILE = 4096  # numbers a tile
PIECE = 128  # reads of one row that one program sums


@triton.jit(do_not_specialize=["bags"])
def _bag_kernel(
    bank_ptr,
    indices_ptr,
    weights_ptr,
    out_ptr,
    bags,
    bank_stride,
    R: tl.constexpr,
    K: tl.constexpr,
    BR: tl.constexpr,
    KC: tl.constexpr,
    RB: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    column = tl.program_id(1) * RB + tl.arange(0, RB)
    inside = bag < bags
    total = tl.zeros([BR, KC, RB], tl.float32)
    for start in range(0, K, KC):
        read = start + tl.arange(0, KC)
        at = bag[:, None] * K + read[None, :]  # [BR, KC]
        mask = inside[:, None] & (read[None, :] < K)
        slot = tl.load(indices_ptr + at, mask=mask, other=0)
        weight = tl.load(weights_ptr + at, mask=mask, other=0.0).to(tl.float32)
        # Rows are masked too: a weight of 0 would not silence a NaN.
        rows = tl.load(
            bank_ptr + slot[:, :, None] * bank_stride + column[None, None, :],
            mask=mask[:, :, None] & (column[None, None, :] < R),
            other=0.0,
        )
        total += weight[:, :, None] * rows.to(tl.float32)  # [BR, KC, RB]
    found = tl.sum(total, 1).to(out_ptr.dtype.element_ty)
    mask = inside[:, None] & (column[None, :] < R)
    tl.store(out_ptr + bag[:, None] * R + column[None, :], found, mask=mask)


@triton.jit(do_not_specialize=["bags"])
def _weight_gradient_kernel(
    grad_ptr,
    bank_ptr,
    indices_ptr,
    out_ptr,
    bags,
    bank_stride,
    R: tl.constexpr,
    K: tl.constexpr,
    BR: tl.constexpr,
    KC: tl.constexpr,
    RB: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    read = tl.program_id(1) * KC + tl.arange(0, KC)
    at = bag[:, None] * K + read[None, :]  # [BR, KC]
    mask = (bag[:, None] < bags) & (read[None, :] < K)
    slot = tl.load(indices_ptr + at, mask=mask, other=0)
    total = tl.zeros([BR, KC, RB], tl.float32)
    for start in range(0, R, RB):
        column = start + tl.arange(0, RB)
        grad = tl.load(
            grad_ptr + bag[:, None] * R + column[None, :],
            mask=(bag[:, None] < bags) & (column[None, :] < R),
            other=0.0,
        )
        rows = tl.load(
            bank_ptr + slot[:, :, None] * bank_stride + column[None, None, :],
            mask=mask[:, :, None] & (column[None, None, :] < R),
            other=0.0,
        )
        total += grad.to(tl.float32)[:, None, :] * rows.to(tl.float32)  # [BR, KC, RB]
    tl.store(out_ptr + at, tl.sum(total, 2), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _piece_kernel(
    grad_ptr,
    weights_ptr,
    order_ptr,
    offsets_ptr,
    pieces_ptr,
    ends_ptr,
    shared_ends_ptr,
    row_of_ptr,
    total_ptr,
    workspace_ptr,
    rows,
    R: tl.constexpr,
    K: tl.constexpr,
    CH: tl.constexpr,
    EC: tl.constexpr,
    RB: tl.constexpr,
):
    """Sums at most CH reads of one row, in reading order.

    A row of one piece is written; a piece of a row of several goes to the workspace.
    """
    piece = tl.program_id(0).to(tl.int64)
    row = tl.load(row_of_ptr + piece)
    if row < rows:  # the grid is an upper bound
        pieces = tl.load(pieces_ptr + row)
        place = piece - (tl.load(ends_ptr + row) - pieces)  # among the row's pieces
        start = tl.load(offsets_ptr + row) + place * CH
        end = tl.minimum(start + CH, tl.load(offsets_ptr + row + 1))
        column = tl.program_id(1) * RB + tl.arange(0, RB)
        wanted = column < R
        total = tl.zeros([EC, RB], tl.float32)
        for chunk in range(0, (end - start).to(tl.int32), EC):
            entry = start + chunk + tl.arange(0, EC)
            mask = entry < end
            read = tl.load(order_ptr + entry, mask=mask, other=0)
            weight = tl.load(weights_ptr + read, mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(
                grad_ptr + (read // K)[:, None] * R + column[None, :],
                mask=mask[:, None] & wanted[None, :],
                other=0.0,
            )
            total += weight[:, None] * grad.to(tl.float32)  # [EC, RB]
        found = tl.sum(total, 0)
        if pieces == 1:
            tl.store(total_ptr + row * R + column, found, mask=wanted)
        else:
            shared = tl.load(shared_ends_ptr + row) - pieces + place
            tl.store(workspace_ptr + shared * R + column, found, mask=wanted)


@triton.jit(do_not_specialize=["rows"])
def _join_kernel(
    workspace_ptr,
    pieces_ptr,
    shared_ends_ptr,
    row_of_ptr,
    total_ptr,
    rows,
    R: tl.constexpr,
    EC: tl.constexpr,
    RB: tl.constexpr,
):
    """Adds the pieces of a row that has several, in order."""
    row = tl.load(row_of_ptr + tl.program_id(0))
    if row < rows:
        end = tl.load(shared_ends_ptr + row)
        pieces = tl.load(pieces_ptr + row)
        column = tl.program_id(1) * RB + tl.arange(0, RB)
        wanted = column < R
        total = tl.zeros([EC, RB], tl.float32)
        for chunk in range(0, pieces.to(tl.int32), EC):
            piece = end - pieces + chunk + tl.arange(0, EC)
            total += tl.load(
                workspace_ptr + piece[:, None] * R + column[None, :],
                mask=(piece < end)[:, None] & wanted[None, :],
                other=0.0,
            )
        tl.store(total_ptr + row * R + column, tl.sum(total, 0), mask=wanted)


@triton.jit
def _atomic_kernel(
    grad_ptr,
    indices_ptr,
    weights_ptr,
    total_ptr,
    R: tl.constexpr,
    K: tl.constexpr,
    KC: tl.constexpr,
    RB: tl.constexpr,
):
    """Adds one bag's gradient, weighted, to every row it read."""
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * RB + tl.arange(0, RB)
    wanted = column < R
    grad = tl.load(grad_ptr + bag * R + column, mask=wanted, other=0.0).to(tl.float32)
    for start in range(0, K, KC):
        read = start + tl.arange(0, KC)
        mask = read < K
        slot = tl.load(indices_ptr + bag * K + read, mask=mask, other=0)
        weight = tl.load(weights_ptr + bag * K + read, mask=mask, other=0.0).to(tl.float32)
        tl.atomic_add(
            total_ptr + slot[:, None] * R + column[None, :],
            weight[:, None] * grad[None, :],
            mask=mask[:, None] & wanted[None, :],
            sem="relaxed",
        )


def _columns(width: int) -> int:
    return max(16, min(128, triton.next_power_of_2(width)))


@lru_cache(maxsize=256)
def read_config(width: int, k: int) -> dict[str, Any]:
    """Constants and options of `_bag_kernel` and `_weight_gradient_kernel`."""
    columns = _columns(width)
    reads = min(16, triton.next_power_of_2(k))
    bags = max(1, TILE // (columns * reads))
    sizes = {"R": width, "K": k, "BR": min(bags, 16), "KC": reads, "RB": columns}
    return {**sizes, "num_warps": 4, "num_stages": 2}


@lru_cache(maxsize=256)
def piece_config(width: int, k: int, piece: int = PIECE) -> dict[str, Any]:
    """Constants and options of `_piece_kernel`, which sums up to `piece` reads of a row."""
    sizes = {"R": width, "K": k, "CH": piece, "EC": 16, "RB": _columns(width)}
    return {**sizes, "num_warps": 4, "num_stages": 2}


@lru_cache(maxsize=256)
def join_config(width: int) -> dict[str, Any]:
    """Constants and options of `_join_kernel`: few columns, as one row may have many pieces."""
    return {"R": width, "EC": 64, "RB": min(32, _columns(width)), "num_warps": 4, "num_stages": 2}


@lru_cache(maxsize=256)
def atomic_config(width: int, k: int) -> dict[str, Any]:
    """Constants and options of `_atomic_kernel`."""
    reads = min(8, triton.next_power_of_2(k))
    sizes = {"R": width, "K": k, "KC": reads, "RB": _columns(width)}
    return {**sizes, "num_warps": 4, "num_stages": 1}


def bag(bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, r], [T, H, k] twice -> [T, H, r]; see `kernels.latent_bag`. No gradient."""
    tokens, heads, k = indices.shape
    width = bank.shape[1]
    out = torch.empty((tokens, heads, width), dtype=bank.dtype, device=bank.device)
    if out.numel() == 0:
        return out
    bank, bags = rows_dense(bank), tokens * heads
    config = tuned("read", read_config(width, k), tokens)
    grid = (triton.cdiv(bags, config["BR"]), triton.cdiv(width, config["RB"]))
    with torch.cuda.device_of(bank):
        _bag_kernel[grid](
            bank, indices.contiguous(), weights.contiguous(), out, bags, bank.stride(0), **config
        )
    return out


def weight_gradient(grad: torch.Tensor, bank: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gradient of the weights [T, H, k] in fp32: each read row times its bag's gradient."""
    tokens, heads, k = indices.shape
    out = torch.empty(indices.shape, dtype=torch.float32, device=bank.device)
    if out.numel() == 0:
        return out
    bank, bags = rows_dense(bank), tokens * heads
    config = tuned("read", read_config(bank.shape[1], k), tokens)
    grid = (triton.cdiv(bags, config["BR"]), triton.cdiv(k, config["KC"]))
    with torch.cuda.device_of(bank):
        _weight_gradient_kernel[grid](
            grad.contiguous(), bank, indices.contiguous(), out, bags, bank.stride(0), **config
        )
    return out


def _sum_segments(
    grad: torch.Tensor, weights: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """fp32 [rows, r]: row i sums the weighted gradients of reads order[offsets[i] : offsets[i+1]].

    Long rows are cut in pieces. Everything that depends on the reads stays on the device, so grids
    are upper bounds: each row has at most one piece that is not full.
    """
    rows, reads = len(offsets) - 1, len(order)
    width, k = grad.shape[-1], weights.shape[-1]
    config = tuned("piece", piece_config(width, k, PIECE), len(grad))
    join, most = tuned("join", join_config(width), len(grad)), config["CH"]
    total = torch.zeros((rows, width), dtype=torch.float32, device=grad.device)
    counts = offsets.diff()
    pieces = (counts + (most - 1)).div(most, rounding_mode="floor")
    several = pieces > 1
    ends, shared_ends = pieces.cumsum(0), (pieces * several).cumsum(0)

    def owners(running: torch.Tensor, bound: int) -> torch.Tensor:
        """For 0 ... bound - 1, the row it belongs to; `rows` beyond the last."""
        return torch.searchsorted(running, torch.arange(bound, device=grad.device), right=True)

    row_of_piece = owners(ends, min(rows, reads) + triton.cdiv(reads, most))
    # A row of several pieces has more than `most` reads, and fewer than 2 / `most` pieces a read.
    row_of_long = owners(several.cumsum(0), min(rows, reads // (most + 1)))
    shape = (2 * reads // most if len(row_of_long) else 0, width)
    workspace = torch.empty(shape, dtype=torch.float32, device=grad.device)
    with torch.cuda.device_of(grad):
        _piece_kernel[(len(row_of_piece), triton.cdiv(width, config["RB"]))](
            grad,
            weights,
            order,
            offsets,
            pieces,
            ends,
            shared_ends,
            row_of_piece,
            total,
            workspace,
            rows,
            **config,
        )
        if len(row_of_long):
            _join_kernel[(len(row_of_long), triton.cdiv(width, join["RB"]))](
                workspace, pieces, shared_ends, row_of_long, total, rows, **join
            )
    return total


def _atomic_gradient(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, slots: int
) -> torch.Tensor:
    width, k = grad.shape[-1], indices.shape[-1]
    total = torch.zeros((slots, width), dtype=torch.float32, device=grad.device)
    config = tuned("atomic", atomic_config(width, k), len(indices))
    grid = (indices.numel() // k, triton.cdiv(width, config["RB"]))
    with torch.cuda.device_of(grad):
        _atomic_kernel[grid](grad, indices, weights, total, **config)
    return total


def bank_gradient(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, slots: int, mode: str
) -> torch.Tensor:
    """Gradient of the bank [N, r] in fp32; `mode` "sorted" or "atomic".

    "sorted" gives the same bits on every run and never waits for the device.
    """
    width = grad.shape[-1]
    if indices.numel() == 0 or width == 0 or slots == 0:
        return torch.zeros((slots, width), dtype=torch.float32, device=grad.device)
    grad, indices, weights = grad.contiguous(), indices.contiguous(), weights.contiguous()
    if mode == "atomic":
        return _atomic_gradient(grad, indices, weights, slots)
    keys = torch.int32 if slots < 2**31 - 1 else torch.int64  # half as many passes of the sort
    ascending, order = indices.reshape(-1).to(keys).sort(stable=True)
    borders = torch.arange(slots + 1, dtype=keys, device=grad.device)
    offsets = torch.searchsorted(ascending, borders)
    return _sum_segments(grad, weights, order, offsets)


def unique_row_gradient(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows read, ascending [U], and their gradients [U, r] in fp32; waits for the device."""
    ascending, order = indices.reshape(-1).sort(stable=True)
    rows, counts = ascending.unique_consecutive(return_counts=True)
    if len(rows) == 0:
        shape = (0, grad.shape[-1])
        return rows, torch.zeros(shape, dtype=torch.float32, device=grad.device)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return rows, _sum_segments(grad.contiguous(), weights.contiguous(), order, offsets)
