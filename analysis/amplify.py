"""Amplification as an intervention: heads' outputs scaled inside a `with`, or in the weights.

The mirror of ablation: a head's output z becomes gain * z, 1 being clean and 0 ablated to zero.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.tables import display_name
from kernels import files, locks
from kernels.errors import HeadError, MidusError, ModelError
from midus_model import (
    blocks,
    check_heads,
    check_writable,
    chosen_heads,
    head_pairs,
    head_sites,
    load,
    load_tokenizer,
)
from midus_model.config import head_dim_of

Head = tuple[int, int]
Gain = float | Sequence[float] | Mapping[Head, float]


def amplify(model: Any, heads: Any, gain: Gain) -> Amplified:
    """Heads whose outputs are scaled: for the length of a `with`, or for good in a copy's weights.

    Args:
        model: what `midus_model.load` takes, base or up-scaled; it is never changed itself.
        heads: (layer, head) pairs in the model's own blocks, a ranking (its top set), or its JSON.
        gain: of all heads, or one a head: in the order of the heads, or by (layer, head). 1 leaves
            a head as it is, 0 silences it.

    Returns:
        An `Amplified`. Inside `with`, every forward pass of its `model` has the gains, `generate`
        too. `.folded()` gives an ordinary model with the gains in its weights, `.save(path)` writes
        one. To measure heads of the amplified model, measure `.folded()`.

    Raises:
        HeadError: for a head that the model does not have, or that is given twice.
        MidusError: where gains are not finite, or not one a head.

    >>> with amplify("pico", [(5, 1)], 1.5) as louder:
    ...     louder.model.training
    False
    """
    network = load(model)
    pairs = _pairs(heads)
    check_heads(network, pairs)
    return Amplified(network, dict(zip(pairs, _gains(gain, pairs), strict=True)))


class Amplified:
    """A model and the gains of some of its heads: see `amplify`.

    Entered again inside its own `with` it stays as it is; two of them multiply where they meet.
    """

    def __init__(self, model: Any, gains: Mapping[Head, float]) -> None:
        self.model, self.gains = model, dict(gains)
        self._hooks: list[Any] = []
        self._entered = 0

    def __enter__(self) -> Amplified:
        if not self._entered:
            modules = {site.layer: site.module for site in head_sites(self.model)}
            self._hooks = [
                modules[layer].register_forward_pre_hook(_Scale(factors))
                for layer, factors in self._factors().items()
            ]
        self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def __repr__(self) -> str:
        return f"Amplified({type(self.model).__name__}, {self.gains})"

    @torch.no_grad()
    def folded(self) -> Any:
        """A deep copy of the model with these gains in its weights, and no hook of any `amplify`.

        An attention head's gain is in its columns of o_proj, a memory head's in its rows of
        head_proj. Raises ModelError where weights cannot be changed and saved: quantised, adapted
        or offloaded ones.
        """
        check_writable(self.model)
        model = copy.deepcopy(self.model)
        _unhook(model)
        stack, size = blocks(model), head_dim_of(model.config)
        for (layer, head), gain in self.gains.items():
            memory = getattr(stack[layer], "memory", None)
            if memory is None:
                span = slice(head * size, (head + 1) * size)
                part = stack[layer].self_attn.o_proj.weight[:, span]  # [d, D]
            else:
                part = memory.head_proj[memory.heads.index(head)]  # [r, D]
            part.copy_(part.double() * gain)  # rounded once, whatever the dtype
        return model

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `folded()` as an ordinary checkpoint, whole or not at all; returns its folder.

        Weights as safetensors, config, the model's tokenizer where one is found, and
        amplified.json, which names the model, the heads and their gains.

        Raises ModelError where something lies at `path` (unless it is a model and `overwrite`),
        where nothing can be written or another process writes, or where `folded` does.
        """
        place = Path(path).expanduser()
        with locks.hold(place, error=ModelError):
            return self._save(place, overwrite)

    def _save(self, place: Path, overwrite: bool) -> Path:
        if place.exists() and not (overwrite and (place / "config.json").is_file()):
            raise ModelError(
                f"{place} exists already; give another folder, or overwrite=True if it is a model"
            )
        folded = self.folded()
        with files.replacing(place, error=ModelError, replace=overwrite) as draft:
            folded.save_pretrained(draft)
            if tokenizer := self._tokenizer():
                tokenizer.save_pretrained(draft)
            (draft / "amplified.json").write_text(json.dumps(self._described(), indent=1) + "\n")
        return place

    def _tokenizer(self) -> Any:
        """The tokenizer that lies where the model was loaded from, if there is one."""
        name = getattr(self.model, "name_or_path", "")
        with suppress(ModelError):
            return load_tokenizer(name) if name else None
        return None

    def _described(self) -> dict[str, Any]:
        return {
            "model": display_name(self.model),
            "heads": [list(pair) for pair in self.gains],
            "gains": list(self.gains.values()),
        }

    def _factors(self) -> dict[int, torch.Tensor]:
        """By block with a gain other than 1, the factor of each channel of its heads: [H*D]."""
        size, count = head_dim_of(self.model.config), self.model.config.num_attention_heads
        factors: dict[int, torch.Tensor] = {}
        for (layer, head), gain in self.gains.items():
            if gain != 1:
                every = factors.setdefault(layer, torch.ones(count * size, dtype=torch.float64))
                every[head * size : (head + 1) * size] = gain
        return factors


class _Scale:
    """A forward pre-hook that scales what comes in, [B, T, H*D], by channel."""

    def __init__(self, factors: torch.Tensor) -> None:
        self.factors = factors

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        heads = args[0]
        wide = torch.promote_types(heads.dtype, torch.float32)  # a gain of 1.1 is none in bf16
        scaled = heads.to(wide) * self.factors.to(heads.device, wide)
        return (scaled.to(heads.dtype), *args[1:])


def _unhook(model: nn.Module) -> None:
    """Take out what a copy brought along of a `with` that it was made in."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Scale)]:
            del hooks[key]


def _pairs(heads: Any) -> list[Head]:
    """The heads in the order given, of a ranking its top set; HeadError where one comes twice."""
    if not isinstance(heads, str | Path) and not hasattr(heads, "iloc"):
        heads = list(heads) if hasattr(heads, "__iter__") else heads  # read twice below
    wanted = chosen_heads(heads)
    pairs = [pair for pair in head_pairs(heads) if pair in set(wanted)]
    if len(pairs) > len(wanted):
        twice = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise HeadError(f"head {twice} is given twice; give each head once")
    return pairs


def _gains(gain: Any, pairs: Sequence[Head]) -> list[float]:
    """One finite gain a head, in the order of `pairs`."""
    if isinstance(gain, Mapping):
        if set(gain) != set(pairs):
            unlike = sorted(set(gain) ^ set(pairs), key=str)
            raise MidusError(f"gain must name the given heads and no others; differing: {unlike}")
        given = [gain[pair] for pair in pairs]
    elif (
        hasattr(gain, "__len__") and not isinstance(gain, str) and getattr(gain, "ndim", None) != 0
    ):
        given = list(gain)
        if len(given) != len(pairs):
            raise MidusError(f"there are {len(given)} gains for {len(pairs)} heads; give one each")
    else:
        given = [gain] * len(pairs)
    try:
        found = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise MidusError(f"gain is {gain!r}; it must be a number, or one a head") from error
    for value in found:
        if not math.isfinite(value):
            raise MidusError(f"a gain is {value}; it must be finite, such as 1.5")
    return found
