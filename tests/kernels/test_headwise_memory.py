"""The whole read, [T, H, D] -> [T, H, D], against all N pairs and every value written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import headwise_memory

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
NAMES = ("query", "row_keys", "col_keys", "bank", "head_proj")


def draw(
    tokens: int,
    heads: int,
    dim: int,
    n: int,
    width: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Random query, row keys, column keys, bank [N, r] and HIVE [H, r, D]."""
    generator = torch.Generator().manual_seed(seed)
    half = dim // 2
    shapes = [
        (tokens, heads, dim),
        (heads, n, half),
        (heads, n, half),
        (n * n, width),
        (heads, width, dim),
    ]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return drawn[0], drawn[1], drawn[2], drawn[3], drawn[4]


def oracle(inputs: Inputs, k: int) -> torch.Tensor:
    """[T, H, D] in float64: all N scores, a stable sort, then each chosen slot's own value."""
    query, row_keys, col_keys, bank, head_proj = (x.double() for x in inputs)
    tokens, heads, dim = query.shape
    out = torch.zeros(tokens, heads, dim, dtype=torch.float64)
    for t in range(tokens):
        for h in range(heads):
            row = row_keys[h] @ query[t, h, : dim // 2]  # [n]
            col = col_keys[h] @ query[t, h, dim // 2 :]
            scores = (row[:, None] + col[None, :]).flatten()  # [N]
            slots = scores.sort(descending=True, stable=True).indices[:k]
            for weight, slot in zip(scores[slots].softmax(0), slots, strict=True):
                out[t, h] += weight * (bank[slot] @ head_proj[h])
    return out


@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "n", "width", "k"),
    [(5, 3, 8, 6, 4, 3), (3, 2, 4, 5, 7, 1), (3, 2, 6, 4, 2, 4), (4, 1, 4, 5, 3, 2)],
    ids=["plain", "k=1", "k=n", "one-head"],
)
def test_float64_equals_all_pairs(
    tokens: int, heads: int, dim: int, n: int, width: int, k: int
) -> None:
    inputs = draw(tokens, heads, dim, n, width)
    torch.testing.assert_close(headwise_memory(*inputs, k), oracle(inputs, k), atol=1e-12, rtol=0)


@given(
    tokens=st.integers(1, 3),
    heads=st.integers(1, 3),
    half=st.integers(1, 3),
    n=st.integers(1, 5),
    width=st.integers(1, 4),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_fp32_is_close_to_float64(
    tokens: int, heads: int, half: int, n: int, width: int, data: st.DataObject, seed: int
) -> None:
    k = data.draw(st.integers(1, n))
    inputs = draw(tokens, heads, 2 * half, n, width, torch.float32, seed)
    # Whole-number queries and keys: scores are exact, so no margin is lost to rounding.
    whole = (inputs[0].round(), inputs[1].round(), inputs[2].round(), inputs[3], inputs[4])
    got = headwise_memory(*whole, k)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), oracle(whole, k), atol=1e-4, rtol=1e-4)


def test_zero_bank_gives_zero_exactly() -> None:
    query, row_keys, col_keys, bank, head_proj = draw(4, 2, 8, 5, 3, torch.float32)
    got = headwise_memory(query, row_keys, col_keys, torch.zeros_like(bank), head_proj, 3)
    assert torch.equal(got, torch.zeros_like(query))


def test_bf16_keeps_its_dtype_and_is_close() -> None:
    inputs = draw(32, 4, 16, 8, 8, torch.bfloat16)
    got = headwise_memory(*inputs, 4)
    assert got.dtype == torch.bfloat16
    error = (got.double() - oracle(inputs, 4)).abs()
    assert error.quantile(0.99) < 0.1 and error.median() < 0.01


def test_gradcheck() -> None:
    inputs = tuple(x.requires_grad_() for x in draw(3, 2, 4, 3, 3))
    torch.autograd.gradcheck(lambda *x: headwise_memory(*x, 2), inputs)


def test_every_input_gets_a_gradient() -> None:
    inputs = tuple(x.requires_grad_() for x in draw(6, 2, 8, 4, 3, torch.float32))
    headwise_memory(*inputs, 3).square().sum().backward()
    for name, x in zip(NAMES, inputs, strict=True):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(), name


def test_no_tokens() -> None:
    inputs = tuple(x.requires_grad_() for x in draw(0, 2, 8, 4, 3, torch.float32))
    got = headwise_memory(*inputs, 3)
    assert got.shape == (0, 2, 8)
    got.sum().backward()


def test_non_contiguous_inputs() -> None:
    inputs = draw(5, 3, 8, 4, 6, torch.float32)
    strided = tuple(x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs)
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(headwise_memory(*strided, 3), headwise_memory(*inputs, 3))


def test_nan_query_spoils_its_own_head_alone() -> None:
    query, *rest = draw(4, 3, 8, 5, 4, torch.float32)
    clean = headwise_memory(query, *rest, 3)
    query[1, 2, 0] = float("nan")
    got = headwise_memory(query, *rest, 3)
    assert got[1, 2].isnan().all()
    others = torch.ones(4, 3, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(got[others], clean[others])


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that any operation gives back, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(x.shape) for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_size_n_squared_or_expanded_is_made(dtype: torch.dtype) -> None:
    """Neither all scores [T, H, N] nor expanded values [T, H, k, D], forward or backward.

    Sizes share no factor, so that a count of elements tells what a tensor holds.
    """
    tokens, heads, dim, n, width, k = 11, 3, 26, 17, 5, 7
    slots = n * n
    inputs = tuple(x.requires_grad_() for x in draw(tokens, heads, dim, n, width, dtype))
    with Shapes() as shapes:
        headwise_memory(*inputs, k).square().sum().backward()
    assert (tokens, heads, dim) in shapes.seen, "the recorder saw nothing"
    assert tuple(inputs[3].shape) in shapes.seen, "the recorder saw no backward"
    for shape in shapes.seen:
        size = torch.Size(shape).numel()
        assert size < tokens * heads * slots and size != tokens * heads * k * dim, shape
        # Nor the scores of one head at a time.
        assert not (slots in shape and {tokens, tokens * heads} & set(shape)), shape


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bank": torch.zeros(24, 3)}, "bank"),
        ({"bank": torch.zeros(25)}, "bank"),
        ({"head_proj": torch.zeros(2, 4, 8)}, "head_proj"),
        ({"head_proj": torch.zeros(3, 3, 8)}, "head_proj"),
        ({"query": torch.zeros(4, 8)}, "query"),
        ({"row_keys": torch.zeros(5, 4)}, "row_keys"),
        ({"col_keys": torch.zeros(2, 5, 3)}, "col_keys"),
        ({"k": 0}, "k is 0"),
        ({"k": 6}, "k is 6"),
    ],
)
def test_errors_name_the_argument(change: dict, named: str) -> None:
    arguments = {
        "query": torch.zeros(4, 2, 8),
        "row_keys": torch.zeros(2, 5, 4),
        "col_keys": torch.zeros(2, 5, 4),
        "bank": torch.zeros(25, 3),
        "head_proj": torch.zeros(2, 3, 8),
        "k": 3,
    }
    with pytest.raises(ValueError, match=named):
        headwise_memory(**(arguments | change))
