"""The head-wise memory layer (MIDUS, arXiv 2512.13751).

Shape letters: B batch, T tokens, H query heads, D head size, M memory heads, n sub-keys a half,
N = n*n slots, r latent size, d hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels import headwise_memory, product_key_select
from kernels.headwise_memory import can_fuse, realised
from midus_model.config import MidusConfig, head_dim_of
from midus_model.lean import is_watched
from midus_model.places import on_device


class HeadOutputs(nn.Module):
    """Passes the concatenated head outputs [B, T, H*D] on: where they can be seen and gated."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


class Retrieved(nn.Module):
    """Passes on what the heads retrieve, [positions, M, k] each: where it can be seen and changed.

    `weights` come best first and sum to 1 over k; `slots` are int64. What a forward hook returns,
    (weights, slots), is read in their place.
    """

    def forward(
        self, weights: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return weights, slots


class HeadwiseMemory(nn.Module):
    """Head outputs in, [B, T, H*D]; each memory head's read of the shared bank out, [B, T, d].

    `sizes` is the block's entry of `config.memory_sizes`, if any. Heads may differ in the slots
    that they read and in the columns of the bank that they see: `head_top_k` and `head_latent_dim`
    are None where they do not, and else hold a number a head, `top_k` and the bank's r being the
    largest. `bank_grad` is how the bank's gradient is made: see `kernels.latent_bag`.
    """

    bank_grad = "sorted"

    def __init__(
        self, config: MidusConfig, heads: list[int] | None, sizes: dict[str, Any] | None = None
    ):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, head_dim_of(config)
        self.heads = list(range(self.num_heads)) if heads is None else sorted(heads)
        count, size = len(self.heads), self.head_dim
        n = config.num_keys if sizes is None else sizes["num_keys"]
        slots = [config.memory_top_k] if sizes is None else sizes["top_k"]
        columns = [config.latent_dim] if sizes is None else sizes["latent_dim"]
        self.top_k, r = max(slots), max(columns)
        self.head_top_k = slots if min(slots) < self.top_k else None
        self.head_latent_dim = columns if min(columns) < r else None
        self.row_keys = nn.Parameter(torch.empty(count, n, size // 2))
        self.col_keys = nn.Parameter(torch.empty(count, n, size // 2))
        self.bank = nn.Parameter(torch.empty(n * n, r))
        self.head_proj = nn.Parameter(torch.empty(count, r, size))
        self.retrieved = Retrieved()
        self.out = HeadOutputs()
        self.out_proj = (
            nn.Linear(self.num_heads * size, config.hidden_size, bias=False)
            if config.output_mixing == "linear"
            else None
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Bank zero: the block is the identity. Keys and projections not, or nothing learns."""
        nn.init.zeros_(self.bank)
        bound = self.row_keys.shape[-1] ** -0.5
        nn.init.uniform_(self.row_keys, -bound, bound)
        nn.init.uniform_(self.col_keys, -bound, bound)
        nn.init.normal_(self.head_proj, std=self.head_proj.shape[1] ** -0.5)
        if self.head_latent_dim is not None:  # as wide as if each head had a bank of its own size
            own = self.head_proj.new_tensor(self.head_latent_dim)[:, None, None]
            self.head_proj.mul_(self._columns() * (self.head_proj.shape[1] / own).sqrt())

    def select(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the memory heads retrieve: [positions, M, D] -> weights and slots [.., M, k].

        Best first. A head that reads fewer slots than `top_k` has weight 0 beyond its own, and the
        softmax is over its own: normalising anew what is kept of a softmax gives just that.
        """
        weights, slots = product_key_select(query, self.row_keys, self.col_keys, self.top_k)
        if self.head_top_k is not None:
            weights = weights * _first(self.head_top_k, self.top_k, weights)
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, slots

    @property
    def projections(self) -> torch.Tensor:
        """`head_proj` [M, r, D] as it is read: rows beyond a head's own r are zero, and stay so."""
        return self.head_proj if self.head_latent_dim is None else self.head_proj * self._columns()

    def _columns(self) -> torch.Tensor:
        """[M, r, 1], one where a head sees the bank's column."""
        assert self.head_latent_dim is not None
        return _first(self.head_latent_dim, self.head_proj.shape[1], self.head_proj)[..., None]

    def forward(self, head_outputs: torch.Tensor) -> torch.Tensor:
        every = self._by_head(head_outputs)
        if len(self.heads) == self.num_heads:
            read = self._read(every)  # [B*T, M, D]
        else:  # each chosen head writes its own slice of the stream
            places = on_device(self.heads, every.device)
            read = self._read(every.index_select(1, places)).to(every.dtype)
            read = torch.zeros_like(every).index_copy(1, places, read)
        outputs = self.out(read.reshape(head_outputs.shape))
        return outputs if self.out_proj is None else self.out_proj(outputs)

    def added_to(self, residual: torch.Tensor, head_outputs: torch.Tensor) -> torch.Tensor:
        """residual + memory(head_outputs), [B, T, d]; in one launch where nobody looks between."""
        if not self._unseen(head_outputs):
            return residual + self(head_outputs)
        read = self._read(self._by_head(head_outputs), self._by_head(residual))
        return read.reshape(residual.shape)

    def _by_head(self, stream: torch.Tensor) -> torch.Tensor:
        return stream.reshape(-1, self.num_heads, self.head_dim)

    def _read(self, query: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        projections = self.projections
        if self.head_top_k is None and not is_watched(self.retrieved):
            parameters = self.row_keys, self.col_keys, self.bank, projections
            return headwise_memory(
                query, *parameters, self.top_k, residual=residual, bank_grad=self.bank_grad
            )
        weights, slots = self.retrieved(*self.select(query))
        read = realised(weights, slots, self.bank, projections, self.bank_grad).to(query.dtype)
        return read if residual is None else residual + read

    def _unseen(self, head_outputs: torch.Tensor) -> bool:
        """Whether what is read may go straight to the stream: nobody looks at what is between."""
        if self.out_proj is not None or len(self.heads) != self.num_heads:
            return False
        if is_watched(self, self.out):
            return False
        parameters = self.row_keys, self.col_keys, self.bank, self.head_proj
        return type(self.out) is HeadOutputs and can_fuse(head_outputs, *parameters)


def _first(counts: list[int], width: int, like: torch.Tensor) -> torch.Tensor:
    """[M, width] of the dtype of `like`: ones in the first `counts[m]` columns, then zeros."""
    limit = on_device(counts, like.device)[:, None]
    return (torch.arange(width, device=like.device) < limit).to(like.dtype)


def added(memory: Any, residual: torch.Tensor, head_outputs: torch.Tensor) -> torch.Tensor:
    """residual + memory(head_outputs), [B, T, d], whatever is wrapped around the memory."""
    if hasattr(type(memory), "added_to"):
        return memory.added_to(residual, head_outputs)
    return residual + memory(head_outputs)  # a wrapper is to be called: what it passes on is older
