"""Other realisations of what was retrieved, the retrieval held: what each costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.causes.frozen import as_outputs, resumed, watched
from analysis.engine import CleanRun, Progress, window_values
from analysis.estimates import expect, timed
from analysis.intervals import t_interval
from analysis.memory.places import DEFAULT_MODEL, memories_of, memory_at
from analysis.metrics import KL
from analysis.shortened import passes_of
from analysis.subject import Subject, prepared
from analysis.sweep import swept
from analysis.tables import SCHEMA, json_attrs
from kernels import latent_bag
from midus_model.memory import HeadwiseMemory
from midus_model.placement import at_hand

REALISATIONS = ("clean", "shared", "shared_scaled", "swapped", "averaged", "off")
DRAWS = 4  # of "swapped", averaged
ALL = "all"


@timed
def memory_realisations(
    model: Any = None,
    data: Any = None,
    *,
    metric: Any = "loss",
    limit: int | None = None,
    block: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What it costs when heads realise what they retrieved otherwise than each its own way.

    Slots and weights are those of the clean run, whatever reaches a block, so a block writes what
    it would with other projections and the same retrieval:

        clean: o_h = z_h P_h, as it is.
        shared: o_h = z_h P, with P the mean of the block's projections.
        shared_scaled: the same, P scaled for each head to the Frobenius norm of its own P_h.
        swapped: o_h = z_h P_g, each head with another's projection: the mean over 4 random
            derangements.
        averaged: o_h = z P_h, with z the mean over heads of what they read.
        off: o_h = 0.

    What this shows: how much of memory's worth lies in heads realising one bank each in its own
    way, and how much in what they read. What it cannot show: what a model trained with a shared
    projection would do; anything that works by retrieving other slots, which is held; or that
    projections and bank matter apart, o being linear in each for the other given, not in both. A
    block with one memory head has no other to take from: there shared, swapped and averaged are
    clean.

    Args:
        model: what `midus_model.load` takes; by default "pico-midus".
        data, metric, limit, memory_budget: as `head_importance` takes them.
        block: one block; by default each block alone, and all together.
        seed: of the derangements.
        progress: called with (done, total, text).

    Returns:
        A row a block (its number as text, or "all") and realisation: score (what it costs, in the
        metric's unit: positive where what was taken away helps), stderr, ci_low, ci_high (95%,
        paired with the clean run, over documents), by_document; kl, kl_ci_low,
        kl_ci_high: of the clean prediction from this one, in nats a scored token.
        `.attrs["exact"]`: whether the clean realisation gave the clean run bit for bit, as it
        should.

    Raises:
        HeadError: where the block has no memory.
        MidusError: for a model without memory, or arguments or documents that cannot be used.

    >>> memory_realisations(limit=2)[["block", "realisation", "score"]]  # doctest: +SKIP
    """
    subject = prepared(
        DEFAULT_MODEL if model is None else model,
        data,
        baseline="zero",
        metric=metric,
        limit=limit,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
    )
    if block is not None:
        memory_at(subject.model, block)
    blocks = list(memories_of(subject.model)) if block is None else [block]
    subject = replace(subject, units=[unit for unit in subject.units if unit.kind == "memory"])
    places = [[at] for at in blocks] + ([blocks] if block is None else [])
    measure = Realising(subject, places, _variants(subject.model, seed))
    passes = measure.forwards * passes_of(subject.docs)
    expect("realisations", subject.model, subject.docs, {"realisations": passes})
    totals = swept(subject, measure, "realisations", forwards=measure.forwards, progress=progress)
    names = [str(place[0]) for place in places[: len(blocks)]] + [ALL] * (block is None)
    table = _table(subject, measure, totals["effects"], names)
    swaps = [
        {str(at): order for at, order in variant.orders.items()}
        for variant in measure.variants
        if variant.orders
    ]
    attrs = subject.describe(table="memory_realisations", method="fixed retrieval")
    attrs |= {"schema": SCHEMA, "swapped": swaps, "exact": not totals["inexact"]}
    table.attrs = dict(json_attrs(attrs).items())
    return table


@dataclass(frozen=True)
class Variant:
    """A realisation; `orders`: of "swapped", by block, whose projection each memory head takes."""

    name: str
    orders: dict[int, list[int]]

    def outputs(self, block: int, memory: HeadwiseMemory, latents: torch.Tensor) -> torch.Tensor:
        """What the block's heads make of what they read, [P, M, r] -> [P, M, D]."""
        own = memory.projections  # [M, r, D]
        if self.name == "averaged":
            latents = latents.mean(1, keepdim=True).expand_as(latents)
        return expanded(latents, self._projections(block, own))

    def _projections(self, block: int, own: torch.Tensor) -> torch.Tensor:
        if self.name == "swapped":
            return own[self.orders[block]]
        if self.name == "off":
            return torch.zeros_like(own)
        if not self.name.startswith("shared"):
            return own
        mean = own.mean(0, keepdim=True)
        if self.name == "shared_scaled":
            size = mean.norm().clamp_min(torch.finfo(own.dtype).tiny)
            mean = mean * (own.flatten(1).norm(dim=1) / size)[:, None, None]
        return mean.expand_as(own)


def expanded(latents: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """o = z P, head by head: [P, M, r] and [M, r, D] -> [P, M, D]."""
    return torch.bmm(latents.transpose(0, 1), projections).transpose(0, 1)


def _variants(model: Any, seed: int) -> list[Variant]:
    rng = np.random.default_rng(seed)
    heads = {at: len(memory.heads) for at, memory in memories_of(model).items()}
    found = []
    for name in REALISATIONS:
        for _ in range(DRAWS if name == "swapped" else 1):
            orders = {at: derangement(count, rng) for at, count in heads.items()}
            found.append(Variant(name, orders if name == "swapped" else {}))
    return found


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """A random order of 0..count-1 in which nothing keeps its place; of one thing, it does."""
    while True:
        order = rng.permutation(count)
        if count == 1 or (order != np.arange(count)).all():  # more than one draw in three
            return order.tolist()


# ---------------------------------------------------------------- the measurement


@dataclass
class Realising:
    """Every variant at every place (blocks together): what `swept` sums."""

    subject: Subject
    places: list[list[int]]
    variants: list[Variant]

    @property
    def forwards(self) -> float:
        """About what a window costs, in forward passes."""
        layers = len(self.subject.model.model.layers)
        once = sum((layers - min(place)) / layers for place in self.places)
        return 1 + len(self.variants) * once

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], _: Callable[[int], None]) -> dict[str, Any]:
        """Effects [2 * variants * places, W]: the metric's increase, then KL; and "inexact"."""
        model, memories = self.subject.model, memories_of(self.subject.model)
        increase, kl, inexact = [], [], 0
        with watched(model) as seen:
            run = self.subject.clean(self.subject.batch(indices))
            with at_hand(*memories.values()):
                latents = {
                    at: latent_bag(memories[at].bank, slots, weights)  # [P, M, r]
                    for at, (weights, slots) in seen.items()
                }
            for variant in self.variants:
                with at_hand(*memories.values()):
                    read = {at: variant.outputs(at, m, latents[at]) for at, m in memories.items()}
                outputs = {at: as_outputs(memories[at], read[at], run.heads[at]) for at in read}
                for place in self.places:
                    hidden = resumed(model, run, {at: outputs[at] for at in place})
                    values, divergence = self._values(hidden, run)
                    increase.append(values - run.values)
                    kl.append(divergence)
                    inexact += variant.name == "clean" and not torch.equal(hidden, run.hidden)
        effects = torch.stack(increase + kl).cpu().numpy()
        clean = run.values.cpu().numpy()
        return {"effects": effects, "values": clean, "inexact": np.array(float(inexact))}

    def _values(self, hidden: torch.Tensor, run: CleanRun) -> tuple[torch.Tensor, torch.Tensor]:
        """The metric and the KL divergence from the clean run, of each window: [W] each."""
        model, metric, rows = self.subject.model, self.subject.metric, self.subject.plan.rows
        fewer = max(1, rows * metric.copies // KL.copies)
        return (
            window_values(model, hidden, run.batch, metric, run.hidden, rows),
            window_values(model, hidden, run.batch, KL, run.hidden, fewer),
        )


def _table(
    subject: Subject, measure: Realising, effects: np.ndarray, names: list[str]
) -> pd.DataFrame:
    """A row a place and realisation; `effects` [2 * variants * places, documents]."""
    shape = (2, len(measure.variants), len(names), -1)
    by_variant = effects.reshape(shape)
    drawn = np.array([variant.name for variant in measure.variants])
    together = np.stack([by_variant[:, drawn == name].mean(1) for name in REALISATIONS], 2)
    rows = together.reshape(2, len(names) * len(REALISATIONS), -1)  # places first
    tokens = np.array([unit["tokens"] for unit in subject.docs.units], dtype=float)
    by_document = rows[0] / subject.weights
    score = t_interval(by_document, subject.weights, together=False)
    kl = t_interval(rows[1] / tokens, tokens, together=False)
    return pd.DataFrame(
        {
            "block": [name for name in names for _ in REALISATIONS],
            "realisation": list(REALISATIONS) * len(names),
            "score": score.estimate,
            **score.columns(),
            "unit": subject.docs.unit,
            "kl": kl.estimate,
            "kl_ci_low": kl.low,
            "kl_ci_high": kl.high,
            "by_document": by_document.tolist(),
        }
    )
