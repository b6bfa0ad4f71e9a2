"""Tiny random models of every supported family, made in memory in a few milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY, CONTEXT, LAYERS, HEADS, KV_HEADS, HIDDEN = 128, 64, 4, 4, 2, 64

# family -> config class, model class, what differs from the common shape
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "qwen3-wide": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),  # H * head_dim = 96, not 64
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 16}),
}


def tiny(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A seeded random model in eval mode: 4 layers, 4 query and 2 key-value heads, hidden size 64.

    Args:
        family: a key of FAMILIES.
        dtype: of every parameter; the values are drawn in fp32, so dtypes differ by rounding alone.
        seed: of the weights. The global random state is left as it was.
        changes: config fields to set instead, such as `num_hidden_layers=2`.

    Norm weights are not ones, so that a norm forgotten or copied from the wrong layer shows.
    """
    config_class, model_class, differs = FAMILIES[family]
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**(fields | differs | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length] in the tiny vocabulary, special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
