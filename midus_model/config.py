"""Configuration of an up-scaled model: the base's own fields, and what was inserted."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from midus_model.errors import UnsupportedArchitecture, UpscaleError

SUPPORTED_BASES = ("llama", "qwen3", "mistral")
KINDS = ("base", "memory", "copy", "merged", "dense")
OUTPUT_MIXINGS = ("none", "linear")


def map_entry(kind: str, source: int, heads: list[int] | None = None) -> dict[str, Any]:
    """One block of `config.layer_map`: kind, source layers in the base, memory heads."""
    return {"kind": kind, "source": [source], "heads": heads}


def layer_map_of(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """`config.layer_map`; for an ordinary model every block is a base block of its own."""
    known = getattr(config, "layer_map", None)
    return known or [map_entry("base", layer) for layer in range(config.num_hidden_layers)]


def head_dim_of(config: PreTrainedConfig) -> int:
    """Size of one attention head, D."""
    given = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, numpy's too, and no bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


class MidusConfig(PreTrainedConfig):
    """A base model's configuration with memory blocks in it.

    All fields of the base's configuration stand beside these, `num_hidden_layers` counting every
    block, so that caches, Trainer and generation see what they expect.

    Args:
        base_model_type: "llama", "qwen3" or "mistral".
        layer_map: one `{kind, source, heads}` a block, kind "base" or "memory".
        num_keys: sub-keys a half, n; the bank has N = n * n slots.
        memory_top_k: slots read by each head and token, k (plain `top_k` is a sampling setting).
        latent_dim: width of the bank, r.
        output_mixing: "none" (heads write their own slice of the stream) or "linear".
        key_init: how sub-keys start; "uniform" is +-(D/2)^-1/2 (Lample et al. 2019).
    """

    model_type = "midus"
    keys_to_ignore_at_inference = ["past_key_values"]

    base_model_type: str = "llama"
    layer_map: list | None = None
    num_keys: int = 256
    memory_top_k: int = 32
    latent_dim: int = 128
    output_mixing: str = "none"
    key_init: str = "uniform"
    rope_parameters: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.base_model_type not in SUPPORTED_BASES:
            raise UnsupportedArchitecture(
                f"base_model_type is {self.base_model_type!r}; "
                f"supported are {', '.join(SUPPORTED_BASES)}"
            )
        kwargs = self._with_base_defaults(kwargs)
        super().__post_init__(**kwargs)
        self.layer_map = layer_map_of(self)
        self._check()

    def _with_base_defaults(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = dict(kwargs)
        if self.rope_parameters is not None:
            given["rope_parameters"] = self.rope_parameters
        base = CONFIG_MAPPING[self.base_model_type](**given).to_dict()
        self.rope_parameters = base.pop("rope_parameters", None)
        inherited = set(PreTrainedConfig().to_dict()) | {"model_type", "rope_parameters"}
        return {key: value for key, value in base.items() if key not in inherited} | kwargs

    def _check(self) -> None:
        entries = layer_map_of(self)
        if len(entries) != self.num_hidden_layers:
            raise UpscaleError(
                f"layer_map has {len(entries)} entries for {self.num_hidden_layers} blocks; "
                "it needs one a block"
            )
        asked = {
            "num_keys": self.num_keys,
            "top_k": self.memory_top_k,
            "latent_dim": self.latent_dim,
        }
        for name, value in asked.items():
            if not is_whole(value) or value < 1:
                raise UpscaleError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.memory_top_k > self.num_keys:
            raise UpscaleError(
                f"top_k is {self.memory_top_k}; it must be between 1 and num_keys = {self.num_keys}"
            )
        if self.output_mixing not in OUTPUT_MIXINGS:
            raise UpscaleError(
                f"output_mixing is {self.output_mixing!r}; it must be one of {OUTPUT_MIXINGS}"
            )
        if self.key_init != "uniform":
            raise UpscaleError(f"key_init is {self.key_init!r}; 'uniform' is what there is")
        if head_dim_of(self) % 2:
            raise UpscaleError(f"head size {head_dim_of(self)} is odd; product keys halve it")


AutoConfig.register("midus", MidusConfig)
