"""Direct logit attribution: what a head adds to a logit by its own path through the final norm.

Shape letters: W windows, T tokens, G units, D head size, d hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from analysis.engine import Batch, Replacement, clean_run
from analysis.gates import Gated
from midus_model import HeadSite, blocks, mixing_of, weight_of

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
    tokens = weight_of(model.lm_head)  # [V, d]
    target = tokens[batch.ids[:, 1:].to(tokens.device)].to(scale)
    if metric.wants == "foil":
        target = target - tokens[batch.foils.clamp(min=0).to(tokens.device)].to(scale)
    counted = metric.positions(batch)[..., None].to(scale.device)
    toward = scale * weight_of(norm).to(scale) * target * counted
    seen = {layer: _seen(model, layer, toward) for layer in run.heads}
    effects = torch.zeros(len(view.units), len(batch.ids), dtype=torch.float64)
    for row, unit in enumerate(view.units):
        for site in unit:
            span = slice(site.start, site.stop)
            output = run.heads[site.layer][:, :-1, span].to(scale)
            base = replacement[site.layer][..., span].to(scale)
            output = output - (base if base.shape[1] == 1 else base[:, :-1])
            found = (output * seen[site.layer][..., span]).sum((1, 2))
            effects[row] += found.cpu().double()
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
    return output @ weight_of(mixing)[:, site.start : site.stop].to(output).T


def as_logits(model: Any, added: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What is added to the stream [T, d] as logits [T, V], the final norm's scale [T, 1] given."""
    normed = added * scale * weight_of(model.model.norm).to(added)
    rows = weight_of(model.lm_head).split(VOCABULARY_ROWS)  # a wide copy of all would fill a laptop
    return torch.cat([normed @ part.to(normed).T for part in rows], -1)


def _seen(model: Any, layer: int, toward: torch.Tensor) -> torch.Tensor:
    """Directions of the stream [W, T, d] as the head outputs of a block see them, [W, T, H*D]."""
    mixing = mixing_of(blocks(model)[layer])
    # a memory head writes its own slice of the stream
    return toward if mixing is None else toward @ weight_of(mixing).to(toward)
