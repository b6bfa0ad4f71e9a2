"""Which parts of memory are switched: heads, blocks, all of it, or slots as a user names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.causes.switches import check_part
from analysis.memory import SlotCounts
from analysis.subject import Unit
from kernels.errors import MidusError
from midus_model import HeadSite

PARTS = ("heads", "blocks", "all", "slots")
HEAVIEST = 16  # slots of a block that are switched where none are named


@dataclass(frozen=True)
class Part:
    """A part of memory that is switched at once; `sites` are the heads that it is switched for."""

    sites: tuple[HeadSite, ...]
    block: int | None = None
    head: int | None = None
    slot: int | None = None

    @property
    def unit(self) -> Unit:
        """Its heads as what a subject measures."""
        first = self.sites[0]
        return Unit(first.layer, first.kind, first.head, first.source_layer, self.sites)


def whole_parts(of: str, sites: Sequence[HeadSite]) -> list[Part]:
    """A part a memory head, a part a block, or one of "all"."""
    if of == "heads":
        return [Part((site,), site.layer, site.head) for site in sites]
    if of == "all":
        return [Part(tuple(sites))]
    layers = sorted({site.layer for site in sites})
    return [Part(tuple(s for s in sites if s.layer == layer), layer) for layer in layers]


def slot_parts(
    model: Any, sites: Sequence[HeadSite], slots: Any, counts: Mapping[int, SlotCounts]
) -> list[Part]:
    """Parts of the slots that are named; where `slots` is None, of the heaviest in `counts`.

    Raises MidusError or HeadError for what is no slot of this model.
    """
    parts = []
    for block, head, slot in _heaviest(counts) if slots is None else _named(slots):
        if block is None or slot is None:
            raise MidusError(f"a slot needs its block and its number; got {block} and {slot}")
        check_part(model, block, head, slot)
        chosen = (s for s in sites if s.layer == block and head in (None, s.head))
        parts.append(Part(tuple(chosen), block, head, slot))
    if not parts:
        raise MidusError("no slots were given; give (block, slot) pairs, or leave slots out")
    return parts


def _heaviest(counts: Mapping[int, SlotCounts]) -> list[tuple[int, None, int]]:
    """The slots of each block with most weight over all heads, heaviest first; none unread."""
    found: list[tuple[int, None, int]] = []
    for block, of_block in counts.items():
        weight = of_block.weight.sum(0)  # [N]
        order = np.argsort(-weight, kind="stable")[:HEAVIEST]
        found += [(block, None, int(slot)) for slot in order if weight[slot] > 0]
    return found


def _named(slots: Any) -> list[tuple[int | None, int | None, int | None]]:
    """(block, head or None, slot) of pairs, of triples, or of a table's rows."""
    if isinstance(slots, pd.DataFrame):
        wanted = [name for name in ("block", "head", "slot") if name in slots.columns]
        slots = slots[wanted].itertuples(index=False, name=None)
    try:
        triples = [row if len(row) == 3 else (row[0], None, *row[1:]) for row in slots]
        return [(_whole(block), _whole(head), _whole(slot)) for block, head, slot in triples]
    except (TypeError, ValueError, IndexError) as error:
        raise MidusError(
            "slots must be (block, slot) pairs, (block, head, slot) triples, or a table with these "
            f"columns; {error}"
        ) from None


def _whole(value: Any) -> int | None:
    """3 from 3 or, as a table may hold it, 3.0; None from what is missing."""
    if pd.isna(value):
        return None
    if int(value) != value:
        raise ValueError(f"{value!r} is no whole number")
    return int(value)
