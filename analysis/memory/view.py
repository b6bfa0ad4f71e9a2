"""What memory retrieves for one text: every slot that every head reads at every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.documents import Window
from analysis.memory.places import described, memories_of, opened, read
from analysis.memory.stream import Watcher, streamed
from analysis.memory.text import token_text
from kernels.errors import DataError


def memory_view(model: Any, text: Any) -> pd.DataFrame:
    """Every read of a text, block by block: a row a (block, head, position, rank).

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model.
        text: a string, or token ids, that the model's context holds.

    Returns:
        Columns: block, head, position, token_id, token (None without a tokenizer), rank (1 = the
        largest weight), slot and weight, which sums to 1 over a position's ranks.

    Raises:
        DataError: for a text longer than the context, or of fewer than two tokens.
        MidusError: for a model without memory blocks, or whose head outputs are not finite.

    >>> view = memory_view("pico-midus", "import os")  # doctest: +SKIP
    """
    network = opened(model)
    reads = {layer: _Reads(layer, memory) for layer, memory in memories_of(network).items()}
    texts = read([text], model)
    ids = texts[0].ids
    if len(ids) > texts.context:
        raise DataError(
            f"the text has {len(ids):,} tokens and the model's context holds {texts.context:,}; "
            "give a shorter text, or look at memory_contents() of the whole"
        )
    whole = Window(0, 0, 0, ids, torch.ones(len(ids) - 1, dtype=torch.bool))
    streamed(network, [whole], reads)
    words = token_text(texts.tokenizer, ids.tolist())
    frames = [one.frame(ids.numpy(), np.array(words, dtype=object)) for one in reads.values()]
    table = pd.concat(frames, ignore_index=True)
    table.attrs = described("memory_view", network, texts)
    return table


class _Reads(Watcher):
    """All reads of one block, for one text."""

    def see(self, weights: torch.Tensor, slots: torch.Tensor) -> None:
        if not weights.isfinite().all():
            raise self.not_finite()
        self.weights, self.slots = weights.cpu().numpy(), slots.cpu().numpy()  # [T, M, k]

    def frame(self, ids: np.ndarray, words: np.ndarray) -> pd.DataFrame:
        """The rows of this block, by head, position and rank."""
        place = np.indices(self.slots.shape).swapaxes(1, 2)  # [3, M, T, k]
        position, head, rank = place.reshape(3, -1)
        frame = pd.DataFrame(
            {
                "block": self.layer,
                "head": np.array(self.heads)[head],
                "position": position,
                "token_id": ids[position],
                "token": words[position],
                "rank": rank + 1,
                "slot": self.slots.swapaxes(0, 1).ravel(),
                "weight": self.weights.swapaxes(0, 1).ravel(),
            }
        )
        return frame[frame["weight"] > 0]  # a head that reads fewer slots has weight 0 beyond
