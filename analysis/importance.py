"""Head importance: how much each head helps, in nats a token, on every document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from analysis.documents import Documents, documents
from analysis.engine import (
    Progress,
    ablated_nats,
    batches,
    clean_run,
    gate_gradients,
    mean_outputs,
)
from analysis.tables import display_name, head_table, model_hash, versions
from midus_model import HeadSite, head_sites, load
from midus_model.config import layer_map_of
from midus_model.errors import MidusError, ModelError

METHODS = ("ablation", "gradient")
BASELINES = ("zero", "mean")
METRICS = ("loss",)


def head_importance(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: str = "loss",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The importance of every head of a base or up-scaled model; positive means the head helps.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes; by default pico's held-out text.
        method: "ablation": loss with the head's output replaced by the baseline, less the clean
            loss, exact. "gradient": mean over documents of the absolute derivative of a document's
            loss with respect to the head's gate at 1 (Michel et al. 2019, arXiv 1905.10650, eq. 2).
        baseline: "mean" (the head's mean output over these documents) or "zero".
        metric: "loss", next-token loss in nats a token.
        limit: at most that many documents.
        seed: of the bootstrap over documents.
        progress: called with (done, total, text).

    Returns:
        A row a head in model order, columns as in `analysis.tables`, 95% intervals from a
        bootstrap over documents; how it was made stands in `.attrs`.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.

    >>> table = head_importance("pico", limit=2)  # doctest: +SKIP
    """
    check_choice("method", method, METHODS)
    check_choice("baseline", baseline, BASELINES)
    check_choice("metric", metric, METRICS)
    network = loaded(model)
    docs = documents(data, model=model if model is not None else "pico", limit=limit)
    sites = head_sites(network)
    baselines = head_baselines(network, sites, docs, baseline, progress)
    windows = docs.windows
    tokens = np.array([unit["tokens"] for unit in docs.units], dtype=np.float64)
    totals = np.zeros((len(sites), len(tokens)))
    clean = 0.0
    done = 0
    for indices, batch in batches(windows, baselines.device):
        units = batch.units.numpy()
        if method == "ablation":
            run = clean_run(network, batch)
            nats = run.nats.cpu()
            effect = (ablated_nats(network, run, sites, baselines) - nats).numpy()
        else:
            gradients, nats = gate_gradients(network, batch, sites, baselines)
            effect = gradients.numpy()
        np.add.at(totals.T, units, effect.T)
        clean += float(nats.sum())
        done += len(indices)
        if progress:
            progress(done, len(windows), f"{method} importance")
    by_document = totals / tokens
    weights = tokens
    if method == "gradient":  # documents count alike, as in the paper
        by_document, weights = np.abs(by_document), np.ones_like(tokens)
    if not np.isfinite(by_document).all():
        raise ModelError("the losses are not finite: the model's weights or its dtype are at fault")
    attrs = describe(network, docs, method=method, baseline=baseline, metric=metric, seed=seed)
    attrs["clean_loss"] = clean / tokens.sum()
    return head_table(sites, by_document, weights, attrs, seed=seed)


def loaded(model: Any) -> nn.Module:
    """The model to measure, with its weights at hand."""
    network = load("pico" if model is None else model)
    if next(network.parameters()).device.type == "meta":
        raise ModelError("the model is on the meta device and has no weights; load them first")
    return network


def head_baselines(
    model: Any,
    sites: Sequence[HeadSite],
    docs: Documents,
    baseline: str,
    progress: Progress | None = None,
) -> torch.Tensor:
    """What each head's output is replaced by: [len(sites), D]."""
    size = sites[0].stop - sites[0].start
    parameter = next(model.parameters())
    if baseline == "zero":
        return torch.zeros(len(sites), size, dtype=parameter.dtype, device=parameter.device)
    means = mean_outputs(model, docs.windows, progress)
    rows = [means[site.layer][site.start : site.stop] for site in sites]
    return torch.stack(rows)


def describe(model: Any, docs: Documents, **how: Any) -> dict[str, Any]:
    """The attrs that say how a table came about."""
    return {
        "table": "head_importance",
        "unit": "nats/token",
        "model": display_name(model),
        "model_hash": model_hash(model),
        "inserted_layers": [
            layer
            for layer, entry in enumerate(layer_map_of(model.config))
            if entry["kind"] != "base"
        ],
        "data": docs.name,
        "data_hash": docs.sha256,
        "documents": docs.units,
        "bootstrap_unit": docs.unit,
        "context": docs.context,
        "versions": versions(),
        **how,
    }


def check_choice(name: str, given: Any, known: Sequence[str]) -> None:
    """Raises MidusError where `given` is none of the known values of argument `name`."""
    if given not in known:
        raise MidusError(f"{name} is {given!r}; it must be one of {', '.join(known)}")
