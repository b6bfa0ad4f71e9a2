"""Product-key selection against all N = n * n pairs, scored one by one in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import product_key_select, use_backend


def draw(
    tokens: int, heads: int, dim: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query [T, H, D] and keys [H, n, D/2]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, heads, dim), (heads, n, dim // 2), (heads, n, dim // 2)]
    query, row, col = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return query.to(dtype), row.to(dtype), col.to(dtype)


def integers(
    tokens: int, heads: int, dim: int, n: int, seed: int = 0, high: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small whole numbers: every score is exact in any float type, and many are tied."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, heads, dim), (heads, n, dim // 2), (heads, n, dim // 2)]
    query, row, col = (torch.randint(-high, high + 1, s, generator=generator) for s in shapes)
    return query.float(), row.float(), col.float()


def oracle(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int
) -> tuple[list, list, list]:
    """Scores, weights and slots as nested lists [T][H][k]: every pair of every head, by hand."""
    tokens, heads, dim = query.shape
    n, half = row_keys.shape[1], dim // 2
    q, rows, cols = (x.double().tolist() for x in (query, row_keys, col_keys))
    scores, weights, slots = [], [], []
    for t in range(tokens):
        per_head: list[list] = [[], [], []]
        for h in range(heads):
            row = [sum(q[t][h][d] * rows[h][i][d] for d in range(half)) for i in range(n)]
            col = [sum(q[t][h][half + d] * cols[h][j][d] for d in range(half)) for j in range(n)]
            pairs = [(-(row[i] + col[j]), i * n + j) for i in range(n) for j in range(n)]
            best = sorted(pairs)[:k]  # score descending, then lowest slot
            top = torch.tensor([-s for s, _ in best], dtype=torch.float64)
            per_head[0].append(top.tolist())
            per_head[1].append(top.softmax(0).tolist())
            per_head[2].append([slot for _, slot in best])
        scores.append(per_head[0])
        weights.append(per_head[1])
        slots.append(per_head[2])
    return scores, weights, slots


def close(got: torch.Tensor, want: list, tolerance: float) -> None:
    want_tensor = torch.tensor(want, dtype=torch.float64).reshape(got.shape)
    torch.testing.assert_close(got.double(), want_tensor, atol=tolerance, rtol=0)


def scores_of(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """float64 score of given slots [T, H, k]."""
    half, n = row_keys.shape[-1], row_keys.shape[1]
    q, rows, cols = query.double(), row_keys.double(), col_keys.double()
    row = (q[..., None, :half] * rows).sum(-1)  # [T, H, n]
    col = (q[..., None, half:] * cols).sum(-1)
    return row.gather(-1, slots // n) + col.gather(-1, slots % n)


@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "n", "k"),
    [(5, 3, 8, 6, 4), (3, 2, 4, 5, 1), (3, 2, 6, 4, 4), (4, 1, 4, 7, 3), (1, 1, 2, 1, 1)],
    ids=["plain", "k=1", "k=n", "one-head", "one-slot"],
)
def test_float64_equals_all_pairs(tokens: int, heads: int, dim: int, n: int, k: int) -> None:
    inputs = draw(tokens, heads, dim, n)
    weights, slots = product_key_select(*inputs, k)
    _, want_weights, want_slots = oracle(*inputs, k)
    assert slots.tolist() == want_slots
    assert weights.dtype == torch.float64 and slots.dtype == torch.int64
    close(weights, want_weights, 1e-12)


@given(
    tokens=st.integers(1, 3),
    heads=st.integers(1, 3),
    half=st.integers(1, 3),
    n=st.integers(1, 6),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_ties_go_to_the_lowest_slot(
    tokens: int, heads: int, half: int, n: int, data: st.DataObject, seed: int
) -> None:
    k = data.draw(st.integers(1, n))
    inputs = integers(tokens, heads, 2 * half, n, seed)
    weights, slots = product_key_select(*inputs, k)
    _, want_weights, want_slots = oracle(*inputs, k)
    assert slots.tolist() == want_slots
    close(weights, want_weights, 1e-6)


def test_all_scores_equal_gives_the_first_slots() -> None:
    query = torch.zeros(2, 2, 4)
    weights, slots = product_key_select(query, torch.ones(2, 5, 2), torch.ones(2, 5, 2), 5)
    assert slots.tolist() == [[[0, 1, 2, 3, 4]] * 2] * 2
    close(weights, [[[0.2] * 5] * 2] * 2, 1e-7)


@given(seed=st.integers(0, 1000), k=st.integers(1, 7))
def test_properties_of_any_selection(seed: int, k: int) -> None:
    query, row_keys, col_keys = draw(4, 2, 6, 7, torch.float32, seed)
    weights, slots = product_key_select(query, row_keys, col_keys, k)
    assert ((slots >= 0) & (slots < 49)).all()
    assert all(len(set(chosen)) == k for chosen in slots.reshape(-1, k).tolist())
    assert (weights.diff(dim=-1) <= 0).all(), "best first"
    close(weights.sum(-1), [[1.0] * 2] * 4, 1e-6)


def test_heads_use_their_own_keys() -> None:
    query, row_keys, col_keys = draw(6, 3, 8, 5)
    weights, slots = product_key_select(query, row_keys, col_keys, 3)
    for h in range(3):
        own = (query[:, h : h + 1], row_keys[h : h + 1], col_keys[h : h + 1])
        one_weights, one_slots = product_key_select(*own, 3)
        assert torch.equal(slots[:, h : h + 1], one_slots)
        torch.testing.assert_close(weights[:, h : h + 1], one_weights, atol=1e-12, rtol=0)


def test_bf16_scores_are_fp32() -> None:
    """The slots are those of the bf16 numbers taken exactly; bf16 sums would change many."""
    inputs = draw(64, 4, 16, 16, torch.bfloat16)
    weights, slots = product_key_select(*inputs, 8)
    assert weights.dtype == torch.float32
    want_scores, want_weights, _ = oracle(*inputs, 8)
    close(scores_of(*inputs, slots), want_scores, 1e-4)  # compared by score: margins may be tiny
    close(weights, want_weights, 1e-4)


def test_autocast_leaves_scores_in_fp32() -> None:
    inputs = draw(8, 2, 8, 8, torch.float32)
    weights, slots = product_key_select(*inputs, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_weights, cast_slots = product_key_select(*inputs, 4)
    assert cast_weights.dtype == torch.float32
    assert torch.equal(slots, cast_slots) and torch.equal(weights, cast_weights)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_gradcheck(k: int) -> None:
    inputs = tuple(x.requires_grad_() for x in draw(3, 2, 4, 4, seed=k))
    torch.autograd.gradcheck(lambda *x: product_key_select(*x, k)[0], inputs)


def test_unselected_keys_get_no_gradient() -> None:
    query, row_keys, col_keys = draw(1, 1, 4, 6)
    row_keys.requires_grad_()
    weights, slots = product_key_select(query, row_keys, col_keys, 2)
    (weights * torch.tensor([1.0, -1.0], dtype=torch.float64)).sum().backward()
    assert row_keys.grad is not None
    touched = {i for i in range(6) if row_keys.grad[0, i].any()}
    assert touched <= {slot // 6 for slot in slots.flatten().tolist()}


def test_no_tokens() -> None:
    query, row_keys, col_keys = draw(0, 2, 4, 5, torch.float32)
    row_keys.requires_grad_()
    weights, slots = product_key_select(query, row_keys, col_keys, 3)
    assert weights.shape == slots.shape == (0, 2, 3)
    assert slots.dtype == torch.int64
    weights.sum().backward()
    assert row_keys.grad is not None and not row_keys.grad.any()


def test_non_contiguous_inputs() -> None:
    query, row_keys, col_keys = draw(5, 3, 8, 6, torch.float32)
    strided = (
        query.transpose(0, 1).contiguous().transpose(0, 1),
        row_keys.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([col_keys, col_keys], -1)[..., 0],
    )
    assert not any(x.is_contiguous() for x in strided)
    weights, slots = product_key_select(query, row_keys, col_keys, 4)
    got_weights, got_slots = product_key_select(*strided, 4)
    assert torch.equal(slots, got_slots)
    torch.testing.assert_close(weights, got_weights)


@pytest.mark.parametrize("where", [0, -1], ids=["row-half", "column-half"])
def test_nan_query_spoils_its_own_head_alone(where: int) -> None:
    query, row_keys, col_keys = draw(4, 3, 8, 6, torch.float32)
    clean_weights, clean_slots = product_key_select(query, row_keys, col_keys, 4)
    query[1, 2, where] = float("nan")
    weights, slots = product_key_select(query, row_keys, col_keys, 4)
    assert weights[1, 2].isnan().all()
    assert ((slots >= 0) & (slots < 36)).all()
    others = torch.ones(4, 3, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(weights[others], clean_weights[others])
    assert torch.equal(slots[others], clean_slots[others])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": torch.zeros(3, 8)}, "query"),
        ({"row_keys": torch.zeros(2, 5, 3)}, "row_keys"),
        ({"col_keys": torch.zeros(2, 4, 4)}, "col_keys"),
        ({"query": torch.zeros(3, 3, 8)}, "query"),
        ({"query": torch.zeros(3, 2, 7)}, "query"),
        ({"k": 0}, "k is 0"),
        ({"k": 6}, "k is 6"),
    ],
)
def test_errors_name_the_argument(change: dict, named: str) -> None:
    arguments = {
        "query": torch.zeros(3, 2, 8),
        "row_keys": torch.zeros(2, 5, 4),
        "col_keys": torch.zeros(2, 5, 4),
        "k": 3,
    }
    with pytest.raises(ValueError, match=named):
        product_key_select(**(arguments | change))


def test_chunks_of_tokens_change_nothing() -> None:
    """More tokens than the plain version selects at once."""
    query, row_keys, col_keys = draw(1030, 1, 4, 4, torch.float32)
    with use_backend("torch"):
        weights, slots = product_key_select(query, row_keys, col_keys, 2)
        tail_weights, tail_slots = product_key_select(query[1020:], row_keys, col_keys, 2)
    assert torch.equal(slots[1020:], tail_slots)
    torch.testing.assert_close(weights[1020:], tail_weights)
