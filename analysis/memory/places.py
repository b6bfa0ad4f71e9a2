"""Where a model has memory, and checks of the blocks, heads and slots that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.adapters import unwrap
from analysis.documents import Documents, documents
from analysis.tables import SCHEMA, display_name, json_attrs, model_hash, versions
from kernels.errors import HeadError, MidusError
from midus_model import load
from midus_model.config import is_whole
from midus_model.memory import HeadwiseMemory
from midus_model.sites import blocks

DEFAULT_MODEL = "pico-midus"


def opened(model: Any) -> Any:
    """The model to look into, by default the shipped "pico-midus"."""
    return load(DEFAULT_MODEL if model is None else unwrap(model))


def read(data: Any, model: Any) -> Documents:
    """The documents that `data` names, for a model as the user gave it."""
    return documents(data, model=DEFAULT_MODEL if model is None else model)


def memories_of(model: Any) -> dict[int, HeadwiseMemory]:
    """Block -> its memory; raises MidusError where the model has none."""
    modules = [getattr(block, "memory", None) for block in blocks(model)]
    found = {at: memory for at, memory in enumerate(modules) if isinstance(memory, HeadwiseMemory)}
    if not found:
        raise MidusError(
            f"{display_name(model)} has no memory blocks, so there are no slots to look at; "
            f"give a model up-scaled by midus_model.upscale, or {DEFAULT_MODEL!r}"
        )
    return found


def memory_at(model: Any, block: Any, head: Any = None) -> HeadwiseMemory:
    """The memory of a block; HeadError where it has none, or none for `head` where one is given."""
    found = memories_of(model)
    known = {at: memory.heads for at, memory in found.items()}
    if block not in found:
        raise no_memory(f"block {block!r} is no memory block", known)
    if head is not None and head not in known[block]:
        raise no_memory(f"block {block!r} head {head!r} is no memory head", known)
    return found[block]


def no_memory(what: str, known: dict[int, list[int]]) -> HeadError:
    """The error of what was asked for where there is no memory, and where there is."""
    places = "; ".join(f"block {at} heads {_ranges(heads)}" for at, heads in known.items())
    return HeadError(f"{what}; there is memory at {places}")


def _ranges(heads: Sequence[int]) -> str:
    whole = list(heads) == list(range(heads[0], heads[-1] + 1)) and len(heads) > 2
    return f"{heads[0]}-{heads[-1]}" if whole else ", ".join(map(str, heads))


def slot_of(memory: HeadwiseMemory, slot: Any) -> int:
    """`slot` as an int; MidusError where the bank has no such slot."""
    slots = memory.bank.shape[0]
    if not is_whole(slot) or not 0 <= int(slot) < slots:
        raise MidusError(f"slot is {slot!r}; the bank's slots are whole numbers, 0 to {slots - 1}")
    return int(slot)


def at_least_one(name: str, value: Any) -> int:
    """`value` as an int; MidusError where it is no whole number from 1."""
    if not is_whole(value) or int(value) < 1:
        raise MidusError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return int(value)


def described(table: str, model: Any, texts: Documents | None = None, **more: Any) -> dict:
    """The attrs of a table: of which model it is, and over which documents it was measured."""
    attrs = {
        "schema": SCHEMA,
        "table": table,
        "model": display_name(model),
        "model_hash": model_hash(model),
        "versions": versions(),
    }
    if texts is not None:
        attrs |= {
            "data": texts.name,
            "data_hash": texts.sha256,
            "context": texts.context,
            "bos": texts.bos,
            "documents": [
                {"id": item.id, "tokens": item.tokens, "sha256": item.sha256} for item in texts
            ],
        }
    return json_attrs(attrs | more)
