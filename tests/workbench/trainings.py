"""What the tests of training share: models and documents of a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.documents import Documents, documents
from midus_model import upscale

CONTEXT = 16


def tiny() -> LlamaForCausalLM:
    """A base: 2 layers of 2 heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def deeper() -> torch.nn.Module:
    """The base with a memory block of 16 slots."""
    return upscale(tiny(), num_keys=4, top_k=2, latent_dim=4)


def random_texts() -> Documents:
    """24 documents of 40 to 89 random tokens."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, int(n)).tolist() for n in rng.integers(40, 90, 24)]
    return documents(ids, model=tiny(), context=CONTEXT)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
