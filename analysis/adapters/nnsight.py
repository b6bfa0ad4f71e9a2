"""MIDUS in nnsight 0.8: memory layers whose queries, slots, weights and outputs can be asked for.

Shape letters: B batch, T tokens, H heads, D head size, M memory heads, k slots read.
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import NNsight
from nnsight.intervention.envoy import Envoy, eproperty

from kernels.errors import MidusError, ModelError
from midus_model.memory import HeadwiseMemory
from midus_model.sites import family


def _by_head(envoy: Envoy, value: Any) -> torch.Tensor:
    """[B, T, H, D] of what a module is called with, a view."""
    (flat, *_), _ = value
    memory = envoy._module
    return flat.unflatten(-1, (memory.num_heads, memory.head_dim))


def _call_with(_: Envoy, view: torch.Tensor, raw: Any) -> Any:
    """What the module is called with once the view was written to."""
    (_, *rest), named = raw
    return (view.flatten(-2), *rest), named


def _retrieved(envoy: Envoy, value: Any) -> list[torch.Tensor]:
    """Weights and slots, [B, T, M, k] each."""
    memory = envoy._module
    query = _by_head(envoy, value)[:, :, memory.heads]
    found = memory.select(query.flatten(0, 1))
    return [part.unflatten(0, query.shape[:2]) for part in found]


def _refuse(envoy: Envoy, _: Any) -> None:
    raise MidusError(
        f"slots and weights of {envoy.path} are chosen inside a kernel and cannot be written in "
        "nnsight; write its queries or heads, or hook_slots and hook_weights in TransformerLens"
    )


class MemoryEnvoy(Envoy):
    """The envoy of a memory layer. Ask for queries, slots and weights first, then for heads."""

    @eproperty(key="input", description="the head outputs that ask, [B, T, H, D]")
    def queries(self, value: Any) -> torch.Tensor:
        """The head outputs that ask, [B, T, H, D]; written to, they retrieve something else."""
        return _by_head(self, value)

    @eproperty(key="input", description="the slots chosen, [B, T, M, k]")
    def slots(self, value: Any) -> torch.Tensor:
        """The slots that each memory head chose, best first, [B, T, M, k]; read only."""
        return _retrieved(self, value)[1]

    @eproperty(key="input", description="the weights of the slots, [B, T, M, k]")
    def weights(self, value: Any) -> torch.Tensor:
        """The softmax weights of the slots, [B, T, M, k]; read only."""
        return _retrieved(self, value)[0]

    @eproperty(key="out.input", description="what the heads write, [B, T, H, D]")
    def heads(self, value: Any) -> torch.Tensor:
        """What the heads write, [B, T, H, D], zero for those without memory; can be written to."""
        return _by_head(self, value)

    queries.transform(_call_with)
    heads.transform(_call_with)
    slots.postprocess(_refuse)
    weights.postprocess(_refuse)


def envoy(model: Any) -> NNsight:
    """See `analysis.adapters.envoy`."""
    family(model)
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
