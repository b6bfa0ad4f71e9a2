"""How large each memory is: the same everywhere, or by block and head, shared out by importance.

Symbols: n sub-keys a half (n * n slots), k slots that a head reads, r columns of the bank that it
sees, D head size, M memory heads of a block, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.errors import HeadError, UpscaleError
from midus_model.attention import sharers_of
from midus_model.config import head_dim_of, is_whole
from midus_model.intake import config_of
from midus_model.sites import chosen_heads

Head = tuple[int, int]  # source layer, head
NUM_KEYS, TOP_K, LATENT_DIM = 256, 32, 128

# ---------------------------------------------------------------- what a block holds


def default_mixing(config: Any) -> str:
    """ "none" where the heads fill the stream exactly, "linear" where they do not."""
    width = config.num_attention_heads * head_dim_of(config)
    return "none" if width == config.hidden_size else "linear"


def attention_parameters(config: Any, heads: Sequence[int] | None = None) -> int:
    """Parameters of a block's input norm and of its attention up to the outputs of `heads`."""
    chosen = range(config.num_attention_heads) if heads is None else heads
    size = head_dim_of(config)
    width = (len(chosen) + 2 * len(sharers_of(config, chosen))) * size
    bias = width if getattr(config, "attention_bias", False) else 0
    family = getattr(config, "base_model_type", None) or config.model_type
    norms = 2 * size if family == "qwen3" else 0
    return config.hidden_size * (1 + width) + bias + norms


def block_parameters(
    config: Any,
    heads: Sequence[int] | None,
    num_keys: int,
    latent_dim: int,
    output_mixing: str | None = None,
) -> int:
    """Parameters of one memory block: input norm, Attn', keys, bank, head projections, mixing.

    Args:
        config: of the base, or of an up-scaled model.
        heads: the block's memory heads; None means all.
        num_keys, latent_dim: n, and the largest r of its heads: rows of a projection that a head
            with a smaller r does not use are zero, and stored. k costs nothing here.
        output_mixing: by default as `upscale` chooses it.
    """
    count, size = config.num_attention_heads if heads is None else len(heads), head_dim_of(config)
    memory = count * size * (num_keys + latent_dim) + num_keys**2 * latent_dim
    if (output_mixing or default_mixing(config)) == "linear":
        memory += config.num_attention_heads * size * config.hidden_size
    return attention_parameters(config, heads) + memory


# ---------------------------------------------------------------- sizes as a configuration has them


def size_fields(
    config: Any, layer_map: Sequence[dict[str, Any]], num_keys: Any, top_k: Any, latent_dim: Any
) -> dict[str, Any]:
    """The configuration's fields of size, from what `upscale` is given: numbers, or numbers by key.

    Raises UpscaleError for a mapping that leaves out a block or head with memory, or has others.
    """
    chosen = {
        entry["source"][0]: list(range(config.num_attention_heads))
        if entry["heads"] is None
        else sorted(entry["heads"])
        for entry in layer_map
        if entry["kind"] == "memory"
    }
    pairs = [(layer, head) for layer, heads in chosen.items() for head in heads]
    n = _by_key("num_keys", num_keys, list(chosen), "layer")
    k = _by_key("top_k", top_k, pairs, "head (layer, head)")
    r = _by_key("latent_dim", latent_dim, pairs, "head (layer, head)")
    sizes: list[dict[str, Any] | None] = []
    for entry in layer_map:
        layer = entry["source"][0]
        here = [(layer, head) for head in chosen[layer]] if entry["kind"] == "memory" else []
        by_head = {"top_k": [k[head] for head in here], "latent_dim": [r[head] for head in here]}
        sizes.append({"num_keys": n[layer], **by_head} if here else None)
    uniform = all(_are_equal(by_key.values()) for by_key in (n, k, r))
    return {
        "num_keys": _largest(n),
        "memory_top_k": _largest(k),
        "latent_dim": _largest(r),
        "memory_sizes": None if uniform else sizes,
    }


def _by_key(name: str, given: Any, keys: Sequence[Any], what: str) -> dict[Any, Any]:
    """`given` for each of `keys`; a number goes for all of them."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(keys, _plain(given))
    found = {_plain_key(key): _plain(value) for key, value in given.items()}
    missing, foreign = [key for key in keys if key not in found], set(found) - set(keys)
    if missing or foreign:
        key, says = (missing[0], "leaves out") if missing else (foreign.pop(), "names")
        raise UpscaleError(
            f"{name} {says} {what} {key}; it must hold every {what.split()[0]} that gets memory "
            f"and no other: {_shown(keys)}"
        )
    return {key: found[key] for key in keys}


def _plain(value: Any) -> Any:
    return int(value) if is_whole(value) else value


def _plain_key(key: Any) -> Any:
    return tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)


def _shown(keys: Sequence[Any], most: int = 8) -> str:
    return ", ".join(map(str, keys[:most])) + (", ..." if len(keys) > most else "")


def _are_equal(values: Any) -> bool:
    first, *rest = values
    return all(value == first for value in rest)


def _largest(by_key: Mapping[Any, Any]) -> Any:
    """The largest size; what is no number is left for the configuration to refuse."""
    odd = [value for value in by_key.values() if not is_whole(value)]
    return odd[0] if odd else max(by_key.values())


# ---------------------------------------------------------------- sharing out by importance


def budgets(
    ranking: Any,
    model: Any,
    *,
    num_keys: int = NUM_KEYS,
    top_k: int = TOP_K,
    latent_dim: int = LATENT_DIM,
    parameters: int | None = None,
) -> dict[str, Any]:
    """Larger memories where the heads matter more, for no more parameters than equal ones cost.

    The rule, negative scores counting 0:

    - A head's k and r are `top_k` and `latent_dim` doubled, kept or halved, whichever power of two
      is nearest to its score over the mean score of the chosen heads; k at most `num_keys`.
    - A block's n * n slots are in proportion to the sum of its heads' scores, within a quarter and
      four times the mean block's: n = c * num_keys * sqrt(share), the nearest even number, at least
      the largest k of its heads. c is the largest that keeps the sum within `parameters`.

    k and r of a head are set by masks in a block as large as its largest head, so more of them for
    one head in a block costs what it costs for all; what is saved is saved between blocks.

    Args:
        ranking: a table with columns layer, head and score of the base's heads: of a ranking the
            top set counts (`attrs["top"]`), of other tables every row.
        model: the base, its configuration, or what `midus_model.load` takes.
        num_keys, top_k, latent_dim: the equal sizes to compare with.
        parameters: of all inserted blocks, Attn' included; by default what the equal sizes cost.

    Returns:
        heads, num_keys {layer: n}, top_k {(layer, head): k} and latent_dim {(layer, head): r}, as
        `upscale(model, **budgets(...))` takes them.

    Raises:
        HeadError: a table without these columns, or of an up-scaled model.
        UpscaleError: sizes that are none, or parameters that do not hold the smallest blocks.
    """
    config = _config_of(model)
    asked = {"num_keys": num_keys, "top_k": top_k, "latent_dim": latent_dim}
    for name, value in asked.items():
        if not is_whole(value) or value < 1:
            raise UpscaleError(f"{name} is {value!r}; it must be a whole number of at least 1")
    scores = _scores(ranking)
    steps = _steps(scores)
    k = {head: min(num_keys, max(1, int(top_k * 2.0**step))) for head, step in steps.items()}
    r = {head: max(1, int(latent_dim * 2.0**step)) for head, step in steps.items()}
    by_layer: dict[int, list[int]] = {}
    for layer, head in scores:
        by_layer.setdefault(layer, []).append(head)
    if parameters is None:
        parameters = sum(
            block_parameters(config, heads, num_keys, latent_dim) for heads in by_layer.values()
        )
    return {
        "heads": list(scores),
        "num_keys": _slots(config, by_layer, _roots(scores), k, r, num_keys, parameters),
        "top_k": k,
        "latent_dim": r,
    }


def _config_of(model: Any) -> Any:
    from midus_model.loading import load_config

    if isinstance(model, str | Path):
        return load_config(model)
    found = config_of(model)
    return model if found is None else found


def _scores(ranking: Any) -> dict[Head, float]:
    """Importance of the chosen heads, by layer and head; negative ones are 0."""
    columns = list(getattr(ranking, "columns", []))
    if not {"layer", "head", "score"} <= set(columns):
        raise HeadError(
            f"budgets needs a table with columns layer, head and score; got {columns or ranking!r}"
        )
    if "kind" in columns and set(ranking["kind"]) != {"attention"}:
        raise HeadError("the table is of an up-scaled model; give one of its base's heads")
    chosen = set(chosen_heads(ranking))
    rows = zip(ranking["layer"], ranking["head"], ranking["score"], strict=True)
    try:
        found = {(int(layer), int(head)): float(score) for layer, head, score in rows}
    except (TypeError, ValueError) as error:
        raise HeadError(f"the scores must be numbers: {error}") from error
    if not all(map(math.isfinite, found.values())):
        raise HeadError("the table has scores that are not finite; measure them anew")
    return {head: max(0.0, found[head]) for head in sorted(chosen)}


def _steps(scores: Mapping[Head, float]) -> dict[Head, int]:
    """-1, 0 or 1: the power of two nearest to each head's share of the mean score."""
    mean = sum(scores.values()) / len(scores)
    if mean == 0:
        return dict.fromkeys(scores, 0)
    found = {}
    for head, score in scores.items():
        step = round(math.log2(score / mean)) if score > 0 else -1
        found[head] = min(1, max(-1, step))
    return found


def _roots(scores: Mapping[Head, float]) -> dict[int, float]:
    """Square root of each block's importance over the mean block's, 1/2 to 2."""
    total: dict[int, float] = {}
    for (layer, _), score in scores.items():
        total[layer] = total.get(layer, 0.0) + score
    mean = sum(total.values()) / len(total)
    if mean == 0:
        return dict.fromkeys(total, 1.0)
    return {layer: math.sqrt(min(4.0, max(0.25, value / mean))) for layer, value in total.items()}


def _slots(
    config: Any,
    by_layer: Mapping[int, Sequence[int]],
    roots: Mapping[int, float],
    k: Mapping[Head, int],
    r: Mapping[Head, int],
    num_keys: int,
    parameters: int,
) -> dict[int, int]:
    """n of each block: the largest common scale whose blocks together fit into `parameters`."""

    def scaled(scale: float) -> dict[int, int]:
        least = {layer: max(k[layer, h] for h in heads) for layer, heads in by_layer.items()}
        return {
            layer: 2 * max(1, math.ceil(least[layer] / 2), round(scale * num_keys * root / 2))
            for layer, root in roots.items()
        }

    def total(slots: Mapping[int, int]) -> int:
        return sum(
            block_parameters(config, heads, slots[layer], max(r[layer, h] for h in heads))
            for layer, heads in by_layer.items()
        )

    least = total(scaled(0.0))
    if parameters < least:
        raise UpscaleError(
            f"parameters is {parameters:,}, but the smallest memories of these heads take "
            f"{least:,}; give that much, fewer heads, or a smaller top_k or latent_dim"
        )
    low, high = 0.0, 1.0
    while total(scaled(high)) <= parameters:
        low, high = high, 2 * high
    for _ in range(40):  # far below a step of any block
        middle = (low + high) / 2
        low, high = (middle, high) if total(scaled(middle)) <= parameters else (low, middle)
    return scaled(low)
