"""The one place that knows where heads are."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kernels.errors import HeadError, UnsupportedArchitecture
from kernels.reading import read_json, said
from midus_model.config import SUPPORTED_BASES, head_dim_of, layer_map_of
from midus_model.intake import taken

STAGES = ("output", "query")


@dataclass(frozen=True)
class HeadSite:
    """One head: `module`'s input [B, T, H*D] carries its output at `start:stop`, unmixed.

    `kv_head` is the key-value head that it shares with the other query heads of its group.
    """

    layer: int
    kind: str  # "attention" | "memory"
    head: int
    source_layer: int
    module_name: str
    module: nn.Module
    start: int
    stop: int
    kv_head: int


def family(model: Any) -> str:
    """Family of a base or up-scaled model, one of SUPPORTED_BASES; else UnsupportedArchitecture."""
    model = taken(model)
    config = getattr(model, "config", None)
    name = getattr(config, "base_model_type", None) or getattr(config, "model_type", None)
    if name not in SUPPORTED_BASES or not hasattr(model, "lm_head"):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} (model type {name!r}) is not supported; "
            f"give a causal language model of a family among {', '.join(SUPPORTED_BASES)}"
        )
    return name


def blocks(model: Any) -> Any:
    """The decoder blocks, in the order they run."""
    model = taken(model)
    family(model)
    return model.model.layers


def head_sites(model: Any, stage: str = "output") -> list[HeadSite]:
    """Every head of `model`, by block, then head.

    An attention head's site is the input of its `o_proj`; a memory head's the input of the
    parameterless `memory.out`, or with stage "query" the input of `memory`, where the head's query
    is. Slicing after `o_proj` would mix heads.

    Raises UnsupportedArchitecture where the model's layout is not understood, naming the block.
    """
    if stage not in STAGES:
        raise HeadError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}")
    model = taken(model)
    stack = blocks(model)
    size, count = head_dim_of(model.config), model.config.num_attention_heads
    shared = count // (getattr(model.config, "num_key_value_heads", None) or count)
    entries = layer_map_of(model.config)
    sites = []
    for layer, (block, entry) in enumerate(zip(stack, entries, strict=True)):
        if entry["kind"] == "memory":
            part = "memory.out" if stage == "output" else "memory"
            if not hasattr(type(block.memory), "added_to"):
                raise UnsupportedArchitecture(
                    f"the memory of model.layers.{layer} is wrapped in a "
                    f"{type(block.memory).__name__}; merge it first (merge_and_unload() in peft)"
                )
            kind, name, module = "memory", part, block.get_submodule(part)
            heads = block.memory.heads
        else:
            kind, name, module = "attention", "self_attn.o_proj", block.self_attn.o_proj
            heads = range(count)
        name = f"model.layers.{layer}.{name}"
        source = entry["source"][0]
        for head in heads:
            span = head * size, (head + 1) * size
            sites.append(HeadSite(layer, kind, head, source, name, module, *span, head // shared))
    return sites


def chosen_heads(heads: Any) -> list[tuple[int, int]]:
    """(layer, head) pairs from pairs, from a ranking (its top set), or from the path of its JSON.

    Sorted, each once. Raises HeadError where none of these is given.
    """
    if hasattr(heads, "attrs") and hasattr(heads, "iloc"):
        heads = heads.iloc[: heads.attrs.get("top", len(heads))]
    return sorted(set(head_pairs(heads)))


def head_pairs(heads: Any) -> list[tuple[int, int]]:
    """(layer, head) pairs in the order given: of pairs, all rows of a table, or the path of JSON.

    Raises HeadError where none of these is given.
    """
    if isinstance(heads, str | Path):
        heads = _read_heads(Path(heads))
    if hasattr(heads, "attrs") and hasattr(heads, "iloc"):
        if not {"layer", "head"} <= set(heads.columns):
            raise HeadError(f"a ranking has columns layer and head; got {list(heads.columns)}")
        heads = zip(heads["layer"], heads["head"], strict=True)
    try:
        pairs = [(_whole(layer), _whole(head)) for layer, head in heads]
    except (TypeError, ValueError, OverflowError) as error:
        raise HeadError(
            f"heads must be (layer, head) pairs, a ranking or its JSON; got {reprlib.repr(heads)}"
        ) from error
    if not pairs:
        raise HeadError("no heads were given; give at least one (layer, head) pair")
    return pairs


def _whole(value: Any) -> int:
    """3 from 3 or, as a table may hold it, 3.0."""
    if int(value) != float(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _read_heads(path: Path) -> Iterable[Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise HeadError(f"{path} is no ranking: {said(error)}") from error
    heads = content.get("heads") if isinstance(content, dict) else content
    if heads is None:
        raise HeadError(f"{path} has no 'heads': it must hold a list of [layer, head] pairs")
    return heads


def check_heads(model: Any, pairs: Iterable[tuple[int, int]]) -> None:
    """Raises HeadError for the first pair that `model` does not have."""
    model = taken(model)
    known = {(site.layer, site.head) for site in head_sites(model)}
    for pair in pairs:
        if pair not in known:
            layers, heads = len(blocks(model)), model.config.num_attention_heads
            raise HeadError(
                f"head {pair} does not exist: the model has layers 0-{layers - 1} "
                f"with heads 0-{heads - 1}"
            )
