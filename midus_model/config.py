"""Configuration of an up-scaled model: the base's own fields, and what was inserted."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kernels.errors import UnsupportedArchitecture, UpscaleError

SUPPORTED_BASES = ("llama", "qwen3", "mistral")
KINDS = ("base", "memory", "copy", "merged", "dense")
OUTPUT_MIXINGS = ("none", "linear")
KEY_INITS = ("uniform", "queries")
SIZES = ("num_keys", "top_k", "latent_dim")


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


def sizes_of(config: PreTrainedConfig) -> list[dict[str, Any] | None]:
    """`config.memory_sizes`, one entry a block; None where a block has the uniform sizes."""
    known = getattr(config, "memory_sizes", None)
    return known or [None] * len(layer_map_of(config))


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
        memory_sizes: None where these three hold everywhere; else they are the largest, and each
            memory block has an entry `{num_keys, top_k, latent_dim}`, the latter two lists with a
            number a memory head; other blocks have None.
        output_mixing: "none" (heads write their own slice of the stream) or "linear".
        key_init: how sub-keys started; "uniform" is +-(D/2)^-1/2 (Lample et al. 2019), "queries"
            from what the heads ask (see `midus_model.keys`).
        base_model_name: what the base is called: a hub id, a shipped name or a folder's name.
    """

    model_type = "midus"
    keys_to_ignore_at_inference = ["past_key_values"]

    base_model_type: str = "llama"
    layer_map: list | None = None
    num_keys: int = 256
    memory_top_k: int = 32
    latent_dim: int = 128
    memory_sizes: list | None = None
    output_mixing: str = "none"
    key_init: str = "uniform"
    base_model_name: str | None = None
    rope_parameters: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.base_model_type not in SUPPORTED_BASES:
            raise UnsupportedArchitecture(
                f"base_model_type is {self.base_model_type!r}; "
                f"supported are {', '.join(SUPPORTED_BASES)}"
            )
        super().__post_init__(**self._with_base_fields(kwargs))
        self.layer_map = layer_map_of(self)
        self._check()

    def _with_base_fields(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Sets the family's fields, as its own configuration makes them; returns what is left over.

        They stand before the base class looks at them: to complete llama3, yarn and longrope it
        reads the context's length. The family's class has read the older spellings (`rope_scaling`,
        `rope_theta`), so they are not read a second time.
        """
        given = dict(kwargs)
        if self.rope_parameters is not None:
            given["rope_parameters"] = self.rope_parameters
        base = CONFIG_MAPPING[self.base_model_type](**given).to_dict()
        inherited = set(PreTrainedConfig().to_dict()) | {"model_type"}
        fields = {key: value for key, value in base.items() if key not in inherited}
        for key, value in fields.items():
            setattr(self, key, value)
        read = {*fields, "rope_scaling", "rope_theta", "partial_rotary_factor"}
        return {key: value for key, value in kwargs.items() if key not in read}

    def _check(self) -> None:
        entries = layer_map_of(self)
        if len(entries) != self.num_hidden_layers:
            raise UpscaleError(
                f"layer_map has {len(entries)} entries for {self.num_hidden_layers} blocks; "
                "it needs one a block"
            )
        _check_sizes(self.num_keys, [self.memory_top_k], [self.latent_dim])
        self._check_memory_sizes(entries)
        if self.output_mixing not in OUTPUT_MIXINGS:
            raise UpscaleError(
                f"output_mixing is {self.output_mixing!r}; it must be one of {OUTPUT_MIXINGS}"
            )
        if self.key_init not in KEY_INITS:
            raise UpscaleError(f"key_init is {self.key_init!r}; it must be one of {KEY_INITS}")
        if head_dim_of(self) % 2:
            raise UpscaleError(f"head size {head_dim_of(self)} is odd; product keys halve it")

    def _check_memory_sizes(self, entries: list[dict[str, Any]]) -> None:
        if self.memory_sizes is None:
            return
        if not isinstance(self.memory_sizes, list) or len(self.memory_sizes) != len(entries):
            raise UpscaleError(
                f"memory_sizes must be a list of {len(entries)} entries, one a block, or null"
            )
        for block, (entry, sizes) in enumerate(zip(entries, self.memory_sizes, strict=True)):
            where = f"block {block} of memory_sizes: "
            if entry["kind"] != "memory":
                if sizes is not None:
                    raise UpscaleError(f"{where}it has no memory, so its entry must be null")
                continue
            heads = entry["heads"]
            count = self.num_attention_heads if heads is None else len(heads)
            if not isinstance(sizes, dict) or set(sizes) != set(SIZES):
                raise UpscaleError(f"{where}its entry must hold {', '.join(SIZES)}; got {sizes!r}")
            by_head = sizes["top_k"], sizes["latent_dim"]
            if not all(isinstance(value, list) and len(value) == count for value in by_head):
                raise UpscaleError(
                    f"{where}top_k and latent_dim must each list a number for its {count} heads"
                )
            _check_sizes(sizes["num_keys"], *by_head, where)


def _check_sizes(num_keys: Any, top_k: list[Any], latent_dim: list[Any], where: str = "") -> None:
    asked = [("num_keys", num_keys)]
    asked += [("top_k", k) for k in top_k] + [("latent_dim", r) for r in latent_dim]
    for name, value in asked:
        if not is_whole(value) or value < 1:
            raise UpscaleError(
                f"{where}{name} is {value!r}; it must be a whole number of at least 1"
            )
    if max(top_k) > num_keys:
        raise UpscaleError(
            f"{where}top_k is {max(top_k)}; it must be between 1 and num_keys = {num_keys}"
        )


AutoConfig.register("midus", MidusConfig)
