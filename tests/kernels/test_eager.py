"""The fast PyTorch path, values and every gradient, against float64 given the chosen slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import headwise_memory, latent_bag, product_key_select, use_backend
from kernels.latent_bag import eager as bag
from kernels.product_key_select import eager as select
from kernels.product_key_select import naive
from tests.kernels.oracles import pair_scores, relative_rms, values

NAMES = ("query", "row_keys", "col_keys", "bank", "head_proj")


@pytest.fixture(autouse=True)
def in_pytorch() -> Any:
    with use_backend("torch"):
        yield


def draw(
    tokens: int, heads: int, dim: int, n: int, r: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    half = dim // 2
    shapes = [(tokens, heads, dim), (heads, n, half), (heads, n, half), (n * n, r), (heads, r, dim)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def compare(inputs: list[torch.Tensor], k: int, tolerance: float, floor: float = 0.0) -> None:
    """Values and gradients, each by its own size; slots by their scores.

    floor: of the largest gradient (for values, of the projection), the least size that a gradient
    is compared by.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got = headwise_memory(*leaves, k)  # type: ignore[arg-type]
    slots = product_key_select(*inputs[:3], k)[1]
    scores = pair_scores(*inputs[:3])
    best = scores.topk(k).values
    scale = scores.abs().amax().clamp(min=1) if scores.numel() else 1.0
    assert ((scores.gather(-1, slots) - best).abs() <= 1e-6 * scale).all()
    want = values(*exact, slots)  # type: ignore[arg-type]
    assert rms(got - want) <= tolerance * max(rms(want), floor * rms(inputs[-1]))
    grad = torch.randn_like(got)
    got.backward(grad)
    want.backward(grad.double())
    largest = max(rms(truth.grad) for truth in exact)
    for name, mine, truth in zip(NAMES, leaves, exact, strict=True):
        assert mine.grad is not None and truth.grad is not None, name
        assert mine.grad.dtype == mine.dtype, name
        if k == 1 and name in NAMES[:3]:  # a softmax of one: no gradient at all
            assert not mine.grad.any()
        else:
            size = max(rms(truth.grad), floor * largest)
            assert rms(mine.grad.double() - truth.grad) <= tolerance * size, name


def rms(x: torch.Tensor | None) -> float:
    assert x is not None
    return float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0


@given(
    tokens=st.integers(0, 9),
    heads=st.integers(1, 4),
    half=st.integers(1, 20),
    n=st.integers(1, 12),
    r=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_any_shape(
    tokens: int, heads: int, half: int, n: int, r: int, seed: int, data: st.DataObject
) -> None:
    # Where all slots share a row, or a softmax is near one, the keys' gradient is nothing but what
    # is left of a cancellation, and seeds are searched for it: the largest gradient is the measure.
    torch.manual_seed(seed)
    compare(draw(tokens, heads, 2 * half, n, r), data.draw(st.integers(1, n)), 2e-6, floor=1.0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("k", [1, 8, 32])
def test_head_of_a_real_model(dtype: torch.dtype, tolerance: float, k: int) -> None:
    compare(draw(24, 3, 64, 32, 16, dtype), k, tolerance)


def test_bf16_bank_read_seldom_and_often() -> None:
    """The gradient of few reads gathers their rows, of many widens the bank: the same numbers."""
    bank = torch.randn(512, 8).bfloat16()
    indices, grad = torch.randint(512, (16, 4, 8)), torch.randn(16, 4, 8)
    assert 4 * indices.numel() > 512 > 4 * indices[:2].numel()
    often = bag.weight_gradient(grad, bank, indices)
    seldom = bag.weight_gradient(grad[:2], bank, indices[:2])
    torch.testing.assert_close(often[:2], seldom)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    inputs = draw(23, 3, 16, 9, 5)
    whole = product_key_select(*inputs[:3], 4)
    monkeypatch.setattr(select, "ROWS", rows)
    weights, slots = product_key_select(*inputs[:3], 4)
    assert torch.equal(slots, whole[1])
    torch.testing.assert_close(weights, whole[0])
    compare(inputs, 4, 2e-6)


@given(n=st.integers(1, 9), data=st.data(), seed=st.integers(0, 99))
def test_slots_equal_the_plain_ones_under_ties(n: int, data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = data.draw(st.integers(1, n))
    shapes = (5, 2, 4), (2, n, 2), (2, n, 2)
    whole = [torch.randint(-2, 3, shape, generator=generator).float() for shape in shapes]
    assert torch.equal(product_key_select(*whole, k)[1], naive.product_key_select(*whole, k)[1])


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
@pytest.mark.parametrize("side", [1, 2], ids=["row", "column"])
def test_nan_key_spoils_its_head_alone(side: int, bad: float) -> None:
    inputs = draw(6, 3, 8, 7, 4)
    clean = headwise_memory(*inputs, 3)
    bits = torch.tensor([bad]).view(torch.int32) | (-(2**31) if side == 1 else 0)  # either sign
    inputs[side][1, 2, 0] = bits.view(torch.float32).item()
    weights, slots = product_key_select(*inputs[:3], 3)
    assert ((slots >= 0) & (slots < 49)).all() and weights[:, 1].isnan().all()
    got = headwise_memory(*inputs, 3)
    assert got[:, 1].isnan().all() and torch.equal(got[:, ::2], clean[:, ::2])


def test_infinite_scores_stay_in_range() -> None:
    query, *keys = draw(4, 2, 8, 5, 4)[:3]
    query[0, 0], query[1, 0, :4], query[1, 0, 4:] = torch.inf, torch.inf, -torch.inf
    query[2] = torch.finfo(torch.float32).max
    slots = product_key_select(query, *keys, 4)[1]
    assert ((slots >= 0) & (slots < 25)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_bank_row_matters_only_where_selected(bad: float) -> None:
    bank, indices, weights = torch.randn(9, 4), torch.randint(1, 9, (5, 2, 3)), torch.rand(5, 2, 3)
    clean = latent_bag(bank, indices, weights)
    bank[0] = bad
    assert torch.equal(latent_bag(bank, indices, weights), clean)
    indices[2, 1, 0] = 0
    assert not latent_bag(bank, indices, weights)[2, 1].isfinite().any()


def skewed_reads(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Zipf-distributed slots: a few rows take most of the reads, many take none."""
    indices = torch.distributions.Categorical(1 / torch.arange(1.0, 201)).sample((64, 4, 8))
    return torch.randn(64, 4, 6).to(dtype), indices, torch.rand(64, 4, 8)


@pytest.mark.parametrize("mode", ["sorted", "atomic"])
def test_bank_gradient_of_skewed_reads(mode: str) -> None:
    grad, indices, weights = skewed_reads()
    parts = weights.double()[..., None] * grad.double()[..., None, :]
    want = torch.zeros(200, 6, dtype=torch.float64)
    want.index_add_(0, indices.flatten(), parts.flatten(0, 2))
    got = bag.bank_gradient(grad, indices, weights, 200, mode)
    assert relative_rms(got, want) <= 2e-6
    rows, found = bag.unique_row_gradient(grad, indices, weights)
    assert torch.equal(rows, indices.unique()) and relative_rms(found, want[rows]) <= 2e-6


def test_same_bits_on_two_runs() -> None:
    inputs = draw(40, 4, 16, 12, 8)
    runs = []
    for _ in range(2):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = headwise_memory(*leaves, 6)
        out.square().sum().backward()
        runs.append([out, *(x.grad for x in leaves)])
    assert all(map(torch.equal, *runs))


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory comes filled with NaN and impossible slots, so that a forgotten one shows."""
    inputs = draw(9, 3, 8, 6, 4)
    clean = [*product_key_select(*inputs[:3], 4), headwise_memory(*inputs, 4)]

    def poisoned(make: Any) -> Any:
        def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            return made.fill_(torch.nan if made.is_floating_point() else 2**30)

        return filled

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    got = [*product_key_select(*inputs[:3], 4), headwise_memory(*inputs, 4)]
    assert all(map(torch.equal, got, clean))
    compare(inputs, 4, 2e-6)
