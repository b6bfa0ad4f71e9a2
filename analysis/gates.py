"""Gates on heads, and what follows from them: derivatives, path integrals, Shapley values.

The gate on a head is out = b + gate * (z - b), with z its output and b its baseline: 1 is clean,
0 ablated (DESIGN: every method is defined on it). Shape letters: W windows, S heads (sites),
F gate settings folded into one batch, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.engine import Batch, clean_run, fold_size, window_nats
from midus_model import HeadSite

Retrieval = Mapping[int, torch.Tensor]
NODES = 32  # of Gauss-Legendre: completeness to 6e-6 on a tiny model


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No gradients for parameters inside the block; their flags are restored after."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def gated(
    sites: Sequence[HeadSite],
    baselines: torch.Tensor,
    gates: torch.Tensor,
    retrieval: Retrieval | None = None,
) -> Iterator[None]:
    """Gates [rows, S] on the heads inside the block, a row an example of the batch.

    `baselines` [S, D]. `retrieval`: by block, the head outputs [rows, T, H*D] that memory keeps
    whatever its queries become (slots and weights frozen).
    """
    size = sites[0].stop - sites[0].start
    hooks = []
    for layer in sorted({site.layer for site in sites}):
        columns = [i for i, site in enumerate(sites) if site.layer == layer]
        places = torch.tensor([sites[i].start // size for i in columns], device=gates.device)
        kept = None if retrieval is None else retrieval.get(layer)

        def hook(
            _: nn.Module,
            args: tuple,
            columns: list[int] = columns,
            places: torch.Tensor = places,
            kept: torch.Tensor | None = kept,
        ) -> tuple:
            heads = (args[0] if kept is None else kept).unflatten(-1, (-1, size))  # [rows, T, H, D]
            chosen = heads[:, :, places]
            base = baselines[columns].to(heads.dtype)
            gate = gates[:, None, columns, None].to(heads.dtype)
            changed = heads.index_copy(2, places, base + gate * (chosen - base))
            return (changed.flatten(-2), *args[1:])

        hooks.append(sites[columns[0]].module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def gated_nats(
    model: Any,
    batch: Batch,
    sites: Sequence[HeadSite],
    baselines: torch.Tensor,
    gates: torch.Tensor,
    retrieval: Retrieval | None = None,
) -> torch.Tensor:
    """Loss of each window under gates [F*W, S], windows repeating F times: [F*W] nats, float64."""
    folds = len(gates) // len(batch.ids)
    with gated(sites, baselines, gates, retrieval):
        hidden = model.model(input_ids=batch.ids.repeat(folds, 1), use_cache=False)
        return window_nats(model, hidden.last_hidden_state, batch)


def gate_gradients(
    model: Any,
    batch: Batch,
    sites: Sequence[HeadSite],
    baselines: torch.Tensor,
    at: float = 1.0,
    retrieval: Retrieval | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of each window's summed loss with respect to each head's gate, all gates `at`.

    Returns gradients [S, W] and the windows' losses [W], both float64 in nats.
    """
    gates = torch.full(
        (len(batch.ids), len(sites)), at, dtype=baselines.dtype, device=baselines.device
    ).requires_grad_()
    with frozen(model), torch.enable_grad():
        nats = gated_nats(model, batch, sites, baselines, gates, retrieval)
        (found,) = torch.autograd.grad(nats.sum(), gates)
    return found.T.double().cpu(), nats.detach().cpu()


def clean_retrieval(model: Any, batch: Batch, sites: Sequence[HeadSite]) -> Retrieval:
    """What memory reads in the clean run, by block."""
    layers = {site.layer for site in sites if site.kind == "memory"}
    if not layers:
        return {}
    heads = clean_run(model, batch).heads
    return {layer: heads[layer] for layer in layers}


def integrated_gradients(
    model: Any,
    batch: Batch,
    sites: Sequence[HeadSite],
    baselines: torch.Tensor,
    *,
    retrieval: str = "frozen",
    nodes: int = NODES,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minus the integral of the gates' gradients from all 0 to all 1 (Sundararajan et al. 2017).

    Returns scores [S, W], clean losses [W] and the gap [W] between the scores' sum and what they
    should sum to, the loss with every head ablated less the clean one. With `retrieval` "free" the
    gap holds what slot switching adds, top-k being discontinuous.
    """
    kept = clean_retrieval(model, batch, sites) if retrieval == "frozen" else None
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(len(sites), len(batch.ids), dtype=torch.float64)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        gradients, _ = gate_gradients(model, batch, sites, baselines, float(point), kept)
        total -= float(weight) * gradients
    ends = torch.ones(2, len(batch.ids), len(sites), device=baselines.device)
    ends[0] = 0
    with torch.no_grad():
        ablated, clean = (
            gated_nats(model, batch, sites, baselines, gates, kept).cpu() for gates in ends
        )
    return total, clean, total.sum(0) - (ablated - clean)


@torch.no_grad()
def shapley_values(
    model: Any,
    batch: Batch,
    sites: Sequence[HeadSite],
    baselines: torch.Tensor,
    orders: Sequence[np.ndarray],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss added as heads are ablated one after the other, by order: [orders, S, W]; clean [W].

    The mean over random orders is the Shapley value (Castro et al. 2009); in each order the
    heads' shares sum to the loss of all ablated less the clean one.
    """
    shares = torch.zeros(len(orders), len(sites), len(batch.ids), dtype=torch.float64)
    clean = torch.zeros(len(batch.ids), dtype=torch.float64)
    fold = fold_size(model, batch, baselines.element_size())
    for which, order in enumerate(orders):
        states = torch.ones(len(sites) + 1, len(sites), device=baselines.device)
        for step, head in enumerate(order):
            states[step + 1 :, head] = 0  # after that many steps
        nats = torch.cat(
            [
                gated_nats(
                    model, batch, sites, baselines, part.repeat_interleave(len(batch.ids), 0)
                ).view(len(part), -1)
                for part in states.split(fold)
            ]
        ).cpu()  # [S+1, W]
        shares[which, torch.as_tensor(order)] = nats.diff(dim=0)
        clean = nats[0]
    return shares, clean


@torch.no_grad()
def direct_effects(
    model: Any, batch: Batch, sites: Sequence[HeadSite], baselines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Direct logit attribution: what each head adds to the next token's logit, [S, W]; losses [W].

    Summed over a window's scored positions, with the final norm's scale held at its clean value;
    what later blocks make of the head's output is not counted.
    """
    last: list[torch.Tensor] = []
    norm = model.model.norm
    handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    try:
        run = clean_run(model, batch)
    finally:
        handle.remove()
    wide = torch.promote_types(last[0].dtype, torch.float32)
    stream = last[0][:, :-1].to(wide)  # [W, T-1, d]
    scale = torch.rsqrt(stream.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    targets = model.lm_head.weight[batch.ids[:, 1:]].to(wide)
    toward = scale * norm.weight.to(wide) * targets * batch.scored[..., None]  # [W, T-1, d]
    effects = torch.zeros(len(sites), len(batch.ids), dtype=torch.float64)
    for row, (site, baseline) in enumerate(zip(sites, baselines, strict=True)):
        output = run.heads[site.layer][:, :-1, site.start : site.stop] - baseline
        effects[row] = (output.to(wide) * _seen(model, site, toward)).sum((1, 2)).double().cpu()
    return effects, run.nats.cpu()


def _seen(model: Any, site: HeadSite, toward: torch.Tensor) -> torch.Tensor:
    """Directions of the stream [W, T, d] as the head's output sees them, [W, T, D]."""
    block = model.model.layers[site.layer]
    mixing = block.memory.out_proj if site.kind == "memory" else block.self_attn.o_proj
    if mixing is None:  # a memory head writes its own slice of the stream
        return toward[..., site.start : site.stop]
    return toward @ mixing.weight[:, site.start : site.stop].to(toward.dtype)
