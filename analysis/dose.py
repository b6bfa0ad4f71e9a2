"""Dose and response: what scaling some heads does to the loss, and what the same change elsewhere.

Shape letters: W windows in a batch, F gains folded into one batch, T tokens, H heads, D head size,
d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from analysis.amplification import DEFAULT_DOCUMENTS
from analysis.documents import Documents
from analysis.draws import Head, drawn_heads, layer_counts
from analysis.engine import Batch, Progress, Replacement, window_values
from analysis.estimates import Cheaper, a_time, timed
from analysis.gates import folded_values
from analysis.importance import head_importance, method_cost
from analysis.intervals import t_interval
from analysis.methods import measured_first
from analysis.metrics import LOSS
from analysis.subject import Subject, Unit, check_choice, loaded_with, prepared
from analysis.sweep import swept
from analysis.tables import SCHEMA, json_attrs
from analysis.ties import best_first
from analysis.within import Cost
from kernels.errors import HeadError, MidusError
from midus_model import HeadSite, blocks, check_heads, chosen_heads, head_sites, mixing_of
from midus_model.maps import weight_of
from midus_model.placement import dtype_of

GAINS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
CONTROLS = ("random", "matched_norm")
BASELINES = ("zero", "mean")
DEFAULT_HEADS = 4
FEW_DRAWS = 2  # what is cheaper
DOSES = "dose response"  # the stage


@timed
def dose_response(
    model: Any = None,
    heads: Any = None,
    data: Any = None,
    *,
    gains: Sequence[float] = GAINS,
    metric: Any = "loss",
    baseline: str = "zero",
    controls: Sequence[str] = CONTROLS,
    draws: int = 8,
    limit: int | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The loss as some heads are amplified or weakened together, beside controls.

    A head's output z becomes b + gain * (z - b), b its baseline: gain 1 is clean, 0 ablated, and
    with baseline "zero" it is what `amplify` does.

    Args:
        model, limit, metric, memory_budget: as `head_importance` takes them.
        heads: (layer, head) pairs in the model's own blocks, a ranking (its top set), or its JSON.
            By default the 4 whose ablation costs most on a random half of the documents; the curve
            is then of the other half.
        data: what `analysis.documents` takes; by default documents of pico's held-out text.
        gains: finite numbers; 1 is added, every change being against it.
        baseline: "zero", or "mean" (the head's mean output over these documents).
        controls: "random": as many other heads of the same layers, scaled alike. "matched_norm":
            at every position, what the gains add to the stream of each chosen layer is replaced by
            a change of the same norm, in a random direction of its head outputs.
        draws: sets of random heads; all that there are, where these are fewer.
        seed: of draws and directions.
        within: seconds that all of this may take: as many documents as fit, as in
            `head_importance`; refused where the least does not.
        progress: called with (done, total, text).

    Returns:
        A row an arm ("chosen", then the controls) and gain: arm, gain; heads, how many are scaled
        (of "matched_norm", replaced); draws; `loss`, the metric's value; `change`, against gain 1
        in the metric's unit, with stderr, ci_low, ci_high (95%, paired, over documents; of
        "random", whose values are means over the draws, over draws too unless they are all there
        are); by_document, the changes.
        `.attrs`: heads, chosen_on (the documents, where heads were chosen here), random_heads (of
        each draw), clean_loss.

    Raises:
        HeadError: where a head does not exist, or a control has no heads to draw from.
        MidusError: where another argument, the model or the data cannot be used.

    >>> table = dose_response("pico", [(5, 1)], limit=2)  # doctest: +SKIP
    """
    doses = _doses(gains)
    check_choice("baseline", baseline, BASELINES)
    for control in controls:
        check_choice("controls", control, CONTROLS)
    if draws < 1:
        raise MidusError(f"draws is {draws}; it must be at least 1")
    options: dict[str, Any] = {"metric": metric, "baseline": baseline, "seed": seed}
    options |= {"memory_budget": memory_budget, "progress": progress}
    if data is None and limit is None:
        limit = DEFAULT_DOCUMENTS * (2 if heads is None else 1)
    chosen_on = None
    cost = _cost(doses, controls, draws, heads is None, baseline)
    if heads is None:
        network, texts = loaded_with(model, data, limit)
        texts = prepared(network, texts, cost=cost, **(options | {"baseline": "zero"})).docs
        first, data = texts.halves(seed)
        heads, limit, chosen_on = _best(network, first, options), None, first.name
        model = network
    subject = prepared(model, data, limit=limit, cost=cost, **options)
    chosen = chosen_heads(heads)
    check_heads(subject.model, chosen)
    subject.how["chosen_on"] = chosen_on
    sets: list[tuple[Head, ...]] = []
    every = False
    if "random" in controls:
        sets, every = _others(subject, chosen, draws, np.random.default_rng(seed))
    trial = _trial(subject, chosen, sets, doses, "matched_norm" in controls, seed)
    values = trial.run(progress)  # [states, documents]
    return _table(trial, values, controls, every)


def _cost(
    doses: Sequence[float], controls: Sequence[str], draws: int, chosen: bool, baseline: str
) -> Cost:
    """What is done; `chosen`: whether heads are chosen first, on one half of the documents."""
    arms = 1 + (draws if "random" in controls else 0) + ("matched_norm" in controls)
    states = 1.0 + arms * (len(doses) - 1)
    share = 0.5 if chosen else 1.0

    def passes(model: Any, units: Sequence[Unit]) -> dict[str, float]:
        first = measured_first([("ablation", baseline)] if chosen else [], model, units)
        return {**{name: share * each for name, each in first.items()}, DOSES: share * states}

    sample = method_cost({"name": "ablation"}).sample if chosen else None

    def cheaper(seconds: float, *_: Any) -> list[Cheaper]:
        few = 1.0 + (arms - draws + FEW_DRAWS) * (len(doses) - 1)
        found = a_time(seconds)
        if "random" in controls and draws > FEW_DRAWS:
            share = few / states
            found.append(Cheaper(f"draws={FEW_DRAWS}", f"--draws {FEW_DRAWS}", seconds * share))
        return found

    return Cost("dose response", passes, sample, options=cheaper)


def _doses(gains: Sequence[float]) -> list[float]:
    """The gains in order, 1 among them."""
    try:
        found = {float(gain) for gain in gains}
    except (TypeError, ValueError) as error:
        raise MidusError(f"gains is {gains!r}; it must be a list of numbers") from error
    for gain in found:
        if not math.isfinite(gain):
            raise MidusError(f"gains has {gain}; each must be finite, such as 1.5")
    return sorted(found | {1.0})


def _best(model: Any, docs: Documents, options: Mapping[str, Any]) -> list[Head]:
    """The heads to scale where none are given."""
    table = head_importance(model, docs, **options)
    return chosen_heads(table.iloc[best_first(table["score"])[:DEFAULT_HEADS]])


def _others(
    subject: Subject, chosen: Sequence[Head], draws: int, rng: np.random.Generator
) -> tuple[list[tuple[Head, ...]], bool]:
    """Sets of heads of the same layers that were not chosen, and whether these are all.

    A layer with fewer others than chosen heads gives all it has.
    """
    counts = layer_counts(chosen)
    pools: dict[int, list[Head]] = {layer: [] for layer in counts}
    for unit in subject.units:
        if unit.layer in pools and (unit.layer, unit.head) not in chosen:
            pools[unit.layer].append((unit.layer, unit.head))
    counts = {layer: min(count, len(pools[layer])) for layer, count in counts.items()}
    if not any(counts.values()):
        raise HeadError(
            "the chosen heads are all that their layers have, so no others can be drawn there; "
            "choose fewer, or leave 'random' out of controls"
        )
    return drawn_heads(pools, counts, draws, rng)


# ---------------------------------------------------------------- running


@dataclass
class _Trial:
    """What is run: arms of gates on heads, and changes of the same norm.

    states: [gate states, units], a gate a unit; state 0 is clean, then each arm's gains but 1 in
    order. norm: whether the last len(doses) - 1 states are changes of the chosen heads' norm.
    """

    subject: Subject  # its units are the heads that any state scales
    chosen: list[Head]
    sets: list[tuple[Head, ...]]
    doses: list[float]
    states: torch.Tensor
    norm: bool
    seed: int

    @property
    def changed(self) -> list[float]:
        return [dose for dose in self.doses if dose != 1]

    def run(self, progress: Progress | None) -> np.ndarray:
        """The metric of every document in every state, in its own sign: [states, documents]."""
        subject = self.subject
        count = len(self.states) + (len(self.changed) if self.norm else 0)
        totals = swept(subject, self._measure, DOSES, forwards=float(count), progress=progress)
        return subject.metric.sign * totals["effects"] / subject.weights

    @torch.no_grad()
    def _measure(self, indices: Sequence[int], _: Any) -> dict[str, np.ndarray]:
        subject = self.subject
        batch = subject.batch(indices)
        base = subject.baseline(indices, batch)
        clean = subject.clean(batch).hidden if subject.metric.wants == "clean" else None
        found = [folded_values(subject.view, batch, base, self.states, clean)]
        if self.norm and self.changed:
            found.append(self._moved(indices, batch, base, clean))
        return {"effects": torch.cat(found).numpy()}

    def _moved(
        self,
        indices: Sequence[int],
        batch: Batch,
        base: Replacement,
        clean: torch.Tensor | None,
    ) -> torch.Tensor:
        """The metric under changes of the same norm, [gains but 1, W]."""
        subject, found = self.subject, []
        doses = torch.tensor(self.changed, device=batch.ids.device)
        sites = [unit.sites[0] for unit in subject.units if (unit.layer, unit.head) in self.chosen]
        towards = _directions(self.seed, indices, batch, base)
        for part in doses.split(subject.plan.folds(batch)):
            shifts = part.repeat_interleave(len(indices)) - 1  # [F*W]
            with moved(subject.model, sites, base, shifts, towards):
                hidden = subject.model.model(
                    input_ids=batch.ids.repeat(len(part), 1), use_cache=False
                ).last_hidden_state
            values = window_values(
                subject.model, hidden, batch, subject.metric, clean, subject.plan.rows
            )
            found.append(values.view(len(part), -1).cpu())
        return torch.cat(found)


def _trial(
    subject: Subject,
    chosen: list[Head],
    sets: list[tuple[Head, ...]],
    doses: list[float],
    norm: bool,
    seed: int,
) -> _Trial:
    arms = [chosen, *sets]
    scaled = {pair for heads in arms for pair in heads}
    units = [unit for unit in subject.units if (unit.layer, unit.head) in scaled]
    member = torch.tensor(
        [[(unit.layer, unit.head) in heads for unit in units] for heads in arms]
    )  # [arms, units]
    changed = torch.tensor([dose for dose in doses if dose != 1])[:, None]
    wide = torch.promote_types(dtype_of(subject.model), torch.float32)
    gates = [torch.where(heads, changed, 1.0) for heads in member]
    states = torch.cat([torch.ones(1, len(units)), *gates]).to(subject.device, wide)
    narrowed = replace(subject, units=units)
    return _Trial(narrowed, chosen, sets, doses, states, norm, seed)


def _directions(
    seed: int, indices: Sequence[int], batch: Batch, base: Replacement
) -> Callable[[int], torch.Tensor]:
    """By block, a random vector of head outputs for each position, [W, T, H*D].

    Drawn anew for every window and block, from the seed and their numbers alone: however windows
    are batched, and whatever the gain, a position's direction is the same.
    """
    length = batch.ids.shape[1]

    def towards(layer: int) -> torch.Tensor:
        width = base[layer].shape[-1]
        drawn = [
            np.random.default_rng([seed, layer, index]).standard_normal((length, width), np.float32)
            for index in indices
        ]
        return torch.tensor(np.stack(drawn), device=batch.ids.device)

    return towards


@contextmanager
def moved(
    model: Any,
    sites: Sequence[HeadSite],
    base: Replacement,
    shifts: torch.Tensor,
    towards: Callable[[int], torch.Tensor],
) -> Iterator[None]:
    """Head outputs moved inside the block as far as a gain moves the stream, in other directions.

    A gain of 1 + shift adds shift * (z - b) to the chosen heads, `sites`, and mixed into the stream
    that has some norm at each position. In its place, shift times a vector with that norm when
    mixed is added to the outputs of all heads of the block.

    shifts: [F*W], a row of the batch each; towards(layer): directions [W, T, H*D], at any length.
    """
    with ExitStack() as stack:
        for layer in sorted({site.layer for site in sites}):
            chosen, written = (
                _channels([site for site in part if site.layer == layer], base[layer])
                for part in (sites, head_sites(model))
            )
            mixing = mixing_of(blocks(model)[layer])
            hook = _mover(mixing, chosen, base[layer], shifts, towards(layer) * written)
            module = next(site.module for site in sites if site.layer == layer)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _channels(sites: Sequence[HeadSite], like: torch.Tensor) -> torch.Tensor:
    """Whether a channel of head outputs belongs to one of the sites, [H*D]."""
    found = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
    for site in sites:
        found[site.start : site.stop] = True
    return found


def _mover(
    mixing: nn.Linear | None,
    chosen: torch.Tensor,
    base: torch.Tensor,
    shifts: torch.Tensor,
    towards: torch.Tensor,
) -> Callable[[nn.Module, tuple], tuple]:
    """The hook of one block: see `moved`."""
    weight = None if mixing is None else weight_of(mixing)  # [d, H*D]

    def norm(outputs: torch.Tensor) -> torch.Tensor:
        """In the stream, of what is added to head outputs: [rows, T, 1]."""
        mixed = outputs if weight is None else outputs @ weight.to(outputs).T
        return mixed.norm(dim=-1, keepdim=True)

    def hook(_: nn.Module, args: tuple) -> tuple:
        wide = torch.promote_types(args[0].dtype, torch.float32)
        heads = args[0].to(wide)  # [F*W, T, H*D]
        clean, free = (part.to(heads.device, wide) for part in (base, towards))  # [W, T, H*D]
        added = norm(torch.where(chosen.to(heads.device), heads - clean, 0))
        reach = norm(free)
        step = torch.where(reach > 0, free / reach, 0)  # a block that writes nothing stays still
        step = step.repeat(len(heads) // len(step), 1, 1) * added
        made = heads + shifts.to(heads.device, wide)[:, None, None] * step
        return (made.to(args[0].dtype), *args[1:])

    return hook


# ---------------------------------------------------------------- the table


def _table(trial: _Trial, values: np.ndarray, controls: Sequence[str], every: bool) -> pd.DataFrame:
    """Rows of all arms from the states' values [states, documents]."""
    subject, doses = trial.subject, trial.doses
    shape = 1 + len(trial.sets) + trial.norm, len(trial.changed), values.shape[1]
    clean, rest = values[0], values[1:].reshape(shape)  # [arms, gains but 1, documents]
    at = [doses.index(dose) for dose in trial.changed]
    curves = np.tile(clean, (len(rest), len(doses), 1))  # [arms, gains, documents]
    curves[:, at] = rest
    count, sets = len(trial.chosen), trial.sets
    arms = {"chosen": curves[:1], "random": curves[1 : 1 + len(sets)], "matched_norm": curves[-1:]}
    heads = {"chosen": count, "random": len(sets[0]) if sets else 0, "matched_norm": count}
    parts = []
    for arm in ("chosen", *(name for name in CONTROLS if name in controls)):
        changes = arms[arm] - clean  # [draws, gains, documents]
        found = _intervals(changes, subject.weights, sampled=not every)
        part = pd.DataFrame({"arm": arm, "gain": doses, "heads": heads[arm], "draws": len(changes)})
        part["loss"] = arms[arm].mean(0) @ subject.weights / subject.weights.sum()
        part = part.assign(**found, unit=subject.docs.unit)
        parts.append(part.assign(by_document=changes.mean(0).tolist()))
    table = pd.concat(parts, ignore_index=True)
    name = "clean_loss" if subject.metric is LOSS else "clean"
    more = {
        name: float(clean @ subject.weights / subject.weights.sum()),
        "heads": [list(pair) for pair in trial.chosen],
        "random_heads": [[list(pair) for pair in heads] for heads in sets],
        "every_draw": every,
        "gains": doses,
        "controls": list(controls),
    }
    described = subject.describe(table="dose_response", **more)
    table.attrs = json_attrs({"schema": SCHEMA, **described})
    return table


def _intervals(changes: np.ndarray, weights: np.ndarray, sampled: bool) -> dict[str, np.ndarray]:
    """Columns change, stderr, ci_low, ci_high of changes [draws, gains, documents], [gains] each.

    `sampled`: the draws are a sample of more. What documents and what draws leave uncertain are
    then added, squares of the intervals' sides with squares (Zou and Donner 2008, Statist. Med. 27,
    eq. 3); what differs by both at once counts twice, so that they err on the wide side.
    """
    found = t_interval(changes.mean(0), weights, together=False)
    sides = [found.stderr, found.estimate - found.low, found.high - found.estimate]
    if sampled and len(changes) > 1:
        by_draw = changes @ weights / weights.sum()  # [draws, gains]
        drawn = t_interval(by_draw.T, np.ones(len(changes)), together=False)
        more = drawn.stderr, drawn.estimate - drawn.low, drawn.high - drawn.estimate
        sides = [np.hypot(one, other) for one, other in zip(sides, more, strict=True)]
    stderr, down, up = sides
    ends = {"ci_low": found.estimate - down, "ci_high": found.estimate + up}
    return {"change": found.estimate, "stderr": stderr, **ends}
