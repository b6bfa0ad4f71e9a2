"""Depth up-scaling: new blocks among a base model's layers, the output unchanged bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers.initialization import no_init_weights

from kernels.errors import UpscaleError
from midus_model.attention import chosen_state
from midus_model.budgets import LATENT_DIM, NUM_KEYS, TOP_K, default_mixing, size_fields
from midus_model.card import base_name
from midus_model.config import KEY_INITS, MidusConfig, head_dim_of, is_whole, map_entry
from midus_model.intake import adapter_parts, taken
from midus_model.making import making
from midus_model.maps import check_writable
from midus_model.memory import HeadwiseMemory
from midus_model.modeling import MidusForCausalLM
from midus_model.placement import is_offloaded
from midus_model.sites import blocks as blocks_of
from midus_model.sites import check_heads, chosen_heads, family

METHODS = ("midus", "llama-pro")


def upscale(
    model: Any,
    method: str = "midus",
    *,
    blocks: int | Sequence[int] | None = None,
    placement: str = "after",
    heads: Any = None,
    num_keys: int | Mapping[int, int] = NUM_KEYS,
    top_k: int | Mapping[tuple[int, int], int] = TOP_K,
    latent_dim: int | Mapping[tuple[int, int], int] = LATENT_DIM,
    output_mixing: str | None = None,
    key_init: str = "uniform",
    calibration: Any = None,
    seed: int = 0,
) -> Any:
    """A new, deeper model whose logits equal `model`'s bit for bit; `model` is left as it is.

    Args:
        model: a base model of a supported family, in any dtype, also on the meta device.
        method: "midus" (memory blocks, arXiv 2512.13751) or "llama-pro" (copies whose o_proj and
            down_proj are zero, arXiv 2401.02415; the result is of the base's own class).
        blocks: how many blocks to insert, spread evenly, or the layers at which; by default half
            as many as layers, after layers 1, 3, 5, ...
        placement: "after" or "before" the source layer.
        heads: memory for these heads only: (layer, head) pairs, a ranking, or its JSON. One block
            for each layer that holds one; its attention has the projections of these heads only.
        num_keys: sub-keys a half, n; each bank has n * n slots. Or by source layer, {3: 64, 5: 32}.
        top_k: slots read by each head and token. Or by source layer and head, {(3, 1): 16, ...}.
        latent_dim: width of the bank, r. Or how much of it each head sees, by layer and head; the
            bank is as wide as the largest. `midus_model.budgets` makes all three from a ranking.
        output_mixing: "none", "linear" (an output projection, from the source's o_proj), or by
            default "none" where the heads fill the stream exactly and "linear" where not.
        key_init: "uniform" (at random), or "queries" (from what the heads ask on `calibration`:
            see `midus_model.keys`).
        calibration: token ids for that, [W, T] or a list of [T] tensors.
        seed: of keys and head projections.

    Raises:
        UpscaleError, HeadError, UnsupportedArchitecture: saying what was wrong and what would do.
        ModelError: where weights cannot be copied: quantised, adapted or offloaded ones.
    """
    model = taken(model)
    _check_request(model, method, placement, key_init, calibration)
    by_layer = _heads_by_layer(model, method, blocks, heads)
    kind = "memory" if method == "midus" else "copy"
    layer_map = _layer_map(model.config.num_hidden_layers, kind, by_layer, placement)
    if method == "llama-pro":
        return _build(model, _extended(model, layer_map), layer_map)
    sizes = size_fields(model.config, layer_map, num_keys, top_k, latent_dim)
    config = _midus_config(model, layer_map, output_mixing, key_init=key_init, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = _build(model, config, layer_map)
    if key_init == "queries":
        from midus_model.keys import set_query_keys

        set_query_keys(new, calibration, seed=seed)
    return new


def check_base(model: Any) -> None:
    """Raises UpscaleError or ModelError for a model that cannot be made deeper."""
    family(model)
    if is_offloaded(model) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise UpscaleError(
            "the model lies in parts, on disk or on several devices; load it whole, on one device, "
            "to up-scale it"
        )
    if getattr(model.config, "layer_map", None):
        raise UpscaleError("the model is up-scaled already; give its base")
    if adapted := adapter_parts(model):
        raise UpscaleError(
            f"the model has a live adapter, at {adapted[0]} first; merge it: give what "
            "merge_and_unload() of the PeftModel returns"
        )
    check_writable(model, "copied")


def _check_request(
    model: Any, method: str, placement: str, key_init: str, calibration: Any
) -> None:
    check_base(model)
    if method not in METHODS:
        raise UpscaleError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if placement not in ("after", "before"):
        raise UpscaleError(f"placement is {placement!r}; it must be 'after' or 'before'")
    if key_init not in KEY_INITS:
        raise UpscaleError(f"key_init is {key_init!r}; it must be one of {', '.join(KEY_INITS)}")
    if key_init == "queries" and method != "midus":
        raise UpscaleError(f"method {method!r} has no keys; key_init needs method 'midus'")
    if key_init == "queries" and calibration is None:
        raise UpscaleError(
            "key_init is 'queries', which needs text: give calibration=, token ids [W, T] or a "
            "list of [T] tensors"
        )
    if key_init != "queries" and calibration is not None:
        raise UpscaleError(
            f"calibration is given, but key_init is {key_init!r}; 'queries' makes use of it"
        )


def _heads_by_layer(
    model: Any, method: str, blocks: int | Sequence[int] | None, heads: Any
) -> dict[int, list[int] | None]:
    """Source layer -> its memory heads, None meaning all."""
    if heads is None:
        return dict.fromkeys(_source_layers(model.config.num_hidden_layers, blocks))
    if method != "midus":
        raise UpscaleError(f"method {method!r} copies whole layers; heads= needs method 'midus'")
    if blocks is not None:
        raise UpscaleError("give blocks= or heads=, not both: heads= says which layers get a block")
    pairs = chosen_heads(heads)
    check_heads(model, pairs)
    return {layer: [h for at, h in pairs if at == layer] for layer, _ in pairs}


def _source_layers(layers: int, blocks: Any) -> list[int]:
    if blocks is None:
        blocks = max(1, layers // 2)
    if is_whole(blocks):
        if not 1 <= blocks <= layers:
            raise UpscaleError(f"blocks is {blocks}; it must be between 1 and {layers} (layers)")
        return [(i + 1) * layers // blocks - 1 for i in range(blocks)]
    if (
        isinstance(blocks, str)
        or not isinstance(blocks, Iterable)
        or not all(map(is_whole, blocks))
    ):
        raise UpscaleError(
            f"blocks is {blocks!r}; it must be a number of blocks or a list of layers"
        )
    chosen = sorted({int(layer) for layer in blocks})
    if not chosen or chosen[0] < 0 or chosen[-1] >= layers or len(chosen) != len(list(blocks)):
        raise UpscaleError(f"blocks is {list(blocks)}; it must name layers of 0-{layers - 1}, once")
    return chosen


def _layer_map(
    layers: int, kind: str, by_layer: dict[int, list[int] | None], placement: str
) -> list[dict[str, Any]]:
    entries = []
    for layer in range(layers):
        here = [map_entry("base", layer)]
        if layer in by_layer:
            here.insert(placement == "after", map_entry(kind, layer, by_layer[layer]))
        entries += here
    return entries


def _extended(model: Any, layer_map: list[dict[str, Any]]) -> Any:
    """A copy of the model's configuration that counts every block.

    Per-layer fields are extended by source layer; embeddings are called tied where they are.
    """
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    config.base_model_name = base_name(model)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[entry["source"][0]] for entry in layer_map]
    config.num_hidden_layers = len(layer_map)
    config.layer_map = layer_map
    return config


def _midus_config(
    model: Any, layer_map: list[dict[str, Any]], output_mixing: str | None, **memory: Any
) -> MidusConfig:
    base = model.config
    if output_mixing is None:
        output_mixing = default_mixing(base)
    if output_mixing == "none" and default_mixing(base) != "none":
        raise UpscaleError(
            f"output_mixing is 'none', but {base.num_attention_heads} heads of {head_dim_of(base)} "
            f"do not fill the hidden size {base.hidden_size}; 'linear' would do"
        )
    fields = _extended(model, layer_map).to_dict()
    for key in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        fields.pop(key, None)
    config = MidusConfig(
        base_model_type=base.model_type, output_mixing=output_mixing, **memory, **fields
    )
    config._attn_implementation = base._attn_implementation
    return config


def _build(model: Any, config: Any, layer_map: list[dict[str, Any]]) -> Any:
    """The new model, every block filled from its source; memory parameters freshly drawn."""
    kind = MidusForCausalLM if isinstance(config, MidusConfig) else type(model)
    with making(model.dtype), no_init_weights(), torch.device(model.device):
        new = kind(config)
    for name, child in model.model.named_children():  # rotary buffers too, whatever their dtype
        if name != "layers":
            setattr(new.model, name, _copied(child, new.config))
    new.lm_head = copy.deepcopy(model.lm_head)
    sources = blocks_of(model)
    for entry, block in zip(layer_map, new.model.layers, strict=True):
        _fill(block, sources[entry["source"][0]], entry)
    new.tie_weights()
    new.generation_config = copy.deepcopy(model.generation_config)
    # The base's name finds the tokenizer until the new model is saved under its own.
    new.name_or_path = new.config.name_or_path = model.name_or_path
    return new.train(model.training)


def _copied(child: Any, config: Any) -> Any:
    """A copy that reads the new model's configuration, as it will once saved and loaded."""
    copied = copy.deepcopy(child)
    if hasattr(copied, "config"):
        copied.config = config
    return copied


@torch.no_grad()
def _fill(block: Any, source: Any, entry: dict[str, Any]) -> None:
    if entry["kind"] != "memory":
        block.load_state_dict(source.state_dict())
        if entry["kind"] == "copy":
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                for parameter in projection.parameters():
                    parameter.zero_()
        return
    block.input_layernorm.load_state_dict(source.input_layernorm.state_dict())
    attention = source.self_attn.state_dict()
    block.self_attn.load_state_dict(
        chosen_state(attention, source.self_attn.config, entry["heads"])
    )
    memory: HeadwiseMemory = block.memory
    memory.reset_parameters()
    if memory.out_proj is not None:
        memory.out_proj.weight.copy_(attention["o_proj.weight"])
