"""Gates on heads, and what follows from them: derivatives, path integrals, Shapley values.

The gate on a head is out = b + gate * (z - b), with z its output and b its baseline: 1 is clean,
0 ablated. Every importance method is defined on it. Shape letters: W windows, G gated units (heads
or groups of heads), F gate settings folded into one batch, T tokens, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.engine import Batch, Replacement, head_outputs, window_values
from analysis.memory_plan import Plan
from analysis.metrics import LOSS, Metric
from kernels.errors import MidusError
from midus_model import HeadSite, blocks, lean_blocks
from midus_model.maps import check_gradients
from midus_model.placement import dtype_of

Retrieval = Mapping[int, torch.Tensor]
NODES = 32  # of Gauss-Legendre: completeness to 6e-6 on a tiny model


@dataclass(frozen=True)
class Gated:
    """A model seen through gates on its heads, and how its predictions are measured.

    units: the heads of each gate, [G]; a gate on several is shared by them.
    """

    model: Any
    units: Sequence[Sequence[HeadSite]]
    plan: Plan
    metric: Metric = LOSS

    @property
    def sites(self) -> list[HeadSite]:
        """Every gated head."""
        return [site for unit in self.units for site in unit]

    @property
    def owner(self) -> list[int]:
        """The gate of every head in `sites`."""
        return [index for index, unit in enumerate(self.units) for _ in unit]


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No gradients for parameters inside the block; their flags are restored after."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:  # by name: what lies on disk is another tensor after each pass
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


@contextmanager
def gated(
    view: Gated,
    replacement: Replacement,
    gates: torch.Tensor,
    retrieval: Retrieval | None = None,
) -> Iterator[None]:
    """Gates [rows, G] or [rows, T, G] on the heads inside the block, a row an example of the batch.

    `retrieval`: by block, the head outputs [rows, T, H*D] that memory keeps whatever its queries
    become (slots and weights frozen).
    """
    sites, owner = view.sites, view.owner
    size = sites[0].stop - sites[0].start
    by_position = gates[:, None] if gates.ndim == 2 else gates  # [rows, 1 or T, G]
    with ExitStack() as stack:
        for layer in sorted({site.layer for site in sites}):
            here = [i for i, site in enumerate(sites) if site.layer == layer]
            places = torch.tensor([sites[i].start // size for i in here], device=gates.device)
            columns = [owner[i] for i in here]
            base = replacement[layer].unflatten(-1, (-1, size))[:, :, places]
            base = base.repeat(len(gates) // len(base), 1, 1, 1) if len(base) > 1 else base
            kept = None if retrieval is None else retrieval.get(layer)

            def hook(
                _: nn.Module,
                args: tuple,
                columns: list[int] = columns,
                places: torch.Tensor = places,
                base: torch.Tensor = base,
                kept: torch.Tensor | None = kept,
            ) -> tuple:
                heads = (args[0] if kept is None else kept).unflatten(-1, (-1, size))
                at = places.to(heads.device)  # of several, each block has its own
                chosen = heads[:, :, at]  # [rows, T, heads here, D]
                # In fp32 at least: a gate of 1 is then the clean run in bf16 too.
                wide = torch.promote_types(gates.dtype, heads.dtype)
                b = base.to(heads.device, wide)
                gate = by_position[..., columns, None].to(heads.device)
                made = (b + gate * (chosen - b)).to(heads.dtype)
                changed = heads.index_copy(2, at, made)
                return (changed.flatten(-2), *args[1:])

            handle = sites[here[0]].module.register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield


def gated_values(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    gates: torch.Tensor,
    retrieval: Retrieval | None = None,
    clean: torch.Tensor | None = None,
) -> torch.Tensor:
    """The metric of each window under gates [F*W, G] or [F*W, T, G], windows repeating F times.

    Returns [F*W], float64.

    `clean` [W, T, d]: the clean run's final states, for a metric that wants them.
    """
    folds = len(gates) // len(batch.ids)
    with gated(view, replacement, gates, retrieval), lean_blocks(blocks(view.model)):
        hidden = view.model.model(input_ids=batch.ids.repeat(folds, 1), use_cache=False)
        return window_values(
            view.model, hidden.last_hidden_state, batch, view.metric, clean, view.plan.rows
        )


def folded_values(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    states: torch.Tensor,
    clean: torch.Tensor | None = None,
) -> torch.Tensor:
    """The metric under every gate setting [states, G], many in one pass: [states, W]."""
    windows = len(batch.ids)
    found = [
        gated_values(
            view, batch, replacement, part.repeat_interleave(windows, 0), clean=clean
        ).view(len(part), windows)
        for part in states.split(view.plan.folds(batch))
    ]
    return torch.cat(found).cpu()


def gate_gradients(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    at: float = 1.0,
    retrieval: Retrieval | None = None,
    clean: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of each window's summed metric with respect to each gate, all gates `at`.

    Returns gradients [G, W] and the windows' values [W], both float64.
    """
    wide = torch.promote_types(dtype_of(view.model), torch.float32)
    shape = len(batch.ids), len(view.units)
    check_gradients(view.model)
    gates = torch.full(shape, at, dtype=wide, device=batch.ids.device).requires_grad_()
    with frozen(view.model), torch.enable_grad():
        values = gated_values(view, batch, replacement, gates, retrieval, clean)
        if not values.requires_grad:
            raise MidusError(
                f"metric {view.metric.name!r} has no gradient; use method 'ablation' or 'shapley'"
            )
        (found,) = torch.autograd.grad(values.sum(), gates)
    return found.T.cpu().double(), values.detach().cpu()


def clean_retrieval(view: Gated, batch: Batch) -> Retrieval:
    """What memory reads in the clean run, by block."""
    memories = [site for site in view.sites if site.kind == "memory"]
    return head_outputs(view.model, batch, memories) if memories else {}


def integrated_gradients(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    *,
    retrieval: str = "frozen",
    nodes: int = NODES,
    clean: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minus the integral of the gates' gradients from all 0 to all 1 (Sundararajan et al. 2017).

    Returns scores [G, W], clean values [W] and the gap [W] between the scores' sum and what they
    should sum to, the metric with every head ablated less the clean one. With `retrieval` "free"
    the gap holds what slot switching adds, top-k being discontinuous.
    """
    kept = clean_retrieval(view, batch) if retrieval == "frozen" else None
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(len(view.units), len(batch.ids), dtype=torch.float64)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        gradients, _ = gate_gradients(view, batch, replacement, float(point), kept, clean)
        total -= float(weight) * gradients
    ends = torch.ones(2, len(batch.ids), len(view.units), device=batch.ids.device)
    ends[0] = 0
    with torch.no_grad():
        ablated, before = (
            gated_values(view, batch, replacement, gates, kept, clean).cpu() for gates in ends
        )
    return total, before, total.sum(0) - (ablated - before)


@torch.no_grad()
def shapley_values(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    orders: Sequence[np.ndarray],
    clean: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ablating the units one after the other adds, by order: [orders, G, W]; clean [W].

    The mean over random orders is the Shapley value (Castro et al. 2009); in each order the
    units' shares sum to the value with all ablated less the clean one.
    """
    count = len(view.units)
    shares = torch.zeros(len(orders), count, len(batch.ids), dtype=torch.float64)
    before = torch.zeros(len(batch.ids), dtype=torch.float64)
    for which, order in enumerate(orders):
        states = torch.ones(count + 1, count, device=batch.ids.device)
        for step, unit in enumerate(order):
            states[step + 1 :, unit] = 0  # after that many steps
        values = folded_values(view, batch, replacement, states, clean)  # [G+1, W]
        shares[which, torch.as_tensor(order)] = values.diff(dim=0)
        before = values[0]
    return shares, before
