"""Tiny up-scaled models and documents for the tests of `analysis.memory`, random and planted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from analysis.documents import Documents, documents
from midus_model import upscale
from tests.models import HEADS, HIDDEN, VOCABULARY, tiny
from tests.reference import fill_banks

N_KEYS, TOP_K, LATENT = 8, 3, 8
LENGTHS = [40, 7, 16, 17, 2, 31, 46, 15] + [3] * 13  # 20 documents or more: no warning
PLANTED_KEYS, PLANTED_BLOCK, SIZE = 4, 1, HIDDEN // HEADS
PLANTED_SLOTS = PLANTED_KEYS**2
WEIGHTS = (0.75, 0.25)  # of the two slots that a planted head reads


def up_scaled(family: str = "llama", num_keys: int = N_KEYS, top_k: int = TOP_K, **kwargs: Any):
    """A tiny model with memory blocks; banks are not zero, so that reads reach later blocks."""
    options = {"num_keys": num_keys, "top_k": top_k, "latent_dim": LATENT} | kwargs
    return fill_banks(upscale(tiny(family), **options), scale=0.3, seed=1)


def texts(lengths: list[int], context: int = 16) -> Documents:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return Documents("random", documents(ids, model=tiny(), context=context).items, context)


class PlantedQueries(nn.Module):
    """What a memory is made to ask with: queries that name a slot by the token at hand.

    Head h at token v asks for slot `first_slot(v, h)`, with row sub-key score 2 log 3 and column
    score log 3. Under identity keys the best slot scores 3 log 3, and the other slots of its row
    2 log 3, of which the lowest comes second: weights 3/4 and 1/4.
    """

    ids: torch.Tensor

    def forward(self, head_outputs: torch.Tensor) -> torch.Tensor:
        query = torch.zeros(*self.ids.shape, HEADS, 2, SIZE // 2)
        for place in ((b, t, h) for b, t in _places(self.ids) for h in range(HEADS)):
            slot = first_slot(int(self.ids[place[:2]]), place[2])
            query[(*place, 0, slot // PLANTED_KEYS)] = 2 * math.log(3)
            query[(*place, 1, slot % PLANTED_KEYS)] = math.log(3)
        return query.flatten(2)


def _places(ids: torch.Tensor) -> list[tuple[int, int]]:
    return [(b, t) for b in range(ids.shape[0]) for t in range(ids.shape[1])]


def first_slot(token: int, head: int) -> int:
    """The slot that a planted head reads with weight 3/4."""
    return (token + head) % PLANTED_SLOTS


def second_slot(token: int, head: int) -> int:
    """The slot that it reads with weight 1/4: the lowest other one of the same row."""
    row, col = divmod(first_slot(token, head), PLANTED_KEYS)
    return row * PLANTED_KEYS + (1 if col == 0 else 0)


def planted(**options: Any) -> Any:
    """One memory block, after layer 0, whose retrievals and outputs are known by hand.

    The stream that enters it is all ones. Slot s of the bank is the unit vector of s mod 8, and
    every head writes latent j as the j-th unit vector of its slice.
    """
    options = {"blocks": [0], "num_keys": PLANTED_KEYS, "top_k": 2} | options
    model = up_scaled(**options)
    block = model.model.layers[PLANTED_BLOCK]
    queries = PlantedQueries()
    block.memory.register_forward_pre_hook(lambda _, args: (queries(args[0]),))
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: setattr(queries, "ids", args[0])
    )
    model.model.layers[0].register_forward_hook(lambda _, __, out: torch.ones_like(out))
    memory = block.memory
    for half in (memory.row_keys, memory.col_keys):
        half.data = torch.eye(PLANTED_KEYS, half.shape[-1]).expand_as(half).clone()
    memory.bank.data = torch.eye(LATENT).repeat(PLANTED_SLOTS // LATENT, 1)
    memory.head_proj.data = torch.eye(LATENT, SIZE).expand_as(memory.head_proj).clone()
    return model
