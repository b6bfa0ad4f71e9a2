"""Scores and indices in one number, and the least of many, by numpy's sort as by `topk`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.product_key_select import doubled, eager, naive, packed


def keys(tokens: int, heads: int, half: int, n: int) -> list[torch.Tensor]:
    shapes = (tokens, heads, 2 * half), (heads, n, half), (heads, n, half)
    return [torch.randn(shape) for shape in shapes]


def ties(q: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    return [x.round().clamp(-1, 1) for x in (q, r, c)]


def zeros(q: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    """Scores of 0.0 and -0.0 by turns, which are one score."""
    q = torch.zeros_like(q)
    q[::2] *= -1
    r = r.abs()
    r[:, ::2] *= -1
    return [q, r, c]


def broken(q: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    q[0, 0, 0], q[-1] = torch.nan, torch.inf
    r[-1, -1], c[0, 0] = -torch.nan, torch.nan
    return [q, r, c]


def halved(q: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    return [x.bfloat16() for x in (q, r, c)]


def partly(q: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    """Tokens that like no row, some whose best are tiny or tied, and plain ones."""
    q, r = q.clone(), r.abs()
    half = q.shape[-1] // 2
    q[::3, :, :half] = -q[::3, :, :half].abs()
    q[1::3, :, :half] *= 1e-42
    return [q, r, c.round()]


CHANGES: list[Callable[..., list[torch.Tensor]]] = [
    lambda *given: list(given),
    ties,
    zeros,
    broken,
    halved,
    partly,
]


SHAPES = [  # tokens, heads, half, n, k
    (1, 4, 32, 256, 32),
    (40, 2, 12, 64, 8),
    (3, 2, 4, 300, 64),  # more sub-keys than are sorted in registers
    (2, 2, 4, 600, 100),
    (2, 2, 4, 70, 65),  # more pairs
    (2, 1, 4, 260, 200),  # more slots than numpy is asked for
    (5, 3, 7, 5, 5),
    (4, 1, 3, 1, 1),
]


@pytest.mark.parametrize(
    "change", CHANGES, ids=["plain", "ties", "zeros", "broken", "bf16", "partly"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_gives_the_bits_of_topk(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], change: Callable
) -> None:
    *sizes, k = shape
    inputs = change(*keys(*sizes))
    found = []
    for sorts in (True, False):
        for module in (packed, doubled):
            monkeypatch.setattr(module, "numpy_sorts", lambda sorts=sorts: sorts)
        found.append(eager.select(*inputs, k))
    (weights, slots), (want, at) = found
    assert torch.equal(slots, at)
    assert torch.equal(weights.view(torch.int32), want.view(torch.int32))
    if change in (ties, zeros):  # scores are exact
        assert torch.equal(slots, naive.product_key_select(*inputs, k)[1])


def test_least_is_what_sorting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "numpy_sorts", lambda: True)
    for count, k in ((1, 1), (7, 7), (256, 32), (257, 128), (1000, 5), (1024, 64)):
        given = torch.randint(-(2**62), 2**62, (2, 3, count))
        want = given.sort(-1).values[..., :k]
        assert torch.equal(packed.least(given.clone(), k), want)


def test_order_of_floats() -> None:
    values = [-torch.inf, -1.5, -1e-40, 0.0, 1e-40, 2.0, torch.inf]
    bits = packed.ordered(torch.tensor(values).view(torch.int32))
    assert bits.tolist() == sorted(bits.tolist())
    assert torch.equal(packed.ordered(bits).view(torch.float32), torch.tensor(values))


@pytest.mark.parametrize("off", ["", "AVX512_SPR AVX512_ICL X86_V4 AVX512_SKX X86_V3 AVX2"])
def test_numpy_is_asked_what_it_sorts_by(off: str) -> None:
    """As the processor's flags say, less what numpy was told to leave alone."""
    flags = ""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    if "avx2" not in flags.split():
        pytest.skip("no processor to ask about")
    code = "from kernels.product_key_select.packed import numpy_sorts; print(numpy_sorts())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"PATH": "", "NPY_DISABLE_CPU_FEATURES": off, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(not off)


class Ops(TorchDispatchMode):
    """Records the name of every op."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_watches_sees_every_op() -> None:
    """numpy's sort is no op of PyTorch's: a mode that records or traces would miss it."""
    inputs = keys(3, 2, 4, 9)
    want = eager.select(*inputs, 4)
    with Ops() as ops:
        got = eager.select(*inputs, 4)
    assert sum("topk" in name for name in ops.seen) == 2
    assert all(map(torch.equal, got, want))


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    packed.numpy_sorts.cache_clear()
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not packed.numpy_sorts()
    packed.numpy_sorts.cache_clear()


def test_positive_scores_and_labels_in_one_number() -> None:
    scores = torch.tensor([3.0, 1e-44, 0.0, -0.0, -1.0, 3.0, 3.4e38, 1.1754944e-38])
    labels = torch.tensor([5, 0, 1, 2, 3, 4, 2**28 - 1, 2**27])
    joined = doubled.join(scores, labels)
    assert doubled.positive(joined).tolist() == (scores > 0).tolist()
    best, at = doubled.split(joined.sort().values)
    assert at[:5].tolist() == [2**28 - 1, 4, 5, 2**27, 0]  # of equals the lower first
    assert torch.equal(best[:5], torch.tensor([3.4e38, 3.0, 3.0, 1.1754944e-38, 1e-44]))
    assert all(map(torch.equal, doubled.split(joined), (scores, labels)))


@pytest.mark.parametrize("spoiled", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_joined(monkeypatch: pytest.MonkeyPatch, spoiled: float) -> None:
    monkeypatch.setattr(doubled, "numpy_sorts", lambda: True)
    scores = torch.randn(2, 3, 64)
    assert doubled.joins(scores, 64 * 64, 16)
    assert not doubled.joins(scores, 64 * 64, 17)
    assert not doubled.joins(scores, 2**28, 16)
    scores[1, 2, 63] = spoiled
    assert not doubled.joins(scores, 64 * 64, 16)
