"""Runs a model and shows every block's attention patterns, one block at a time.

Shape letters: B sequences, T tokens, H heads, D head size, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.roles.patterns import ROW_SUM_TOLERANCE
from kernels.errors import ModelError, UnsupportedArchitecture
from midus_model import blocks, head_sites


@dataclass(frozen=True)
class Sight:
    """One block of one pass: patterns [B, H, T, T], head outputs [B, T, H*D], its input [B, T, d].

    `window`: how many tokens a row sees, itself included; None where it sees all before it.
    """

    layer: int
    patterns: torch.Tensor
    outputs: torch.Tensor
    stream: torch.Tensor
    window: int | None


@torch.no_grad()
def watch(
    model: Any, ids: torch.Tensor, see: Callable[[Sight], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `model` on ids [B, T], showing each block to `see` once; one block's patterns are held.

    Attention is eager meanwhile, which gives the patterns that sdpa does not; that setting and the
    model's mode are put back whatever happens.

    Returns the stream [B, T, d] before the final norm and after it. Raises UnsupportedArchitecture
    for an attention that gives no pattern, ModelError for one whose weights are not finite.
    """
    modules = {site.layer: site.module for site in head_sites(model)}
    seen: dict[str, Any] = {}
    last: list[torch.Tensor] = []

    def keep_pattern(_: nn.Module, __: tuple, kwargs: dict[str, Any], result: Any) -> None:
        seen["patterns"] = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        seen["mask"] = kwargs.get("attention_mask")

    def keep_outputs(_: nn.Module, args: tuple) -> None:
        seen["outputs"] = args[0]

    def show(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], __: Any) -> None:
            see(_sight(layer, seen, args[0] if args else kwargs["hidden_states"], ids.device))
            seen.clear()

        return hook

    hooks = [model.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))]
    for layer, block in enumerate(blocks(model)):
        hooks += [
            block.self_attn.register_forward_hook(keep_pattern, with_kwargs=True),
            modules[layer].register_forward_pre_hook(keep_outputs),
            block.register_forward_hook(show(layer), with_kwargs=True),
        ]
    try:
        with _eager(model):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return last[0].to(ids.device), hidden.to(ids.device)


def _sight(layer: int, seen: Mapping[str, Any], stream: torch.Tensor, place: torch.device) -> Sight:
    """What is seen, brought to where the ids are: blocks may lie on several devices."""
    patterns, mask = seen["patterns"], seen["mask"]
    if patterns is None:
        raise UnsupportedArchitecture(
            f"model.layers.{layer}.self_attn gives no attention weights with eager attention; "
            "give a model of transformers' own Llama, Qwen3 or Mistral classes"
        )
    off = (patterns.sum(-1, dtype=torch.float32) - 1).abs().max()
    if not torch.isfinite(off):
        raise ModelError(
            f"the attention weights of model.layers.{layer} are not finite: the model's weights "
            "or its dtype are at fault"
        )
    if off > ROW_SUM_TOLERANCE:
        raise UnsupportedArchitecture(
            f"the attention weights of model.layers.{layer} do not sum to 1 (one row is off by "
            f"{float(off):.3g}); head roles need softmax attention"
        )
    length = patterns.shape[-1]
    window = length
    if mask is not None:  # bool, or what is added to the scores: [B or 1, 1, T, T]
        last = mask[0, 0, -1]
        window = int((last if last.dtype == torch.bool else last >= 0).sum())
    outputs: torch.Tensor = seen["outputs"].to(place)
    seen_by = None if window == length else window
    return Sight(layer, patterns.to(place), outputs, stream.to(place), seen_by)


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Eager attention and evaluation mode inside the block, then what was before.

    Every configuration in the model is set, and gets its own setting back: parts of a model may
    hold different ones, and models may share one.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    training = [module for module in model.modules() if module.training]
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        model.eval()
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        for module in training:
            module.training = True
