"""Runs a model over windows: clean losses, head outputs, and the exact effect of replacing a head.

Shape letters: W windows in a batch, T tokens, H heads, D head size, d hidden size, F heads folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from analysis.documents import Window
from midus_model import HeadSite, blocks, finish_block, head_sites

Progress = Callable[[int, int, str], None]

# What the activations of one folded batch may take; small enough to stay near a CPU's caches.
FOLD_BYTES = 256 * 2**20
LOGIT_ROWS = 4096


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right, where causal attention never looks.

    ids [W, T]; scored [W, T-1], whether a next-token loss counts; real [W, T], no padding;
    units [W], each window's index into `Documents.units`.
    """

    ids: torch.Tensor
    scored: torch.Tensor
    real: torch.Tensor
    units: torch.Tensor


def batch_of(windows: Sequence[Window], device: torch.device) -> Batch:
    """One batch of the given windows."""
    length = max(len(window.ids) for window in windows)
    ids = torch.zeros(len(windows), length, dtype=torch.long)
    scored = torch.zeros(len(windows), length - 1, dtype=torch.bool)
    real = torch.zeros(len(windows), length, dtype=torch.bool)
    for row, window in enumerate(windows):
        size = len(window.ids)
        ids[row, :size], real[row, :size] = window.ids, True
        scored[row, : size - 1] = window.scored
    units = torch.tensor([window.unit for window in windows])
    return Batch(ids.to(device), scored.to(device), real.to(device), units)


def batches(
    windows: Sequence[Window], device: torch.device, size: int = 8
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of windows of like length, with the indices of their windows."""
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, batch_of([windows[index] for index in chosen], device)


def window_nats(model: Any, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Next-token loss of each window, summed over its scored tokens: [F*W] in nats, float64.

    `hidden` [F*W, T, d] is what the final norm gave; W windows repeat F times.
    """
    folds = hidden.shape[0] // batch.ids.shape[0]
    scored = batch.scored.repeat(folds, 1)
    rows = hidden[:, :-1][scored]  # [S, d], scored positions only
    targets = batch.ids[:, 1:].repeat(folds, 1)[scored]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    nats = torch.cat(
        [
            F.cross_entropy(model.lm_head(part).to(wide), target, reduction="none")
            for part, target in zip(rows.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        ]
    )
    owner = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(scored)[scored]
    total = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    return total.index_add(0, owner, nats.double())


@dataclass
class CleanRun:
    """What a clean forward pass leaves behind, so that nothing is computed twice.

    inputs: each block's input [W, T, d]; heads: each block's head outputs [W, T, H*D]; calls: the
    keyword arguments each block was called with; nats [W]: the clean losses.
    """

    batch: Batch
    inputs: list[torch.Tensor]
    heads: list[torch.Tensor]
    calls: list[dict[str, Any]]
    nats: torch.Tensor


@torch.no_grad()
def clean_run(model: Any, batch: Batch) -> CleanRun:
    """Run the model once, keeping every block's input and head outputs."""
    run = CleanRun(batch, [], [], [], torch.empty(0))
    modules = {site.layer: site.module for site in head_sites(model)}

    def keep_call(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = dict(kwargs)
        run.inputs.append(args[0] if args else call.pop("hidden_states"))
        run.calls.append(call)

    def keep_heads(_: nn.Module, args: tuple) -> None:
        run.heads.append(args[0])

    hooks = [
        block.register_forward_pre_hook(keep_call, with_kwargs=True) for block in blocks(model)
    ]
    hooks += [modules[layer].register_forward_pre_hook(keep_heads) for layer in sorted(modules)]
    try:
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    run.nats = window_nats(model, hidden, batch)
    return run


@torch.no_grad()
def ablated_nats(
    model: Any, run: CleanRun, sites: Sequence[HeadSite], baselines: torch.Tensor
) -> torch.Tensor:
    """Loss of each window with each head replaced, exactly: [len(sites), W] in nats, float64.

    Each head is replaced where it is made, its block finished and the later blocks run; heads of
    one layer are folded into the batch. `baselines` [len(sites), D].
    """
    result = torch.empty(len(sites), run.nats.shape[0], dtype=torch.float64)
    fold = fold_size(model, run.batch, run.inputs[0].element_size())
    by_layer: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        by_layer.setdefault(site.layer, []).append(index)
    for layer, indices in by_layer.items():
        for start in range(0, len(indices), fold):
            chosen = indices[start : start + fold]
            nats = _resume(model, run, layer, [sites[i] for i in chosen], baselines[chosen])
            result[chosen] = nats.view(len(chosen), -1).cpu()
    return result


def fold_size(model: Any, batch: Batch, item: int) -> int:
    """How many copies of a batch one forward pass takes, at `item` bytes a number."""
    config, ids = model.config, batch.ids
    floats = 8 * config.hidden_size + 3 * config.intermediate_size
    logits = min(ids.numel(), LOGIT_ROWS) * config.vocab_size * 8
    return max(1, (FOLD_BYTES - logits) // (ids.numel() * floats * item))


def _resume(
    model: Any, run: CleanRun, layer: int, sites: list[HeadSite], baselines: torch.Tensor
) -> torch.Tensor:
    folds, windows = len(sites), run.batch.ids.shape[0]
    heads = run.heads[layer].repeat(folds, 1, 1)
    for fold, (site, baseline) in enumerate(zip(sites, baselines, strict=True)):
        heads[fold * windows : (fold + 1) * windows, :, site.start : site.stop] = baseline
    stack = blocks(model)
    hidden = finish_block(stack[layer], run.inputs[layer].repeat(folds, 1, 1), heads)
    for later in range(layer + 1, len(stack)):
        hidden = stack[later](hidden, **_folded(run.calls[later], folds, windows))
    return window_nats(model, model.model.norm(hidden), run.batch)


def _folded(call: dict[str, Any], folds: int, windows: int) -> dict[str, Any]:
    """A block's keyword arguments for the folded batch: what has a row a window is repeated."""

    def widen(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(widen(part) for part in value)
        if isinstance(value, torch.Tensor) and windows > 1 and value.shape[:1] == (windows,):
            return value.repeat(folds, *[1] * (value.ndim - 1))
        return value

    return {name: widen(value) for name, value in call.items()}


@torch.no_grad()
def mean_outputs(
    model: Any, windows: Sequence[Window], progress: Progress | None = None
) -> list[torch.Tensor]:
    """Each block's mean head output [H*D] over all positions of the windows, in fp32 at least.

    The first token of a window that continues another stands at that one's end too; it is counted
    there only.
    """
    device, done = next(model.parameters()).device, 0
    sums: list[torch.Tensor] = []
    count = 0
    ends = {(window.document, window.start + len(window.ids) - 1) for window in windows}
    for indices, batch in batches(windows, device):
        counted = batch.real.clone()
        starts = [(windows[i].document, windows[i].start) for i in indices]
        counted[:, 0] = torch.tensor([start not in ends for start in starts], device=device)
        run = clean_run(model, batch)
        totals = [heads[counted].double().sum(0) for heads in run.heads]
        sums = totals if not sums else [a + b for a, b in zip(sums, totals, strict=True)]
        count += int(counted.sum())
        done += len(indices)
        if progress:
            progress(done, len(windows), "mean head outputs")
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    return [(total / max(count, 1)).to(dtype) for total in sums]
