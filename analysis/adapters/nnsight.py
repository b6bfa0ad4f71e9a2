"""MIDUS in nnsight 0.8: memory layers whose queries, slots, weights and outputs can be asked for.

Shape letters: B batch, T tokens, H heads, D head size, M memory heads, k slots read.
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import NNsight
from nnsight.intervention.envoy import Envoy, eproperty

from kernels import product_key_select
from midus_model.errors import MidusError, ModelError
from midus_model.memory import HeadwiseMemory


class MemoryEnvoy(Envoy):
    """The envoy of a memory layer; ask in the order queries, slots and weights, heads."""

    @eproperty(key="input", description="head outputs that ask [B, T, H, D]")
    def queries(self, value: Any) -> torch.Tensor:
        """The head outputs that ask, [B, T, H, D]; writing to them changes what is retrieved."""
        return _apart(self._module, value)

    @queries.transform
    def queries(self, view: torch.Tensor, raw: Any) -> Any:
        return _together(view, raw)

    @eproperty(key="input", description="slots chosen [B, T, M, k]")
    def slots(self, value: Any) -> torch.Tensor:
        """The slots that each memory head chose, best first, [B, T, M, k]; read only."""
        return _retrieved(self._module, value)[1]

    @slots.postprocess
    def slots(self, value: Any) -> Any:
        raise MidusError(READ_ONLY.format("slots"))

    @eproperty(key="input", description="their weights [B, T, M, k]")
    def weights(self, value: Any) -> torch.Tensor:
        """The softmax weights of the slots, [B, T, M, k]; read only."""
        return _retrieved(self._module, value)[0]

    @weights.postprocess
    def weights(self, value: Any) -> Any:
        raise MidusError(READ_ONLY.format("weights"))

    @eproperty(key="out.input", description="what the heads write [B, T, H, D]")
    def heads(self, value: Any) -> torch.Tensor:
        """What the memory heads write, [B, T, H, D]; writing to it changes the model."""
        return _apart(self._module, value)

    @heads.transform
    def heads(self, view: torch.Tensor, raw: Any) -> Any:
        return _together(view, raw)


READ_ONLY = "memory.{} is computed inside a kernel and cannot be written; write queries or heads"


def _apart(memory: HeadwiseMemory, value: Any) -> torch.Tensor:
    (flat, *_), _ = value
    return flat.unflatten(-1, (memory.num_heads, memory.head_dim))


def _together(view: torch.Tensor, raw: Any) -> Any:
    (_, *rest), named = raw
    return (view.flatten(-2), *rest), named


def _retrieved(memory: HeadwiseMemory, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and slots, [B, T, M, k] each."""
    query = _apart(memory, value)[:, :, memory.heads]
    found = product_key_select(
        query.flatten(0, 1), memory.row_keys, memory.col_keys, memory.top_k
    )
    return tuple(part.unflatten(0, query.shape[:2]) for part in found)


def envoy(model: Any) -> NNsight:
    """See `analysis.adapters.envoy`."""
    return NNsight(model, envoys={HeadwiseMemory: MemoryEnvoy})


def wrapped(envoy: Envoy) -> Any:
    """The model inside; raises ModelError where edits stand that it does not hold."""
    edited = [one.path for one in envoy.modules() if one._edits]
    if edited:
        raise ModelError(
            f"the nnsight model has edits at {', '.join(edited)}, which its weights do not hold; "
            "call clear_edits(), or hand over a model with the change in its weights"
        )
    return envoy._module
