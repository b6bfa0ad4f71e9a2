"""Which pairs of ranks can be among the k best."""

from __future__ import annotations


def contending(k: int) -> list[tuple[int, int]]:
    """Ranks (i, j), from 0, with (i + 1) * (j + 1) <= k: see "How it is computed" in README.md."""
    return [(i, j) for i in range(k) for j in range(k // (i + 1))]
