"""What keeps all sub-keys in use while a model is trained: revival of dead ones, balance loss.

Both look at the training's own reads through hooks, so the layer's formula stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from kernels.errors import MidusError
from midus_model.keys import halves, imbalance, loads, memories_of, of_heads, revive
from midus_model.memory import HeadwiseMemory

SIDES = ("row_keys", "col_keys")
# Called with a memory, its heads' queries [P, M, D], and the reads of each row and of each column
# sub-key, int64 [M, n] both.
Look = Callable[[HeadwiseMemory, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], None]


@contextmanager
def watching(model: Any, looks: list[Look]) -> Iterator[None]:
    """Call every look at each read in training; evaluation, in between, is passed over."""
    memories = memories_of(model).values() if looks else ()
    hooks = [hook for memory in memories for hook in _hooked(memory, looks)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooked(memory: HeadwiseMemory, looks: list[Look]) -> list[RemovableHandle]:
    asked: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        asked[:] = [of_heads(memory, args[0])] if memory.training else []

    def read(_: Any, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        if asked:
            queries, hits = asked.pop(), loads(*output, memory.row_keys.shape[1])
            for look in looks:
                look(memory, queries, hits)

    return [
        memory.register_forward_pre_hook(keep),
        memory.retrieved.register_forward_hook(read),
    ]


class Balance:
    """The balance loss of a step: mean `imbalance` over memories and halves."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._found: list[torch.Tensor] = []

    def look(
        self,
        memory: HeadwiseMemory,
        queries: torch.Tensor,
        hits: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        for points, side, count in zip(halves(queries), SIDES, hits, strict=True):
            self._found.append(imbalance(points, getattr(memory, side), count))

    def added_to(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss` with the balance loss's gradient; its value, which is logged, stays the same."""
        extra = self.weight * torch.stack(self._found).mean()
        self._found.clear()
        return loss + (extra - extra.detach())


class Revival(TrainerCallback, ExportableState):
    """Every `every` steps, moves the sub-keys that a head hardly ever selected since the last time.

    See `midus_model.keys.revive`. The rows' optimiser state starts anew. None is moved in the last
    `every` steps, so that each has time to learn. Counts travel with the Trainer's checkpoints, and
    what is drawn follows from seed, step and block, so a resumed training goes on as it would have.
    `revived` lists [step, sub-keys moved].
    """

    def __init__(self, model: Any, every: int, seed: int) -> None:
        self.memories, self.every, self.seed = memories_of(model), every, seed
        self.revived: list[list[int]] = []
        self._layer = {memory: layer for layer, memory in self.memories.items()}
        self._queries: dict[int, torch.Tensor] = {}
        self._fresh = self._zeros()
        self._hits = self._zeros()  # [2, M, n] a block, since the last revival, of all processes

    def _zeros(self) -> dict[int, torch.Tensor]:
        return {
            layer: torch.zeros(2, *memory.row_keys.shape[:2], dtype=torch.int64)
            for layer, memory in self.memories.items()
        }

    def look(
        self,
        memory: HeadwiseMemory,
        queries: torch.Tensor,
        hits: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        layer, fresh = self._layer[memory], torch.stack(hits)
        self._fresh[layer] = self._fresh[layer].to(fresh.device) + fresh
        self._queries[layer] = queries.detach()

    # ------------------------------------------------------------ the Trainer's calls

    def state(self) -> dict[str, Any]:
        hits = {str(layer): counts.tolist() for layer, counts in self._hits.items()}
        return {"args": {}, "attributes": {"hits": hits, "revived": self.revived}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if any(hasattr(memory.row_keys, "placements") for memory in self.memories.values()):
            raise MidusError(
                "revive_every needs whole sub-keys in every process, and FSDP has sharded them; "
                "train without it"
            )
        kept = state.stateful_callbacks[type(self).__name__]["attributes"]
        self._hits = {int(layer): torch.tensor(counts) for layer, counts in kept["hits"].items()}
        self.revived = [list(entry) for entry in kept["revived"]]

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        for layer, fresh in self._fresh.items():
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(fresh)
            self._hits[layer] = self._hits[layer].to(fresh.device) + fresh
        self._fresh = self._zeros()
        step = state.global_step
        if step % self.every == 0 and step + self.every <= state.max_steps:
            moved = sum(self._revive(layer, step, optimizer) for layer in self.memories)
            self.revived.append([step, moved])
            self._hits = self._zeros()

    def _revive(self, layer: int, step: int, optimizer: Any) -> int:
        """Revive both halves of a block; how many sub-keys were moved."""
        memory, queries, moved = self.memories[layer], self._queries[layer].contiguous(), 0
        if torch.distributed.is_initialized():  # all processes move keys by the first one's queries
            torch.distributed.broadcast(queries, src=0)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 1_009 + layer)
        for side, points, hits in zip(SIDES, halves(queries), self._hits[layer], strict=True):
            keys = getattr(memory, side)
            dead = revive(keys.data, hits.to(keys.device), points, generator)
            for value in optimizer.state.get(keys, {}).values():
                if torch.is_tensor(value) and value.shape == keys.shape:
                    value[dead] = 0
            moved += int(dead.sum())
        return moved


def asked(model: Any, revive_every: int | None, balance_weight: float) -> dict[str, Any]:
    """What of the two is on, for a training's description; empty where both are off.

    Raises MidusError for what makes no sense, and UpscaleError where there are no memory blocks.
    """
    if revive_every is not None and revive_every < 1:
        raise MidusError(f"revive_every is {revive_every}; it must be at least 1 step, or None")
    if not 0 <= balance_weight < float("inf"):
        raise MidusError(f"balance_weight is {balance_weight}; it must be 0 (off) or more")
    found = {"revive_every": revive_every, "balance_weight": balance_weight or None}
    found = {name: value for name, value in found.items() if value is not None}
    if found:
        memories_of(model)
    return found
