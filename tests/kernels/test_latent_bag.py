"""The latent read against a sum written out by hand in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import latent_bag


def draw(
    tokens: int,
    heads: int,
    k: int,
    slots: int,
    width: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random bank [N, r], slots [T, H, k] with repeats, and weights [T, H, k]."""
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(slots, width, generator=generator, dtype=torch.float64).to(dtype)
    indices = torch.randint(slots, (tokens, heads, k), generator=generator)
    weights = torch.randn(tokens, heads, k, generator=generator, dtype=torch.float64).to(dtype)
    return bank, indices, weights


def oracle(bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[T, H, r] in float64, row by row."""
    tokens, heads, k = indices.shape
    out = torch.zeros(tokens, heads, bank.shape[1], dtype=torch.float64)
    for t in range(tokens):
        for h in range(heads):
            for j in range(k):
                out[t, h] += weights[t, h, j].double() * bank[int(indices[t, h, j])].double()
    return out


@given(
    tokens=st.integers(1, 4),
    heads=st.integers(1, 3),
    k=st.integers(1, 5),
    slots=st.integers(1, 9),
    width=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_float64_equals_the_sum(
    tokens: int, heads: int, k: int, slots: int, width: int, seed: int
) -> None:
    inputs = draw(tokens, heads, k, slots, width, seed=seed)
    got = latent_bag(*inputs)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, oracle(*inputs), atol=1e-12, rtol=0)


def test_whole_numbers_are_exact_in_fp32() -> None:
    bank = torch.arange(12.0).reshape(4, 3)
    indices = torch.tensor([[[0, 3, 3]]])
    weights = torch.tensor([[[2.0, 1.0, -1.0]]])
    assert torch.equal(latent_bag(bank, indices, weights), 2 * bank[:1, None])


def test_bf16_is_summed_in_fp32() -> None:
    """256 + 64 ones: a bf16 running sum stays at 256, where its spacing is 2."""
    bank = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    indices = torch.tensor([[[0] + [1] * 64]])
    weights = torch.ones(1, 1, 65)
    got = latent_bag(bank, indices, weights)
    assert got.dtype == torch.bfloat16
    assert got.item() == 320


def test_bf16_is_close() -> None:
    inputs = draw(6, 3, 4, 16, 8, torch.bfloat16)
    torch.testing.assert_close(latent_bag(*inputs).double(), oracle(*inputs), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("k", [1, 3])
def test_gradcheck(k: int) -> None:
    bank, indices, weights = draw(3, 2, k, 4, 3)  # 6 k reads of 4 slots: rows are shared
    inputs = (bank.requires_grad_(), weights.requires_grad_())
    torch.autograd.gradcheck(lambda u, w: latent_bag(u, indices, w), inputs)


def test_bank_gradient_sums_over_readers() -> None:
    bank = torch.zeros(3, 2, requires_grad=True)
    indices = torch.tensor([[[0, 1], [1, 1]]])
    weights = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    latent_bag(bank, indices, weights).sum().backward()
    assert bank.grad is not None
    assert bank.grad.tolist() == [[1.0, 1.0], [9.0, 9.0], [0.0, 0.0]]


def test_no_tokens() -> None:
    bank, indices, weights = draw(0, 2, 3, 4, 5, torch.float32)
    bank.requires_grad_()
    got = latent_bag(bank, indices, weights)
    assert got.shape == (0, 2, 5)
    got.sum().backward()
    assert bank.grad is not None and not bank.grad.any()


def test_non_contiguous_inputs() -> None:
    bank, indices, weights = draw(4, 3, 2, 6, 5, torch.float32)
    strided = (
        bank.t().contiguous().t(),
        indices.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([weights, weights], -1)[..., 0],
    )
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(latent_bag(*strided), latent_bag(bank, indices, weights))


def test_nan_weight_spoils_its_own_head_alone() -> None:
    bank, indices, weights = draw(3, 2, 4, 6, 5, torch.float32)
    clean = latent_bag(bank, indices, weights)
    weights[2, 1] = float("nan")
    got = latent_bag(bank, indices, weights)
    assert got[2, 1].isnan().all()
    assert torch.equal(got[:2], clean[:2]) and torch.equal(got[2, 0], clean[2, 0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bank": torch.zeros(4)}, "bank"),
        ({"indices": torch.zeros(2, 3, dtype=torch.long)}, "indices"),
        ({"weights": torch.zeros(1, 2, 4)}, "weights"),
    ],
)
def test_errors_name_the_argument(change: dict, named: str) -> None:
    arguments = {
        "bank": torch.zeros(4, 2),
        "indices": torch.zeros(1, 2, 3, dtype=torch.long),
        "weights": torch.zeros(1, 2, 3),
    }
    with pytest.raises(ValueError, match=named):
        latent_bag(**(arguments | change))
