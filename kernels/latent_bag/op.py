"""The latent read as a `torch.library` operator, forward and backward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from kernels.fallback import run
from kernels.latent_bag import eager


def _gpu() -> ModuleType:
    from kernels.latent_bag import gpu  # only where triton is asked for

    return gpu


@torch.library.custom_op("midus::latent_bag", mutates_args=())
def bag(
    bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, bank_grad: str, backend: str
) -> torch.Tensor:
    return run(backend, "bag", eager, _gpu, bank, indices, weights)


@bag.register_fake
def _(
    bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, bank_grad: str, backend: str
) -> torch.Tensor:
    return bank.new_empty((*indices.shape[:2], bank.shape[1]))


@torch.library.custom_op("midus::latent_bag_weight_gradient", mutates_args=())
def weight_gradient(
    grad: torch.Tensor, bank: torch.Tensor, indices: torch.Tensor, backend: str
) -> torch.Tensor:
    return run(backend, "weight_gradient", eager, _gpu, grad, bank, indices)


@weight_gradient.register_fake
def _(grad: torch.Tensor, bank: torch.Tensor, indices: torch.Tensor, backend: str) -> torch.Tensor:
    wide = torch.promote_types(bank.dtype, torch.float32)
    return grad.new_empty(indices.shape, dtype=wide)


@torch.library.custom_op("midus::latent_bag_bank_gradient", mutates_args=())
def bank_gradient(
    grad: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    slots: int,
    mode: str,
    backend: str,
) -> torch.Tensor:
    return run(backend, "bank_gradient", eager, _gpu, grad, indices, weights, slots, mode)


@bank_gradient.register_fake
def _(
    grad: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    slots: int,
    mode: str,
    backend: str,
) -> torch.Tensor:
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.new_empty((slots, grad.shape[-1]), dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    bank, indices, weights, ctx.mode, ctx.backend = inputs
    ctx.save_for_backward(bank, indices, weights)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    bank, indices, weights = ctx.saved_tensors
    d_bank = d_weights = None
    if ctx.needs_input_grad[0]:
        found = bank_gradient(grad, indices, weights, bank.shape[0], ctx.mode, ctx.backend)
        d_bank = found.to(bank.dtype)
    if ctx.needs_input_grad[2]:
        d_weights = weight_gradient(grad, bank, indices, ctx.backend).to(weights.dtype)
    return d_bank, None, d_weights, None, None


bag.register_autograd(_backward, setup_context=_save)


class RowSparseBag(torch.autograd.Function):
    """The same read with a row-sparse gradient of the bank; not for `torch.compile`."""

    @staticmethod
    def forward(
        ctx: Any, bank: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, backend: str
    ) -> torch.Tensor:
        ctx.save_for_backward(bank, indices, weights)
        ctx.backend = backend
        return run(backend, "bag", eager, _gpu, bank, indices, weights)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        bank, indices, weights = ctx.saved_tensors
        d_bank = d_weights = None
        if ctx.needs_input_grad[0]:
            given = grad, indices, weights
            rows, values = run(ctx.backend, "unique_row_gradient", eager, _gpu, *given)
            values = values.to(bank.dtype)
            d_bank = torch.sparse_coo_tensor(rows[None], values, bank.shape, check_invariants=False)
        if ctx.needs_input_grad[2]:
            found = run(ctx.backend, "weight_gradient", eager, _gpu, grad, bank, indices)
            d_weights = found.to(weights.dtype)
        return d_bank, None, d_weights, None
