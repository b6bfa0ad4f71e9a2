"""Head-wise memory as its two ops and HIVE: select, read in rank r, expand after."""

from __future__ import annotations

import torch

from kernels.backend import direct, resolve
from kernels.latent_bag import latent_bag
from kernels.latent_bag.eager import bag
from kernels.product_key_select import product_key_select
from kernels.product_key_select.eager import best_slots, chunks, fits
from kernels.threads import share


def headwise_memory(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
    residual: torch.Tensor | None = None,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """[T, H, D] -> [T, H, D]; see `kernels.headwise_memory`."""
    given = query, row_keys, col_keys, bank, head_proj
    if direct(resolve(query), *given) and fits(query, row_keys.shape[1]):
        values = _at_once(*given, k)
    else:
        weights, indices = product_key_select(query, row_keys, col_keys, k)
        values = realised(weights, indices, bank, head_proj, bank_grad).to(query.dtype)
    return values if residual is None else residual + values


def _at_once(
    query: torch.Tensor,
    row_keys: torch.Tensor,
    col_keys: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    k: int,
) -> torch.Tensor:
    """The same without gradients, a chunk of tokens and heads from query to value at a time."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)

    def work(part: tuple[slice, slice]) -> None:
        heads = part[1]
        keys = row_keys[heads].float(), col_keys[heads].float()
        weights, slots = best_slots(query[part].float(), *keys, k)  # [H, T, k]
        read = bag(bank, slots, weights)  # [H, T, r]
        out[part] = torch.bmm(read, head_proj[heads]).transpose(0, 1)

    share(work, *chunks(query))
    return out


def realised(
    weights: torch.Tensor,
    indices: torch.Tensor,
    bank: torch.Tensor,
    head_proj: torch.Tensor,
    bank_grad: str = "sorted",
) -> torch.Tensor:
    """What each head makes of the slots it retrieved: [T, H, k] twice -> [T, H, D]."""
    read = latent_bag(bank, indices, weights, bank_grad=bank_grad)  # [T, H, r]
    return torch.bmm(read.transpose(0, 1), head_proj).transpose(0, 1)  # one product a head
