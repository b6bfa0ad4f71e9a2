"""The fused read, one launch, as a `torch.library` operator; for inference, without gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.fallback import run
from kernels.headwise_memory import eager


def _gpu() -> ModuleType:
    from kernels.headwise_memory import gpu  # only where triton is asked for

    return gpu


@torch.library.custom_op("midus::headwise_memory", mutates_args=())
def fused(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    residual: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    given = query, row_keys, col_keys, bank, head_proj, k, residual
    return run(backend, "headwise_memory", eager, _gpu, *given)


@fused.register_fake
def _(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    residual: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    dtype = query.dtype if residual is None else torch.promote_types(query.dtype, residual.dtype)
    return torch.empty_like(query, dtype=dtype, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.midus.headwise_memory)
def _flops(query: Any, row_keys: Any, _: Any, bank: Any, *__: Any, **___: Any) -> int:
    """Scores and HIVE: the matrix products, as torch counts them."""
    tokens, heads, size = query
    return 2 * tokens * heads * size * (row_keys[1] + bank[1])
