"""What is measured: a model, its heads, documents, a metric and a baseline, checked and ready."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.ablation import ablated_values
from analysis.adapters import unwrap
from analysis.baselines import BASELINES, MEANS, Baseline
from analysis.checks import check_model
from analysis.distributed import agreed
from analysis.documents import Documents, documents
from analysis.engine import Batch, CleanRun, Progress, batch_of, clean_run
from analysis.estimates import current, expect
from analysis.gates import Gated, gate_gradients
from analysis.memory_plan import Plan, plan_for
from analysis.metrics import Metric, metric_of
from analysis.shortened import first_tokens, passes_of
from analysis.tables import display_name, model_hash, versions
from analysis.within import Cost, fitted
from kernels.errors import MidusError, ModelError
from midus_model import HeadSite, blocks, depends_on_batch, head_sites, load
from midus_model.config import layer_map_of
from midus_model.placement import check_weights, dtype_of, input_device

BATCH_DEPENDENT = (
    "the model's 8-bit layers round by what else is in a batch (LLM.int8()), so scores depend in "
    "their last digits on how heads and windows are batched; load the model in bfloat16 for scores "
    "that do not"
)
GROUPS = {"head": "query heads", "kv": "kv groups"}


NOISE, NOISE_WINDOWS = "half precision", 8  # see `analysis.noise`
AGREEMENT = "agreement with exact ablation"  # the stage, see `analysis.agreement`


@dataclass(frozen=True)
class Unit:
    """What is ablated at once: a head, or the query heads that share a key-value head.

    `head` is the head's number, or that of the key-value head.
    """

    layer: int
    kind: str
    head: int
    source_layer: int
    sites: tuple[HeadSite, ...]


def units_of(model: Any, group: str = "head", stage: str = "output") -> list[Unit]:
    """Every head, or every group of heads with one key-value head, in model order."""
    check_choice("group", group, list(GROUPS))
    sites = head_sites(model, stage)
    if group == "head":
        return [Unit(s.layer, s.kind, s.head, s.source_layer, (s,)) for s in sites]
    members: dict[tuple[int, int], list[HeadSite]] = {}
    for site in sites:
        members.setdefault((site.layer, site.kv_head), []).append(site)
    return [
        Unit(layer, part[0].kind, kv_head, part[0].source_layer, tuple(part))
        for (layer, kv_head), part in members.items()
    ]


@dataclass
class Subject:
    """A model and documents with everything that a measurement of heads needs."""

    model: Any
    docs: Documents
    units: list[Unit]
    metric: Metric
    plan: Plan
    baseline: Baseline
    how: dict[str, Any]

    @property
    def device(self) -> Any:
        """Where token ids go, and gates and sums with them."""
        return input_device(self.model)

    @property
    def view(self) -> Gated:
        """The model seen through a gate on each unit."""
        return Gated(self.model, [unit.sites for unit in self.units], self.plan, self.metric)

    @property
    def weighting(self) -> str:
        """What a unit of the intervals weighs: its "tokens", or all alike ("documents")."""
        return "documents" if self.metric.per == "task" else "tokens"

    @property
    def weights(self) -> np.ndarray:
        """Weight of every unit of the intervals, which its summed metric is divided by: [units]."""
        tokens = np.array([unit["tokens"] for unit in self.docs.units], dtype=float)
        return np.ones_like(tokens) if self.weighting == "documents" else tokens

    @property
    def window_weights(self) -> np.ndarray:
        """The same of every window, [windows]."""
        if self.weighting == "documents":
            return np.ones(len(self.docs.windows))
        return np.array([int(window.scored.sum()) for window in self.docs.windows], dtype=float)

    def batch(self, indices: Sequence[int]) -> Batch:
        return batch_of([self.docs.windows[i] for i in indices], self.device)

    def clean(self, batch: Batch) -> CleanRun:
        """The clean run of a batch, its metric signed as a loss."""
        sites = [site for unit in self.units for site in unit.sites]
        return clean_run(self.model, batch, sites, self.metric, self.plan.rows)

    def ablated(
        self,
        indices: Sequence[int],
        which: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What ablating each unit adds to each window's metric, exactly, and the clean values.

        Returns [len(which), W] and [W], summed over counted positions, signed as a loss; `which`
        are indices into `units`, by default all.
        """
        chosen = range(len(self.units)) if which is None else which
        batch = self.batch(indices)
        run = self.clean(batch)
        values = ablated_values(
            self.model,
            run,
            [self.units[i].sites for i in chosen],
            self.baseline(indices, batch),
            self.plan,
            self.metric,
            progress,
        )
        clean = run.values.cpu().numpy()
        return values.numpy() - clean, clean

    def gradients(self, indices: Sequence[int]) -> np.ndarray:
        """Gradient of each window's summed metric at every clean gate: [units, W]."""
        batch = self.batch(indices)
        clean = self.clean(batch).hidden if self.metric.wants == "clean" else None
        replacement = self.baseline(indices, batch)
        found, _ = gate_gradients(self.view, batch, replacement, clean=clean)
        return found.numpy()

    def keep(self, windows: Sequence[int]) -> None:
        """Leave out all windows but these, the first ones of each document; ascending.

        The baseline stays what it is.
        """
        ends: dict[int, int] = {}
        for index in windows:
            window = self.docs.windows[index]
            ends[window.document] = window.start + len(window.ids)
        if self.baseline.donors:
            self.baseline.donors = [self.baseline.donors[index] for index in windows]
        self.docs = first_tokens(self.docs, ends)

    def describe(self, **more: Any) -> dict[str, Any]:
        """The attrs that say how a table came about."""
        return describe(self.model, self.docs, **self.how, weighting=self.weighting, **more) | {
            "unit": self.metric.unit
        }


def prepared(
    model: Any,
    data: Any,
    *,
    baseline: str = "mean",
    metric: Any = "loss",
    stage: str = "output",
    group: str = "head",
    limit: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    gradients: bool = False,
    progress: Progress | None = None,
    cost: Cost | None = None,
) -> Subject:
    """A subject from what a user gives; see `head_importance` for the arguments.

    `cost`: what will be done with it, for the estimate; within a time, the documents that fit.

    Raises MidusError where an argument, the model or the data cannot be used.
    """
    check_choice("baseline", baseline, BASELINES)
    network, docs = loaded_with(model, data, limit)
    if depends_on_batch(network):
        warnings.warn(BATCH_DEPENDENT, stacklevel=3)
    units = units_of(network, group, stage)
    chosen = metric_of(metric, docs)
    how = {
        "baseline": baseline,
        "metric": chosen.name,
        "better": chosen.better,
        "stage": stage,
        "heads_are": GROUPS[group],
        "seed": seed,
    }
    if cost is not None and cost.check is not None:
        cost.check(chosen, how)

    def planned(docs: Documents) -> Plan:
        longest = max(len(window.ids) for window in docs.windows)
        return plan_for(network, longest, chosen, memory_budget, gradients, baseline == "resample")

    def made(docs: Documents, units: Sequence[Unit], told: Progress | None = None) -> Subject:
        sites = [site for unit in units for site in unit.sites]
        plan = planned(docs)
        plan.windows = agreed(plan.windows)
        stands_in = Baseline(baseline, network, sites, docs, plan, seed, told)
        return Subject(network, docs, list(units), chosen, plan, stands_in, how)

    work = current()
    if cost is not None and work is not None and not work.begun:
        cost = replace(cost, smooth=chosen.smooth)
        planned(docs)  # a memory budget that cannot be is refused before anything is timed
        stages = dict(cost.passes(network, units))
        if baseline == "mean":
            stages = {MEANS: 0.0, **stages}
            stages[MEANS] += 1.0
        if work.limited:
            docs = (cost.fit or fitted)(work, cost, docs, units, stages, network, made)
        else:
            if cost.half is not None:
                stages |= noise_passes(network, docs, cost.half(network, units))
            if cost.beside is not None:
                stages |= cost.beside(network, units, len(docs.windows))
            totals = {name: each * passes_of(docs) for name, each in stages.items()}
            expect(cost.text, network, docs, totals, cost.cheaper(chosen), limit=cost.limit)
    return made(docs, units, progress)


def loaded(model: Any) -> nn.Module:
    """The model to measure, with its weights at hand and a layout that was checked."""
    network = load("pico" if model is None else unwrap(model))
    check_weights(network)
    blocks(network)  # refuses what is no known decoder
    if network.training:
        raise ModelError("the model is in training mode, with dropout on; call model.eval() first")
    check_model(network)
    return network


def loaded_with(model: Any, data: Any, limit: int | None = None) -> tuple[nn.Module, Documents]:
    """The model to measure and its documents; "pico" and its held-out text where none is given."""
    docs = documents(data, model="pico" if model is None else model, limit=limit)
    return loaded(model), docs


def is_half(model: Any) -> bool:
    """Whether its parameters are in bf16 or fp16."""
    return dtype_of(model) in (torch.bfloat16, torch.float16)


def noise_passes(model: Any, docs: Documents, passes: float) -> dict[str, float]:
    """The stage that measures what half precision does, in passes over all documents."""
    if not is_half(model):
        return {}
    return {NOISE: 2 * passes * min(NOISE_WINDOWS / len(docs.windows), 1.0)}


def describe(model: Any, docs: Documents, **how: Any) -> dict[str, Any]:
    """The attrs that say what was measured on which documents."""
    return {
        "table": "head_importance",
        "unit": "nats/token",
        "model": display_name(model),
        "model_hash": model_hash(model),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
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
        "bos": docs.bos,
        "versions": versions(),
        **({"batch_dependent": True} if depends_on_batch(model) else {}),
        **how,
    }


def check_choice(name: str, given: Any, known: Sequence[str]) -> None:
    """Raises MidusError where `given` is none of the known values of argument `name`."""
    if given not in known:
        raise MidusError(f"{name} is {given!r}; it must be one of {', '.join(known)}")
