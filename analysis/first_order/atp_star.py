"""AtP*: attribution patching that keeps what cancels, and recomputes what a query retrieves.

Kramar, Lieberum, Shah and Nanda 2024, arXiv 2403.00745, for the gate on a head's output.

GradDrop (their eq. 11): a direct and an indirect effect that cancel leave a gradient near zero. So
the gradient is taken once for every block, with what that block adds to the stream held (gradients
pass it by the residual connection alone), and the sizes are averaged:

    score_h = sum over blocks l of abs(I_l(h)) / (L - 1),   I_l(h) = (b - z) * dL/dz, block l held.

With a head's own block held I is 0, which is why L - 1. The size is taken of a window's sum: their
prompts are windows here. Scores have no sign: they are for finding heads, not for telling help from
harm.

QK fix (their section 3.1.1): it is for nodes that are queries or keys, whose softmax may be
saturated. A head's output is none; a memory head's query (`stage="query"`) is one. What it
retrieves is then recomputed with the baseline in place of the query, and only what follows is
linear.

What was missed: in place of their subsets that are patched together, whose effects do not add up
for whole heads, `analysis.screen` ablates some of the screened-out heads singly, with an exact
bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from analysis.engine import Batch, Replacement, head_outputs
from analysis.first_order import FirstOrder
from analysis.gates import Gated, frozen, gated_values
from kernels.errors import MidusError
from midus_model import HeadSite, blocks, head_sites
from midus_model.maps import check_gradients
from midus_model.placement import dtype_of


def effects(
    view: Gated, batch: Batch, replacement: Replacement, clean: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The size of each unit's effect on each window, [G, W], and the windows' values [W]."""
    check_gradients(view.model)
    if view.sites[0].module_name.endswith(".memory"):
        view, replacement = recomputed(view, batch, replacement)
    layers = torch.tensor([unit[0].layer for unit in view.units])
    last = len(blocks(view.model))
    plain, dropped, values = dropped_gradients(view, batch, replacement, clean)
    if last == 1:
        return plain.abs(), values
    total = layers[:, None] * plain.abs()  # of the blocks below a head it makes no difference
    for block, gradients in enumerate(dropped):
        total += torch.where(layers[:, None] < block, gradients.abs(), 0.0)
    return total / (last - 1), values


def dropped_gradients(
    view: Gated, batch: Batch, replacement: Replacement, clean: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Gradients of each window's metric at every gate, [G, W]: plain, and with each block held.

    With block l held, what comes back to its output goes on to its input as it is; above it nothing
    is different, so that only the blocks below are gone through again. Third, the values [W].
    """
    wide = torch.promote_types(dtype_of(view.model), torch.float32)
    shape = len(batch.ids), len(view.units)
    gates = torch.ones(shape, dtype=wide, device=batch.ids.device).requires_grad_()
    with frozen(view.model), torch.enable_grad(), _streams(view.model) as streams:
        values = gated_values(view, batch, replacement, gates, clean=clean)
        if not values.requires_grad:
            raise MidusError(
                f"metric {view.metric.name!r} has no gradient; use method 'ablation' or 'shapley'"
            )
        known = [stream for stream in streams[1:] if stream.requires_grad]
        plain, *backs = torch.autograd.grad(values.sum(), [gates, *known], retain_graph=True)
        back = dict(zip(map(id, known), backs, strict=True))
        dropped = []
        for before, after in zip(streams[:-1], streams[1:], strict=True):
            found = torch.zeros_like(gates)
            if before.requires_grad:
                gone_on = back[id(after)].to(before.device)
                (found,) = torch.autograd.grad(before, gates, gone_on, retain_graph=True)
            dropped.append(found.T.cpu().double())
    return plain.T.cpu().double(), dropped, values.detach().cpu()


@contextmanager
def _streams(model: Any) -> Iterator[list[torch.Tensor]]:
    """The stream before the first block and after every one, as a forward pass inside fills it."""
    found: list[torch.Tensor] = []
    stack = blocks(model)

    def before(_: nn.Module, args: tuple, call: dict[str, Any]) -> None:
        found.append(args[0] if args else call["hidden_states"])

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        hooks.callback(stack[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in stack:
            hooks.callback(block.register_forward_hook(after).remove)
        yield found


@torch.no_grad()
def recomputed(
    view: Gated, batch: Batch, replacement: Replacement
) -> tuple[Gated, dict[int, torch.Tensor]]:
    """A view of queries as one of outputs, whose baseline is what the replaced queries retrieve."""
    queries = head_outputs(view.model, batch, view.sites)  # by block, [W, T, H*D]
    outputs = {(site.layer, site.head): site for site in head_sites(view.model)}
    made = {}
    for layer, states in queries.items():
        memory = blocks(view.model)[layer].memory
        made[layer] = _retrieved(memory, replacement[layer].to(states).expand_as(states))
    units: list[tuple[HeadSite, ...]] = [
        tuple(outputs[site.layer, site.head] for site in unit) for unit in view.units
    ]
    return replace(view, units=units), made


def _retrieved(memory: Any, queries: torch.Tensor) -> torch.Tensor:
    """What the heads of a memory give for queries [W, T, H*D], before they are mixed."""
    kept: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple) -> None:
        kept.append(args[0])

    hook = memory.out.register_forward_pre_hook(look)
    try:
        memory(queries)
    finally:
        hook.remove()
    return kept[0]


def _passes(model: Any) -> float:
    """A pass and its gradient, then for every block what is below it: half of them on average."""
    return 3.0 + 0.55 * len(blocks(model))


METHOD = FirstOrder("attribution patching with GradDrop (AtP*)", effects, _passes, signed=False)
