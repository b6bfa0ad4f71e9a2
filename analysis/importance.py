"""Head importance: how much each head helps, in nats a token, on every document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from analysis.documents import Documents, documents
from analysis.engine import (
    Batch,
    Progress,
    ablated_nats,
    batches,
    clean_run,
    mean_outputs,
)
from analysis.gates import (
    direct_effects,
    gate_gradients,
    integrated_gradients,
    shapley_values,
)
from analysis.tables import display_name, head_table, model_hash, versions
from midus_model import HeadSite, head_sites, load
from midus_model.config import layer_map_of
from midus_model.errors import MidusError, ModelError

METHODS = (
    "ablation", "gradient", "taylor", "integrated_gradients", "fisher", "dla", "shapley",
)  # fmt: skip
PER_DOCUMENT = ("gradient", "fisher")  # of each document's mean loss; documents count alike
NORMALISATIONS = ("none", "layer", "share")
BASELINES = ("zero", "mean")
METRICS = ("loss",)
UNITS = {"dla": "logits/token", "fisher": "(nats/token)^2"}


def head_importance(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: str = "loss",
    normalise: str = "none",
    retrieval: str = "frozen",
    permutations: int = 8,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The importance of every head of a base or up-scaled model; positive means the head helps.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes; by default pico's held-out text.
        method: with L the loss and g the gate on a head, out = b + g * (z - b), b its baseline:
            "ablation": L(g = 0) - L, exact.
            "gradient": mean over documents of abs(dL/dg) (Michel et al. 2019, 1905.10650, eq. 2).
            "taylor": -dL/dg at g = 1, ablation to first order (attribution patching).
            "integrated_gradients": -dL/dg along all gates from 0 to 1, at 32 Gauss-Legendre nodes
            (Sundararajan et al. 2017, 1703.01365); `.attrs["completeness"]` says by how much the
            scores miss the loss of ablating all heads.
            "fisher": mean over documents of (dL/dg) squared.
            "dla": the head's direct effect on the next token's logit through the final norm, that
            norm's scale held, in logits.
            "shapley": Shapley value by sampled orders of ablation, with its sampling error.
        baseline: "mean" (the head's mean output over these documents) or "zero".
        metric: "loss", next-token loss in nats a token.
        normalise: "none"; "layer": each block's scores over their L2 norm (Michel et al.); "share":
            max(score, 0) over the sum of these, `.attrs["negative_mass"]` being what was clipped.
            `by_document` stays as measured.
        retrieval: for integrated gradients of memory heads, "frozen" (slots and weights of the
            clean run, so that the path is smooth) or "free".
        permutations: orders of "shapley", an even number from 4: each is used backwards too.
        limit: at most that many documents.
        seed: of the bootstrap over documents.
        progress: called with (done, total, text).

    Returns:
        A row a head in model order, columns as in `analysis.tables`, 95% intervals from a
        bootstrap over documents (of "shapley", from its orders); how it was made stands in
        `.attrs`.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.

    >>> table = head_importance("pico", limit=2)  # doctest: +SKIP
    """
    check_choice("method", method, METHODS)
    check_choice("baseline", baseline, BASELINES)
    check_choice("metric", metric, METRICS)
    check_choice("normalise", normalise, NORMALISATIONS)
    check_choice("retrieval", retrieval, ("frozen", "free"))
    network, docs = loaded_with(model, data, limit)
    sites = head_sites(network)
    baselines = head_baselines(network, sites, docs, baseline, progress)
    measure = _Measure(network, sites, baselines, method, retrieval, permutations, seed)
    tokens = np.array([unit["tokens"] for unit in docs.units], dtype=np.float64)
    totals = np.zeros((len(sites), len(tokens)))
    clean = 0.0
    done = 0
    for indices, batch in batches(docs.windows, baselines.device):
        effect, nats = measure(batch)
        np.add.at(totals.T, batch.units.numpy(), effect.T)
        clean += float(nats.sum())
        done += len(indices)
        if progress:
            progress(done, len(docs.windows), f"{method.replace('_', ' ')} importance")
    by_document, weights = totals / tokens, tokens
    if method in PER_DOCUMENT:
        by_document = np.abs(by_document) if method == "gradient" else by_document**2
        weights = np.ones_like(tokens)
    if not np.isfinite(by_document).all():
        raise ModelError("the losses are not finite: the model's weights or its dtype are at fault")
    attrs = describe(network, docs, method=method, baseline=baseline, metric=metric, seed=seed)
    attrs |= {"clean_loss": clean / tokens.sum(), **measure.found(tokens.sum())}
    intervals = measure.intervals(tokens.sum())
    table = head_table(sites, by_document, weights, attrs, seed=seed, intervals=intervals)
    return normalised(table, normalise)


class _Measure:
    """Effects of every head on each window of a batch, [S, W], and what is learnt on the way."""

    def __init__(
        self,
        model: Any,
        sites: Sequence[HeadSite],
        baselines: torch.Tensor,
        method: str,
        retrieval: str,
        permutations: int,
        seed: int,
    ):
        if method == "shapley" and (permutations < 4 or permutations % 2):
            raise MidusError(f"permutations is {permutations}; it must be an even number from 4")
        self.given = model, sites, baselines
        self.method, self.retrieval = method, retrieval
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(sites)) for _ in range(permutations // 2)]
        self.orders = [o for order in orders for o in (order, order[::-1].copy())]
        self.shares = np.zeros((len(self.orders), len(sites)))
        self.gap = self.total = 0.0

    def __call__(self, batch: Batch) -> tuple[np.ndarray, torch.Tensor]:
        """Effects [S, W] and clean losses [W], summed over each window's scored tokens."""
        model, sites, baselines = self.given
        if self.method == "ablation":
            run = clean_run(model, batch)
            nats = run.nats.cpu()
            effect = ablated_nats(model, run, sites, baselines) - nats
        elif self.method == "integrated_gradients":
            effect, nats, gap = integrated_gradients(
                model, batch, sites, baselines, retrieval=self.retrieval
            )
            self.gap += float(gap.sum())
            self.total += float(effect.sum() - gap.sum())
        elif self.method == "dla":
            effect, nats = direct_effects(model, batch, sites, baselines)
        elif self.method == "shapley":
            shares, nats = shapley_values(model, batch, sites, baselines, self.orders)
            self.shares += shares.sum(2).numpy()
            effect = shares.mean(0)
        else:
            effect, nats = gate_gradients(model, batch, sites, baselines)
            effect = -effect if self.method == "taylor" else effect
        return effect.numpy(), nats

    def found(self, tokens: float) -> dict[str, Any]:
        """What the attrs say of this method."""
        if self.method == "integrated_gradients":
            relative = abs(self.gap) / max(abs(self.total), np.finfo(float).tiny)
            return {
                "retrieval": self.retrieval,
                "completeness": {"total": self.total / tokens, "relative_gap": relative},
            }
        if self.method == "shapley":
            return {"permutations": len(self.orders), "interval": "sampled orders, 95%"}
        return {"unit": UNITS[self.method]} if self.method in UNITS else {}

    def intervals(self, tokens: float) -> dict[str, np.ndarray] | None:
        """Of "shapley": mean over pairs of orders, which are independent, and its t interval."""
        if self.method != "shapley":
            return None
        pairs = self.shares.reshape(-1, 2, self.shares.shape[1]).mean(1) / tokens
        score, stderr = pairs.mean(0), pairs.std(0, ddof=1) / np.sqrt(len(pairs))
        reach = float(stats.t.ppf(0.975, len(pairs) - 1)) * stderr
        names = ("score", "stderr", "ci_low", "ci_high")
        return dict(zip(names, (score, stderr, score - reach, score + reach), strict=True))


def normalised(table: pd.DataFrame, how: str) -> pd.DataFrame:
    """Scores and their intervals over a constant: see `head_importance`; "none" changes nothing."""
    if how == "none":
        return table
    table, attrs = table.copy(), table.attrs
    columns = ["score", "stderr", "ci_low", "ci_high"]
    if how == "layer":
        norms = table.groupby("layer")["score"].transform(lambda part: np.linalg.norm(part))
    else:
        clipped = table["score"].clip(lower=0)
        norms = pd.Series(clipped.sum(), index=table.index)
        attrs = attrs | {"negative_mass": float((clipped - table["score"]).sum())}
        table["score"] = clipped
    table[columns] = table[columns].div(norms.where(norms > 0), axis=0)
    table.attrs = attrs | {"normalise": how, "unit": "share" if how == "share" else "layer norms"}
    return table


def loaded(model: Any) -> nn.Module:
    """The model to measure, with its weights at hand."""
    network = load("pico" if model is None else model)
    if next(network.parameters()).device.type == "meta":
        raise ModelError("the model is on the meta device and has no weights; load them first")
    return network


def loaded_with(model: Any, data: Any, limit: int | None = None) -> tuple[nn.Module, Documents]:
    """The model to measure and its documents; "pico" and its held-out text where none is given."""
    docs = documents(data, model="pico" if model is None else model, limit=limit)
    return loaded(model), docs


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
