"""Zero ablation as users of other tools run it: for each head a hook, a forward pass, a loss.

The peers that `midus bench importance` times. All windows lie in one batch, nothing is cached, and
no gradients are kept. Shape letters: W windows, T tokens, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from analysis import adapters
from midus_model import head_sites

Head = tuple[int, int]  # layer, head
# Token ids [W, T] and heads -> the summed loss of each window with each head zeroed, [heads, W].
Loop = Callable[[torch.Tensor, Sequence[Head]], torch.Tensor]


def window_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Next-token loss of each window, summed over its tokens: [W], float64.

    `logits` [W, T, V], `ids` [W, T]. The last position has no target and counts as 0, which saves
    a copy of the logits.
    """
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(ids.shape).double().sum(1)


@torch.no_grad()
def clean_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """`window_losses` of one forward pass of a Hugging Face model: [W]."""
    return window_losses(model(input_ids=ids, use_cache=False).logits, ids)


def transformer_lens(model: Any) -> Loop:
    """`run_with_hooks` on a TransformerLens bridge of `model`, zeroing one head of `hook_z`."""
    bridge = adapters.bridge(model)

    @torch.no_grad()
    def loop(ids: torch.Tensor, heads: Sequence[Head]) -> torch.Tensor:
        found = []
        for layer, head in heads:

            def zero(z: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:  # [W, T, H, D]
                z[:, :, head] = 0
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
            logits = bridge.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False)
            found.append(window_losses(logits, ids))
        return torch.stack(found)

    return loop


def nnsight(model: Any) -> Loop:
    """A trace a head on a copy of `model`, zeroing the head's slice of what enters `o_proj`."""
    size = model.model.layers[0].self_attn.head_dim
    envoy = adapters.envoy(copy.deepcopy(model))

    @torch.no_grad()
    def loop(ids: torch.Tensor, heads: Sequence[Head]) -> torch.Tensor:
        found = []
        for layer, head in heads:
            with envoy.trace(input_ids=ids, use_cache=False):
                z = envoy.model.layers[layer].self_attn.o_proj.input  # [W, T, H*D]
                z[:, :, head * size : (head + 1) * size] = 0
                logits = envoy.lm_head.output.save()
            found.append(window_losses(logits, ids))
        return torch.stack(found)

    return loop


def plain_hooks(model: Any) -> Loop:
    """A PyTorch hook before `o_proj`, on a copy of `model`: what a loop costs without a tool."""
    copied = copy.deepcopy(model)
    sites = {(site.layer, site.head): site for site in head_sites(copied)}

    @torch.no_grad()
    def loop(ids: torch.Tensor, heads: Sequence[Head]) -> torch.Tensor:
        found = []
        for head in heads:
            site = sites[head]

            def zero(_: Any, args: tuple, site: Any = site) -> None:
                args[0][:, :, site.start : site.stop] = 0  # [W, T, H*D]

            handle = site.module.register_forward_pre_hook(zero)
            found.append(clean_losses(copied, ids))
            handle.remove()
        return torch.stack(found)

    return loop


LOOPS: dict[str, Callable[[Any], Loop]] = {
    "transformer_lens": transformer_lens,
    "nnsight": nnsight,
    "plain_hooks": plain_hooks,
}
