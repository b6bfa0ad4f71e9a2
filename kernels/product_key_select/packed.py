"""A score and its index as one int64, and the least of many; see README.md."""

from __future__ import annotations

from functools import lru_cache

import torch

from kernels.threads import is_observed

LOW = 0x7FFFFFFF  # 31 bits beside an fp32 score: an index
NAN = -0x400000  # bits of the negative NaN, before every number
# numpy's names of the instructions that its sort of int64 is written in.
VECTORS = {"AVX2", "AVX512_SKX", "X86_V3", "X86_V4"}
TILE = 256  # numbers that numpy sorts in registers; more cost it ten times as much a number


def ordered(bits: torch.Tensor) -> torch.Tensor:
    """int32 that orders as the fp32 whose bits these are; its own inverse."""
    sign = bits >> 31
    sign &= LOW
    return sign.bitwise_xor_(bits)


def canonical(scores: torch.Tensor) -> torch.Tensor:
    """-0.0 becomes 0.0 and every NaN the negative one, which comes first; in place."""
    scores.add_(0.0)
    if not scores.sum().isfinite():  # one pass where nothing is wrong
        scores.view(torch.int32).masked_fill_(scores.isnan(), NAN)
    return scores


def pack(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """fp32 [..., c] and what breaks their ties, int64 -> int64 that orders by score, then index."""
    packed = ordered(scores.view(torch.int32)).long()
    packed <<= 32
    packed |= index
    return packed


def unpack(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [..., c] -> fp32 scores and int32 indices, each [..., c]."""
    halves = packed.contiguous().view(torch.int32).unflatten(-1, (-1, 2))  # the low word first
    return ordered(halves[..., 1]).view(torch.float32), halves[..., 0]


@lru_cache
def numpy_sorts() -> bool:
    """Whether numpy is here and sorts int64 by vector instructions of this processor."""
    try:
        import numpy
    except ImportError:
        return False
    if int(numpy.version.version.split(".")[0]) < 2:  # sorted by AVX-512 alone, where at all
        return False
    found = numpy.show_config(mode="dicts")["SIMD Extensions"]
    return bool(VECTORS & {*found.get("baseline", ()), *found.get("found", ())})


def least(packed: torch.Tensor, k: int) -> torch.Tensor:
    """The k least of int64 [..., c], ascending: [..., k]. Leaves what is given in any order."""
    if packed.device.type != "cpu" or k > TILE // 2 or is_observed() or not numpy_sorts():
        return packed.topk(k, largest=False).values
    while packed.shape[-1] > TILE:  # the best of all are among the best of each tile
        tiles = packed.split(TILE, -1)
        packed = torch.cat([least(tile, min(k, tile.shape[-1])) for tile in tiles], -1)
    packed.numpy().sort(axis=-1)
    return packed[..., :k]


def columns(packed: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Columns of int64 [..., c], which may be repeated: [..., places]."""
    if packed.device.type != "cpu" or is_observed() or not numpy_sorts():
        return packed.index_select(-1, places)
    return torch.from_numpy(packed.numpy().take(places.numpy(), axis=-1))
