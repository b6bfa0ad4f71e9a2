"""Runs a model over windows: batches, clean values, and head outputs.

Shape letters: W windows in a batch, T tokens, H heads, D head size, d hidden size, V vocabulary,
F copies of a batch side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.documents import Window
from analysis.metrics import LOSS, Metric, Rows
from midus_model import HeadSite, blocks, lean_blocks
from midus_model.placement import counting_device, in_float64

Progress = Callable[[int, int, str], None]
# By block, what stands in for its head outputs: [1 or W, 1 or T, H*D].
Replacement = Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right, where causal attention never looks.

    ids [W, T]; scored [W, T-1], whether a next-token prediction counts; real [W, T], no padding;
    foils [W, T-1], the wrong token where a task is decided, -1 elsewhere; units [W], each window's
    index into `Documents.units`.
    """

    ids: torch.Tensor
    scored: torch.Tensor
    real: torch.Tensor
    foils: torch.Tensor
    units: torch.Tensor

    @property
    def tokens(self) -> int:
        """Positions in all, padding included."""
        return self.ids.numel()


def batch_of(windows: Sequence[Window], device: torch.device) -> Batch:
    """One batch of the given windows."""
    length = max(len(window.ids) for window in windows)
    ids = torch.zeros(len(windows), length, dtype=torch.long)
    scored = torch.zeros(len(windows), length - 1, dtype=torch.bool)
    real = torch.zeros(len(windows), length, dtype=torch.bool)
    foils = torch.full((len(windows), length - 1), -1)
    for row, window in enumerate(windows):
        size = len(window.ids)
        ids[row, :size], real[row, :size] = window.ids, True
        scored[row, : size - 1] = window.scored
        if window.foil is not None:
            foils[row, window.foil[0]] = window.foil[1]
    units = torch.tensor([window.unit for window in windows])
    return Batch(ids.to(device), scored.to(device), real.to(device), foils.to(device), units)


def batches(windows: Sequence[Window], size: int) -> list[list[int]]:
    """Indices of windows of like length, so many a batch, longest first."""
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    return [order[start : start + size] for start in range(0, len(order), size)]


def window_values(
    model: Any,
    hidden: torch.Tensor,
    batch: Batch,
    metric: Metric = LOSS,
    clean: torch.Tensor | None = None,
    rows: int = 4096,
) -> torch.Tensor:
    """The metric of each window, summed over its counted positions: [F*W], float64.

    Signed as a loss: of a metric that is better higher, its negative. `hidden` [F*W, T, d] is what
    the final norm gave, W windows repeating F times; `clean` [W, T, d] the clean run's; `rows` the
    positions whose logits are held at once.
    """
    folds = hidden.shape[0] // batch.ids.shape[0]
    counted = metric.positions(batch).repeat(folds, 1)
    states = hidden[:, :-1][counted.to(hidden.device)]  # [S, d], counted positions only
    targets = batch.ids[:, 1:].repeat(folds, 1)[counted]
    foils = batch.foils.repeat(folds, 1)[counted] if metric.wants == "foil" else None
    before = None
    if metric.wants == "clean":
        assert clean is not None
        before = clean[:, :-1].repeat(folds, 1, 1)[counted.to(clean.device)]
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def logits(part: torch.Tensor) -> torch.Tensor:
        return model.lm_head(part).to(wide)

    losses = []
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        now = logits(states[part])  # where the unembedding is
        seen = Rows(
            now,
            targets[part].to(now.device),
            None if foils is None else foils[part].to(now.device),
            None if before is None else logits(before[part]),
        )
        losses.append(in_float64(metric.losses(seen)))
    place = counting_device(batch.ids.device)
    total = torch.zeros(hidden.shape[0], dtype=torch.float64, device=place)
    if not losses:
        return total
    every = torch.arange(hidden.shape[0], device=counted.device)[:, None]
    owner, values = every.expand_as(counted)[counted].to(place), torch.cat(losses).to(place)
    if not metric.whole:
        return total.index_add(0, owner, values)
    # A task's answer is right where every one of its tokens is.
    return -(total.index_add(0, owner, 1 + values) == 0).double()


@dataclass
class CleanRun:
    """What a clean forward pass leaves behind, so that nothing is computed twice.

    inputs: each block's input [W, T, d]; heads: by block, the site's input [W, T, H*D]; calls: the
    keyword arguments each block was called with; hidden [W, T, d], after the final norm; values
    [W]: the metric, as `window_values` gives it.
    """

    batch: Batch
    inputs: list[torch.Tensor]
    heads: dict[int, torch.Tensor]
    calls: list[dict[str, Any]]
    hidden: torch.Tensor
    values: torch.Tensor


class Enough(Exception):
    """Raised to end a forward pass whose rest nobody asked for."""


@torch.no_grad()
def head_outputs(model: Any, batch: Batch, sites: Sequence[HeadSite]) -> dict[int, torch.Tensor]:
    """By block, the input of its site [W, T, H*D]; the forward pass ends at the last of them."""
    heads: dict[int, torch.Tensor] = {}
    modules = {site.layer: site.module for site in sites}

    def keep(layer: int) -> Callable[[nn.Module, tuple], None]:
        def hook(_: nn.Module, args: tuple) -> None:
            heads[layer] = args[0]
            if layer == max(modules):
                raise Enough

        return hook

    with ExitStack() as stack:
        stack.enter_context(lean_blocks(blocks(model)))
        for layer, module in modules.items():
            stack.callback(module.register_forward_pre_hook(keep(layer)).remove)
        with suppress(Enough):
            model.model(input_ids=batch.ids, use_cache=False)
    return heads


@torch.no_grad()
def clean_run(
    model: Any,
    batch: Batch,
    sites: Sequence[HeadSite],
    metric: Metric | None = LOSS,
    rows: int = 4096,
) -> CleanRun:
    """Run the model once, keeping every block's input and head outputs.

    Without a metric its values are left out.
    """
    inputs: list[torch.Tensor] = []
    heads: dict[int, torch.Tensor] = {}
    calls: list[dict[str, Any]] = []

    def keep_call(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = dict(kwargs)
        inputs.append(args[0] if args else call.pop("hidden_states"))
        calls.append(call)

    with ExitStack() as stack:
        stack.enter_context(lean_blocks(blocks(model)))
        for block in blocks(model):
            handle = block.register_forward_pre_hook(keep_call, with_kwargs=True)
            stack.callback(handle.remove)
        for layer, module in {site.layer: site.module for site in sites}.items():
            keep = module.register_forward_pre_hook(
                lambda _, args, layer=layer: heads.__setitem__(layer, args[0])
            )
            stack.callback(keep.remove)
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    values = torch.zeros(0, dtype=torch.float64)
    if metric is not None:
        values = window_values(model, hidden, batch, metric, hidden, rows)
    return CleanRun(batch, inputs, heads, calls, hidden, values)
