"""A clean run kept with what memory retrieved in it, and run on from where memory is changed.

Shape letters: W windows, T tokens, P = W * T positions, H query heads, M memory heads, D head size,
k slots read, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from analysis.engine import CleanRun
from analysis.memory.places import memories_of
from midus_model import blocks, finish_block, lean_blocks
from midus_model.memory import HeadwiseMemory

Retrieval = tuple[torch.Tensor, torch.Tensor]  # weights, best first, and slots: [P, M, k] each


@contextmanager
def watched(model: Any) -> Iterator[dict[int, Retrieval]]:
    """By block, what memory retrieved in the last pass inside the context.

    Inside, every pass takes the same way through memory: unwatched, a GPU fuses it, and rounds
    otherwise.
    """
    seen: dict[int, Retrieval] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple, Retrieval], None]:
        return lambda _, __, output: seen.__setitem__(layer, output)

    with ExitStack() as stack:
        for layer, memory in memories_of(model).items():
            stack.callback(memory.retrieved.register_forward_hook(keep(layer)).remove)
        yield seen


def as_outputs(memory: HeadwiseMemory, read: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """What the memory heads read [P, M, D] where they write it, [W, T, H*D] like the clean run's.

    Heads without memory write zero.
    """
    outputs = torch.zeros_like(clean)
    by_head = outputs.view(-1, memory.num_heads, memory.head_dim)  # [P, H, D]
    by_head[:, memory.heads] = read.to(clean.dtype)
    return outputs


@torch.no_grad()
def resumed(model: Any, run: CleanRun, outputs: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The final states [W, T, d] with the head outputs [W, T, H*D] of some memory blocks given.

    The run starts at the first of them, from its clean input. A block whose outputs are given is
    not asked for its queries: whatever reaches it, it writes these.
    """
    first, stack = min(outputs), blocks(model)
    hidden = run.inputs[first]
    with lean_blocks(stack):  # as in the clean run, so that the same arithmetic rounds alike
        for layer in range(first, len(stack)):
            if layer in outputs:
                hidden = finish_block(stack[layer], hidden, outputs[layer])
            else:
                hidden = stack[layer](hidden, **run.calls[layer])
    return model.model.norm(hidden)
