"""The rest of a block after its heads: from what the heads gave, replaced or not, to its output.

Shape letters: W windows, T tokens, H heads, D head size, d hidden size, f width of the MLP, F
replacements made side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from midus_model.lean import activated, ends_plainly, mean_square_ratio
from midus_model.memory import added


def finish_block(
    block: Any, hidden_states: torch.Tensor, head_outputs: torch.Tensor, stage: str = "output"
) -> torch.Tensor:
    """The output [B, T, d] of a block given its input and, replaced or not, its head outputs.

    `hidden_states` [B, T, d] is the block's input, `head_outputs` [B, T, H*D] its site's input;
    with stage "query" that of a memory block is what its heads ask with.
    """
    hidden_states = hidden_states.to(head_outputs.device)  # of several, where this block is
    memory = getattr(block, "memory", None)
    if memory is not None:
        if stage == "query":
            return added(memory, hidden_states, head_outputs)
        mixed = head_outputs if memory.out_proj is None else memory.out_proj(head_outputs)
        return hidden_states + mixed
    hidden_states = hidden_states + block.self_attn.o_proj(head_outputs)
    return hidden_states + block.mlp(block.post_attention_layernorm(hidden_states))


def mixing_of(block: Any) -> nn.Linear | None:
    """The map from a block's head outputs H*D to the stream d; None: each writes its own slice."""
    memory = getattr(block, "memory", None)
    return block.self_attn.o_proj if memory is None else memory.out_proj


@dataclass(frozen=True)
class Change:
    """Some of a block's head outputs replaced: `values` [1 or W, 1 or T, D] for `span` of H*D."""

    span: slice
    values: torch.Tensor


class BlockEnd:
    """`finish_block` for many replacements of one block's heads, with what they share made once.

    `hidden_states` [W, T, d] and `head_outputs` [W, T, H*D] are the clean run's. `low_rank`:
    whether to save arithmetic as below, where the block allows it; by default with many tokens.

    An attention block with nothing but linear maps, an RMSNorm and a gated MLP after its heads
    needs less arithmetic. A head's change z' - z reaches the stream through its own D columns of
    the output projection, x' = x + W_o (z' - z), and what enters the MLP is r(x') w x', r(x') a
    number a token. So the gate is r(x') (G x + G W_o (z' - z)) with G = W_gate diag(w): the first
    product is made once, and the second has D columns in place of d; the same holds of the up
    projection. The result differs by rounding.
    """

    def __init__(
        self,
        block: Any,
        hidden_states: torch.Tensor,
        head_outputs: torch.Tensor,
        stage: str = "output",
        low_rank: bool | None = None,
    ) -> None:
        self.block, self.stage = block, stage
        self.hidden, self.heads = hidden_states.to(head_outputs.device), head_outputs
        # With few tokens the products of weights would cost more than they save.
        size = head_outputs.shape[-1] // block.self_attn.config.num_attention_heads
        many = head_outputs.shape[:2].numel() > 2 * size
        plain = ends_plainly(block) and not torch.is_grad_enabled()
        self.low_rank = plain and (many if low_rank is None else low_rank)
        if self.low_rank:
            self.scale = block.post_attention_layernorm.weight
            self.stream = self.hidden + block.self_attn.o_proj(head_outputs)  # [W, T, d]
            weighted = self.stream * self.scale
            wide = block.mlp.gate_proj, block.mlp.up_proj
            self.clean = [weighted @ linear.weight.T for linear in wide]  # [W, T, f] each

    def changed(self, changes: Sequence[Sequence[Change]]) -> torch.Tensor:
        """The block's output with each of F sets of heads replaced in turn, [F*W, T, d]."""
        if self.low_rank:
            return torch.cat([self._by_columns(part) for part in changes])
        folds, windows = len(changes), self.heads.shape[0]
        heads = self.heads.repeat(folds, 1, 1)
        for fold, part in enumerate(changes):
            for change in part:
                target = heads[fold * windows : (fold + 1) * windows, :, change.span]
                target.copy_(change.values.expand_as(target))
        return finish_block(self.block, self.hidden.repeat(folds, 1, 1), heads, self.stage)

    def _by_columns(self, changes: Sequence[Change]) -> torch.Tensor:
        mlp, norm = self.block.mlp, self.block.post_attention_layernorm
        mixing = self.block.self_attn.o_proj.weight
        delta = torch.cat([c.values - self.heads[..., c.span] for c in changes], -1)
        columns = torch.cat([mixing[:, c.span] for c in changes], -1)  # [d, D]
        stream = self.stream + delta @ columns.T
        ratio = mean_square_ratio(stream, norm.variance_epsilon)
        weighted = self.scale[:, None] * columns
        made = []
        for linear, clean in zip((mlp.gate_proj, mlp.up_proj), self.clean, strict=True):
            value = torch.add(clean, delta @ (linear.weight @ weighted).T).mul_(ratio)
            made.append(value if linear.bias is None else value.add_(linear.bias))
        return stream.add_(mlp.down_proj(activated(mlp.act_fn, made[0]).mul_(made[1])))
