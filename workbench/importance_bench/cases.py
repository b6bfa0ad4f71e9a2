"""What is measured: models of 16 layers by 16 heads, and pico, on long windows and a short one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from analysis import documents
from midus_model import load

MIB = 2**20


@dataclass(frozen=True)
class Model:
    """A model by its name in tables; `make` gives it in fp32 on the CPU.

    text: whether its windows are pico's held-out text; else they are random tokens.
    """

    name: str
    make: Callable[[], Any]
    text: bool = False


@dataclass(frozen=True)
class Case:
    """A row to be.

    Args:
        kind: "sweep", "gradient" or "memory".
        windows, tokens: of the batch.
        sample: of a sweep: on how many heads, drawn at random, a peer's loop is timed; its time is
            then scaled to all. None: on all.
        budget: of "memory": the bytes that a sweep is given.
    """

    kind: str
    model: Model
    windows: int
    tokens: int
    sample: int | None = None
    budget: int | None = None


def random_model(
    hidden: int, ffn: int, vocabulary: int, layers: int = 16, heads: int = 16, kv_heads: int = 4
) -> Any:
    """A Llama in fp32 with seeded random weights, large enough for its heads to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=1024,
        initializer_range=hidden**-0.5,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def windows_of(case: Case, model: Any) -> torch.Tensor:
    """Token ids [windows, tokens]."""
    if case.model.text:
        windows = documents(model=model, context=case.tokens).windows
        whole = [window.ids for window in windows if len(window.ids) == case.tokens]
        return torch.stack(whole[: case.windows])
    generator = torch.Generator().manual_seed(1)
    size = case.windows, case.tokens
    return torch.randint(model.config.vocab_size, size, generator=generator)


WIDE = Model("16x16, d 512", partial(random_model, 512, 1408, 2048))
NARROW = Model("16x16, d 128", partial(random_model, 128, 352, 512))
PICO = Model("pico", partial(load, "pico"), text=True)

CASES = (
    Case("sweep", WIDE, 1, 256, sample=8),
    Case("sweep", NARROW, 1, 16, sample=64),
    Case("sweep", PICO, 4, 256, sample=12),
    Case("sweep", PICO, 1, 16),
    Case("gradient", WIDE, 2, 256),
    Case("gradient", PICO, 16, 256),
    *(Case("memory", NARROW, 4, 128, budget=size * MIB) for size in (16, 64, 256)),
    *(Case("memory", PICO, 8, 256, budget=size * MIB) for size in (32, 128)),
)
QUICK = (
    Case("sweep", NARROW, 1, 16, sample=16),
    Case("sweep", PICO, 2, 256, sample=8),
    Case("sweep", PICO, 1, 16, sample=16),
    Case("gradient", PICO, 4, 256),
    *(Case("memory", PICO, 2, 256, budget=size * MIB) for size in (32, 128)),
)
