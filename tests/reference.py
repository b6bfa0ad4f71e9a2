"""Float64 oracles: a model without fp32 islands, and what a memory chose, by every slot's score.

A Hugging Face model keeps fp32 arithmetic after `.double()` in RMSNorm, rotary embeddings and the
loss; finite differences then disagree with exact gradients. Both sides of a comparison go through
`float64_reference`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel


def rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """RMSNorm in its input's dtype."""
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


@torch.no_grad()
def rotary(
    self: Any, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [B, T, D] in the dtype of `x`, from the model's own frequencies."""
    angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any
) -> torch.Tensor:
    """Mean next-token loss in nats, in the dtype of the logits; labels of -100 do not count."""
    return F.cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1))


def float64_reference(model: PreTrainedModel) -> Any:
    """A deep copy of `model` whose every operation is in float64, with sdpa attention."""
    reference = copy.deepcopy(model).double()
    reference.config._attn_implementation = "sdpa"
    norms = 0
    for module in reference.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            # By its class: an instance with a `forward` of its own counts as tampered with.
            module.__class__ = type(kind, (type(module),), {"forward": rms_norm})
            norms += 1
        elif kind.endswith("RotaryEmbedding"):
            module.forward = MethodType(rotary, module)
    assert norms, f"{type(model).__name__} has no RMSNorm that is known here"
    reference.loss_function = next_token_loss
    return reference


def fill_banks(model: Any, scale: float = 0.5, seed: int = 0) -> Any:
    """Random banks in place of zeros, so that every memory writes; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, memory in memories(model):
            values = scale * torch.randn(memory.bank.shape, generator=generator)
            memory.bank.copy_(values)
    return model


def memories(model: Any) -> list[tuple[int, nn.Module]]:
    """(block index, memory) of every memory block."""
    stack = enumerate(model.model.layers)
    return [(layer, block.memory) for layer, block in stack if hasattr(block, "memory")]


@dataclass
class Choices:
    """What the memories chose while watched: sorted slots of every call, and the least margin.

    The margin is the score of the worst slot chosen less that of the best one left out.
    """

    slots: list[torch.Tensor] = field(default_factory=list)
    margin: float = float("inf")

    def same_slots(self, other: Choices) -> bool:
        """Whether both watched the same number of calls with the same slots."""
        pairs = zip(self.slots, other.slots, strict=True)
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)


@contextmanager
def watched(model: Any) -> Iterator[Choices]:
    """Record what every memory of `model` chooses, from the float64 scores of all N slots."""
    choices = Choices()

    def look(memory: Any, args: tuple[torch.Tensor, ...]) -> None:
        every = args[0].detach().double().unflatten(-1, (memory.num_heads, memory.head_dim))
        query = every[:, :, memory.heads]  # [B, T, M, D]
        half = memory.head_dim // 2
        row = torch.einsum("btmd,mnd->btmn", query[..., :half], memory.row_keys.detach().double())
        col = torch.einsum("btmd,mnd->btmn", query[..., half:], memory.col_keys.detach().double())
        scores = (row[..., :, None] + col[..., None, :]).flatten(-2)  # [B, T, M, N]
        best = scores.topk(min(memory.top_k + 1, scores.shape[-1]), dim=-1)
        choices.slots.append(best.indices[..., : memory.top_k].sort(-1).values)
        if best.values.shape[-1] > memory.top_k:
            gaps = best.values[..., -2] - best.values[..., -1]
            choices.margin = min(choices.margin, float(gaps.min()))

    hooks = [memory.register_forward_pre_hook(look) for _, memory in memories(model)]
    try:
        yield choices
    finally:
        for hook in hooks:
            hook.remove()
