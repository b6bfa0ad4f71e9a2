"""What a model costs: parameters, compute and bytes a token by component; latency where asked.

The formulas and what they leave out are in docs/costs.md. Shape letters: d hidden size, H query
heads, G key-value heads, D head size, f FFN size, V vocabulary, M memory heads, n sub-keys a half,
N = n * n slots, k slots read, r latent size, C context.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

import midus_model
from analysis import tables
from analysis.documents import MAX_CONTEXT
from kernels.errors import MidusError, UnsupportedArchitecture
from midus_model.budgets import attention_parameters, block_parameters
from midus_model.config import SUPPORTED_BASES, head_dim_of, layer_map_of, sizes_of
from midus_model.making import making
from midus_model.maps import check_writable
from midus_model.memory import HeadwiseMemory
from midus_model.placement import input_device, is_offloaded, synchronize
from midus_model.sites import blocks as blocks_of
from midus_model.sites import family
from midus_model.stored import distinct_parameters, numbers_in

COMPONENTS = ("embeddings", "attention", "ffn", "norms", "memory", "lm_head")
MEASURES = ("parameters", "flops_per_token", "weight_bytes_per_token", "kv_bytes_per_token")
REPEATS = 5
# Where a parameter or a module belongs, by the first of these that its name holds.
_PLACES = (
    ("embed_tokens", "embeddings"),
    ("lm_head", "lm_head"),
    (".memory.", "memory"),
    ("norm", "norms"),
    (".self_attn.", "attention"),
    (".mlp.", "ffn"),
)


def costs(
    model_or_config: Any = None,
    *,
    context: int | None = None,
    dtype: torch.dtype | str | None = None,
    latency: bool = False,
) -> pd.DataFrame:
    """Parameters, FLOPs and bytes a token of every component, and of the whole model.

    Args:
        model_or_config: a name or directory that `midus_model.load` takes (its weights are read
            for latency only), a configuration, or a model, also on the meta device; by default
            the shipped "pico-midus".
        context: tokens, C; by default the model's, at most 1,024.
        dtype: of weights and cache, such as "bfloat16"; by default the model's own, or what
            `midus_model.load` would give it.
        latency: also measure prefill and decode, in `attrs["latency_ms"]`. From a configuration
            this makes the whole model, with random weights, on the CPU.

    Returns:
        A row a component (embeddings, attention, ffn, norms, memory, lm_head, total). Attention
        counts memory blocks' too. Columns:

        blocks: how many blocks have it.
        parameters: of the model, a tied output matrix counted once, as embeddings.
        flops_per_token: of a forward pass, mean over the C positions of a causal window.
        weight_bytes_per_token: weights that the decoding of one token reads; of a bank the M * k
            rows (at most N), of the embeddings one.
        kv_bytes_per_token: keys and values that decoding token C reads.

    Raises:
        MidusError: for arguments that cannot be used.
        UnsupportedArchitecture, ModelError: for a model that is none or of an unknown family.

    >>> costs("pico").set_index("component").loc["total", "parameters"]
    np.int64(2828736)
    """
    dtype = _checked_dtype(dtype)
    model = _model(model_or_config, weights=latency, dtype=dtype)
    family(model)
    check_writable(model, "counted", but=("offloaded", "parametrised", "bitsandbytes"))
    asked = "pico-midus" if model_or_config is None else model_or_config
    context = _checked_context(context, model.config)
    dtype = dtype or model.dtype
    size = dtype.itemsize
    table = _table(
        model,
        {
            "parameters": _parameters(model),
            "flops_per_token": _flops(model, context),
            "weight_bytes_per_token": _weights_read(model, size),
            "kv_bytes_per_token": {"attention": _cache_read(model, context, size)},
        },
    )
    attrs = tables.json_attrs(
        {
            "schema": tables.SCHEMA,
            "table": "costs",
            "model": tables.display_name(asked),
            "context": context,
            "dtype": str(dtype).removeprefix("torch."),
            "latency_ms": _latency(model, context) if latency else None,
            "versions": tables.versions(),
        }
    )
    table.attrs = dict(attrs.items())
    return table


def parameter_formula(config: PreTrainedConfig) -> int:
    """The closed formula of docs/costs.md: parameters of a base or an up-scaled configuration.

    Raises UnsupportedArchitecture for other families and kinds of block.
    """
    name = getattr(config, "base_model_type", None) or config.model_type
    if name not in SUPPORTED_BASES:
        raise UnsupportedArchitecture(
            f"there is no formula for model type {name!r}; supported are "
            f"{', '.join(SUPPORTED_BASES)}"
        )
    embeddings = config.vocab_size * config.hidden_size
    total = embeddings * (1 if config.tie_word_embeddings else 2) + config.hidden_size
    for entry, sizes in zip(layer_map_of(config), sizes_of(config), strict=True):
        if entry["kind"] == "memory":
            n, r = config.num_keys, config.latent_dim
            if sizes is not None:
                n, r = sizes["num_keys"], max(sizes["latent_dim"])
            total += block_parameters(config, entry["heads"], n, r, config.output_mixing)
        elif entry["kind"] == "dense":
            raise UnsupportedArchitecture(
                "there is no formula for blocks of kind 'dense'; costs() counts them"
            )
        else:
            total += attention_parameters(config) + _rest_of_layer_formula(config)
    return total


def _rest_of_layer_formula(config: Any) -> int:
    """Output projection, second norm and FFN of an ordinary block."""
    d, f = config.hidden_size, config.intermediate_size
    output = config.num_attention_heads * head_dim_of(config) * d
    output += d if getattr(config, "attention_bias", False) else 0
    biases = 2 * f + d if getattr(config, "mlp_bias", False) else 0
    return output + d + 3 * d * f + biases


# ---------------------------------------------------------------- what is measured


def _model(given: Any, weights: bool, dtype: torch.dtype | None) -> Any:
    """The model to count: as given, read, or made from its configuration (on the meta device)."""
    given = "pico-midus" if given is None else given
    if isinstance(given, nn.Module):
        if weights:
            _check_can_run(given, dtype)
        return given
    if isinstance(given, (str, Path)):
        if weights:
            return midus_model.load(given, dtype=dtype)
        given = midus_model.load_config(given)
    if not isinstance(given, PreTrainedConfig):
        raise MidusError(
            f"costs() takes a model, a configuration, a name or a directory; "
            f"got {type(given).__name__}"
        )
    return _from_config(given, "cpu" if weights else "meta", dtype)


def _check_can_run(model: Any, dtype: torch.dtype | None) -> None:
    if is_offloaded(model):
        raise MidusError(
            "the model lies in part on disk, whose latency is no model's; load it whole"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise MidusError(
            "latency cannot be measured on the meta device; load the model's weights first"
        )
    if dtype not in (None, model.dtype):
        raise MidusError(
            f"latency is measured in the model's own {model.dtype}, not in {dtype}; convert the "
            "model first, or give its name"
        )


def _from_config(config: Any, device: str, dtype: torch.dtype | None) -> Any:
    name = getattr(config, "base_model_type", None) or config.model_type
    if name not in SUPPORTED_BASES:
        raise UnsupportedArchitecture(
            f"model type {name!r} is not supported; supported are {', '.join(SUPPORTED_BASES)}"
        )
    if dtype is None:  # as `midus_model.load` does
        stored = getattr(config, "dtype", None)
        dtype = torch.float32 if stored in (None, torch.float16) else stored
    with making(), torch.device(device):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval()


def _checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(known, torch.dtype) and known.is_floating_point):
        return known
    raise MidusError(f"dtype is {dtype!r}; give a float type such as 'float32' or 'bfloat16'")


def _checked_context(context: Any, config: Any) -> int:
    longest = int(config.max_position_embeddings)
    if context is None:
        return min(longest, MAX_CONTEXT)
    if isinstance(context, bool) or not hasattr(context, "__index__"):
        raise MidusError(f"context is {context!r}; it must be a whole number of tokens")
    if not 1 <= int(context) <= longest:
        raise MidusError(f"context is {context}; it must be between 1 and the model's {longest}")
    return int(context)


# ---------------------------------------------------------------- counting


def _component(name: str) -> str:
    for part, component in _PLACES:
        if part in name:
            return component
    raise UnsupportedArchitecture(f"{name} belongs to no component that is known: {COMPONENTS}")


def _parameters(model: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, module, key in distinct_parameters(model):  # a tied matrix is listed once
        found[_component(name)] += numbers_in(module.get_parameter(key))
    return found


def _flops(model: Any, context: int) -> Counter[str]:
    """Two a multiply-add; norms, activations, softmax, rotary embeddings and sorting left out."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[_component(name)] += 2 * numbers_in(module.weight)
        elif isinstance(module, HeadwiseMemory):
            found["memory"] += memory_flops(module)
    for (width, _), window in zip(_widths(model), _attention_windows(model), strict=True):
        # scores and weighted values, a multiply-add each per key and channel
        found["attention"] += round(4 * width * mean_keys(context, window))
    return found


def memory_flops(memory: HeadwiseMemory) -> int:
    """FLOPs of one token's read by all of a memory's heads; output mixing is counted apart.

    As they are done: a head with fewer slots or columns than its block's largest is masked, so it
    costs as much as that one.
    """
    heads, n, half = memory.row_keys.shape
    r, k = memory.bank.shape[1], memory.top_k
    scores, pairs = 4 * heads * n * half, heads * k * k
    gather, expand = 2 * heads * k * r, 4 * heads * r * half
    return scores + pairs + gather + expand


def mean_keys(context: int, window: int | None = None) -> float:
    """Keys that a token sees, mean over positions 1..C, with attention to `window` at most."""
    seen = min(context, window or context)
    return (seen * (seen + 1) / 2 + (context - seen) * seen) / context


def _widths(model: Any) -> list[tuple[int, int]]:
    """Each block's heads * D of queries, and of the keys that its cache holds."""
    found = []
    for block in blocks_of(model):
        width = block.self_attn.q_proj.out_features
        found.append((width, width // block.self_attn.num_key_value_groups))
    return found


def _attention_windows(model: Any) -> list[int | None]:
    """Each block's sliding window, None where attention is full."""
    config, count = model.config, len(blocks_of(model))
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _weights_read(model: Any, size: int) -> dict[str, int]:
    """Bytes of weights that a decoded token reads, `size` a number, or as they are packed."""

    def stored(parameter: Any) -> int:
        return parameter.numel() * (
            size if parameter.is_floating_point() else parameter.element_size()
        )

    read: Counter[str] = Counter()
    for name, module, key in distinct_parameters(model):
        read[_component(name)] += stored(module._parameters[key])
    read["embeddings"] = model.config.hidden_size * size
    read["lm_head"] = stored(model.lm_head.weight)  # also where it is tied
    for module in model.modules():
        if isinstance(module, HeadwiseMemory):
            slots, r = module.bank.shape
            unread = slots - min(slots, len(module.heads) * module.top_k)
            read["memory"] -= unread * r * size
    return dict(read)


def _cache_read(model: Any, context: int, size: int) -> int:
    pairs = zip(_widths(model), _attention_windows(model), strict=True)
    return sum(2 * width * size * min(context, window or context) for (_, width), window in pairs)


def _table(model: Any, measures: dict[str, Any]) -> pd.DataFrame:
    layers: list[Any] = list(blocks_of(model))
    having = {
        "attention": sum(hasattr(block, "self_attn") for block in layers),
        "ffn": sum(hasattr(block, "mlp") for block in layers),
        "norms": len(layers),
        "memory": sum(hasattr(block, "memory") for block in layers),
    }
    rows: list[dict[str, Any]] = [
        {"component": name, "blocks": having.get(name, 0)}
        | {measure: int(measures[measure].get(name, 0)) for measure in MEASURES}
        for name in COMPONENTS
    ]
    total = {measure: sum(row[measure] for row in rows) for measure in MEASURES}
    return pd.DataFrame([*rows, {"component": "total", "blocks": len(layers), **total}])


# ---------------------------------------------------------------- latency


@torch.inference_mode()
def _latency(model: Any, context: int) -> dict[str, Any]:
    """Median milliseconds to read C tokens, and to decode one after them; batch of one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, context), generator=generator)
    device = input_device(model)
    ids = ids.to(device)
    training = model.training
    model.eval()
    try:
        prefill = _median(device, lambda: model(ids, use_cache=True, logits_to_keep=1))
        # Decoding stays inside the context: its last REPEATS positions, and one to warm up.
        before = max(1, context - REPEATS - 1)
        cache = model(ids[:, :before], use_cache=True, logits_to_keep=1).past_key_values
        decode = _median(device, lambda: model(ids[:, -1:], past_key_values=cache, use_cache=True))
    finally:
        model.train(training)
    return {
        "prefill": prefill,
        "decode": decode,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "repeats": REPEATS,
        "batch": 1,
    }


def _median(device: torch.device, call: Callable[[], Any]) -> float:
    """Median wall time of REPEATS calls after one that is not counted, in milliseconds."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])
