"""What is in a slot: the contexts at which it was read with the most weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.documents import Documents
from analysis.engine import Progress
from analysis.estimates import expect, timed
from analysis.memory.places import at_least_one, described, memory_at, opened, read, slot_of
from analysis.memory.stream import Watcher, streamed
from analysis.memory.text import TEXT_COLUMNS, around
from analysis.memory.usage import Tally
from analysis.shortened import passes_of
from midus_model.memory import HeadwiseMemory

DEFAULT_SLOTS = 32
FINDING, CONTEXTS = "finding the slots most used", "reading contexts"  # the stages
# A read: `position` is the token's index in its document, `start` that of its window.
READ = np.dtype(
    [
        ("slot", np.int64),
        ("weight", np.float64),
        ("document", np.int64),
        ("position", np.int64),
        ("head", np.int64),
        ("start", np.int64),
    ]
)
COLUMNS = (
    "block", "slot", "head", "rank", "weight", "document", "position", "token_id", *TEXT_COLUMNS,
)  # fmt: skip


@timed
def memory_contents(
    model: Any = None,
    data: Any = None,
    *,
    block: int,
    slots: Sequence[int] | None = None,
    head: int | None = None,
    contexts: int = 8,
    width: int = 12,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The tokens at which slots of a block are read with the most weight, in their contexts.

    What is kept is `contexts` reads a slot, whatever the number of tokens; the model runs as far
    as the block. Every token counts once, in the window that `memory_usage` counts it in.

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model; by default the
            shipped "pico-midus".
        data: whatever `analysis.documents` takes; by default the shipped held-out texts.
        block: the memory block.
        slots: numbers of slots; by default the 32 that carry the most weight, for which the
            documents are read twice.
        head: count only this head's reads; by default those of every head of the block.
        contexts: reads kept of each slot.
        width: tokens of context, the token itself included, as far as its window reaches.
        progress: called as progress(done, total, text) after each batch of windows.

    Returns:
        A row a (slot, rank), slots in the order given or by weight. Columns: block, slot, head
        (which read it), rank (1 = the largest weight; of equals the earlier document, position and
        head), weight, document (its id), position (index in the document), token_id, and, None
        where the documents have no tokenizer, `before` and `token`, which together are `text`,
        and `after`, the width // 2 tokens that follow and that the model has not seen. A slot that
        was never read has no rows.

    Raises:
        HeadError: where there is no memory at block or (block, head).
        MidusError: for a slot that the bank does not have, a model without memory blocks, or
            one whose head outputs are not finite.
        ModelError, DataError: for a model or data that cannot be used.

    >>> memory_contents(block=2, head=0)[["slot", "weight", "text"]]  # doctest: +SKIP
    """
    contexts, width = at_least_one("contexts", contexts), at_least_one("width", width)
    network = opened(model)
    memory = memory_at(network, block, head)
    asked = None if slots is None else [slot_of(memory, slot) for slot in dict.fromkeys(slots)]
    texts = read(data, model)
    stages = (FINDING, CONTEXTS) if asked is None else (CONTEXTS,)
    expect("memory contents", network, texts, dict.fromkeys(stages, passes_of(texts)))
    if asked is None:
        tally = Tally(block, memory)
        streamed(network, texts.windows, {block: tally}, progress, FINDING)
        asked = most_used(tally.counts().weight, memory, head)
    best = _Best(block, memory, asked, head, contexts)
    streamed(network, texts.windows, {block: best}, progress, CONTEXTS)
    table = _table(block, best.kept, asked, texts, width)
    table.attrs = described(
        "memory_contents", network, texts,
        block=int(block), head=None if head is None else int(head), slots=asked, contexts=contexts,
        width=width,
    )  # fmt: skip
    return table


def most_used(weight: np.ndarray, memory: HeadwiseMemory, head: int | None = None) -> list[int]:
    """Slots by weight [M, N] of one head or of all, heaviest first; at most 32, none unread."""
    total = weight.sum(0) if head is None else weight[memory.heads.index(head)]
    order = np.argsort(-total, kind="stable")[:DEFAULT_SLOTS]
    return order[total[order] > 0].tolist()


class _Best(Watcher):
    """The heaviest reads of some slots: `kept` READ, at most `contexts` a slot, by slot and rank.

    `floor` [N]: what a read's weight must reach to be kept, infinity for slots not asked for.
    """

    def __init__(
        self,
        layer: int,
        memory: HeadwiseMemory,
        slots: Sequence[int],
        head: int | None,
        contexts: int,
    ):
        super().__init__(layer, memory)
        self.contexts = contexts
        self.chosen = slice(None) if head is None else slice(i := self.heads.index(head), i + 1)
        self.kept = np.empty(0, dtype=READ)
        self.floor = torch.full(
            (memory.bank.shape[0],), torch.inf, dtype=torch.float64, device=self.device
        )
        self.floor[list(slots)] = torch.finfo(torch.float64).tiny  # weight 0 is no read

    def see(self, weights: torch.Tensor, slots: torch.Tensor) -> None:
        if not weights.isfinite().all():
            raise self.not_finite()
        weights, slots = weights[:, self.chosen], slots[:, self.chosen]
        found = (weights >= self.floor[slots]).nonzero(as_tuple=True)  # [reads] three times
        if not len(found[0]):
            return
        place, head, _ = (part.cpu().numpy() for part in found)
        document, position, start = (part[place] for part in self.positions.origins())
        new = np.empty(len(place), dtype=READ)
        new["slot"], new["weight"] = slots[found].cpu().numpy(), weights[found].cpu().numpy()
        new["document"], new["position"], new["start"] = document, position, start
        new["head"] = np.array(self.heads[self.chosen])[head]
        self._keep(np.concatenate([self.kept, new]))

    def _keep(self, reads: np.ndarray) -> None:
        """Keep each slot's heaviest, and raise the floor of the slots that are full."""
        ties = reads["head"], reads["position"], reads["document"]
        reads = reads[np.lexsort((*ties, -reads["weight"], reads["slot"]))]
        rank = ranks(reads["slot"])
        self.kept = reads[rank < self.contexts]
        last = reads[rank == self.contexts - 1]
        self.floor[torch.from_numpy(last["slot"].copy()).to(self.device)] = torch.from_numpy(
            last["weight"].copy()
        ).to(self.device)


def ranks(slots: np.ndarray) -> np.ndarray:
    """The place of each entry among those of its slot, from 0; `slots` sorted."""
    return np.arange(len(slots)) - np.searchsorted(slots, slots)


def _table(
    block: int, kept: np.ndarray, asked: list[int], texts: Documents, width: int
) -> pd.DataFrame:
    frame = pd.DataFrame(kept).assign(block=int(block), rank=ranks(kept["slot"]) + 1)
    order = {slot: place for place, slot in enumerate(asked)}
    frame = frame.sort_values("slot", key=lambda slots: slots.map(order), kind="stable")
    reads = list(zip(frame["document"], frame["position"], frame["start"], strict=True))
    frame["token_id"] = [int(texts[document].ids[place]) for document, place, _ in reads]
    words = [around(texts, document, place, start, width) for document, place, start in reads]
    for name in TEXT_COLUMNS:
        frame[name] = pd.Series([word[name] for word in words], index=frame.index, dtype=object)
    frame["document"] = [texts[document].id for document, _, _ in reads]
    return frame[list(COLUMNS)].reset_index(drop=True)
