"""How good a model is on documents, one by one: what a comparison of models is made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from analysis.documents import Documents
from analysis.engine import Progress, batch_of, batches, window_values
from analysis.estimates import did, expect, timed
from analysis.memory_plan import plan_for
from analysis.metrics import metric_of
from analysis.shortened import passes_of
from analysis.subject import loaded
from midus_model import input_device

STAGE = "the model on documents"


@timed
@torch.no_grad()
def document_values(
    model: Any, docs: Documents, metric: Any = "loss", progress: Progress | None = None
) -> np.ndarray:
    """The metric on every unit of the documents (`docs.units`), [units] float64, signed as a loss.

    In nats a token for "loss"; a metric that counts each document once gives its value on it.

    Raises MidusError, ModelError, DataError: as `head_importance` does.
    """
    network: Any = loaded(model)
    chosen = metric_of(metric, docs)
    longest = max(len(window.ids) for window in docs.windows)
    plan = plan_for(network, longest, chosen)
    device = input_device(network)
    sums, done = np.zeros(len(docs.units)), 0
    expect("documents", network, docs, {STAGE: passes_of(docs)})
    for indices in batches(docs.windows, plan.windows):
        batch = batch_of([docs.windows[i] for i in indices], device)
        hidden = network.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        values = window_values(network, hidden, batch, chosen, hidden, plan.rows)
        np.add.at(sums, batch.units.numpy(), values.cpu().numpy())
        done += len(indices)
        did(STAGE, batch.tokens)
        if progress:
            progress(done, len(docs.windows), chosen.name)
    if chosen.per == "task":
        return sums
    return sums / np.array([unit["tokens"] for unit in docs.units], dtype=float)
