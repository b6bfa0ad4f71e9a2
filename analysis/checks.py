"""Self-checks of a model before it is measured: are its heads where `head_sites` says they are?

A model whose layout is not understood fails here, by the name of the block, not with wrong scores.
Shape letters: T tokens, H heads, D head size, K key-value heads, d hidden size.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from analysis.engine import Batch, CleanRun, clean_run
from kernels.errors import ModelError, UnsupportedArchitecture
from midus_model import BlockEnd, Change, HeadSite, blocks, finish_block, head_sites, input_device
from midus_model.lean import rounds_to_fp32
from midus_model.placement import in_float64

LENGTH = 4  # tokens of the text that is run
_checked: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def check_model(model: Any) -> None:
    """A clean run of a few tokens, then each block on its own.

    - Ablating nothing changes nothing: a block finished with its clean head outputs gives the next
      block's input.
    - Heads are where they should be: what is added to the values of a key-value head is added to
      the outputs of the query heads that share it, and to no others.
    - Hooking a site changes what it should: a head changed by a hook in the block's own pass gives
      what finishing the block with that head changed gives.

    Raises UnsupportedArchitecture, naming the block, where one of these does not hold. A model is
    checked once, unless something is hooked into it.
    """
    if model in _checked and not _touched(model):
        return
    sites = head_sites(model)
    ids = torch.arange(LENGTH, device=input_device(model))[None]
    ids = ids % model.config.vocab_size
    none = torch.zeros(1, LENGTH - 1, dtype=torch.bool, device=ids.device)
    batch = Batch(ids, none, torch.ones_like(ids).bool(), none.long() - 1, torch.zeros(1).long())
    try:
        run = clean_run(model, batch, sites, None)
        for layer in range(len(blocks(model))):
            here = [site for site in sites if site.layer == layer]
            _check_clean(model, run, layer, here)
            _check_values(model, run, layer, here)
            _check_hooks(model, run, layer, here)
    except UnsupportedArchitecture:
        _check_finite(model)  # attention can turn NaN into numbers
        raise
    except (AttributeError, TypeError, IndexError) as error:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} is not laid out as its model type "
            f"{model.config.model_type!r} is: {error}"
        ) from error
    _checked[model] = True


def _touched(model: Any) -> bool:
    """Whether a hook or a replaced `forward` in a block may change what its heads do."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for block in blocks(model)
        for module in block.modules()
    )


def _check_finite(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            raise ModelError(f"{name} has values that are not finite; the model is damaged")


def _check_clean(model: Any, run: CleanRun, layer: int, sites: list[HeadSite]) -> None:
    heads, name = run.heads.get(layer), f"model.layers.{layer}"
    if heads is None:
        raise UnsupportedArchitecture(f"{sites[0].module_name} is not called in a pass")
    last = layer + 1 == len(run.inputs)
    after = run.hidden if last else run.inputs[layer + 1]
    found = finish_block(blocks(model)[layer], run.inputs[layer], heads)
    if not _close(model.model.norm(found) if last else found, after, _rounding(model)):
        raise UnsupportedArchitecture(
            f"{name}: its output is not its input with what its heads and its MLP write; "
            "this block has something that is not known here"
        )


def _check_values(model: Any, run: CleanRun, layer: int, sites: list[HeadSite]) -> None:
    block, size = blocks(model)[layer], sites[0].stop - sites[0].start
    groups = block.self_attn.v_proj.out_features // size
    # where the outputs of attention's heads are seen, each at its own place among all
    asking = block.memory if sites[0].kind == "memory" else sites[0].module
    seen: list[torch.Tensor] = []

    step: list[torch.Tensor] = []

    def raise_values(_: nn.Module, __: tuple, values: torch.Tensor) -> torch.Tensor:
        apart = values.clone().unflatten(-1, (groups, size))  # [1 + K, T, K, D]
        step.append(4 * values.abs().max() + 1)  # well above what rounding does to the values
        for group in range(groups):
            apart[1 + group, :, group] += step[0]
        return apart.flatten(-2)

    hooks = [
        block.self_attn.v_proj.register_forward_hook(raise_values),
        # before whatever else is hooked there changes it
        asking.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True),
    ]
    try:
        block(run.inputs[layer].repeat(1 + groups, 1, 1), **run.calls[layer])
    finally:
        for hook in hooks:
            hook.remove()
    clean, raised = seen[0][:1], seen[0][1:]
    rise = (raised - clean).unflatten(-1, (-1, size))  # [K, T, H, D]
    expected = torch.zeros_like(rise)
    whole = groups == model.config.num_key_value_heads
    used = range(groups) if whole else sorted({site.kv_head for site in sites})
    places = [(used.index(site.kv_head), site.head) for site in sites]
    for own, place in places:
        expected[own, :, place] = step[0]
    measured = [place for _, place in places]
    if not _close(rise[:, :, measured], expected[:, :, measured], _rounding(model)):
        raise UnsupportedArchitecture(
            f"model.layers.{layer}: raising a key-value head's values does not raise the outputs "
            "of its own query heads alone; the heads are not where they should be"
        )


def _check_hooks(model: Any, run: CleanRun, layer: int, sites: list[HeadSite]) -> None:
    block, count = blocks(model)[layer], len(sites)
    inputs, heads = run.inputs[layer], run.heads[layer]
    change = torch.linspace(-1, 1, sites[0].stop - sites[0].start, device=heads.device)
    changed, changes = heads.repeat(count, 1, 1), []
    for row, site in enumerate(sites):
        span = slice(site.start, site.stop)
        changed[row, :, span] += change.to(changed.dtype)
        changes.append([Change(span, changed[row : row + 1, :, span])])
    hook = sites[0].module.register_forward_pre_hook(lambda _, args: (changed, *args[1:]))
    try:
        hooked = block(inputs.repeat(count, 1, 1), **run.calls[layer])
    finally:
        hook.remove()
    for low_rank in (False, True):
        finished = BlockEnd(block, inputs, heads, low_rank=low_rank).changed(changes)
        if not _close(hooked, finished, _rounding(model)):
            raise UnsupportedArchitecture(
                f"model.layers.{layer}: a hook at {sites[0].module_name} does not change the "
                "block's output as it should"
            )


def _rounding(model: Any) -> float:
    """By how much a step of the model rounds: a float64 one's norms may do it in fp32."""
    islands = model.dtype == torch.float64 and rounds_to_fp32(model.model.norm)
    return torch.finfo(torch.float32 if islands else model.dtype).eps


def _close(a: torch.Tensor, b: torch.Tensor, rounding: float) -> bool:
    """Equal but for rounding, by their norms; what is not finite is for the losses to report."""
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return True
    allowed = 16 * rounding * in_float64(b).norm()
    return bool(in_float64(a - b).norm() <= allowed)
