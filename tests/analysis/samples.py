"""Tiny models and documents of random tokens that the tests of importance share."""

from __future__ import annotations

from typing import Any

import torch

from analysis.documents import Document, Documents
from midus_model import upscale
from tests.models import VOCABULARY, tiny
from tests.reference import fill_banks, float64_reference


def memory_model(family: str = "llama", double: bool = True, **options: Any) -> Any:
    """A tiny model with filled memory, by default after one layer, in float64."""
    small: dict[str, Any] = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
    where = {} if "heads" in options else {"blocks": [1]}
    model = fill_banks(upscale(tiny(family), **small, **(where | options)))
    return float64_reference(model) if double else model


def random_texts(lengths: list[int], context: int = 20) -> Documents:
    """Documents of random tokens, of the given lengths."""
    generator = torch.Generator().manual_seed(3)
    items = [
        Document(str(n), torch.randint(3, VOCABULARY, (length,), generator=generator), f"{n:064x}")
        for n, length in enumerate(lengths)
    ]
    return Documents("random", items, context)


def random_tasks(
    lengths: list[int], answers: list[int], foils: list[int] | None = None, context: int = 20
) -> Documents:
    """Prompts with answers of so many tokens at their end, and foils of so many other tokens."""
    items = []
    for number, (text, answer) in enumerate(zip(random_texts(lengths), answers, strict=True)):
        foil = None
        if foils is not None:
            right = text.ids[-answer:]
            foil = torch.cat([right, right])[: foils[number]].clone()
            foil[min(answer, foils[number]) - 1] = VOCABULARY - 1 - right[0] // 2
        items.append(Document(text.id, text.ids, text.sha256, None, len(text.ids) - answer, foil))
    return Documents("tasks", items, context)
