"""Which heads to give memory: by rule from a ranking, within a budget, and as a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from kernels.errors import HeadError
from workbench.hints import typed

Head = tuple[int, int]  # layer of the base model, head


def top_heads(ranking: pd.DataFrame, count: int) -> list[Head]:
    """The first `count` heads of a ranking."""
    if not 1 <= count <= len(ranking):
        raise HeadError(f"count is {count}; it must be between 1 and {len(ranking)}, all heads")
    return _pairs(ranking.head(count))


def sure_heads(ranking: pd.DataFrame, chance: float) -> list[Head]:
    """Heads whose chance of belonging to the top set is at least `chance`, best first."""
    if "p_top" not in ranking:
        raise HeadError("this table has no chances (p_top); give one that rank_heads returns")
    return _pairs(ranking[ranking["p_top"] >= chance])


def heads_of_role(ranking: pd.DataFrame, roles: pd.DataFrame, role: str) -> list[Head]:
    """Heads that carry a role, in the ranking's order."""
    known = set(_pairs(roles[roles["role"] == role]))
    return [pair for pair in _pairs(ranking) if pair in known]


def added_parameters(config: Any, heads: Iterable[Head], num_keys: int, latent_dim: int) -> int:
    """Parameters that `upscale(heads=...)` adds: one block after each layer with a chosen head."""
    from midus_model.budgets import block_parameters

    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    return sum(
        block_parameters(config, sorted(here), num_keys, latent_dim) for here in by_layer.values()
    )


def heads_within(
    ranking: pd.DataFrame, config: Any, parameters: int, num_keys: int, latent_dim: int
) -> list[Head]:
    """The best heads whose memories add at most so many parameters; a head too dear is passed over.

    The first head of a layer costs its block's bank as well, so a cheaper head further down may
    still fit.
    """
    chosen: list[Head] = []
    for pair in _pairs(ranking):
        if added_parameters(config, [*chosen, pair], num_keys, latent_dim) <= parameters:
            chosen.append(pair)
    return chosen


def ranking_json(ranking: pd.DataFrame, heads: Sequence[Head]) -> dict[str, Any]:
    """What `midus upscale --heads` reads: the heads, and the score of each."""
    known = dict(zip(_pairs(ranking), ranking["score"], strict=True))
    return {"heads": [list(head) for head in heads], "scores": [float(known[h]) for h in heads]}


def upscale_command(
    model: str, path: str, output: str, num_keys: int, top_k: int, latent_dim: int
) -> str:
    """The shell command that gives the heads in the file `path` memory."""
    words = [model, "-o", output, "--heads", path]
    sizes = {"--num-keys": num_keys, "--top-k": top_k, "--latent-dim": latent_dim}
    return typed("upscale", *words, *(str(word) for pair in sizes.items() for word in pair))


def _pairs(table: pd.DataFrame) -> list[Head]:
    return [
        (int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)
    ]
