"""Heads that do nothing on purpose: what scores a model's heads have when their weights are mixed.

Within each head the rows of the query and of the value projection are put in another order and
turned in sign: every norm stays, and what the head looks for and writes no longer fits what is
there. Of a model of independent symmetric weights nothing can tell the mixed heads from the heads
themselves: each is as likely as any other to have the highest score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.roles.labels import Scores
from midus_model import blocks

MIXES = 3
NULL_SHARE = 0.125  # of the sequences and windows that the heads themselves are read on, a mix


def fewer(count: int) -> int:
    """How many sequences or windows each mix is read on; none or one gives no score."""
    return max(2, int(NULL_SHARE * count))


@contextmanager
def shuffled(model: Any, seed: int, mix: int = 0) -> Iterator[None]:
    """Mixed queries and values in every block while the context lasts; weights stay as they are."""
    hooks = []
    try:
        for layer, block in enumerate(blocks(model)):
            for number, name in enumerate(("q_proj", "v_proj")):
                mixer = _mixer(block.self_attn.head_dim, [seed, mix, layer, number])
                hooks.append(getattr(block.self_attn, name).register_forward_hook(mixer))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mixer(size: int, seed: list[int]) -> Any:
    def mix(_: nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
        heads = output.unflatten(-1, (-1, size))  # [B, T, H, D]
        rng = np.random.default_rng(seed)
        order = np.argsort(rng.random((heads.shape[-2], size)), axis=1)
        sign = rng.choice((-1.0, 1.0), size=order.shape)
        index = torch.from_numpy(order).to(heads.device)
        mixed = heads.gather(-1, index.expand(heads.shape))
        return (mixed * torch.from_numpy(sign).to(mixed)).flatten(-2)

    return mix


def highest(mixes: Sequence[Scores]) -> dict[str, float]:
    """By score the highest of all mixed heads, the middle one of the mixes.

    The middle one, since a mixed head with large biases looks at one distance, whichever, and
    now and then that is the previous token. -1, which is no bound, where a score is unknown.
    """
    found = {}
    for name in mixes[0].score:
        values = np.stack([scores.score[name] for scores in mixes])  # [mixes, heads]
        known = np.where(np.isfinite(values), values, -1.0)
        found[name] = float(np.median(known.max(1)))
    return found
