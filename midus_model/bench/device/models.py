"""A base of random weights and what LLaMA Pro and MIDUS make of it, on the device, nothing read."""

from __future__ import annotations

import gc
from typing import Any

import torch

KINDS = ("base", "llama-pro", "midus")
# Llama-3.2-1B's sizes. The rotary scaling is left out: it costs nothing at run time.
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
TINY_MEMORY = {"num_keys": 6, "top_k": 3, "latent_dim": 8}


def model_of(kind: str, dtype: torch.dtype, device: str, tiny: bool) -> Any:
    """The base, or the base up-scaled by half as many blocks as it has layers; bank not zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from midus_model import upscale

    torch.manual_seed(0)
    with torch.device(device):
        base = LlamaForCausalLM(LlamaConfig(**(TINY if tiny else LLAMA_1B)))
    base = base.to(dtype)
    if kind == "base":
        return base
    sizes: dict[str, Any] = TINY_MEMORY if tiny and kind == "midus" else {}
    model = upscale(base, kind, **sizes)
    del base
    gc.collect()
    for name, parameter in model.named_parameters():
        if name.endswith("memory.bank"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def parameters(model: Any) -> dict[str, int]:
    """How many there are, and how many are trained."""
    counted = {id(p): p for p in model.parameters()}.values()
    return {
        "parameters": sum(p.numel() for p in counted),
        "trained": sum(p.numel() for p in counted if p.requires_grad),
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def start_peak(device: str) -> None:
    """From here on counts `peak`."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float | None:
    """GB that tensors took at most, weights included; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
