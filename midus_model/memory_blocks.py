"""The block that holds a memory, for each family: a class that can be found by its name.

Each is a subclass of the family's decoder layer, so that whatever the family does with its layers
(gradient checkpointing, recording of hidden states, caches by `layer_idx`) it does with these too.
A new family is two classes and an entry of `MEMORY_BLOCKS`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from midus_model.attention import UnevenAttention, narrow
from midus_model.config import MidusConfig, layer_map_of, sizes_of
from midus_model.memory import HeadwiseMemory, added


class MemoryBlock(nn.Module):
    """M(x) = x + memory(Attn'(norm(x))), Attn' of the heads with memory, not projected.

    Goes before a family's decoder layer, whose MLP, second norm and output projection are gone.
    """

    attention_class: ClassVar[type[nn.Module]]
    input_layernorm: nn.Module

    def __init__(self, config: MidusConfig, layer_idx: int):
        super().__init__(config, layer_idx)  # type: ignore[call-arg]
        del self.mlp, self.post_attention_layernorm
        heads = layer_map_of(config)[layer_idx]["heads"]
        self.self_attn = self.attention_class(config, layer_idx)
        narrow(self.self_attn, config, heads)
        self.memory = HeadwiseMemory(config, heads, sizes_of(config)[layer_idx])

    def forward(
        self, hidden_states: torch.Tensor, use_cache: bool | None = False, **kwargs: Any
    ) -> torch.Tensor:
        head_outputs, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), use_cache=use_cache, **kwargs
        )
        return added(self.memory, hidden_states, head_outputs)


class LlamaAttnPrime(UnevenAttention, LlamaAttention):
    """Attn' of a Llama block."""

    familys_own = LlamaAttention


class LlamaMemoryBlock(MemoryBlock, LlamaDecoderLayer):
    """The memory block of Llama."""

    attention_class = LlamaAttnPrime


class MistralAttnPrime(UnevenAttention, MistralAttention):
    """Attn' of a Mistral block."""

    familys_own = MistralAttention


class MistralMemoryBlock(MemoryBlock, MistralDecoderLayer):
    """The memory block of Mistral."""

    attention_class = MistralAttnPrime


class Qwen3AttnPrime(UnevenAttention, Qwen3Attention):
    """Attn' of a Qwen3 block."""

    familys_own = Qwen3Attention


class Qwen3MemoryBlock(MemoryBlock, Qwen3DecoderLayer):
    """The memory block of Qwen3."""

    attention_class = Qwen3AttnPrime


MEMORY_BLOCKS: dict[str, type[nn.Module]] = {
    "llama": LlamaMemoryBlock,
    "mistral": MistralMemoryBlock,
    "qwen3": Qwen3MemoryBlock,
}
