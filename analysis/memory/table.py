"""The counts of slots, and the table that is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.memory.places import no_memory
from analysis.statistics import entropy, shares
from kernels.errors import MidusError

SLOT_COLUMNS = ("block", "head", "slot", "row", "col", "hits", "weight")


@dataclass(frozen=True)
class SlotCounts:
    """Reads of one block's bank: `hits` int64 and `weight` float64, both [M, N], by memory head.

    `tokens` were counted; `read_ratio` is what the whole block adds to the stream, over the stream.
    """

    block: int
    heads: list[int]
    num_keys: int
    hits: np.ndarray
    weight: np.ndarray
    tokens: int
    read_ratio: float

    def frame(self, head: int) -> pd.DataFrame:
        """Columns slot, row, col, hits, weight of the slots that `head` hit, by slot."""
        index = self.heads.index(head)
        slots = np.flatnonzero(self.hits[index])
        return pd.DataFrame(
            {
                "slot": slots,
                "row": slots // self.num_keys,
                "col": slots % self.num_keys,
                "hits": self.hits[index, slots],
                "weight": self.weight[index, slots],
            }
        )

    def statistics(self) -> dict[str, np.ndarray]:
        """The columns of `memory_usage` that follow from the counts alone, each [M]."""
        slots, spread = self.hits.shape[1], entropy(self.weight)
        hit = (self.hits > 0).sum(1)
        by_halves = (len(self.heads), self.num_keys, self.num_keys)  # [M, row, col]
        hits, weight = self.hits.reshape(by_halves), self.weight.reshape(by_halves)
        return {
            "slots": np.full(len(hit), slots),
            "tokens": np.full(len(hit), self.tokens),
            "hits": self.hits.sum(1),
            "weight": self.weight.sum(1),
            "coverage": hit / slots,
            "dead": slots - hit,
            "entropy": spread,
            "effective_slots": np.exp(spread),
            "kl_uniform": np.log(slots) - spread,
            "row_coverage": hits.any(2).mean(1),
            "col_coverage": hits.any(1).mean(1),
            "row_entropy": entropy(weight.sum(2)),
            "col_entropy": entropy(weight.sum(1)),
            "collisions": collisions(self.weight),
        }

    def summary(self) -> dict[str, Any]:
        """The row of `MemoryUsage.blocks`."""
        slots, hit = self.hits.shape[1], int(self.hits.any(0).sum())
        return {
            "block": self.block,
            "heads": len(self.heads),
            "slots": slots,
            "tokens": self.tokens,
            "coverage": hit / slots,
            "dead": slots - hit,
            "effective_slots": float(np.exp(entropy(self.weight.sum(0)))),
            "collisions": float(collisions(self.weight).mean()),
            "read_ratio": self.read_ratio,
        }


def collisions(weight: np.ndarray) -> np.ndarray:
    """How much of each head's reading other heads share: [M, N] -> [M], each in [0, 1].

    With p_h(s) the share of head h's weight that lies on slot s, the overlap of two heads is
    sum_s min(p_h(s), p_g(s)): 1 where they read the same slots as much, 0 where they have none in
    common. A head's collisions are its mean overlap with the block's other heads; with no other
    head, 0.
    """
    share = shares(weight)[0]
    heads = len(share)
    if heads == 1:
        return np.zeros(1)
    overlap = np.stack([np.minimum(one, share).sum(1) for one in share])  # [M, M]
    np.fill_diagonal(overlap, 0.0)
    return overlap.sum(1) / (heads - 1)


class MemoryUsage(pd.DataFrame):
    """The table of `memory_usage`, a row a memory head, with the counts of every slot behind it."""

    _metadata = ["_counts"]
    _counts: list[SlotCounts] | None = None

    @property
    def _constructor(self) -> type[MemoryUsage]:
        return MemoryUsage

    @property
    def counts(self) -> list[SlotCounts]:
        """The counts of every block; MidusError where the table was read from a file."""
        if self._counts is None:
            raise MidusError(
                "this table has no counts of slots; take it from analysis.memory_usage(), or read "
                "the stored table of memory_slots"
            )
        return self._counts

    def slots(self, block: int, head: int) -> pd.DataFrame:
        """The slots that a head hit, a row a slot, most hit first, then lowest slot.

        Columns: slot, row, col (slot = row * n + col), hits (reads of the slot) and weight (the sum
        of their softmax weights). `attrs` adds block, head and slots (N) to the table's own.

        Raises HeadError where there is no memory at (block, head).
        """
        for counts in self.counts:
            if counts.block == block and head in counts.heads:
                frame = counts.frame(int(head))
                frame = frame.sort_values(["hits", "slot"], ascending=[False, True])
                frame = frame.reset_index(drop=True)
                frame.attrs = dict(self.attrs)
                frame.attrs |= {"table": "memory_slots", "block": int(block), "head": int(head)}
                frame.attrs["slots"] = counts.hits.shape[1]
                return frame
        known = {counts.block: counts.heads for counts in self.counts}
        raise no_memory(f"block {block!r} head {head!r} is no memory head", known)

    def all_slots(self) -> pd.DataFrame:
        """Every slot hit, by block, head and slot: the columns of `slots` after block and head."""
        frames = []
        for counts in self.counts:
            for head in counts.heads:
                frame = counts.frame(head)
                frame.insert(0, "block", counts.block)
                frame.insert(1, "head", head)
                frames.append(frame)
        table = pd.concat(frames, ignore_index=True)[list(SLOT_COLUMNS)]
        table.attrs = {**self.attrs, "table": "memory_slots"}
        return table

    def blocks(self) -> pd.DataFrame:
        """How each bank is used by its heads together, a row a block.

        Columns: block, heads (their number), slots, tokens; coverage and dead: the share of the
        bank that any head hit, and the number of slots that none did; effective_slots: exp(entropy)
        of all heads' weight; collisions: the mean over heads; read_ratio: mean over tokens of the
        norm of what the block adds to the stream, over that of the stream it is added to.
        """
        table = pd.DataFrame([counts.summary() for counts in self.counts])
        table.attrs = {**self.attrs, "table": "memory_blocks"}
        return table
