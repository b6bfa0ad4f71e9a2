"""What every memory slot is used for: hits and weights of each head's reads, window by window.

Each memory head reads k slots at each token, with weights that sum to 1. Here those reads are
counted over documents. What is kept is two numbers a slot, whatever the number of tokens.

Shape letters: B windows, T positions, H query heads, M memory heads, D head size, n sub-keys a
half, N = n * n slots, k slots read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from analysis import tables
from analysis.adapters import unwrap
from analysis.documents import Documents, Window, documents
from kernels import product_key_select
from midus_model import head_sites, load
from midus_model.errors import HeadError, MidusError
from midus_model.memory import HeadwiseMemory
from midus_model.sites import blocks

# Positions that go through the model at once; bounds the scores [positions, M, n] of a block.
BATCH_POSITIONS = 2048
SLOT_COLUMNS = ("block", "head", "slot", "row", "col", "hits", "weight")
POSITIONS = "every token of the documents once; right padding and repeats of overlaps left out"

Progress = Callable[[int, int, str], None]


# ---------------------------------------------------------------- what is handed out


@dataclass(frozen=True)
class SlotCounts:
    """Reads of one block's bank: `hits` int64 and `weight` float64, both [M, N], by memory head."""

    block: int
    heads: list[int]
    num_keys: int
    hits: np.ndarray
    weight: np.ndarray

    def frame(self, head: int) -> pd.DataFrame:
        """Columns slot, row, col, hits, weight of the slots that `head` hit, by slot."""
        index = self.heads.index(head)
        slots = np.flatnonzero(self.hits[index])
        return pd.DataFrame(
            {
                "slot": slots,
                "row": slots // self.num_keys,
                "col": slots % self.num_keys,
                "hits": self.hits[index, slots],
                "weight": self.weight[index, slots],
            }
        )


class MemoryUsage(pd.DataFrame):
    """The table of `memory_usage`, a row a memory head, with the counts of every slot behind it."""

    _metadata = ["_counts"]
    _counts: list[SlotCounts] | None = None

    @property
    def _constructor(self) -> type[MemoryUsage]:
        return MemoryUsage

    def slots(self, block: int, head: int) -> pd.DataFrame:
        """The slots that a head hit, a row a slot, most hit first, then lowest slot.

        Columns: slot, row, col (slot = row * n + col), hits (reads of the slot) and weight (the sum
        of their softmax weights). `attrs` adds block, head and slots (N) to the table's own.

        Raises HeadError where there is no memory at (block, head).
        """
        for counts in self._known():
            if counts.block == block and head in counts.heads:
                frame = counts.frame(int(head))
                frame = frame.sort_values(["hits", "slot"], ascending=[False, True])
                frame = frame.reset_index(drop=True)
                frame.attrs = dict(self.attrs)
                frame.attrs |= {"table": "memory_slots", "block": int(block), "head": int(head)}
                frame.attrs["slots"] = counts.hits.shape[1]
                return frame
        raise HeadError(
            f"block {block!r} head {head!r} is no memory head; there is memory at {self._places()}"
        )

    def all_slots(self) -> pd.DataFrame:
        """Every slot hit, by block, head and slot: the columns of `slots` after block and head."""
        frames = []
        for counts in self._known():
            for head in counts.heads:
                frame = counts.frame(head)
                frame.insert(0, "block", counts.block)
                frame.insert(1, "head", head)
                frames.append(frame)
        table = pd.concat(frames, ignore_index=True)[list(SLOT_COLUMNS)]
        table.attrs = {**self.attrs, "table": "memory_slots"}
        return table

    def _known(self) -> list[SlotCounts]:
        if self._counts is None:
            raise MidusError(
                "this table has no counts of slots; take it from analysis.memory_usage(), or read "
                "the stored table of memory_slots"
            )
        return self._counts

    def _places(self) -> str:
        return "; ".join(f"block {c.block} heads {_ranges(c.heads)}" for c in self._known())


def _ranges(heads: list[int]) -> str:
    whole = heads == list(range(heads[0], heads[-1] + 1)) and len(heads) > 2
    return f"{heads[0]}-{heads[-1]}" if whole else ", ".join(map(str, heads))


# ---------------------------------------------------------------- the measurement


def memory_usage(
    model: Any = None, data: Any = None, *, progress: Progress | None = None
) -> MemoryUsage:
    """How each memory head uses the slots of its block's bank, over documents.

    Counted is every token of the documents once, also those whose own loss is not scored: right
    padding is left out, and a token shared by two overlapping windows counts in the earlier one,
    where it has its context.

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model; by default the
            shipped "pico-midus".
        data: whatever `analysis.documents` takes; by default the shipped held-out texts.
        progress: called as progress(done, total, text) after each batch of windows.

    Returns:
        A DataFrame, a row a memory head, with `.slots(block, head)` and `.all_slots()`. Columns:

        layer, kind, head, source_layer: as in every table of heads; layer is the block.
        slots: N, the slots of the block's bank.
        tokens: positions counted.
        hits: reads, k a token.
        weight: the sum of all softmax weights, 1 a token.
        coverage, dead: share of the slots hit at least once; number never hit.
        entropy: of the weight over slots, nats.
        effective_slots: exp(entropy).
        kl_uniform: log N - entropy, nats; 0 where all slots carry the same weight.
        effective_k: mean over tokens of exp(entropy of the k weights), 1 to k.
        top1_weight: mean over tokens of the largest of the k weights.

    Raises:
        MidusError: for a model without memory blocks, or whose head outputs are not finite.
        ModelError, DataError: for a model or data that cannot be used.

    >>> usage = memory_usage(data=["def f(x):\\n    return x\\n" * 20])  # doctest: +SKIP
    >>> usage.slots(2, 0).head()  # doctest: +SKIP
    """
    texts = documents(data, model="pico-midus" if model is None else model)
    model = load("pico-midus" if model is None else unwrap(model))
    memories = _memories(model)
    digest = tables.model_hash(model)
    tallies = {layer: _Tally(memory) for layer, memory in memories.items()}
    _stream(model, memories, tallies, texts, progress)
    return _usage(model, tallies, texts, digest)


def _memories(model: Any) -> dict[int, HeadwiseMemory]:
    """Block -> its memory; raises MidusError where the model has none."""
    layers: list[Any] = list(blocks(model))
    modules = [getattr(block, "memory", None) for block in layers]
    found = {at: memory for at, memory in enumerate(modules) if isinstance(memory, HeadwiseMemory)}
    if not found:
        raise MidusError(
            f"{tables.display_name(model)} has no memory blocks, so there are no slots to count; "
            "give a model up-scaled by midus_model.upscale, or 'pico-midus'"
        )
    return found


class _Tally:
    """Running counts of one block. `counted` [B, T] says which positions of the batch are new."""

    def __init__(self, memory: HeadwiseMemory):
        heads, n, _ = memory.row_keys.shape
        device = memory.row_keys.device
        device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.heads, self.num_keys, self.tokens = list(memory.heads), n, 0
        self.hits = torch.zeros(heads, n * n, dtype=torch.int64, device=device)
        self.weight = torch.zeros(heads, n * n, dtype=torch.float64, device=device)
        self.effective_k = torch.zeros(heads, dtype=torch.float64, device=device)  # sum over tokens
        self.top1 = torch.zeros(heads, dtype=torch.float64, device=device)
        self.counted = torch.empty(0)

    def __call__(self, memory: HeadwiseMemory, inputs: tuple[torch.Tensor, ...]) -> None:
        """The pre-hook of a memory; its input is the head outputs [B, T, H*D]."""
        new = inputs[0][self.counted.to(inputs[0].device)]  # [positions, H*D]
        if not len(new):
            return
        query = new.unflatten(-1, (memory.num_heads, memory.head_dim))
        if len(self.heads) < memory.num_heads:
            query = query[:, self.heads]  # [positions, M, D]
        self.add(*product_key_select(query, memory.row_keys, memory.col_keys, memory.top_k))

    def add(self, weights: torch.Tensor, indices: torch.Tensor) -> None:
        """Count reads: weights (best first) and slots, both [positions, M, k]."""
        heads, slots = self.hits.shape
        offsets = torch.arange(heads, device=self.hits.device)[:, None] * slots
        flat = (indices.to(self.hits.device) + offsets).flatten()
        weights = weights.to(self.hits.device, torch.float64)
        self.hits.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
        self.weight.view(-1).scatter_add_(0, flat, weights.flatten())
        self.effective_k += torch.special.entr(weights).sum(-1).exp().sum(0)
        self.top1 += weights[..., 0].sum(0)
        self.tokens += len(weights)


def _stream(
    model: Any,
    memories: dict[int, HeadwiseMemory],
    tallies: dict[int, _Tally],
    texts: Documents,
    progress: Progress | None,
) -> None:
    """Run every window through the decoder stack (no logits are needed) and count."""
    windows, done = _new_positions(texts), 0
    device = model.get_input_embeddings().weight.device
    with _watching(model, memories, tallies), torch.inference_mode():
        for ids, counted in _batches(windows, max(1, BATCH_POSITIONS // texts.context)):
            for tally in tallies.values():
                tally.counted = counted
            model.model(input_ids=ids.to(device), use_cache=False)
            done += len(ids)
            if progress is not None:
                progress(done, len(windows), "reading memory")


@contextmanager
def _watching(
    model: Any, memories: dict[int, HeadwiseMemory], tallies: dict[int, _Tally]
) -> Iterator[None]:
    """Tallies hooked before their memories, the model in eval mode; both undone at the end."""
    hooks = [memories[layer].register_forward_pre_hook(tallies[layer]) for layer in memories]
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def _new_positions(texts: Documents) -> list[tuple[Window, int]]:
    """Each window with the index of its first position that no earlier window held."""
    reached: dict[int, int] = {}
    found = []
    for window in texts.windows:
        found.append((window, max(0, reached.get(window.document, 0) - window.start)))
        reached[window.document] = window.start + len(window.ids)
    return found


def _batches(
    windows: list[tuple[Window, int]], size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and which positions count, both [B, T], longest windows first.

    Padding stands right, where causal attention keeps it out of every real position's sight.
    """
    windows = sorted(windows, key=lambda pair: -len(pair[0].ids))
    for start in range(0, len(windows), size):
        batch = windows[start : start + size]
        counts = [torch.arange(len(window.ids)) >= first for window, first in batch]
        yield (
            pad_sequence([window.ids for window, _ in batch], batch_first=True),
            pad_sequence(counts, batch_first=True),
        )


# ---------------------------------------------------------------- the table


def _usage(model: Any, tallies: dict[int, _Tally], texts: Documents, digest: str) -> MemoryUsage:
    counts, columns = [], []
    for layer, tally in tallies.items():
        if not tally.weight.isfinite().all():
            raise MidusError(
                f"the head outputs of block {layer} are not finite, so its reads mean nothing; "
                "look at the model's weights, or load it in float32"
            )
        hits, weight = tally.hits.cpu().numpy(), tally.weight.cpu().numpy()
        counts.append(SlotCounts(layer, tally.heads, tally.num_keys, hits, weight))
        columns.append(_statistics(tally))
    sites = [site for site in head_sites(model) if site.layer in tallies]
    names = ("layer", "kind", "head", "source_layer")
    heads = pd.DataFrame({name: [getattr(site, name) for site in sites] for name in names})
    usage = MemoryUsage(heads.join(pd.concat(columns, ignore_index=True)))
    usage._counts = counts
    usage.attrs = dict(_attrs(model, texts, digest).items())
    return usage


def _statistics(tally: _Tally) -> pd.DataFrame:
    """The columns that are measured, a row a memory head of the block."""
    heads, slots = tally.hits.shape
    hit = (tally.hits > 0).sum(-1)
    mass = tally.weight.sum(-1)
    entropy = torch.special.entr(tally.weight / mass[:, None]).sum(-1)
    columns = {
        "slots": torch.full((heads,), slots),
        "tokens": torch.full((heads,), tally.tokens),
        "hits": tally.hits.sum(-1),
        "weight": mass,
        "coverage": hit.double() / slots,
        "dead": slots - hit,
        "entropy": entropy,
        "effective_slots": entropy.exp(),
        "kl_uniform": float(np.log(slots)) - entropy,
        "effective_k": tally.effective_k / tally.tokens,
        "top1_weight": tally.top1 / tally.tokens,
    }
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _attrs(model: Any, texts: Documents, digest: str) -> dict[str, Any]:
    return tables.json_attrs(
        {
            "schema": tables.SCHEMA,
            "table": "memory_usage",
            "model": tables.display_name(model),
            "model_hash": digest,
            "data": texts.name,
            "data_hash": texts.sha256,
            "context": texts.context,
            "documents": [
                {"id": item.id, "tokens": item.tokens, "sha256": item.sha256} for item in texts
            ],
            "positions": POSITIONS,
            "versions": tables.versions(),
        }
    )
