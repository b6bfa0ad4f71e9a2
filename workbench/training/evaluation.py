"""The token-weighted loss of a model on documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from analysis.documents import Documents
from midus_model import input_device

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def evaluate(
    model: Any,
    documents: Documents,
    *,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> tuple[float, int]:
    """Loss in nats over the scored tokens of `documents`, and their number (of this rank's share).

    Every rank runs the same number of batches, the spare ones counting nothing, so that sharded
    models stay in step.
    """
    windows = sorted(documents.windows, key=lambda window: len(window.ids))
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    device = input_device(model)
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    for step in range(-(-len(batches) // world)):
        number = step * world + rank
        batch = batches[min(number, len(batches) - 1)]
        longest = max(len(window.ids) for window in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        scored = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
        for row, window in enumerate(batch):  # padded on the right: a causal model never sees it
            ids[row, : len(window.ids)] = window.ids
            scored[row, : len(window.scored)] = window.scored
        ids, scored = ids.to(device), scored.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1][scored].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][scored], reduction="sum")
        if number < len(batches):
            nats, count = nats + loss.item(), count + int(scored.sum())
        if progress:
            progress(step + 1, -(-len(batches) // world), "evaluating")
    model.train(was_training)
    return nats, count
