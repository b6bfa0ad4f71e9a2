"""Direct logit attribution: what a head adds to a logit by its own path through the final norm.

Shape letters: W windows, T tokens, G units, D head size, d hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from analysis.engine import Batch, Replacement, clean_run
from analysis.gates import Gated
from midus_model import HeadSite, blocks, mixing_of

VOCABULARY_ROWS = 16_384


@torch.no_grad()
def direct_effects(
    view: Gated, batch: Batch, replacement: Replacement
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each unit adds to the next token's logit (Elhage et al. 2021), [G, W]; values [W].

    Summed over a window's counted positions, with the final norm's scale held at its clean value;
    what later blocks make of the head's output is not counted. Where the metric sets a task's
    answer against its foil, to the difference of their logits.
    """
    model, metric = view.model, view.metric
    last: list[torch.Tensor] = []
    norm = model.model.norm
    handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    try:
        run = clean_run(model, batch, view.sites, metric, view.plan.rows)
    finally:
        handle.remove()
    scale = final_scale(model, last[0][:, :-1])  # [W, T-1, 1]
    wide = scale.dtype
    target = model.lm_head.weight[batch.ids[:, 1:]].to(wide)
    if metric.wants == "foil":
        target = target - model.lm_head.weight[batch.foils.clamp(min=0)].to(wide)
    toward = scale * norm.weight.to(wide) * target * metric.positions(batch)[..., None]
    effects = torch.zeros(len(view.units), len(batch.ids), dtype=torch.float64)
    for row, unit in enumerate(view.units):
        for site in unit:
            span = slice(site.start, site.stop)
            output = run.heads[site.layer][:, :-1, span].to(wide)
            base = replacement[site.layer][..., span].to(wide)
            output = output - (base if base.shape[1] == 1 else base[:, :-1])
            effects[row] += (output * _seen(model, site, toward)).sum((1, 2)).cpu().double()
    return effects, run.values.cpu()


def final_scale(model: Any, stream: torch.Tensor) -> torch.Tensor:
    """What the final norm multiplies the stream [.., T, d] by beside its weights: [.., T, 1]."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    mean_square = wide.square().mean(-1, keepdim=True)
    return torch.rsqrt(mean_square + model.model.norm.variance_epsilon)


def written(model: Any, site: HeadSite, output: torch.Tensor) -> torch.Tensor:
    """What a head's output [T, D] adds to the stream, [T, d]; a bias belongs to no head."""
    mixing = mixing_of(blocks(model)[site.layer])
    if mixing is None:  # a memory head writes its own slice of the stream
        return F.pad(output, (site.start, model.config.hidden_size - site.stop))
    return output @ mixing.weight[:, site.start : site.stop].to(output.dtype).T


def as_logits(model: Any, added: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What is added to the stream [T, d] as logits [T, V], the final norm's scale [T, 1] given."""
    normed = added * scale * model.model.norm.weight.to(added.dtype)
    rows = model.lm_head.weight.split(VOCABULARY_ROWS)  # a wide copy of all would fill a laptop
    return torch.cat([normed @ part.to(normed.dtype).T for part in rows], -1)


def _seen(model: Any, site: HeadSite, toward: torch.Tensor) -> torch.Tensor:
    """Directions of the stream [W, T, d] as the head's output sees them, [W, T, D]."""
    mixing = mixing_of(blocks(model)[site.layer])
    if mixing is None:  # a memory head writes its own slice of the stream
        return toward[..., site.start : site.stop]
    return toward @ mixing.weight[:, site.start : site.stop].to(toward.dtype)
