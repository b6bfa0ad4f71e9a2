"""Base and up-scaled models in TransformerLens and nnsight, and the way back.

Neither library is imported before it is asked for.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from torch import nn

from kernels.errors import MidusError
from midus_model.intake import taken

__all__ = ["bridge", "envoy", "unwrap"]

LIBRARIES = {"transformer_lens": "transformer-lens==4.*", "nnsight": "nnsight==0.8.*"}


def bridge(model: Any, tokenizer: Any = None) -> Any:
    """A TransformerLens bridge over a deep copy of a base or up-scaled model.

    The copy, because a bridge changes the model that it is made of, and may change its config. A
    memory has hook points for the head outputs that ask, `blocks.N.memory.hook_query` [B, T, H, D],
    the slots chosen and their weights, `hook_slots` and `hook_weights` [B, T, M, k], and what the
    heads write, `hook_head_out` [B, T, H, D]; what a hook returns takes the place of what it got.

    Args:
        model: a loaded Llama, Qwen3, Mistral or MIDUS model.
        tokenizer: a transformers tokenizer; token ids need none.

    Raises:
        MidusError: where transformer-lens 4 is not installed, or the model's family is not known.
    """
    return _adapter("transformer_lens").bridge(model, tokenizer)


def envoy(model: Any) -> Any:
    """An `nnsight.NNsight` of a base or up-scaled model, which stays usable as it is.

    In a trace, `model.layers[N].memory` has `queries` [B, T, H, D], `slots` and `weights`
    [B, T, M, k], and `heads` [B, T, H, D], what the memory heads write; queries and heads can be
    written. As with all of nnsight, ask for things in the order in which they are computed.

    Raises MidusError where nnsight 0.8 is not installed, or the model's family is not known.
    """
    return _adapter("nnsight").envoy(model)


def unwrap(model: Any) -> Any:
    """The plain model that a TransformerLens bridge or an nnsight model holds, its tensors shared.

    A model that a bridge was built around in place counts too. What else holds a model (a pipeline,
    a `PeftModel`, a compiled module) is taken out of it; names and other modules stay as they are.

    Raises:
        ModelError: where it may compute what its weights alone do not say: hooks, edits, parts that
            were replaced; and for what is no model.
    """
    if _is_of("nnsight", model):
        model = _adapter("nnsight").wrapped(model)
    if _is_of("transformer_lens", model):
        model = getattr(model, "original_model", model)
    if (
        "transformer_lens" in sys.modules  # else there is no bridge to look for
        and isinstance(model, nn.Module)
        and any(_is_of("transformer_lens", module) for module in model.modules())
    ):
        model = _adapter("transformer_lens").plain(model)
    return model if model is None or isinstance(model, str | os.PathLike) else taken(model)


def _is_of(library: str, thing: Any) -> bool:
    """Whether a class of `library` is among the thing's own, without importing the library."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(thing).__mro__)


def _adapter(library: str) -> Any:
    try:
        return import_module(f"{__name__}.{library}")
    except ImportError as error:  # missing, or of a version that is laid out otherwise
        if (error.name or "").partition(".")[0] != library:
            raise
        wanted = LIBRARIES[library]
        raise MidusError(f"this needs {wanted}: {error}; pip install '{wanted}'") from error
