"""What stands in for an ablated head's output: zero, its mean, or what another document gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from analysis.distributed import rank_and_size, reduced, share
from analysis.documents import Documents, Window
from analysis.engine import Batch, Progress, Replacement, batch_of, batches, head_outputs
from analysis.estimates import did
from analysis.memory_plan import Plan
from analysis.windows import first_new
from kernels.errors import DataError
from midus_model import HeadSite
from midus_model.config import head_dim_of
from midus_model.placement import dtype_of, in_float64, input_device

BASELINES = ("zero", "mean", "resample")
MEANS = "mean head outputs"  # the stage that measures them


class Baseline:
    """Gives the replacement of every head's output, by batch.

    "zero"; "mean", the head's mean output over all positions of the documents; or "resample", its
    output at the same position of another document, drawn once a window (resample ablation).
    """

    def __init__(
        self,
        kind: str,
        model: Any,
        sites: Sequence[HeadSite],
        docs: Documents,
        plan: Plan,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.kind, self.model, self.sites, self.docs = kind, model, sites, docs
        self.plan = plan
        self.fixed: dict[int, torch.Tensor] = {}
        self.donors: list[int] = []
        if kind == "resample":
            self.donors = donors(docs, seed)
        elif kind == "mean":
            self.fixed = mean_outputs(model, sites, docs.windows, plan, progress)
        else:
            self.fixed = zero_outputs(model, sites)

    def __call__(self, indices: Sequence[int], batch: Batch) -> Replacement:
        """By block, [1, 1, H*D], or [W, T, H*D] where every position has its own."""
        if self.kind != "resample":
            return self.fixed
        length = batch.ids.shape[1]
        windows = [self.docs.windows[self.donors[i]] for i in indices]
        cut = [
            replace(w, ids=w.ids[:length], scored=w.scored[: length - 1], foil=None)
            for w in windows
        ]
        found = head_outputs(self.model, batch_of(cut, batch.ids.device), self.sites)
        # Past a shorter document's end its positions begin anew.
        places = torch.arange(length) % torch.tensor([[len(w.ids)] for w in cut])  # [W, T]
        rows = torch.arange(len(cut))[:, None]
        return {layer: heads[rows, places] for layer, heads in found.items()}


def zero_outputs(model: Any, sites: Sequence[HeadSite]) -> dict[int, torch.Tensor]:
    """Zeros, by block: [1, 1, H*D]."""
    shape = 1, 1, outputs_width(model)
    zeros = torch.zeros(shape, dtype=dtype_of(model), device=input_device(model))
    return {site.layer: zeros for site in sites}


def outputs_width(model: Any) -> int:
    """Width of a block's concatenated head outputs, H*D."""
    return model.config.num_attention_heads * head_dim_of(model.config)


def mean_outputs(
    model: Any,
    sites: Sequence[HeadSite],
    windows: Sequence[Window],
    plan: Plan,
    progress: Progress | None = None,
) -> dict[int, torch.Tensor]:
    """Mean head outputs over all positions of the windows, by block: [1, 1, H*D], fp32 at least.

    The first token of a window that continues another stands at that one's end too; it is counted
    there only; start tokens given to a window again are not. Under several processes each takes
    its share of the windows.
    """
    device, done = input_device(model), 0
    layers = sorted({site.layer for site in sites})
    sums = np.zeros((len(layers), outputs_width(model)))
    count = 0
    first = first_new(windows)
    for indices in share(batches(windows, plan.windows)):
        batch = batch_of([windows[i] for i in indices], device)
        counted = batch.real.clone()
        for row, i in enumerate(indices):
            counted[row, : first[i]] = False
        heads = head_outputs(model, batch, sites)
        for row, layer in enumerate(layers):
            sums[row] += (
                in_float64(heads[layer][counted.to(heads[layer].device)]).sum(0).cpu().numpy()
            )
        count += int(counted.sum())
        done += len(indices)
        did(MEANS, batch.tokens * rank_and_size()[1])
        if progress:
            progress(done, len(windows), MEANS)
    totals, counts = reduced(sums), reduced(np.array([float(count)]))
    dtype = torch.promote_types(dtype_of(model), torch.float32)
    means = torch.tensor(totals / max(counts[0], 1)).to(device, dtype)
    return {layer: mean[None, None] for layer, mean in zip(layers, means, strict=True)}


def donors(docs: Documents, seed: int) -> list[int]:
    """For each window one of another document, at random among those at least as long.

    Where there is none as long, the longest of another document. Raises DataError where there is
    one document only.
    """
    if len(docs) < 2:
        raise DataError(
            f"baseline 'resample' takes outputs from another document, and {docs.name} has one; "
            "give two or more, or baseline 'mean'"
        )
    rng = np.random.default_rng(seed)
    length = np.array([len(window.ids) for window in docs.windows])
    owner = np.array([window.document for window in docs.windows])
    found = []
    for size, document in zip(length, owner, strict=True):
        other = owner != document
        fit = other & (length >= min(size, length[other].max()))
        found.append(int(rng.choice(np.flatnonzero(fit))))
    return found
