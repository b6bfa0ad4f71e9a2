"""Whether heads read the same slots: two usages set against each other."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.memory.table import MemoryUsage
from analysis.statistics import entropy, shares
from analysis.tables import SCHEMA, json_attrs, versions
from kernels.errors import IncomparableTables

COMPARED = ("layer", "kind", "head", "source_layer")


def usage_stability(first: MemoryUsage, second: MemoryUsage) -> pd.DataFrame:
    """How alike two usages' distributions over slots are: two data sets, or before and after.

    Args:
        first, second: tables of `memory_usage`, of models whose memory has the same blocks, heads
            and slots. Slots are matched by their number, so training must not have renumbered them.

    Returns:
        A row a memory head: layer, kind, head, source_layer and

        similarity: 1 - JS(p, q), p and q the shares of weight by slot and JS the Jensen-Shannon
            divergence in bits (the square of the Jensen-Shannon distance): 1 where they are the
            same, 0 where no slot is read in both.
        spearman: rank correlation of the weights over all N slots, ties sharing their rank; NaN
            where all slots of one usage weigh the same.
        both: share of the slots hit in either usage that are hit in both.

    Raises IncomparableTables where the memories differ in shape, MidusError where a table has no
    counts.

    >>> usage_stability(memory_usage(), memory_usage(data="packages"))  # doctest: +SKIP
    """
    shapes = [
        [(block.block, block.heads, block.num_keys) for block in usage.counts]
        for usage in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise IncomparableTables(
            f"these usages are of memories of different shapes: {_words(shapes[0])}, and "
            f"{_words(shapes[1])}; give usages of one model, or of one before and after training"
        )
    columns = []
    for before, after in zip(first.counts, second.counts, strict=True):
        hit = before.hits > 0, after.hits > 0
        columns.append(
            pd.DataFrame(
                {
                    "layer": before.block,
                    "head": before.heads,
                    "similarity": similarity(before.weight, after.weight),
                    "spearman": spearman(before.weight, after.weight),
                    "both": (hit[0] & hit[1]).sum(1) / (hit[0] | hit[1]).sum(1),
                }
            )
        )
    sites = pd.DataFrame(first)[list(COMPARED)]
    table = sites.merge(pd.concat(columns, ignore_index=True), on=["layer", "head"])
    known = ("model", "model_hash", "data", "data_hash", "context")
    sides = [{name: usage.attrs.get(name) for name in known} for usage in (first, second)]
    table.attrs = json_attrs(
        {
            "schema": SCHEMA,
            "table": "usage_stability",
            "first": sides[0],
            "second": sides[1],
            "versions": versions(),
        }
    )
    return table


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 - the Jensen-Shannon divergence, in bits, of two weights over slots [M, N] -> [M]."""
    p, q = shares(first)[0], shares(second)[0]
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return np.clip(1 - divergence / math.log(2), 0.0, 1.0)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over the last axis, [M, N] twice -> [M]."""
    ranks = [rankdata(weight, axis=1) for weight in (first, second)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def _words(shape: list[tuple[int, list[int], int]]) -> str:
    return "; ".join(f"block {at}: {len(heads)} heads, {n * n} slots" for at, heads, n in shape)
