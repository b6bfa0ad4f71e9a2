"""How memory heads use their slots: counted while the model reads, two numbers a slot."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from analysis.documents import Documents
from analysis.engine import Progress
from analysis.estimates import expect, timed
from analysis.memory.places import described, memories_of, opened, read
from analysis.memory.stream import READING, Watcher, streamed
from analysis.memory.table import MemoryUsage, SlotCounts
from analysis.shortened import passes_of
from midus_model import head_sites
from midus_model.maps import weight_of
from midus_model.memory import HeadwiseMemory
from midus_model.placement import device_of

POSITIONS = "every token of the documents once; right padding and repeats of overlaps left out"
SITE_COLUMNS = ("layer", "kind", "head", "source_layer")


@timed
def memory_usage(
    model: Any = None, data: Any = None, *, progress: Progress | None = None
) -> MemoryUsage:
    """How each memory head uses the slots of its block's bank, over documents.

    Counted is every token of the documents once, also those whose own loss is not scored: right
    padding is left out, and a token shared by two overlapping windows counts in the earlier one,
    where it has its context. What is kept does not grow with the number of tokens.

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model; by default the
            shipped "pico-midus".
        data: whatever `analysis.documents` takes; by default the shipped held-out texts.
        progress: called as progress(done, total, text) after each batch of windows.

    Returns:
        A DataFrame, a row a memory head, with `.slots(block, head)`, `.all_slots()` and
        `.blocks()`. Columns:

        layer, kind, head, source_layer: as in every table of heads; layer is the block.
        slots: N, the slots of the block's bank.
        tokens: positions counted.
        hits: reads, k a token: a head that reads fewer has weight 0 beyond its own, which is none.
        weight: the sum of all softmax weights, 1 a token.
        coverage, dead: share of the slots hit at least once; number never hit.
        entropy: of the weight over slots, nats.
        effective_slots: exp(entropy).
        kl_uniform: log N - entropy, nats; 0 where all slots carry the same weight.
        row_coverage, col_coverage: share of the head's n sub-keys of each half that were used.
        row_entropy, col_entropy: of the weight over the sub-keys of each half, nats.
        collisions: mean overlap with the block's other heads, 0 to 1; see `table.collisions`.
        effective_k: mean over tokens of exp(entropy of the k weights), 1 to k.
        top1_weight: mean over tokens of the largest of the k weights.
        read_ratio: mean over tokens of the norm of what the head writes over that of what it is
            added to. With output_mixing "none" that is the head's own slice of the stream; with
            "linear" what it writes is its output through `out_proj`, added to the whole stream. A
            token whose stream is zero counts as 0.

    Raises:
        MidusError: for a model without memory blocks, or whose head outputs are not finite.
        ModelError, DataError: for a model or data that cannot be used.

    >>> usage = memory_usage(data=["def f(x):\\n    return x\\n" * 20])  # doctest: +SKIP
    >>> usage.slots(2, 0).head()  # doctest: +SKIP
    """
    texts, network = read(data, model), opened(model)
    expect("memory usage", network, texts, {READING: passes_of(texts)})
    tallies = {layer: Tally(layer, memory) for layer, memory in memories_of(network).items()}
    streamed(network, texts.windows, tallies, progress)
    return _table(network, texts, list(tallies.values()))


class Tally(Watcher):
    """Running counts of one block."""

    def __init__(self, layer: int, memory: HeadwiseMemory):
        super().__init__(layer, memory)
        heads, slots, self.tokens = len(self.heads), memory.bank.shape[0], 0
        self.hits = torch.zeros(heads, slots, dtype=torch.int64, device=self.device)
        self.weight = self._zeros(heads, slots)
        # Sums over tokens, of each head and of the block.
        self.effective_k, self.top1 = self._zeros(heads), self._zeros(heads)
        self.head_ratio, self.block_ratio = self._zeros(heads), self._zeros()
        self.offsets = torch.arange(heads, device=self.device)[:, None] * slots  # [M, 1]
        self.mixing = _mixing(memory)
        self.stream, self.written = torch.empty(0), torch.empty(0)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def hooks(self, block: Any) -> list[RemovableHandle]:
        return [
            *super().hooks(block),
            block.register_forward_pre_hook(self._keep_stream, with_kwargs=True),
            block.memory.out.register_forward_pre_hook(self._keep_written),
            block.memory.register_forward_hook(self._compare),
        ]

    def see(self, weights: torch.Tensor, slots: torch.Tensor) -> None:
        """Count reads: weights (best first) and slots, both [P, M, k]."""
        flat = (slots + self.offsets).flatten()
        self.hits.view(-1).scatter_add_(0, flat, (weights > 0).flatten().long())
        self.weight.view(-1).scatter_add_(0, flat, weights.flatten().double())
        logs = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()  # 0 log 0 is 0
        spread = (weights * logs).sum(-1).neg().exp()  # [P, M]
        self.effective_k += spread.sum(0, dtype=torch.float64)
        self.top1 += weights[..., 0].sum(0, dtype=torch.float64)
        self.tokens += len(weights)

    def _keep_stream(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.stream = args[0] if args else kwargs["hidden_states"]  # [W, T, d]

    def _keep_written(self, _: nn.Module, args: tuple) -> None:
        self.written = args[0]  # [W, T, H*D]

    def _compare(self, memory: HeadwiseMemory, _: tuple, added: torch.Tensor) -> None:
        """The memory's own hook, which comes last: what was written over what it is added to."""
        written = self._of_heads(memory, self.written)  # [W*T, M, D]
        self.stream = self.stream.to(added.device)  # of several, the block before has its own
        stream = _norm(self.stream).flatten()  # [W*T]
        if self.mixing is None:
            heads = _norm(written), _norm(self._of_heads(memory, self.stream))
        else:
            mixed = written.transpose(0, 1).to(self.mixing.dtype) @ self.mixing  # [M, W*T, D]
            heads = _norm(mixed).T, stream[:, None]
        self.head_ratio += self._total(*heads)
        self.block_ratio += self._total(_norm(added).flatten(), stream)
        self.stream = self.written = torch.empty(0)

    def _of_heads(self, memory: HeadwiseMemory, states: torch.Tensor) -> torch.Tensor:
        """[W, T, H*D] -> the slices of the memory heads, [W*T, M, D]."""
        every = states.reshape(-1, memory.num_heads, memory.head_dim)
        return every if len(self.heads) == memory.num_heads else every[:, self.heads]

    def _total(self, written: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """The ratio of two norms [W*T, ...], summed over the positions that count."""
        ratio = torch.where(stream > 0, written / stream, 0.0)
        return self.at_positions(ratio).sum(0, dtype=torch.float64)

    def counts(self) -> SlotCounts:
        """The counts so far; MidusError where what was read is not finite."""
        if not self.weight.isfinite().all():
            raise self.not_finite()
        hits, weight = self.hits.cpu().numpy(), self.weight.cpu().numpy()
        ratio = float(self.block_ratio) / self.tokens
        return SlotCounts(self.layer, self.heads, self.num_keys, hits, weight, self.tokens, ratio)

    def means(self) -> dict[str, Any]:
        """The columns that are means over tokens, each [M]."""
        sums = {
            "effective_k": self.effective_k,
            "top1_weight": self.top1,
            "read_ratio": self.head_ratio,
        }
        return {name: (total / self.tokens).cpu().numpy() for name, total in sums.items()}


def _norm(states: torch.Tensor) -> torch.Tensor:
    """Euclidean norm over the last dimension, in fp32 at least."""
    wide = torch.promote_types(states.dtype, torch.float32)
    return torch.linalg.vector_norm(states, dim=-1, dtype=wide)


@torch.no_grad()
def _mixing(memory: HeadwiseMemory) -> torch.Tensor | None:
    """[M, D, D]: o_h @ mixing[h] is as long as what head h adds to the stream through `out_proj`.

    With W_h [d, D] the projection's columns of head h and W_h = Q R, norm(W_h o) = norm(R o): the
    [P, M, d] that the heads add one by one are never made. None without `out_proj`.
    """
    if memory.out_proj is None:
        return None
    weight = weight_of(memory.out_proj).cpu()
    by_head = weight.unflatten(1, (memory.num_heads, memory.head_dim)).transpose(0, 1)  # [H, d, D]
    wide = torch.promote_types(weight.dtype, torch.float32)
    factor = torch.linalg.qr(by_head[memory.heads].to(wide), mode="r").R
    return factor.mT.contiguous().to(device_of(memory))


def _table(model: Any, texts: Documents, tallies: list[Tally]) -> MemoryUsage:
    counts = [tally.counts() for tally in tallies]
    measured = [
        pd.DataFrame(block.statistics() | tally.means())
        for block, tally in zip(counts, tallies, strict=True)
    ]
    layers = {tally.layer for tally in tallies}
    sites = [site for site in head_sites(model) if site.layer in layers]
    heads = pd.DataFrame({name: [getattr(site, name) for site in sites] for name in SITE_COLUMNS})
    usage = MemoryUsage(heads.join(pd.concat(measured, ignore_index=True)))
    usage._counts = counts
    usage.attrs = described("memory_usage", model, texts, positions=POSITIONS)
    return usage
