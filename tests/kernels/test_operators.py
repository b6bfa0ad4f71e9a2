"""The ops as PyTorch operators: registered, compiled, under autocast, checkpointed, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kernels import headwise_memory, latent_bag, product_key_select, use_backend
from kernels.headwise_memory import naive
from kernels.headwise_memory import op as memory_op
from kernels.latent_bag import op as bag_op
from kernels.product_key_select import op as select_op

K = 3


def draw(requires_grad: bool = True, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(5, 2, 32), (2, 6, 16), (2, 6, 16), (36, 16), (2, 16, 32)]
    return [torch.randn(s).to(dtype).requires_grad_(requires_grad) for s in shapes]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_opcheck(backend: str, dtype: torch.dtype) -> None:
    query, row_keys, col_keys, bank, head_proj = draw(dtype=dtype)
    weights, indices = (x.detach() for x in select_op.select(query, row_keys, col_keys, K, "torch"))
    grad = torch.randn(5, 2, 16).to(dtype)
    plain = [x.detach() for x in (query, row_keys, col_keys, bank, head_proj)]
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (select_op.select, (query, row_keys, col_keys, K, backend)),
        (select_op.select_backward, (weights, weights, indices, *plain[:3], backend)),
        (bag_op.bag, (bank, indices, weights.clone().requires_grad_(), "sorted", backend)),
        (bag_op.weight_gradient, (grad, plain[3], indices, backend)),
        (bag_op.bank_gradient, (grad, indices, weights, 36, "sorted", backend)),
    ]
    if backend == "triton":
        cases.append((memory_op.fused, (*plain, K, torch.randn_like(plain[0]), backend)))
    for operator, arguments in cases:
        torch.library.opcheck(operator, arguments)


def test_compiles_as_one_graph() -> None:
    inputs = draw()
    compiled = torch.compile(
        lambda *x: headwise_memory(*x, K).square().sum(), fullgraph=True, backend="aot_eager"
    )
    want = torch.autograd.grad(headwise_memory(*inputs, K).square().sum(), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for mine, truth in zip(got, want, strict=True):
        torch.testing.assert_close(mine, truth)


def test_compiled_code_keeps_its_backend() -> None:
    bank, indices, weights = torch.randn(4, 3), torch.randint(4, (2, 1, 2)), torch.rand(2, 1, 2)
    with use_backend("torch"):
        compiled = torch.compile(latent_bag, fullgraph=True, backend="eager")
        assert torch.equal(compiled(bank, indices, weights), latent_bag(bank, indices, weights))


def test_checkpointing_gives_the_same_gradients() -> None:
    inputs = draw()
    want = torch.autograd.grad(headwise_memory(*inputs, K).square().sum(), inputs)
    again = checkpoint(headwise_memory, *inputs, K, use_reentrant=False)
    got = torch.autograd.grad(again.square().sum(), inputs)
    assert all(map(torch.equal, got, want))


def test_autocast_keeps_selection_and_read_in_fp32() -> None:
    inputs = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights, slots = product_key_select(*inputs[:3], K)
        read = latent_bag(inputs[3], slots, weights)
        out = headwise_memory(*inputs, K)
        out.sum().backward()
    assert weights.dtype == read.dtype == torch.float32
    assert torch.equal(slots, product_key_select(*inputs[:3], K)[1])
    want = headwise_memory(*(x.detach() for x in inputs), K)
    torch.testing.assert_close(out, want, atol=0.05, rtol=0.02)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("bank_grad", ["atomic", "sparse"])
def test_other_bank_gradients_equal_the_sorted_one(bank_grad: str) -> None:
    inputs = draw()
    want = torch.autograd.grad(headwise_memory(*inputs, K).square().sum(), inputs)
    got = torch.autograd.grad(
        headwise_memory(*inputs, K, bank_grad=bank_grad).square().sum(), inputs
    )
    assert got[3].is_sparse == (bank_grad == "sparse")
    for mine, truth in zip(got, want, strict=True):
        torch.testing.assert_close(mine.to_dense(), truth)


def test_sparse_gradient_holds_the_rows_read_alone() -> None:
    bank = torch.randn(1000, 4, requires_grad=True)
    indices = torch.tensor([[[5, 900, 5]], [[17, 5, 900]]])
    latent_bag(bank, indices, torch.rand(2, 1, 3), bank_grad="sparse").sum().backward()
    assert bank.grad is not None and bank.grad.is_sparse
    assert bank.grad._indices().flatten().tolist() == [5, 17, 900]  # each once


def test_unknown_bank_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="bank_grad is 'csr'.*sorted, atomic, sparse"):
        headwise_memory(*draw(), K, bank_grad="csr")


def test_residual_is_added() -> None:
    inputs, residual = draw(requires_grad=False), torch.randn(5, 2, 32)
    torch.testing.assert_close(
        headwise_memory(*inputs, K, residual=residual), residual + headwise_memory(*inputs, K)
    )
    with pytest.raises(ValueError, match="residual is"):
        headwise_memory(*inputs, K, residual=residual[:2])


def test_flops_are_counted_as_those_of_the_plain_version() -> None:
    inputs = draw()
    counts = []
    for version in (headwise_memory, naive.headwise_memory):
        with FlopCounterMode(display=False) as counter:
            version(*inputs, K).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graph_of_decoding() -> None:
    inputs = [x.cuda() for x in draw(requires_grad=False)]
    headwise_memory(*inputs, K)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = headwise_memory(*inputs, K)
    inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    assert torch.equal(out, headwise_memory(*inputs, K))
