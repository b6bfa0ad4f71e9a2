"""The head-wise memory layer and the block that holds it (MIDUS, arXiv 2512.13751).

Shape letters: B batch, T tokens, H query heads, D head size, M memory heads, n sub-keys a half,
N = n*n slots, r latent size, d hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from kernels import headwise_memory, product_key_select
from kernels.headwise_memory import can_fuse, realised
from midus_model.config import MidusConfig, head_dim_of, layer_map_of


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

    `bank_grad` is how the bank's gradient is made: see `kernels.latent_bag`.
    """

    bank_grad = "sorted"

    def __init__(self, config: MidusConfig, heads: list[int] | None):
        super().__init__()
        n, r, size = config.num_keys, config.latent_dim, head_dim_of(config)
        self.num_heads, self.head_dim, self.top_k = (
            config.num_attention_heads,
            size,
            config.memory_top_k,
        )
        self.heads = list(range(self.num_heads)) if heads is None else sorted(heads)
        count = len(self.heads)
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

    def forward(self, head_outputs: torch.Tensor) -> torch.Tensor:
        every = self._by_head(head_outputs)
        whole = len(self.heads) == self.num_heads
        read = self._read(every if whole else every[:, self.heads])  # [B*T, M, D]
        if not whole:  # each chosen head writes its own slice of the stream
            read = torch.zeros_like(every).index_copy(
                1, torch.tensor(self.heads, device=read.device), read.to(every.dtype)
            )
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
        keys = self.row_keys, self.col_keys
        if not _is_watched(self.retrieved):
            parameters = *keys, self.bank, self.head_proj
            return headwise_memory(
                query, *parameters, self.top_k, residual=residual, bank_grad=self.bank_grad
            )
        weights, slots = self.retrieved(*product_key_select(query, *keys, self.top_k))
        read = realised(weights, slots, self.bank, self.head_proj, self.bank_grad).to(query.dtype)
        return read if residual is None else residual + read

    def _unseen(self, head_outputs: torch.Tensor) -> bool:
        """Whether the sum may be fused: a kernel can, and nobody looks at what is between."""
        if self.out_proj is not None or len(self.heads) != self.num_heads:
            return False
        if any(map(_is_watched, (self, self.out, self.retrieved))):
            return False
        parameters = self.row_keys, self.col_keys, self.bank, self.head_proj
        return type(self.out) is HeadOutputs and can_fuse(head_outputs, *parameters)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody looks at what goes in or out, or put in a forward of theirs."""
    hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(hooks or _global_forward_hooks or _global_forward_pre_hooks)


def memory_block_class(decoder_layer: type[nn.Module]) -> type[nn.Module]:
    """The memory block of a family: its decoder layer with the MLP gone and o_proj a pass-through.

    A subclass, so that whatever the family does with its layers (gradient checkpointing, recording
    of hidden states, caches by `layer_idx`) it does with memory blocks too.
    """

    class MemoryBlock(decoder_layer):  # type: ignore[misc,valid-type]
        """M(x) = x + memory(Attn'(norm(x))), Attn' without output projection."""

        def __init__(self, config: MidusConfig, layer_idx: int):
            super().__init__(config, layer_idx)
            del self.mlp, self.post_attention_layernorm
            self.self_attn.o_proj = nn.Identity()
            self.memory = HeadwiseMemory(config, layer_map_of(config)[layer_idx]["heads"])

        def forward(
            self, hidden_states: torch.Tensor, use_cache: bool | None = False, **kwargs: Any
        ) -> torch.Tensor:
            head_outputs, _ = self.self_attn(
                hidden_states=self.input_layernorm(hidden_states), use_cache=use_cache, **kwargs
            )
            return self.memory.added_to(hidden_states, head_outputs)

    MemoryBlock.__name__ = decoder_layer.__name__.replace("DecoderLayer", "MemoryBlock")
    MemoryBlock.__qualname__ = MemoryBlock.__name__
    return MemoryBlock
