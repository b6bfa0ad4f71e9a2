"""Memory switched inside a context: scaled, in whole or in part, or one slot's content replaced.

Shape letters: B batch, T tokens, P = B * T positions, H query heads, M memory heads, D head size,
k slots read, N slots, r latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

import torch
from torch import nn

from analysis.adapters import unwrap
from analysis.memory.places import memories_of, memory_at, slot_of
from kernels.errors import MidusError, ModelError
from midus_model.memory import HeadwiseMemory
from midus_model.placement import is_offloaded


@contextmanager
def scaled_memory(
    model: Any,
    *,
    block: int | None = None,
    head: int | None = None,
    slot: int | None = None,
    gain: float = 0.0,
) -> Iterator[None]:
    """A part of memory scaled inside the context: gain 0 switches it off, 1 leaves it as it is.

    Args:
        model: a loaded model with memory blocks. Its parameters are not touched.
        block: the block whose memory is scaled; by default every block's.
        head: of the block, the one head whose memory is scaled, by its number among the query
            heads; by default all.
        slot: of the block, the one slot whose weight is scaled wherever it is read (by `head`, or
            by all). The other weights stay as they are: what remains does not sum to 1.
        gain: any finite number.

    Raises:
        HeadError: where there is no memory at that block or head.
        MidusError: for a slot out of range, a gain that is not finite, or a model without memory.

    >>> with scaled_memory(model, block=2, head=5):  # doctest: +SKIP
    ...     model(ids)
    """
    network = unwrap(model)
    check_part(network, block, head, slot)
    check_gain(gain)
    memories = memories_of(network)
    with ExitStack() as stack:
        for memory in memories.values() if block is None else [memories[block]]:
            if slot is None:
                hook = memory.out.register_forward_pre_hook(_scaling_outputs(memory, head, gain))
            else:
                scale = _scaling_slot(memory, head, slot, gain)
                hook = memory.retrieved.register_forward_hook(scale)
            stack.callback(hook.remove)
        yield


@contextmanager
def edited_slot(model: Any, block: int, slot: int, value: Any) -> Iterator[None]:
    """One slot of a block's bank replaced inside the context by `value` [r], for all its heads.

    The row's old bits come back at the end, also after an error.

    Raises:
        HeadError: where the block has no memory.
        MidusError: for a slot out of range, a value that is not r finite numbers, or a model
            without memory.
    """
    network = unwrap(model)
    memory = memory_at(network, block)
    if is_offloaded(memory):
        raise ModelError(f"block {block} lies on disk and cannot be edited; load the model whole")
    slot, bank = slot_of(memory, slot), memory.bank
    try:
        row = torch.as_tensor(value, dtype=bank.dtype, device=bank.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise MidusError(f"value is no vector of numbers ({error}); give {bank.shape[1]}") from None
    if row.shape != bank.shape[1:] or not row.isfinite().all():
        raise MidusError(
            f"value is {list(row.shape)}; a slot of block {block} holds {bank.shape[1]} numbers, "
            "all of them finite"
        )
    before = bank.detach()[slot].clone()
    with torch.no_grad():
        bank[slot] = row
    try:
        yield
    finally:
        with torch.no_grad():
            bank[slot] = before


def slot_scaled(
    weights: torch.Tensor, slots: torch.Tensor, slot: int, gain: float, rows: Sequence[int]
) -> torch.Tensor:
    """`weights` [P, M, k] with that of one slot times `gain`, where the heads at `rows` of M read.

    Nothing is renormalised.
    """
    hit = torch.zeros_like(slots, dtype=torch.bool)
    hit[:, rows] = slots[:, rows] == slot
    return torch.where(hit, weights * gain, weights)


def _scaling_outputs(
    memory: HeadwiseMemory, head: int | None, gain: float
) -> Callable[[nn.Module, tuple], tuple]:
    """A pre-hook of `memory.out`, whose input [B, T, H*D] is what the heads write."""
    size = memory.head_dim
    span = slice(None) if head is None else slice(head * size, (head + 1) * size)

    def hook(_: nn.Module, args: tuple) -> tuple:
        outputs = args[0].clone()
        outputs[..., span] = args[0][..., span] * gain
        return (outputs, *args[1:])

    return hook


def _scaling_slot(
    memory: HeadwiseMemory, head: int | None, slot: int, gain: float
) -> Callable[[nn.Module, tuple, tuple], tuple]:
    """A hook of `memory.retrieved`, whose output is weights and slots [P, M, k]."""
    rows = [memory.heads.index(h) for h in (memory.heads if head is None else [head])]

    def hook(_: nn.Module, __: tuple, output: tuple) -> tuple:
        weights, slots = output
        return slot_scaled(weights, slots, slot, gain, rows), slots

    return hook


def check_part(
    model: Any, block: int | None = None, head: int | None = None, slot: int | None = None
) -> None:
    """Raises HeadError or MidusError where the model has no such part of memory."""
    known = memories_of(model)
    if block is not None:
        memory = memory_at(model, block, head)
        if slot is not None:
            slot_of(memory, slot)
    elif head is not None or slot is not None:
        raise MidusError(
            f"a head or a slot is one of a block; give block, one of {', '.join(map(str, known))}"
        )


def check_gain(gain: Any) -> None:
    """Raises MidusError for a gain that is no finite number."""
    if isinstance(gain, bool) or not isinstance(gain, Real) or not math.isfinite(gain):
        raise MidusError(f"gain is {gain!r}; it must be a finite number, such as 0 to switch off")
