"""Attn' of a memory block: attention without output projection, for the heads with memory alone.

Shape letters: B batch, T tokens, H query heads, D head size, d hidden size, M heads with memory, G
key-value heads that some of them use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from midus_model.config import head_dim_of
from midus_model.places import on_device


class SharedLinear(nn.Linear):
    """G*D rows of weights, M*D columns of output: each group's, once for every head that shares it.

    So each head finds its own keys and values, however unevenly the heads are spread over groups.
    """

    def __init__(self, in_features: int, sharers: Sequence[int], head_dim: int, bias: bool):
        super().__init__(in_features, len(sharers) * head_dim, bias=bias)
        self.head_dim, self.out_features = head_dim, sum(sharers) * head_dim
        self.group_of = [group for group, heads in enumerate(sharers) for _ in range(heads)]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        groups = super().forward(hidden_states).unflatten(-1, (-1, self.head_dim))  # [B, T, G, D]
        places = on_device(self.group_of, groups.device)
        return groups.index_select(-2, places).flatten(-2)


class SpreadHeads(nn.Module):
    """Outputs of M heads [B, T, M*D] at their places among all H, [B, T, H*D]; zeros elsewhere."""

    def __init__(self, heads: Sequence[int], num_heads: int, head_dim: int):
        super().__init__()
        self.heads, self.num_heads, self.head_dim = list(heads), num_heads, head_dim
        self.in_features, self.out_features = len(heads) * head_dim, num_heads * head_dim

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        apart = outputs.unflatten(-1, (len(self.heads), self.head_dim))
        every = apart.new_zeros(*outputs.shape[:-1], self.num_heads, self.head_dim)
        places = on_device(self.heads, outputs.device)
        return every.index_copy(-2, places, apart).flatten(-2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def sharers_of(config: Any, heads: Sequence[int]) -> dict[int, int]:
    """Key-value heads that `heads` use, in order, each with how many of `heads` share it."""
    shared = config.num_attention_heads // config.num_key_value_heads
    return dict(Counter(head // shared for head in sorted(heads)))


def narrow(attention: Any, config: Any, heads: Sequence[int] | None) -> None:
    """Turn a family's attention into Attn' of `heads` (None: all), output [B, T, H*D] as it was.

    The key-value cache then holds G heads where each is shared by equally many of `heads`, and M
    (a copy a head) where not.
    """
    count, size = config.num_attention_heads, head_dim_of(config)
    if heads is None or len(heads) == count:
        attention.o_proj = nn.Identity()
        return
    heads, sharers = sorted(heads), list(sharers_of(config, heads).values())
    even = len(set(sharers)) == 1
    attention.num_key_value_groups = sharers[0] if even else 1
    width, bias = attention.q_proj.in_features, attention.q_proj.bias is not None
    attention.q_proj = nn.Linear(width, len(heads) * size, bias)
    for name in ("k_proj", "v_proj"):
        if even:
            setattr(attention, name, nn.Linear(width, len(sharers) * size, bias))
        else:
            setattr(attention, name, SharedLinear(width, sharers, size, bias))
    attention.o_proj = SpreadHeads(heads, count, size)


def chosen_state(
    state: dict[str, torch.Tensor], config: Any, heads: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """Of the state of a whole attention, what `narrow` leaves of it: rows of the heads in use."""
    kept = {name: value for name, value in state.items() if not name.startswith("o_proj.")}
    if heads is None:
        return kept
    groups = list(sharers_of(config, heads))
    rows = {"q_proj": sorted(heads), "k_proj": groups, "v_proj": groups}
    size = head_dim_of(config)
    for name, value in kept.items():
        if (wanted := rows.get(name.partition(".")[0])) is not None:
            kept[name] = value.unflatten(0, (-1, size))[wanted].flatten(0, 1)
    return kept
