"""Random sets of heads, so many of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product
from math import comb, prod

import numpy as np

Head = tuple[int, int]


def layer_counts(heads: Sequence[Head]) -> dict[int, int]:
    """How many of the heads lie in each layer."""
    layers = [layer for layer, _ in heads]
    return {layer: layers.count(layer) for layer in sorted(set(layers))}


def drawn_heads(
    pools: Mapping[int, Sequence[Head]],
    counts: Mapping[int, int],
    draws: int,
    rng: np.random.Generator,
) -> tuple[list[tuple[Head, ...]], bool]:
    """Different random sets of heads, `counts[layer]` from each layer's pool.

    Where there are no more than `draws` such sets, all of them, and True.
    """
    if prod(comb(len(pools[layer]), count) for layer, count in counts.items()) <= draws:
        parts = [combinations(pools[layer], count) for layer, count in counts.items()]
        return [tuple(chain(*picked)) for picked in product(*parts)], True
    found: dict[tuple[Head, ...], None] = {}  # in the order drawn
    while len(found) < draws:
        picked = []
        for layer, count in counts.items():
            places = rng.choice(len(pools[layer]), count, replace=False)
            picked += [pools[layer][place] for place in sorted(places)]
        found[tuple(picked)] = None
    return list(found), False
