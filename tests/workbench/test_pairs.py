"""Two processes at once on one folder: one does the work and the other is told, or both agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.workbench.pairs import CASES, Pairs

PAIRS = 100
QUICK = ("train", "upscale --overwrite")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("name", QUICK)
def test_of_two_at_once_none_is_wrong(pairs: Pairs, name: str) -> None:
    assert pairs.wrong(name, 0.0, 2 * QUICK.index(name)) == []


@pytest.mark.verify
def test_a_hundred_pairs_at_once_and_at_any_offset(tmp_path: Path) -> None:
    """Every case at once first, then at offsets of up to the time that one takes alone."""
    pairs, rng = Pairs(tmp_path), np.random.default_rng(0)
    wrong = {}
    for number in range(PAIRS):
        name = list(CASES)[number % len(CASES)]
        offset = 0.0 if number < len(CASES) else float(rng.uniform(0, 1))
        if found := pairs.wrong(name, offset, number):
            wrong[f"{number} {name} {offset:.2f}"] = found
    assert not wrong, f"{len(wrong)} of {PAIRS}: {wrong}"
