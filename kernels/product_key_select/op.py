"""Product-key selection as a `torch.library` operator, forward and backward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.fallback import run
from kernels.product_key_select import eager


def _gpu() -> ModuleType:
    from kernels.product_key_select import gpu  # only where triton is asked for

    return gpu


@torch.library.custom_op("midus::product_key_select", mutates_args=())
def select(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(query.device.type, enabled=False):
        return run(backend, "select", eager, _gpu, query, row_keys, col_keys, k)


@select.register_fake
def _(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor, k: int, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (query.shape[0], query.shape[1], k)
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(shape, dtype=wide), query.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("midus::product_key_select_backward", mutates_args=())
def select_backward(
    grad: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.autocast(query.device.type, enabled=False):
        given = grad, weights, indices, query, row_keys, col_keys
        return run(backend, "select_backward", eager, _gpu, *given)


@select_backward.register_fake
def _(
    grad: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = torch.contiguous_format
    return (
        torch.empty_like(query, memory_format=like),
        torch.empty_like(row_keys, memory_format=like),
        torch.empty_like(col_keys, memory_format=like),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, row_keys, col_keys, _, ctx.backend = inputs
    ctx.save_for_backward(*output, query, row_keys, col_keys)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    return (*select_backward(grad, *ctx.saved_tensors, ctx.backend), None, None)


select.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.midus.product_key_select)
def _flops(query: Any, row_keys: Any, *_: Any, **__: Any) -> int:
    """The scores' matrix products, [T, H, D] with [H, n, D/2] twice, as torch counts them."""
    return 2 * query[0] * query[1] * query[2] * row_keys[1]


@register_flop_formula(torch.ops.midus.product_key_select_backward)
def _backward_flops(
    grad: Any, weights: Any, indices: Any, query: Any, row_keys: Any, *_: Any, **__: Any
) -> int:
    """The same once for the queries and once for the keys."""
    return 2 * _flops(query, row_keys)
