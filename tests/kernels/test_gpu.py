"""The Triton kernels against float64; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from kernels.headwise_memory import gpu as headwise
from kernels.headwise_memory import naive as headwise_naive
from kernels.latent_bag import gpu as latent
from kernels.latent_bag import naive as latent_naive
from kernels.product_key_select import gpu as product_key
from kernels.product_key_select import naive as product_key_naive
from tests.kernels.oracles import pair_scores, relative_rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", LIMIT, ids=("fp32", "bf16"))
WRONG = 1 << 30  # no slot, and no address either

# Tokens, heads, head size, sub-keys a half, slots read, latent size.
SIZES = {
    "odd": (17, 2, 18, 11, 5, 21),
    "k=1": (3, 1, 32, 5, 1, 8),
    "k=n": (2, 3, 16, 8, 8, 16),
    "one token": (1, 2, 24, 6, 3, 33),
    "power of two": (16, 1, 32, 16, 4, 16),
}
SHAPES = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that kernels are to write holds NaN or an impossible slot."""

    def poison(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else WRONG)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    yield


def inputs(
    sizes: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [T, H, D], row and column keys [H, n, D/2], bank [N, r], projections [H, r, D]."""
    tokens, heads, size, n, _, width = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (tokens, heads, size),
        (heads, n, size // 2),
        (heads, n, size // 2),
        (n * n, width),
        (heads, width, size),
    )
    made = (torch.randn(shape, generator=generator) for shape in shapes)
    query, row_keys, col_keys, bank, proj = (tensor.to(DEVICE, dtype) for tensor in made)
    return query, row_keys, col_keys, bank, proj


def reads(
    bags: tuple[int, int, int], slots: int, width: int, dtype: torch.dtype, skew: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient [T, H, r], slots [T, H, k], drawn by Zipf's law of this exponent, and weights."""
    chances = torch.arange(1, slots + 1, dtype=torch.float64) ** -skew
    count = bags[0] * bags[1] * bags[2]
    indices = torch.multinomial(chances, count, replacement=True).view(bags)
    grad = torch.randn(*bags[:2], width)
    return grad.to(DEVICE, dtype), indices.to(DEVICE), torch.rand(bags).to(DEVICE)


def true_weights(
    query: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    return pair_scores(query, rows, cols).gather(-1, slots).softmax(-1)


def bank_truth(
    grad: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, slots: int
) -> torch.Tensor:
    parts = weights.double()[..., None] * grad.double()[..., None, :]
    total = torch.zeros(slots, grad.shape[-1], dtype=torch.float64, device=grad.device)
    return total.index_add_(0, indices.reshape(-1), parts.flatten(0, 2))


def check_selection(inputs: tuple[torch.Tensor, ...], k: int) -> None:
    weights, slots = product_key.select(*inputs, k)
    scores = pair_scores(*inputs)
    best = scores.topk(k, dim=-1).values
    scale = float(scores.abs().max())
    assert weights.dtype == torch.float32 and slots.dtype == torch.int64
    assert len(set(slots[0, 0].tolist())) == k
    torch.testing.assert_close(scores.gather(-1, slots), best, rtol=0, atol=1e-6 * scale)
    assert relative_rms(weights, true_weights(*inputs, slots)) <= LIMIT[torch.float32]


@SHAPES
@DTYPES
def test_select(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check_selection(inputs(sizes, dtype)[:3], sizes[4])


@pytest.mark.parametrize(("k", "half"), [(1, 5), (2, 12), (3, 13), (4, 9), (5, 20), (8, 12)])
def test_small_k_and_odd_halves(k: int, half: int) -> None:
    """Fewer slots than the columns that kernels keep, against the plain version."""
    query, rows, cols, bank, proj = inputs((3, 1, 2 * half, 9, k, 7), torch.float32)
    weights, slots = product_key.select(query, rows, cols, k)
    want, at = product_key_naive.product_key_select(query, rows, cols, k)
    assert torch.equal(slots, at)
    assert relative_rms(weights, want) <= LIMIT[torch.float32]
    got = headwise.headwise_memory(query, rows, cols, bank, proj, k)
    truth = headwise_naive.headwise_memory(
        *(x.double() for x in (query, rows, cols, bank, proj)), k
    )
    assert relative_rms(got, truth) <= LIMIT[torch.float32]


def test_bf16_queries_with_fp32_parameters() -> None:
    """As under autocast; the sum with an fp32 stream is fp32, as PyTorch's is."""
    query, rows, cols, bank, proj = inputs((2, 1, 24, 9, 5, 16), torch.float32)
    half, stream = query.bfloat16(), torch.randn_like(query)
    got = headwise.headwise_memory(half, rows, cols, bank, proj, 5)
    truth = headwise_naive.headwise_memory(*(x.double() for x in (half, rows, cols, bank, proj)), 5)
    assert got.dtype == torch.bfloat16 and relative_rms(got, truth) <= LIMIT[torch.bfloat16]
    added = headwise.headwise_memory(half, rows, cols, bank, proj, 5, stream)
    assert added.dtype == torch.float32
    assert relative_rms(added - stream, truth) <= LIMIT[torch.float32]
    operator = torch.ops.midus.headwise_memory
    given = half, rows, cols, bank, proj, 5, stream, "triton"
    torch.library.opcheck(operator, given, test_utils="test_faketensor")


def test_select_in_several_tiles_of_sub_keys() -> None:
    query, rows, cols, _, _ = inputs((2, 1, 16, 270, 3, 1), torch.float32)
    rows[:, 256:] *= 3  # so that the second tile matters
    check_selection((query, rows, cols), 3)
    cols[:] = 0.0
    weights, slots = product_key.select(query, rows, cols, 3)
    assert torch.equal(slots, product_key_naive.product_key_select(query, rows, cols, 3)[1])


@pytest.mark.parametrize("k", (1, 4, 7, 8))
def test_ties_go_to_the_lowest_slot(k: int) -> None:
    query, rows, cols, _, _ = inputs((9, 2, 16, 8, k, 1), torch.float32)
    query, rows, cols = (tensor.round().clamp(-1, 1) for tensor in (query, rows, cols))
    query[0], query[1, :, :8] = 0.0, 0.0  # all slots tie; all rows tie
    query[2], rows[0, 0] = -0.0, -0.0
    _, slots = product_key.select(query, rows, cols, k)
    _, want = product_key_naive.product_key_select(query, rows, cols, k)
    assert torch.equal(slots, want)


def test_select_of_more_slots_than_registers_hold_is_in_pytorch() -> None:
    query, rows, cols, bank, proj = inputs((2, 1, 8, 66, 65, 4), torch.float32)
    weights, slots = product_key.select(query, rows, cols, 65)
    want, at = product_key_naive.product_key_select(query, rows, cols, 65)
    assert torch.equal(slots, at)
    torch.testing.assert_close(weights, want)
    values = headwise.headwise_memory(query, rows, cols, bank, proj, 65, query)
    read = headwise_naive.headwise_memory(query, rows, cols, bank, proj, 65)
    torch.testing.assert_close(values, query + read)


def test_slots_that_do_not_fit_are_refused() -> None:
    keys = torch.zeros(1, 1, 1).expand(1, 46341, 1)
    with pytest.raises(ValueError, match="31 bits"):
        product_key.select(torch.zeros(1, 1, 2), keys, keys, 1)


def test_pair_table() -> None:
    for k in (1, 2, 5, 32, 64):
        want = [(i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) <= k]
        table = product_key.pair_table(k, torch.device(DEVICE)).T.tolist()
        assert [tuple(pair) for pair in table[: len(want)]] == want
        assert len(table) == product_key.pair_width(k)


@SHAPES
@DTYPES
def test_select_backward(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    operands = inputs(sizes, dtype)[:3]
    weights, slots = product_key.select(*operands, sizes[4])
    grad = torch.randn_like(weights)
    wide = [tensor.double().requires_grad_() for tensor in operands]
    want = torch.autograd.grad(true_weights(*wide, slots), wide, grad.double())
    got = product_key.select_backward(grad, weights, slots, *operands)
    again = product_key.select_backward(grad, weights, slots, *operands)
    for one, other, truth in zip(got, again, want, strict=True):
        assert one.dtype == dtype and one.shape == truth.shape
        assert torch.equal(one, other)
        assert relative_rms(one, truth) <= LIMIT[dtype]


def test_select_backward_over_many_tokens_and_tiles() -> None:
    operands = inputs((70, 1, 16, 80, 2, 1), torch.float32)[:3]
    weights, slots = product_key_naive.product_key_select(*operands, 2)
    grad = torch.randn_like(weights)
    wide = [tensor.double().requires_grad_() for tensor in operands]
    want = torch.autograd.grad(true_weights(*wide, slots), wide, grad.double())
    got = product_key.select_backward(grad, weights, slots, *operands)
    assert all(
        relative_rms(one, truth) <= LIMIT[torch.float32]
        for one, truth in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("tokens", (1, 31, 32, 33, 100, 5000))
@pytest.mark.parametrize("programs", (1, 4, 600))
def test_splits_cover_the_tokens(tokens: int, programs: int) -> None:
    parts, split = product_key._splits(tokens, programs, 32)
    assert (parts - 1) * split < tokens <= parts * split
    assert parts == 1 or parts * programs <= product_key.PROGRAMS + programs


@SHAPES
@DTYPES
def test_bag_and_the_weights_gradient(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, heads, _, n, k, width = sizes
    bank = inputs(sizes, dtype)[3]
    grad, indices, weights = reads((tokens, heads, k), n * n, width, dtype)
    indices[0] = indices[0, 0, 0]  # the same row again and again
    found = latent.bag(bank, indices, weights)
    want = latent_naive.latent_bag(bank.double(), indices, weights.double())
    assert found.dtype == dtype
    assert relative_rms(found, want) <= LIMIT[dtype]
    got = latent.weight_gradient(grad, bank, indices)
    want = torch.einsum("thr,thkr->thk", grad.double(), bank.double()[indices])
    assert got.dtype == torch.float32
    assert relative_rms(got, want) <= LIMIT[torch.float32]


def test_bag_of_a_wide_bank_and_many_reads() -> None:
    grad, indices, weights = reads((2, 2, 37), 50, 300, torch.float32)
    bank = torch.randn(50, 300, device=DEVICE)
    want = latent_naive.latent_bag(bank.double(), indices, weights.double())
    assert relative_rms(latent.bag(bank, indices, weights), want) <= LIMIT[torch.float32]
    want = torch.einsum("thr,thkr->thk", grad.double(), bank.double()[indices])
    assert relative_rms(latent.weight_gradient(grad, bank, indices), want) <= LIMIT[torch.float32]


@pytest.mark.parametrize("mode", ("sorted", "atomic"))
@pytest.mark.parametrize("skew", (0.0, 1.5), ids=("uniform", "zipf"))
@DTYPES
def test_bank_gradient(mode: str, skew: float, dtype: torch.dtype) -> None:
    grad, indices, weights = reads((23, 3, 5), 40, 21, dtype, skew)
    got = latent.bank_gradient(grad, indices, weights, 40, mode)
    assert got.dtype == torch.float32
    assert relative_rms(got, bank_truth(grad, indices, weights, 40)) <= LIMIT[torch.float32]


@pytest.mark.parametrize("hits", (127, 128, 129, 257))
def test_bank_gradient_of_a_row_in_pieces(hits: int) -> None:
    grad, indices, weights = reads((100, 2, 2), 6, 8, torch.float32)
    indices.view(-1)[:hits] = 3
    indices.view(-1)[hits:] = torch.where(indices.view(-1)[hits:] == 3, 5, indices.view(-1)[hits:])
    got = latent.bank_gradient(grad, indices, weights, 6, "sorted")
    assert relative_rms(got, bank_truth(grad, indices, weights, 6)) <= LIMIT[torch.float32]
    assert torch.equal(got, latent.bank_gradient(grad, indices, weights, 6, "sorted"))


def test_every_row_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "PIECE", 3)  # more pieces than reads of a chunk
    grad, indices, weights = reads((30, 2, 4), 5, 8, torch.float32, 1.0)
    got = latent.bank_gradient(grad, indices, weights, 5, "sorted")
    assert relative_rms(got, bank_truth(grad, indices, weights, 5)) <= LIMIT[torch.float32]


@pytest.mark.parametrize("skew", (0.0, 2.0), ids=("uniform", "zipf"))
def test_unique_row_gradient(skew: float) -> None:
    grad, indices, weights = reads((60, 1, 5), 400, 12, torch.float32, skew)
    rows, values = latent.unique_row_gradient(grad, indices, weights)
    assert torch.equal(rows, indices.unique())
    want = bank_truth(grad, indices, weights, 400)
    assert relative_rms(values, want[rows]) <= LIMIT[torch.float32]
    dense = latent.bank_gradient(grad, indices, weights, 400, "sorted")
    assert torch.equal(dense[rows], values)  # the same sums in the same order
    dense[rows] = 0
    assert not dense.any()


@SHAPES
@DTYPES
@pytest.mark.parametrize("added", (False, True), ids=("", "residual"))
def test_headwise_memory(sizes: tuple[int, ...], dtype: torch.dtype, added: bool) -> None:
    query, rows, cols, bank, proj = inputs(sizes, dtype)
    residual = torch.randn_like(query) if added else None
    got = headwise.headwise_memory(query, rows, cols, bank, proj, sizes[4], residual)
    _, slots = product_key.select(query, rows, cols, sizes[4])
    read = latent_naive.latent_bag(bank.double(), slots, true_weights(query, rows, cols, slots))
    want = torch.einsum("thr,hrd->thd", read, proj.double())
    want = want if residual is None else want + residual.double()
    assert got.dtype == dtype
    assert relative_rms(got, want) <= LIMIT[dtype]


def test_wide_latent_rows_are_read_in_parts() -> None:
    query, rows, cols, bank, proj = inputs((3, 2, 16, 6, 3, 300), torch.float32)
    got = headwise.headwise_memory(query, rows, cols, bank, proj, 3)
    want = headwise_naive.headwise_memory(*(x.double() for x in (query, rows, cols, bank, proj)), 3)
    assert relative_rms(got, want) <= LIMIT[torch.float32]


def test_strided_inputs() -> None:
    sizes = (5, 3, 16, 8, 4, 8)
    query, rows, cols, bank, proj = inputs(sizes, torch.float32)
    weights, slots = product_key.select(query, rows, cols, 4)
    grad = torch.randn_like(weights)
    gradients = product_key.select_backward(grad, weights, slots, query, rows, cols)
    values = headwise.headwise_memory(query, rows, cols, bank, proj, 4, query)

    def turned(tensor: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return tensor.transpose(a, b).contiguous().transpose(a, b)

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(2, -1)[..., ::2]

    for change in (lambda x: turned(x, 0, 1), lambda x: turned(x, -1, -2), apart):
        changed = [change(x) for x in (query, rows, cols, bank, proj)]
        got = product_key.select(*changed[:3], 4)
        assert torch.equal(got[0], weights) and torch.equal(got[1], slots)
        parts = change(grad), change(weights), change(slots)
        again = product_key.select_backward(*parts, *changed[:3])
        assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))
        assert torch.equal(latent.bag(changed[3], *parts[:0:-1]), latent.bag(bank, slots, weights))
        again = headwise.headwise_memory(*changed, 4, change(query))
        assert torch.equal(again, values)
        for mode in ("sorted", "atomic"):
            total = latent.bank_gradient(change(query), parts[2], parts[1], 64, mode)
            want = bank_truth(query, slots, weights, 64)
            assert relative_rms(total, want) <= LIMIT[torch.float32]
        found = latent.weight_gradient(apart(query[..., :8]), changed[3], parts[2])
        assert torch.equal(found, latent.weight_gradient(query[..., :8], bank, slots))


def test_no_token() -> None:
    query, rows, cols, bank, proj = inputs((0, 2, 16, 8, 4, 6), torch.float32)
    weights, slots = product_key.select(query, rows, cols, 4)
    assert weights.shape == slots.shape == (0, 2, 4)
    gradients = product_key.select_backward(weights, weights, slots, query, rows, cols)
    assert [tuple(g.shape) for g in gradients] == [tuple(x.shape) for x in (query, rows, cols)]
    assert not gradients[1].any() and not gradients[2].any()
    assert headwise.headwise_memory(query, rows, cols, bank, proj, 4).shape == query.shape
    grad = latent.bag(bank, slots, weights)
    assert grad.shape == (0, 2, 6)
    assert latent.weight_gradient(grad, bank, slots).shape == slots.shape
    for mode in ("sorted", "atomic"):
        total = latent.bank_gradient(grad, slots, weights, 64, mode)
        assert total.shape == (64, 6) and not total.any()
    found, values = latent.unique_row_gradient(grad, slots, weights)
    assert found.shape == (0,) and values.shape == (0, 6)


@DTYPES
def test_nan_in_a_query_stays_in_its_token_and_head(dtype: torch.dtype) -> None:
    sizes = (4, 2, 16, 8, 3, 16)
    query, rows, cols, bank, proj = inputs(sizes, dtype)
    clean = headwise.headwise_memory(query, rows, cols, bank, proj, 3)
    before = product_key.select(query, rows, cols, 3)
    query[1, 0, 3] = torch.nan
    query[2, 1] = -torch.nan
    others = torch.ones(4, 2, dtype=torch.bool, device=DEVICE)
    others[1, 0] = others[2, 1] = False
    weights, slots = product_key.select(query, rows, cols, 3)
    assert slots.min() >= 0 and slots.max() < 64
    assert weights[~others].isnan().all()
    assert torch.equal(weights[others], before[0][others])
    assert torch.equal(slots[others], before[1][others])
    values = headwise.headwise_memory(query, rows, cols, bank, proj, 3)
    assert values[~others].isnan().all()
    assert torch.equal(values[others], clean[others])


def test_nan_in_a_key_is_selected_and_seen() -> None:
    query, rows, cols, bank, proj = inputs((3, 2, 16, 8, 3, 4), torch.float32)
    rows[1, 5, 0] = torch.nan
    weights, slots = product_key.select(query, rows, cols, 3)
    assert weights[:, 1].isnan().all() and weights[:, 0].isfinite().all()
    assert (slots[:, 1] // 8 == 5).all()
    values = headwise.headwise_memory(query, rows, cols, bank, proj, 3)
    assert values[:, 1].isnan().all() and values[:, 0].isfinite().all()


def test_infinite_scores_keep_slots_in_range() -> None:
    query, rows, cols, _, _ = inputs((3, 1, 16, 8, 3, 4), torch.float32)
    query[0, 0, 0] = torch.inf
    query[1] = -torch.inf
    _, slots = product_key.select(query, rows, cols, 3)
    assert slots.min() >= 0 and slots.max() < 64


@pytest.mark.parametrize("bad", (torch.nan, torch.inf))
def test_rows_of_the_bank_matter_only_where_read(bad: float) -> None:
    query, rows, cols, bank, proj = inputs((4, 2, 16, 8, 3, 5), torch.float32)
    weights, slots = product_key.select(query, rows, cols, 3)
    bank[~torch.isin(torch.arange(64, device=DEVICE), slots)] = bad
    bank[0] = bad  # what masked lanes would point at
    touched = (slots == 0).any(-1)
    found = latent.bag(bank, slots, weights)
    assert torch.equal(found.isfinite().all(-1), ~touched)
    values = headwise.headwise_memory(query, rows, cols, bank, proj, 3)
    assert torch.equal(values.isfinite().all(-1), ~touched)
    grad = torch.randn_like(found)
    assert torch.equal(latent.weight_gradient(grad, bank, slots).isfinite(), slots != 0)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 18),
    heads=st.integers(1, 2),
    half=st.integers(1, 20),
    n=st.integers(1, 9),
    k=st.integers(1, 9),
    width=st.integers(1, 20),
    dtype=st.sampled_from(tuple(LIMIT)),
)
def test_any_shape(
    tokens: int, heads: int, half: int, n: int, k: int, width: int, dtype: torch.dtype
) -> None:
    k = min(k, n)
    query, rows, cols, bank, proj = inputs((tokens, heads, 2 * half, n, k, width), dtype)
    weights, slots = product_key.select(query, rows, cols, k)
    assert weights.isfinite().all()
    got = headwise.headwise_memory(query, rows, cols, bank, proj, k)
    if not tokens:
        assert got.shape == query.shape
        return
    check_selection((query, rows, cols), k)
    exact = true_weights(query, rows, cols, slots)
    read = latent_naive.latent_bag(bank.double(), slots, exact)
    assert relative_rms(got, torch.einsum("thr,hrd->thd", read, proj.double())) <= LIMIT[dtype]
    assert relative_rms(latent.bag(bank, slots, weights), read) <= LIMIT[dtype]
    grad = torch.randn_like(read, dtype=torch.float32)
    total = latent.bank_gradient(grad, slots, weights, n * n, "sorted")
    assert relative_rms(total, bank_truth(grad, slots, weights, n * n)) <= LIMIT[torch.float32]
