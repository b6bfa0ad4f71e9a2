"""What switching parts of memory off costs, exactly, document by document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.ablation import ablated_values
from analysis.causes.frozen import Retrieval, as_outputs, resumed, watched
from analysis.causes.parts import HEAVIEST, PARTS, Part, slot_parts, whole_parts
from analysis.causes.switches import check_gain, scaled_memory, slot_scaled
from analysis.engine import CleanRun, Progress, window_values
from analysis.estimates import a_time, timed
from analysis.intervals import t_interval
from analysis.memory import SlotCounts, memory_usage
from analysis.memory.places import DEFAULT_MODEL, memories_of
from analysis.memory.stream import READING
from analysis.metrics import LOSS
from analysis.subject import Subject, Unit, check_choice, prepared
from analysis.sweep import swept
from analysis.tables import SCHEMA, json_attrs
from analysis.within import Cost
from kernels.errors import MidusError
from kernels.headwise_memory import realised
from midus_model import HeadSite
from midus_model.placement import at_hand

UNNAMED = {"heads": ["slot"], "blocks": ["head", "slot"], "all": ["source_layer", "head", "slot"]}


@timed
def memory_effects(
    model: Any = None,
    data: Any = None,
    *,
    of: str = "heads",
    slots: Any = None,
    gain: float = 0.0,
    metric: Any = "loss",
    limit: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What it costs to switch each part of memory off, or to scale it; positive: the part helps.

    Each part is switched alone in an otherwise clean model, in one exact pass from its block on:
    later blocks attend and retrieve anew. Effects of several parts need not add up.

    Args:
        model: what `midus_model.load` takes; by default "pico-midus".
        data, metric, limit, memory_budget: as `head_importance` takes them.
        of: "heads" (each memory head: with gain 0 its importance by ablation, baseline "zero"),
            "blocks" (each block's memory), "all" (all memory at once), or "slots" (a slot's weight
            wherever it is read; the other weights are not renormalised).
        slots: of "slots", which: (block, slot) pairs, switched for all heads of the block;
            (block, head, slot) triples, for that head alone; or a table with such columns, such as
            `memory_usage().all_slots()`. By default the 16 slots of each block that its heads
            together give most weight on these documents.
        gain: what the part is scaled by; see `scaled_memory`.
        seed: of the resampled baseline.
        within: seconds that all of this may take: as many documents as fit, as in
            `head_importance`; refused where the least does not.
        progress: called with (done, total, text).

    Returns:
        A row a part: block, source_layer, head and slot as they apply (NA: block of all memory,
        head of a slot switched for all heads); score, stderr, ci_low, ci_high (95%, over
        documents) and ci_low_all, ci_high_all (of all parts together) in the metric's unit;
        `unit`, what intervals are over; by_document. Slots also have:

        hits, weight: reads of the slot by the heads it is switched for, and the sum of the weights
        they give it, over every token once.
        reader: its head, or the head that gives it most weight; NA where none reads it.
        head_score, block_score: the reader's own score, and its block's.
        share: score over that of what the slot was taken from, the head or the block; NaN where
        the interval of that one's score reaches down to zero.

    Raises:
        MidusError: for a model without memory, or arguments, documents or slots that cannot be
            used; HeadError where a block or a head has no memory.

    >>> memory_effects(of="slots", limit=2).nlargest(5, "score")  # doctest: +SKIP
    """
    check_choice("of", of, PARTS)
    check_gain(gain)
    if slots is not None and of != "slots":
        raise MidusError(f"slots are given, but of is {of!r}; pass of='slots' with them")
    subject = prepared(
        DEFAULT_MODEL if model is None else model,
        data,
        baseline="zero",
        metric=metric,
        limit=limit,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
        cost=Cost(
            f"memory {of}",
            partial(_passes, of, slots),
            options=lambda seconds, *_: a_time(seconds),
        ),
    )
    memories_of(subject.model)  # refuses a model without
    sites = [site for unit in subject.units for site in unit.sites if site.kind == "memory"]
    if of != "slots":
        measured = _measured(subject, whole_parts(of, sites), gain, f"memory {of}", progress)
        table = measured.drop(columns=UNNAMED[of])
    else:
        usage = memory_usage(subject.model, subject.docs, progress=progress)
        counts = {of_block.block: of_block for of_block in usage.counts}
        parts = slot_parts(subject.model, sites, slots, counts)
        reading = _reading(parts, counts)
        owners = _owners(parts, reading, sites)
        measured = _measured(subject, parts + owners, gain, "memory slots", progress)
        table = _beside_owners(measured, reading)
    table.attrs = measured.attrs | {"of": of}
    return table


def _passes(of: str, slots: Any, model: Any, units: Sequence[Unit]) -> dict[str, float]:
    """Passes by stage, of parts that are switched one by one; of slots about."""
    sites = [site for unit in units for site in unit.sites if site.kind == "memory"]
    layers = len(model.model.layers)
    parts = [part.sites[0].layer for part in whole_parts("heads" if of == "slots" else of, sites)]
    if of == "slots":
        at = sorted({site.layer for site in sites})
        parts += at + [layer for layer in at for _ in range(HEAVIEST)]
        if slots is not None:
            parts = parts[: len(parts) - HEAVIEST * len(at)] + at[:1] * len(slots)
    found = {f"memory {of}": 1 + sum((layers - layer) / layers for layer in parts)}
    return {READING: 1.0, **found} if of == "slots" else found


# ---------------------------------------------------------------- the measurement


@dataclass
class Switching:
    """Parts of memory scaled in turn: called with windows' indices, it gives what `swept` sums."""

    subject: Subject
    parts: Sequence[Part]
    gain: float

    @property
    def forwards(self) -> float:
        """About what a window costs, in forward passes."""
        layers = len(self.subject.model.model.layers)
        return 1 + sum((layers - part.sites[0].layer) / layers for part in self.parts)

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], told: Callable[[int], None]) -> dict[str, Any]:
        values = np.zeros((len(self.parts), len(indices)))
        folded = [i for i, p in enumerate(self.parts) if p.slot is None and p.block is not None]
        with self._watching() as seen:
            run = self.subject.clean(self.subject.batch(indices))
            retrieved = dict(seen)  # the passes to come write into `seen`
            values[folded] = self._outputs_scaled(run, [self.parts[i] for i in folded], told)
            for row, part in enumerate(self.parts):
                if row not in folded:
                    values[row] = self._alone(run, part, retrieved)
                    told(len(indices))
        clean = run.values.cpu().numpy()
        return {"effects": values - clean, "values": clean}

    def _watching(self) -> AbstractContextManager[dict[int, Retrieval]]:
        needed = any(part.slot is not None for part in self.parts)
        return watched(self.subject.model) if needed else nullcontext({})

    def _outputs_scaled(
        self, run: CleanRun, parts: Sequence[Part], told: Callable[[int], None]
    ) -> np.ndarray:
        """The metric with what heads of one block write scaled, [parts, W]; many at once."""
        scaled = {layer: outputs * self.gain for layer, outputs in run.heads.items()}
        units, subject = [part.sites for part in parts], self.subject
        return ablated_values(
            subject.model, run, units, scaled, subject.plan, subject.metric, told
        ).numpy()

    def _alone(self, run: CleanRun, part: Part, retrieved: dict[int, Retrieval]) -> np.ndarray:
        """The metric with a slot, or with all memory, scaled: [W]."""
        model, plan = self.subject.model, self.subject.plan
        if part.slot is None or part.block is None:
            first = part.sites[0].layer
            with scaled_memory(model, gain=self.gain):
                hidden = resumed(model, run, {first: run.heads[first] * self.gain})
        else:
            memory = memories_of(model)[part.block]
            weights, slots = retrieved[part.block]
            rows = [memory.heads.index(site.head) for site in part.sites]
            if not (slots[:, rows] == part.slot).any():
                return run.values.cpu().numpy()  # nobody reads it here
            weights = slot_scaled(weights, slots, part.slot, self.gain, rows)
            with at_hand(memory):
                read = realised(weights, slots, memory.bank, memory.projections)  # [P, M, D]
            outputs = as_outputs(memory, read, run.heads[part.block])
            hidden = resumed(model, run, {part.block: outputs})
        values = window_values(model, hidden, run.batch, self.subject.metric, run.hidden, plan.rows)
        return values.cpu().numpy()


def _measured(
    subject: Subject, parts: list[Part], gain: float, text: str, progress: Progress | None
) -> pd.DataFrame:
    """A row a part, with all columns that name one."""
    subject = replace(subject, units=[part.unit for part in parts])
    switching = Switching(subject, parts, gain)
    totals = swept(subject, switching, text, forwards=switching.forwards, progress=progress)
    by_document = totals["effects"] / subject.weights
    found = t_interval(by_document, subject.weights)
    table = pd.DataFrame(
        {
            "block": _numbers([part.block for part in parts]),
            "source_layer": [part.sites[0].source_layer for part in parts],
            "head": _numbers([part.head for part in parts]),
            "slot": _numbers([part.slot for part in parts]),
            "score": found.estimate,
            **found.columns(),
            "unit": subject.docs.unit,
            "by_document": by_document.tolist(),
        }
    )
    clean = float(totals["values"].sum() / subject.weights.sum()) * subject.metric.sign
    name = "clean_loss" if subject.metric is LOSS else "clean"
    more: dict[str, Any] = {"table": "memory_effects", "method": "scaling", "gain": float(gain)}
    attrs = {"schema": SCHEMA, **subject.describe(**more), name: clean}
    table.attrs = dict(json_attrs(attrs).items())
    return table


def _numbers(values: Sequence[int | None]) -> pd.Series:
    """Whole numbers of which some may be missing; plain ones where none is."""
    return pd.Series(values, dtype="Int64" if None in values else "int64")


# ---------------------------------------------------------------- slots and their heads


def _reading(parts: Sequence[Part], counts: Mapping[int, SlotCounts]) -> pd.DataFrame:
    """Columns hits, weight and reader, a row a slot."""
    rows: list[tuple[int, float, int | None]] = []
    for part in parts:
        of_block, heads = counts[part.block or 0], [site.head for site in part.sites]
        index = [of_block.heads.index(head) for head in heads]
        weight = of_block.weight[index, part.slot]  # [heads]
        reader = part.head
        if reader is None and weight.any():
            reader = heads[int(weight.argmax())]
        rows.append((int(of_block.hits[index, part.slot].sum()), float(weight.sum()), reader))
    hits, weights, readers = zip(*rows, strict=True)
    return pd.DataFrame({"hits": hits, "weight": weights, "reader": _numbers(readers)})


def _owners(parts: Sequence[Part], reading: pd.DataFrame, sites: Sequence[HeadSite]) -> list[Part]:
    """The readers and the blocks of the slots, whose own scores stand beside theirs."""
    readers = zip((part.block for part in parts), reading["reader"], strict=True)
    wanted = {*readers, *((part.block, None) for part in parts)}
    wholes = whole_parts("heads", sites) + whole_parts("blocks", sites)
    return [whole for whole in wholes if (whole.block, whole.head) in wanted]


def _beside_owners(measured: pd.DataFrame, reading: pd.DataFrame) -> pd.DataFrame:
    """The rows of slots, with what was measured of their heads and blocks as columns."""
    count = len(reading)
    slots, owners = measured[:count].join(reading), measured[count:]
    # A score that is not distinguishable from zero has no shares.
    owners = owners.assign(whole=owners["score"].where(owners["ci_low"] > 0))
    heads = owners[owners["head"].notna()].set_index(["block", "head"])
    blocks = owners[owners["head"].isna()].set_index("block").loc[slots["block"]]
    heads = heads.reindex(pd.MultiIndex.from_frame(slots[["block", "reader"]]))
    alone = slots["head"].notna().to_numpy()
    whole = np.where(alone, heads["whole"].to_numpy(float), blocks["whole"].to_numpy(float))
    return slots.assign(
        head_score=heads["score"].to_numpy(float),
        block_score=blocks["score"].to_numpy(float),
        share=slots["score"] / whole,
    )
