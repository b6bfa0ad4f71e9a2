"""Attn' of a memory block: attention without output projection, for the heads with memory alone.

Shape letters: B batch, T tokens, H query heads, D head size, d hidden size, M heads with memory, G
key-value heads that some of them use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from midus_model.config import head_dim_of
from midus_model.places import on_device


def unmixed(outputs: torch.Tensor) -> torch.Tensor:
    """What stands where the output projection was: head outputs [B, T, H*D] as they are."""
    return outputs


class SpreadHeads:
    """Outputs of M heads [B, T, M*D] at their places among all H, [B, T, H*D]; zeros elsewhere.

    No module: it has no weights, and what adapts modules by name must not find an `o_proj` here.
    """

    def __init__(self, heads: Sequence[int], num_heads: int, head_dim: int):
        self.heads, self.num_heads, self.head_dim = list(heads), num_heads, head_dim

    def __call__(self, outputs: torch.Tensor) -> torch.Tensor:
        apart = outputs.unflatten(-1, (len(self.heads), self.head_dim))
        every = apart.new_zeros(*outputs.shape[:-1], self.num_heads, self.head_dim)
        places = on_device(self.heads, outputs.device)
        return every.index_copy(-2, places, apart).flatten(-2)


def per_head(groups: torch.Tensor, group_of: Sequence[int], head_dim: int) -> torch.Tensor:
    """Keys or values of each of M heads [B, T, M*D], from those of its group, [B, T, G*D]."""
    apart = groups.unflatten(-1, (-1, head_dim))
    return apart.index_select(-2, on_device(group_of, groups.device)).flatten(-2)


class _PerHead:
    """An attention as its family's code is to see it: with keys and values for every head.

    The projections themselves stay plain linear maps of G*D rows, that can be adapted and merged.
    """

    def __init__(self, attention: Any):
        self.attention = attention

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)

    def k_proj(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self._spread(self.attention.k_proj(hidden_states))

    def v_proj(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self._spread(self.attention.v_proj(hidden_states))

    def _spread(self, groups: torch.Tensor) -> torch.Tensor:
        return per_head(groups, self.attention.group_of, self.attention.head_dim)


class UnevenAttention(nn.Module):
    """Goes before a family's attention: its forward, where groups are shared unevenly.

    `group_of` has the row of `k_proj` and `v_proj` of each head; None where the family's own way,
    equally many heads a group, does. `familys_own` is the family's class.
    """

    familys_own: ClassVar[type[nn.Module]]
    group_of: list[int] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.group_of is None:
            return super().forward(*args, **kwargs)
        return self.familys_own.forward(_PerHead(self), *args, **kwargs)


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
    del attention.o_proj
    if heads is None or len(heads) == count:
        attention.o_proj = unmixed
        return
    heads, sharers = sorted(heads), list(sharers_of(config, heads).values())
    even = len(set(sharers)) == 1
    attention.num_key_value_groups = sharers[0] if even else 1
    if not even:
        attention.group_of = [g for g, sharing in enumerate(sharers) for _ in range(sharing)]
    width, bias = attention.q_proj.in_features, attention.q_proj.bias is not None
    attention.q_proj = nn.Linear(width, len(heads) * size, bias)
    for name in ("k_proj", "v_proj"):
        setattr(attention, name, nn.Linear(width, len(sharers) * size, bias))
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
