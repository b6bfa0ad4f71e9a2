"""Random sets of heads keep to their layers."""

from __future__ import annotations

import numpy as np

from analysis.draws import drawn_heads


def test_drawn_sets_differ_and_keep_to_their_pools() -> None:
    pools = {0: [(0, h) for h in range(5)], 3: [(3, h) for h in range(4)]}
    sets, every = drawn_heads(pools, {0: 2, 3: 1}, 25, np.random.default_rng(0))
    assert not every and len(set(sets)) == 25
    for heads in sets:
        assert [layer for layer, _ in heads] == [0, 0, 3] and len(set(heads)) == 3
    assert sets == drawn_heads(pools, {0: 2, 3: 1}, 25, np.random.default_rng(0))[0]
    sets, every = drawn_heads(pools, {0: 2, 3: 1}, 40, np.random.default_rng(0))
    assert every and len(set(sets)) == 40  # 10 pairs times 4 heads
    many = drawn_heads(pools, {3: 1}, 3, np.random.default_rng(1))[0]
    counts = [
        drawn_heads(pools, {3: 1}, 1, np.random.default_rng(s))[0][0][0][1] for s in range(400)
    ]
    assert len(many) == 3 and np.bincount(counts).min() > 70  # of 100 expected
