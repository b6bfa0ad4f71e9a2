"""The shapes that are timed, and the tensors of one measurement.

Shape letters: T tokens, H heads, D head size, n sub-keys a half, k slots read, r latent size,
d hidden size, f FFN size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# What `headwise_memory` takes before k.
Memory = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its memory."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    num_keys: int = 256
    top_k: int = 32
    latent: int = 128

    @property
    def slots(self) -> int:
        return self.num_keys**2


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.2-1b", 2048, 32, 8, 64, 8192),
        Shape("llama-3.1-8b", 4096, 32, 8, 128, 14336),
        Shape("tiny", 64, 4, 2, 16, 160, num_keys=8, top_k=4, latent=16),
    )
}


class Inputs:
    """Tensors of one shape, token count and dtype, drawn with a fixed seed."""

    def __init__(self, shape: Shape, tokens: int, dtype: torch.dtype, device: str):
        generator = torch.Generator(device).manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> torch.Tensor:
            drawn = torch.randn(size, generator=generator, device=device)
            return (scale * drawn).to(dtype)

        half, n = shape.head_dim // 2, shape.num_keys
        self.shape, self.tokens, self.dtype, self.device = shape, tokens, dtype, device
        self.query = draw(tokens, shape.heads, shape.head_dim)
        self.row_keys = draw(shape.heads, n, half, scale=half**-0.5)
        self.col_keys = draw(shape.heads, n, half, scale=half**-0.5)
        self.bank = draw(shape.slots, shape.latent)
        self.head_proj = draw(shape.heads, shape.latent, shape.head_dim, scale=shape.latent**-0.5)
        self.stream = draw(tokens, shape.hidden)
        self.ffn = [draw(shape.ffn, shape.hidden, scale=0.02) for _ in range(2)]
        self.ffn.append(draw(shape.hidden, shape.ffn, scale=0.02))

    @property
    def memory(self) -> Memory:
        """What `headwise_memory` takes before k."""
        return self.query, self.row_keys, self.col_keys, self.bank, self.head_proj

    @property
    def selection(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `product_key_select` takes before k."""
        return self.query, self.row_keys, self.col_keys

    def feed_forward(self) -> torch.Tensor:
        """The model's own FFN, SwiGLU, [T, d]."""
        gate, up, down = self.ffn
        hidden = F.silu(F.linear(self.stream, gate)) * F.linear(self.stream, up)
        return F.linear(hidden, down)

    def every(self) -> list[torch.Tensor]:
        return [*self.memory, self.stream, *self.ffn]


def slots_of(kind: str, shape: Shape, tokens: int, device: str) -> torch.Tensor:
    """Slot ids [T, H, k], "uniform" or "zipf" (row i is read in proportion to 1 / (i + 1))."""
    generator = torch.Generator().manual_seed(1)
    count, size = shape.slots, (tokens, shape.heads, shape.top_k)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    if kind == "zipf":
        uniform = torch.exp(uniform * torch.log(torch.tensor(count + 1.0))) - 1
    else:
        uniform = uniform * count
    return uniform.long().clamp(max=count - 1).to(device)


def blocks_of(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Any, Any, Any]:
    """An attention-plus-FFN block, a memory block with a filled bank, and their rotary module."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from midus_model import upscale

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=131072,
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = upscale(
            LlamaForCausalLM(config),
            blocks=[0],
            num_keys=shape.num_keys,
            top_k=shape.top_k,
            latent_dim=shape.latent,
        )
        torch.nn.init.normal_(model.model.layers[1].memory.bank)
    model = model.to(device, dtype).eval()
    return model.model.layers[0], model.model.layers[1], model.model.rotary_emb
