"""What is wrong with a memory, if anything: signatures of failure, evidence, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from analysis.amplification import gini_rise
from analysis.baselines import MEANS
from analysis.causes import memory_effects
from analysis.documents import Documents, documents
from analysis.engine import Progress
from analysis.estimates import expect, timed
from analysis.importance import head_importance
from analysis.intervals import t_interval
from analysis.memory import memory_usage
from analysis.memory.places import memories_of
from analysis.memory.stream import READING
from analysis.memory.table import MemoryUsage
from analysis.quality import STAGE, document_values
from analysis.shortened import passes_of
from analysis.subject import describe, loaded
from analysis.tables import json_attrs
from midus_model.bench.floors import memory as memory_floor
from midus_model.bench.shapes import Shape
from midus_model.bench.timing import copy_bandwidth, interleaved, product_rate
from midus_model.memory import HeadwiseMemory
from midus_model.placement import at_hand, device_of, input_device

ENOUGH = 20  # reads a slot, before one that was never read counts as dead
TIMED_TOKENS = 512
SAMPLE = 24  # documents, where nothing is said

# finding -> what to try
ADVICE = {
    "bank too small": "give the bank more slots (num_keys), or its heads banks of less overlap",
    "bank too large": "give the bank fewer slots (num_keys), start keys from queries "
    "(key_init='queries'), or revive dead slots in training (revive_every)",
    "memory unused": "train longer or with a larger rate for the banks (bank_lr_multiplier); if "
    "that changes nothing, another place or fewer blocks",
    "over-specialised": "train on a mix with text of the base's own kind, or with a smaller rate",
    "general ability lost": "train on a mix with text of the base's own kind, new blocks only, or "
    "with a smaller rate",
    "factorisation too narrow": "give the bank wider rows (latent_dim)",
    "memory slow": "see `midus bench`; a hook inside the memory, or a backend that is not used "
    "(MIDUS_KERNELS), would explain it",
}
# finding -> the limit that its value passes, and which way
LIMITS = {
    "bank too small": 0.5,  # mean overlap of two heads' reads, where most of the slots are in use
    "bank too large": 0.5,  # share of slots that no head reads
    "memory unused": 0.005,  # nats a token that all memory is worth, either way, at most (95%)
    "over-specialised": 0.03,  # rise of the Gini coefficient of head importance, at least (95%)
    "general ability lost": 0.02,  # nats a token
    "factorisation too narrow": 0.35,  # of the values' energy, lost with half the columns
    "memory slow": 60.0,  # times the floor of bytes and FLOPs
}
SATURATED = 0.5  # effective share of the slots


@dataclass(frozen=True)
class Finding:
    """One signature found: `value` against `limit`, the evidence in words, and what to try."""

    finding: str
    block: int | None
    value: float
    limit: float
    evidence: str
    advice: str


@timed
def doctor(
    model: Any = None,
    data: Any = None,
    *,
    before: Any = None,
    general: Any = None,
    limit: int | None = None,
    timing: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Signatures of failure of an up-scaled model's memory; no rows where there are none.

    Args:
        model: what `midus_model.load` takes; by default "pico-midus" (and then `before` "pico").
        data: text of the kind that it was trained on; by default the shipped held-out text, and
            for "pico-midus" test files of "packages" (then `general` is the held-out text).
        before: the model that it was grown from; without it, what was lost cannot be told.
        general: text of the kind that the base was trained on; by default `data`.
        limit: at most that many documents of each.
        timing: whether a memory is timed against its floor.
        seed: of what is drawn to measure heads.
        progress: called with (done, total, text).

    Returns:
        A row a finding: finding (see ADVICE), block where it is one block's, value, limit,
        evidence, advice. `.attrs["checked"]` names what was looked for, `.attrs["skipped"]` what
        was not or could not be told, and why.

    Raises:
        MidusError: for a model without memory, or a model or data that cannot be used.
    """
    if model is None:
        model, before = "pico-midus", before or "pico"
        if data is None:
            data = documents("packages", model=model, split="test", limit=limit or SAMPLE)
            general = documents("heldout", model=model, limit=limit or SAMPLE)
    network = loaded(model)
    memories_of(network)  # refuses a model without
    case = Case(
        network,
        documents(data, model=network, limit=limit),
        None if before is None else loaded(before),
        None if general is None else documents(general, model=network, limit=limit),
        seed,
        progress,
    )
    checks, skipped = dict(CHECKS), {}
    if case.before is None:
        for name in ("over-specialised", "general ability lost"):
            skipped[name] = "no model before was given"
            del checks[name]
    if not timing:
        skipped["memory slow"] = "timing was not asked for"
        del checks["memory slow"]
    expect("doctor", network, case.docs, _passes(case))
    found = [asdict(finding) for check in checks.values() for finding in check(case)]
    skipped |= case.unclear
    table = pd.DataFrame(found, columns=list(Finding.__dataclass_fields__))
    about = describe(network, case.docs, seed=seed, checked=list(checks), skipped=skipped)
    table.attrs = json_attrs(about | {"table": "doctor", "limits": LIMITS})
    return table


@dataclass
class Case:
    """The models and texts looked at, and what several checks need of them, measured once."""

    model: Any
    docs: Documents
    before: Any
    general: Documents | None
    seed: int
    progress: Progress | None
    unclear: dict[str, str] = field(default_factory=dict)  # finding -> why it cannot be told

    @cached_property
    def usage(self) -> MemoryUsage:
        return memory_usage(self.model, self.docs, progress=self.progress)

    @cached_property
    def blocks(self) -> pd.DataFrame:
        return self.usage.blocks()

    @property
    def memories(self) -> dict[int, HeadwiseMemory]:
        return memories_of(self.model)

    @property
    def familiar(self) -> Documents:
        return self.docs if self.general is None else self.general

    @cached_property
    def forgotten(self) -> tuple[float, float]:
        """What the loss on the base's own kind of text rose by, with the interval's lower end."""
        values = [document_values(m, self.familiar)[None] for m in (self.before, self.model)]
        tokens = [unit["tokens"] for unit in self.familiar.units]
        rise = t_interval(values[1] - values[0], tokens, together=False)
        return float(rise.estimate[0]), float(rise.low[0])


def _passes(case: Case) -> dict[str, float]:
    """Passes by stage of all checks."""
    here, familiar = passes_of(case.docs), passes_of(case.familiar)
    found = {READING: float(here), "memory all": 2.0 * here}
    if case.before is not None:
        found |= {"gradient": 6.0 * familiar, MEANS: 2.0 * familiar, STAGE: 2.0 * familiar}
    return found


def _finding(name: str, block: int | None, value: float, evidence: str) -> Finding:
    return Finding(name, block, float(value), LIMITS[name], evidence, ADVICE[name])


# ---------------------------------------------------------------- the checks


def _small(case: Case) -> Iterator[Finding]:
    effective = case.usage.groupby("layer")["effective_slots"].mean()
    for row in case.blocks.itertuples():
        share = effective[row.block] / row.slots
        if row.collisions > LIMITS["bank too small"] and share > SATURATED:
            yield _finding(
                "bank too small", row.block, row.collisions,
                f"two heads share {row.collisions:.0%} of their reads, and a head spreads them "
                f"over {share:.0%} of the {row.slots:,} slots",
            )  # fmt: skip


def _large(case: Case) -> Iterator[Finding]:
    reads = case.usage.groupby("layer")["hits"].sum()
    for row in case.blocks.itertuples():
        dead = row.dead / row.slots
        if dead > LIMITS["bank too large"] and reads[row.block] >= ENOUGH * row.slots:
            yield _finding(
                "bank too large", row.block, dead,
                f"{row.dead:,} of {row.slots:,} slots were never read by any head in "
                f"{reads[row.block]:,} reads ({row.tokens:,} tokens)",
            )  # fmt: skip


def _unused(case: Case) -> Iterator[Finding]:
    effect = memory_effects(
        case.model, case.docs, of="all", seed=case.seed, progress=case.progress
    ).iloc[0]
    name, low, high = "memory unused", float(effect["ci_low"]), float(effect["ci_high"])
    margin = LIMITS[name]
    said = (
        f"switching all memory off costs {effect['score']:.4f} nats a token (95%: {low:.4f} to "
        f"{high:.4f})"
    )
    if -margin < low and high < margin:
        ratio = case.blocks["read_ratio"].mean()
        yield _finding(
            name, None, max(abs(low), abs(high)),
            f"{said}, less than {margin:g} either way; what it adds is {ratio:.2%} of the stream",
        )  # fmt: skip
    elif not (low >= margin or high <= -margin):
        case.unclear[name] = f"{said}, which may be less than {margin:g} or more: give more text"


def _specialised(case: Case) -> Iterator[Finding]:
    tables = [
        head_importance(m, case.familiar, method="gradient", progress=case.progress)
        for m in (case.before, case.model)
    ]
    name, rise = "over-specialised", gini_rise(*tables)
    more, low = float(rise.estimate), float(rise.low)
    lost, least = case.forgotten
    if low > LIMITS[name] and least > 0:
        yield _finding(
            name, None, more,
            f"importance is on fewer heads (Gini coefficient up by {more:.3f}, 95%: {low:.3f} to "
            f"{float(rise.high):.3f}), and the loss on {case.familiar.name} rose by {lost:.3f} "
            "nats a token",
        )  # fmt: skip
    elif more > LIMITS[name] and least > 0:
        case.unclear[name] = (
            f"the Gini coefficient is up by {more:.3f} (95%: {low:.3f} to {float(rise.high):.3f}), "
            f"which may be less than {LIMITS[name]:g}: give more text"
        )


def _lost(case: Case) -> Iterator[Finding]:
    rise, low = case.forgotten
    if low > 0 and rise > LIMITS["general ability lost"]:
        yield _finding(
            "general ability lost", None, rise,
            f"the loss on {case.familiar.name} rose by {rise:.3f} nats a token (at least "
            f"{low:.3f})",
        )  # fmt: skip


def _narrow(case: Case) -> Iterator[Finding]:
    """The values that are read, by how much: what half the columns cannot hold of them."""
    for counts in case.usage.counts:
        memory = case.memories[counts.block]
        with at_hand(memory):
            bank = memory.bank.detach().cpu().double()
        weight = torch.from_numpy(counts.weight.sum(0)).sqrt()
        energy = torch.linalg.svdvals(bank * weight[:, None]) ** 2
        if not (total := float(energy.sum())):
            continue
        lost = float(energy[len(energy) // 2 :].sum()) / total
        if lost > LIMITS["factorisation too narrow"]:
            yield _finding(
                "factorisation too narrow", counts.block, lost,
                f"the best {len(energy) // 2} of {len(energy)} columns miss {lost:.0%} of the "
                "energy of the values read: every column is in full use",
            )  # fmt: skip


@torch.no_grad()
def _slow(case: Case) -> Iterator[Finding]:
    device = input_device(case.model).type
    bandwidth, rate = (
        copy_bandwidth(device, 64, 0.3),
        product_rate(device, 1024, torch.float32, 0.3),
    )
    for block, memory in case.memories.items():
        inputs = torch.randn(1, TIMED_TOKENS, memory.num_heads * memory.head_dim)
        inputs = inputs.to(device_of(memory), memory.bank.dtype)
        floor = memory_floor(
            shape_of(memory), TIMED_TOKENS, memory.bank.element_size(), _rows(memory)
        ).ms(bandwidth, rate)

        def read(memory: HeadwiseMemory = memory, inputs: torch.Tensor = inputs) -> torch.Tensor:
            return memory(inputs)

        took = min(interleaved({"memory": read}, device, 0.5)["memory"].ms)
        if took / floor > LIMITS["memory slow"]:
            yield _finding(
                "memory slow", block, took / floor,
                f"{TIMED_TOKENS} tokens take {took:.2f} ms, {took / floor:.0f} times what moving "
                f"its bytes and multiplying takes here ({floor:.3f} ms)",
            )  # fmt: skip


def shape_of(memory: HeadwiseMemory) -> Shape:
    """A memory's sizes, as the floors take them."""
    heads, n, half = memory.row_keys.shape
    return Shape(
        "memory", heads * 2 * half, heads, heads, 2 * half, 0, n, memory.top_k, memory.bank.shape[1]
    )


def _rows(memory: HeadwiseMemory) -> int:
    """Distinct rows that may be read."""
    return min(memory.bank.shape[0], TIMED_TOKENS * len(memory.heads) * memory.top_k)


CHECKS: dict[str, Callable[[Case], Iterator[Finding]]] = {
    "bank too small": _small,
    "bank too large": _large,
    "memory unused": _unused,
    "over-specialised": _specialised,
    "general ability lost": _lost,
    "factorisation too narrow": _narrow,
    "memory slow": _slow,
}
