"""How the heads' projections, and what they read and write, lie to each other."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from analysis.engine import Progress
from analysis.estimates import expect, timed
from analysis.memory.places import DEFAULT_MODEL, described, memories_of, memory_at
from analysis.memory.stream import Watcher, streamed
from analysis.realisations.fixed import expanded
from analysis.realisations.moments import Moments, effective_rank
from analysis.shortened import passes_of
from analysis.subject import loaded_with
from kernels import latent_bag
from midus_model import head_sites
from midus_model.memory import HeadwiseMemory
from midus_model.placement import at_hand

STAGE = "what heads read and write"
CHANCE = 8  # random matrices behind `.attrs["chance"]`


@timed
def head_geometry(
    model: Any = None,
    data: Any = None,
    *,
    block: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Pairs of a block's memory heads: do they realise the bank alike, read alike, write alike?

    Args:
        model: what `midus_model.load` takes; by default "pico-midus".
        data: what `analysis.documents` takes; by default the shipped held-out texts.
        block: one block; by default every memory block.
        limit: at most that many documents.
        progress: called with (done, total, text).

    Returns:
        A row a pair of heads, each with itself too (1 in all measures of likeness):
        block, source_layer, head, other.

        rank, other_rank: effective rank of the projections P_h and P_g, exp(entropy of the
        normalised singular values).
        read_cosine: mean cosine of the principal angles between what the two projections read of
        the latent space (the column spaces of P, in r dimensions); 1 where the same.
        write_cosine: the same of what they write in (the row spaces of P, in D dimensions).
        cka_read, cka_written: linear CKA (Kornblith et al. 2019, 1905.00414) over positions,
        between what the heads read of the bank, z_h and z_g, and between what they write, o_h and
        o_g.

        NaN where a projection, or what is read or written, has no spread.
        `.attrs["chance"]`: by block, both cosines of random projections of its shape.

    What this cannot show. A projection whose rank is that of the whole space has a cosine of 1 with
    any other: of r > D only read_cosine says something, of r < D only write_cosine. Cosines weigh
    all directions alike, however small their singular values. Heads write into slices of the stream
    of their own, so a shared row space means the same numbers, not the same directions of the
    stream. CKA is blind to rotations and to scale: 1 means the same up to these, so two heads with
    unlike projections of the same reads score high where the projections keep most of z; and it is
    too high where positions are few beside the dimensions.

    Raises:
        HeadError: where the block has no memory.
        MidusError: for a model without memory, or whose head outputs are not finite.
        ModelError, DataError: for a model or data that cannot be used.

    >>> head_geometry(limit=2).groupby("block")["cka_written"].mean()  # doctest: +SKIP
    """
    network, texts = loaded_with(DEFAULT_MODEL if model is None else model, data, limit)
    if block is not None:
        memory_at(network, block)
    memories = {at: m for at, m in memories_of(network).items() if block in (None, at)}
    likenesses = {at: _Likeness(at, memory) for at, memory in memories.items()}
    expect("head geometry", network, texts, {STAGE: passes_of(texts)})
    streamed(network, texts.windows, likenesses, progress, STAGE)
    sources = {site.layer: site.source_layer for site in head_sites(network)}
    frames = [
        _pairs(memory, likenesses[at]).assign(block=at, source_layer=sources[at])
        for at, memory in memories.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    first = ["block", "source_layer", "head", "other"]
    table = table[first + [name for name in table.columns if name not in first]]
    positions = next(iter(likenesses.values())).read.count
    chance = {str(at): _chance(*memory.head_proj.shape[1:]) for at, memory in memories.items()}
    table.attrs = described("head_geometry", network, texts, positions=positions, chance=chance)
    return table


class _Likeness(Watcher):
    """Moments of what all heads of a block read, [M*r], and write, [M*D]."""

    def __init__(self, layer: int, memory: HeadwiseMemory) -> None:
        super().__init__(layer, memory)
        count, r, size = memory.head_proj.shape
        self.memory = memory
        self.read, self.written = (Moments(count * w, self.device) for w in (r, size))

    def see(self, weights: torch.Tensor, slots: torch.Tensor) -> None:
        if not weights.isfinite().all():
            raise self.not_finite()
        # Read while the memory runs: what lies on disk is at hand then.
        bank, projections = (
            part.to(self.device) for part in (self.memory.bank, self.memory.projections)
        )
        latents = latent_bag(bank, slots, weights)  # [P, M, r]
        self.read.add(latents.flatten(1))
        self.written.add(expanded(latents, projections).flatten(1))


@torch.no_grad()
def _pairs(memory: HeadwiseMemory, likeness: _Likeness) -> pd.DataFrame:
    heads = memory.heads
    above = torch.triu_indices(len(heads), len(heads))
    with at_hand(memory):
        projections = memory.projections.cpu().double()
    left, values, right = torch.linalg.svd(projections, full_matrices=False)
    rank = effective_rank(values)  # [M]
    measures = {
        "rank": rank[:, None].expand(-1, len(heads)),
        "other_rank": rank.expand(len(heads), -1),
        "read_cosine": cosines(left, values),
        "write_cosine": cosines(right.mT, values),
        "cka_read": linear_cka(likeness.read.covariance, len(heads)),
        "cka_written": linear_cka(likeness.written.covariance, len(heads)),
    }
    numbers = torch.tensor(heads)
    columns = {"head": numbers[above[0]], "other": numbers[above[1]]}
    columns |= {name: matrix[above[0], above[1]] for name, matrix in measures.items()}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def cosines(bases: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the principal angles between subspaces: [M, M]; NaN with an empty one.

    `bases` [M, F, m]: orthonormal columns, those with a singular value `values` [M, m] of zero
    being left out. Of two dimensions the lesser is how many angles there are.
    """
    least = max(bases.shape[1:]) * torch.finfo(torch.float32).eps
    kept = values > least * values.amax(-1, keepdim=True)
    bases, rank = bases * kept[:, None], kept.sum(-1)
    rows = [torch.linalg.svdvals(one.mT @ bases).sum(-1) for one in bases]  # each [M]
    return torch.stack(rows) / torch.minimum(rank[:, None], rank)


def linear_cka(covariance: torch.Tensor, heads: int) -> torch.Tensor:
    """Linear CKA between the heads' parts of a covariance [M*F, M*F]: [M, M]."""
    blocks = covariance.unflatten(0, (heads, -1)).unflatten(2, (heads, -1))  # [M, F, M, F]
    size = blocks.square().sum((1, 3))
    own = size.diagonal().sqrt()
    return size / (own[:, None] * own)


def _chance(r: int, size: int) -> dict[str, float]:
    """Both cosines of random projections [r, D], the mean over pairs."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(CHANCE, r, size, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    above = torch.triu_indices(CHANCE, CHANCE, 1)
    both = {"read_cosine": left, "write_cosine": right.mT}
    return {
        name: float(cosines(bases, values)[above[0], above[1]].mean())
        for name, bases in both.items()
    }
