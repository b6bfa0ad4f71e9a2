"""MIDUS in TransformerLens 4: an architecture adapter, bridges, and the way back from a bridge.

Found by TransformerLens through the entry point group `transformer_lens.architectures`.
Shape letters: B batch, T tokens, H heads, D head size, M memory heads, k slots read, r latent size,
d hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformer_lens.conversion_utils.conversion_steps import RearrangeTensorConversion
from transformer_lens.conversion_utils.param_processing_conversion import ParamProcessingConversion
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    PositionEmbeddingsAttentionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.supported_architectures import (
    LlamaArchitectureAdapter,
    MistralArchitectureAdapter,
    Qwen3ArchitectureAdapter,
)

from kernels import latent_bag
from kernels.errors import ModelError
from midus_model import MidusForCausalLM, input_device
from midus_model.attention import SpreadHeads, per_head
from midus_model.sites import family

FAMILIES = {
    "llama": LlamaArchitectureAdapter,
    "qwen3": Qwen3ArchitectureAdapter,
    "mistral": MistralArchitectureAdapter,
}
LENGTH = 8  # tokens that a bridge and its plain model are compared on


class MemoryBridge(GeneralizedComponent):
    """A memory layer with hook points; what a hook returns takes the place of what it got.

    - `hook_in` [B, T, H*D] and `hook_query` [B, T, H, D]: the head outputs that ask.
    - `hook_slots` [B, T, M, k] (int64) and `hook_weights` [B, T, M, k]: what is retrieved.
    - `hook_latent` [B, T, M, r]: the weighted rows of the bank.
    - `hook_head_out` [B, T, H, D]: what the heads write, zero for heads without memory.
    - `hook_out` [B, T, d]: what is added to the stream.
    """

    def __init__(self, name: str, optional: bool = False):
        super().__init__(name, optional=optional)
        self.hook_query = HookPoint()
        self.hook_slots = HookPoint()
        self.hook_weights = HookPoint()
        self.hook_latent = HookPoint()
        self.hook_head_out = HookPoint()

    def forward(self, head_outputs: torch.Tensor) -> torch.Tensor:
        memory: Any = self.original_component
        apart = memory.num_heads, memory.head_dim
        query = self.hook_query(self.hook_in(head_outputs).unflatten(-1, apart))
        read = self._read(memory, query[:, :, memory.heads])  # [B, T, M, D]
        places = torch.tensor(memory.heads, device=read.device)
        heads = self.hook_head_out(torch.zeros_like(query).index_copy(2, places, read))
        outputs = memory.out(heads.flatten(-2))
        return self.hook_out(outputs if memory.out_proj is None else memory.out_proj(outputs))

    def _read(self, memory: Any, query: torch.Tensor) -> torch.Tensor:
        """[B, T, M, D] -> [B, T, M, D], the two ops and HIVE with hooks between."""
        shape = query.shape[:2]
        weights, slots = memory.select(query.flatten(0, 1))
        slots = self.hook_slots(slots.unflatten(0, shape)).flatten(0, 1)
        weights = self.hook_weights(weights.unflatten(0, shape)).flatten(0, 1)
        latent = latent_bag(memory.bank, slots, weights, bank_grad=memory.bank_grad)
        latent = self.hook_latent(latent.unflatten(0, shape))
        return torch.einsum("btmr,mrd->btmd", latent, memory.projections).to(query.dtype)

    def added_to(self, residual: torch.Tensor, head_outputs: torch.Tensor) -> torch.Tensor:
        """residual + memory(head_outputs), [B, T, d]; see `HeadwiseMemory.added_to`."""
        return residual + self(head_outputs)


class SharedLinear(nn.Linear):
    """A projection of G*D rows, over the same weights, that gives M heads their group's: M*D."""

    def __init__(self, linear: nn.Linear, group_of: list[int], head_dim: int):
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, len(group_of) * head_dim
        self.group_of, self.head_dim = group_of, head_dim

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return per_head(super().forward(hidden_states), self.group_of, self.head_dim)


class Mixing(nn.Module):
    """What stands in place of a memory block's output projection, as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function
        if isinstance(function, SpreadHeads):
            self.in_features = len(function.heads) * function.head_dim
            self.out_features = function.num_heads * function.head_dim

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.function(outputs)


def _in_modules(attention: Any) -> None:
    """Attn' of a memory block, in place, with all that a bridge wraps or calls in modules."""
    mixing, groups = attention.o_proj, attention.group_of
    if isinstance(mixing, nn.Module):
        return  # done already
    del attention.o_proj
    attention.o_proj = Mixing(mixing)
    if groups is not None:
        for name in ("k_proj", "v_proj"):
            linear = getattr(attention, name)
            setattr(attention, name, SharedLinear(linear, groups, attention.head_dim))
        attention.group_of = None


class MidusAttentionBridge(PositionEmbeddingsAttentionBridge):
    """Attention that in a memory block has no output projection, so no result a head either.

    Where some heads only have memory, hook_q, hook_z and the pattern have those M heads, in order,
    and the block has a configuration of its own that says so.
    """

    def set_original_component(self, component: nn.Module) -> None:
        super().set_original_component(component)
        self.supports_attn_result = isinstance(component.o_proj, nn.Linear)
        spread = getattr(component.o_proj, "function", None)
        if isinstance(spread, SpreadHeads):
            self.config = copy.copy(self.config)
            self.config.n_heads = len(spread.heads)
            shared = component.num_key_value_groups
            self.config.n_key_value_heads = self.config.n_heads // shared

    def _compute_per_head_result(self, z_4d: torch.Tensor, *sizes: int) -> torch.Tensor:
        if self.supports_attn_result:
            return super()._compute_per_head_result(z_4d, *sizes)
        return self.o.hook_out(self.o.original_component(z_4d.flatten(-2)))


class MidusBlockBridge(BlockBridge):
    """A block with an MLP, or with a memory in its place.

    `hook_attn_out` of a memory block is what its memory adds to the stream: attention adds nothing.
    """

    def validate_after_setup(self, skipped: list[str]) -> None:
        if "memory" not in skipped:
            self.hook_aliases = {**self.hook_aliases, "hook_attn_out": "memory.hook_out"}


class MidusArchitectureAdapter(ArchitectureAdapter):
    """TransformerLens's adapter of a MIDUS model with a Llama, Qwen3 or Mistral base."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._follow("llama")  # until the model is seen: `cfg` does not carry the family

    def prepare_model(self, hf_model: Any) -> None:
        self._follow(hf_model.config.base_model_type)
        for block in hf_model.model.layers:
            if hasattr(block, "memory"):
                _in_modules(block.self_attn)
        super().prepare_model(hf_model)

    def _follow(self, base: str) -> None:
        """Take over the components of the family's own adapter."""
        adapter = FAMILIES[base](self.cfg)
        # By the size of a head, not by how many there are: blocks differ in that.
        by_head = RearrangeTensorConversion("(n h) m -> n m h", h=self.cfg.d_head)
        self.weight_processing_conversions = adapter.weight_processing_conversions | {
            f"blocks.{{i}}.attn.{part}.weight": ParamProcessingConversion(by_head) for part in "qkv"
        }
        mapping = dict(adapter.components)
        parts = dict(mapping["blocks"].submodules)
        parts["ln2"].optional = parts["mlp"].optional = True
        attention = parts["attn"].submodules
        parts["attn"] = MidusAttentionBridge("self_attn", self.cfg, submodules=attention)
        parts["memory"] = MemoryBridge("memory", optional=True)
        mapping["blocks"] = MidusBlockBridge("model.layers", self.cfg, parts)
        self.component_mapping = mapping


def bridge(model: Any, tokenizer: Any = None) -> TransformerBridge:
    """See `analysis.adapters.bridge`."""
    family(model)
    name = type(model).__name__
    if name == MidusForCausalLM.__name__:  # for where the entry point is not installed
        ArchitectureAdapterFactory.discover_entry_points()  # or a later look would find it taken
        ArchitectureAdapterFactory.register_adapter(name, MidusArchitectureAdapter)
    copied, tokenizer = copy.deepcopy((model, tokenizer))
    return build_bridge_from_module(copied, name, hf_config=copied.config, tokenizer=tokenizer)


@torch.no_grad()
def plain(bridged: Any) -> Any:
    """A clean model of the same class over the tensors of `bridged`, a model that a bridge changed.

    Raises ModelError where a hook is attached, and, naming the block, where the two do not give the
    same logits.
    """
    family(bridged)
    points = [module for module in bridged.modules() if isinstance(module, HookPoint)]
    hooked = [str(point.name) for point in points if point.has_hooks(dir="fwd")]
    if hooked:
        raise ModelError(
            f"the bridge has hooks at {', '.join(hooked)}, which its weights do not hold; "
            "call reset_hooks(including_permanent=True)"
        )
    config = copy.deepcopy(bridged.config)
    if config._attn_implementation == "eager":  # which TransformerLens asks for, not its weights
        config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = type(bridged)(config)
    for name, module in model.named_modules():
        held = _held(bridged, name)
        shared = isinstance(held, SharedLinear) and type(module) is nn.Linear
        if type(held) is not type(module) and not shared:
            raise ModelError(
                f"{name} of the bridge wraps a {type(held).__name__}, of a {type(model).__name__} "
                f"it is a {type(module).__name__}; hand over the model that the bridge was made of"
            )
        module._parameters, module._buffers = held._parameters.copy(), held._buffers.copy()
    # processing an embedding parts it from the head that was tied to it
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    config.tie_word_embeddings = model.config.tie_word_embeddings = tied
    model.generation_config = copy.deepcopy(bridged.generation_config)
    model.name_or_path = bridged.name_or_path
    _check_same(bridged, model.train(bridged.training))
    return model


def _held(bridged: nn.Module, name: str) -> Any:
    """What the bridge's components wrap at `name`, if anything."""
    module: Any = _inside(bridged)
    for part in name.split(".") if name else ():
        module = _inside(module._modules.get(part))
    return module


def _inside(module: Any) -> Any:
    while isinstance(module, GeneralizedComponent):
        module = module.original_component
    return module


def _check_same(bridged: Any, model: Any) -> None:
    ids = torch.arange(LENGTH, device=input_device(model))[None] % model.config.vocab_size
    (theirs, expected), (ours, found) = _states(bridged, ids), _states(model, ids)
    # both round, and one has its softmax in fp32, the other in the model's dtype
    eps = max(torch.finfo(dtype).eps for dtype in (found.dtype, torch.float32))

    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool((a - b).float().norm() <= eps**0.5 * b.float().norm())

    unknown = expected.is_meta or not expected.isfinite().all()  # for whoever measures to report
    if unknown or close(found, expected):
        return
    pairs = zip(ours, theirs, strict=True)
    layer = next((i for i, (a, b) in enumerate(pairs) if not close(a, b)), None)
    place = "the final norm or the unembedding" if layer is None else f"block {layer}"
    raise ModelError(
        f"{place} of the bridge does not compute what its weights say: it was changed in a way "
        "that a plain model cannot hold; hand over that model"
    )


def _states(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs of the blocks, [1, T, d] each, and the logits."""
    found: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: found.append(out))
        for block in model.model.layers
    ]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return found, logits
