"""Base and up-scaled models in TransformerLens and nnsight, and the way back.

Neither library is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from midus_model.errors import MidusError

__all__ = ["bridge", "envoy", "unwrap"]

LIBRARIES = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}


def bridge(model: Any, tokenizer: Any = None) -> Any:
    """A TransformerLens bridge over a deep copy of a base or up-scaled model.

    The copy, because a bridge changes the model that it is made of, and may change its config. In a
    memory block the head outputs that ask, the slots chosen, their weights, and what the heads write
    have the hook points `blocks.N.memory.hook_query` [B, T, H, D], `hook_slots` and `hook_weights`
    [B, T, M, k] and `hook_head_out` [B, T, H, D]; what a hook returns takes their place.

    Args:
        model: a loaded Llama, Qwen3, Mistral or MIDUS model.
        tokenizer: a transformers tokenizer; token ids need none.

    Raises:
        MidusError: where transformer-lens is not installed.

    >>> import midus_model
    >>> bridge(midus_model.load("pico-midus")).cfg.n_layers  # doctest: +SKIP
    9
    """
    return _adapter("transformer_lens").bridge(model, tokenizer)


def envoy(model: Any) -> Any:
    """An `nnsight.NNsight` of a base or up-scaled model.

    In a trace, `model.layers[N].memory` has `queries` [B, T, H, D], `slots` and `weights`
    [B, T, M, k], and `heads` [B, T, H, D], what the memory heads write; queries and heads can be
    written. As with all of nnsight, ask for things in the order in which they are computed.

    Raises MidusError where nnsight is not installed.
    """
    return _adapter("nnsight").envoy(model)


def unwrap(model: Any) -> Any:
    """The plain model that a TransformerLens bridge or an nnsight model holds, its tensors shared.

    Anything else is returned as it is. Raises ModelError where a bridge or an nnsight model computes
    something that the weights it holds do not say: hooks, edits, weights processed past undoing.
    """
    if _is_of("nnsight", model):
        model = _adapter("nnsight").wrapped(model)
    if _is_of("transformer_lens", model):
        model = model.original_model
    if isinstance(model, nn.Module) and any(
        _is_of("transformer_lens", module) for module in model.modules()
    ):
        model = _adapter("transformer_lens").plain(model)
    return model


def _is_of(library: str, thing: Any) -> bool:
    """Whether a class of `library` is among the thing's own, without importing the library."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(thing).__mro__)


def _adapter(library: str) -> Any:
    try:
        return import_module(f"{__name__}.{library}")
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        name = LIBRARIES[library]
        raise MidusError(f"{name} is not installed; pip install {name}") from error
