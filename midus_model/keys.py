"""Sub-keys: where they start, how dead ones are revived, and how even their load is.

Shape letters: P positions, M memory heads, D head size, d = D/2 size of a half, n sub-keys a half,
k slots read. The layer's formula is nowhere touched: all of this only sets or weighs parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from kernels.errors import DataError, MidusError, UpscaleError
from midus_model.intake import taken
from midus_model.maps import check_writable
from midus_model.memory import HeadwiseMemory
from midus_model.placement import input_device, is_offloaded

LLOYD_STEPS = 6
EVEN_STEPS, EVEN_RATE = 30, 0.1  # of Adam, down to zero
EVEN_BATCH = 16  # queries a step for each sub-key of a half
SHARPNESS = 3.0  # standard deviation of a query's scores over the keys, as the soft reads see them
SCORES = 2**24  # scores of queries against keys that are held at once

DEAD = 0.05  # of an even share of a head's reads; a sub-key with less is dead
NOISE = 0.1  # of a revived key's length


def memories_of(model: Any) -> dict[int, HeadwiseMemory]:
    """Block -> its memory; raises UpscaleError where the model has none."""
    found = {
        layer: block.memory
        for layer, block in enumerate(model.model.layers)
        if isinstance(getattr(block, "memory", None), HeadwiseMemory)
    }
    if not found:
        raise UpscaleError("the model has no memory blocks; give one up-scaled with method 'midus'")
    return found


def of_heads(memory: HeadwiseMemory, head_outputs: torch.Tensor) -> torch.Tensor:
    """The queries [P, M, D] of the memory's heads in head outputs [B, T, H*D]."""
    every = head_outputs.reshape(-1, memory.num_heads, memory.head_dim)
    return every if len(memory.heads) == memory.num_heads else every[:, memory.heads]


def halves(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The row and the column half of queries [P, M, D], [M, P, d] each, fp32 at least."""
    wide = queries.to(torch.promote_types(queries.dtype, torch.float32))
    rows, cols = wide.transpose(0, 1).chunk(2, dim=-1)
    return rows, cols


# ---------------------------------------------------------------- where keys start


@torch.no_grad()
def set_query_keys(model: Any, calibration: Any, *, seed: int = 0, batch_size: int = 8) -> None:
    """Set every memory's sub-keys in place, by product quantisation of its heads' own queries.

    See `query_keys` for how. The bank being zero, a freshly up-scaled model still equals its base
    bit for bit; for a model that was trained already the queries are those its present keys give.

    Args:
        model: an up-scaled model with memory blocks.
        calibration: token ids, [W, T] or a list of [T] tensors, of text like that to come; some
            hundred tokens a sub-key will do. All queries are held at once: tokens * H * D values
            a block.
        seed: of the first centres.
        batch_size: windows that go through the model at once.

    Raises:
        UpscaleError: the model has no memory blocks, or no weights (meta device).
        DataError: fewer calibration tokens than sub-keys, or ids that are none of the model's.
        MidusError: head outputs that are not finite.
        ModelError: a memory whose keys cannot be set, such as an offloaded one.
    """
    model = taken(model)
    memories = memories_of(model)
    if is_offloaded(model) or input_device(model).type == "meta":
        raise UpscaleError("the model has no weights to take queries from; load it first")
    for memory in memories.values():
        check_writable(memory)
    most = max(memory.row_keys.shape[1] for memory in memories.values())
    windows = _windows(calibration, model.config.vocab_size, most)
    for layer, queries in queries_of(model, windows, batch_size=batch_size).items():
        if not queries.isfinite().all():
            raise MidusError(
                f"the head outputs of block {layer} are not finite; look at the model's weights, "
                "or load it in float32"
            )
        memory = memories[layer]
        rows, cols = query_keys(queries, memory.row_keys.shape[1], seed=seed + 1000 * layer)
        memory.row_keys.copy_(rows)
        memory.col_keys.copy_(cols)


def _windows(calibration: Any, vocabulary: int, n: int) -> list[torch.Tensor]:
    windows = [torch.as_tensor(window, dtype=torch.long).flatten() for window in calibration]
    windows = [window for window in windows if len(window)]
    count = sum(map(len, windows))
    if count < n:
        raise DataError(
            f"the calibration text has {count} tokens for {n} sub-keys a half; give at least {n}, "
            f"better {256 * n}"
        )
    low, high = min(int(w.min()) for w in windows), max(int(w.max()) for w in windows)
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"the calibration text has token id {low if low < 0 else high}, the model's are 0 to "
            f"{vocabulary - 1}; tokenize with the model's own tokenizer"
        )
    return windows


@torch.no_grad()
def queries_of(
    model: Any, windows: Sequence[torch.Tensor], *, batch_size: int = 8
) -> dict[int, torch.Tensor]:
    """What the heads of every memory ask at every token of `windows`: block -> [P, M, D]."""
    memories = memories_of(model)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in memories}
    hooks = [
        memory.register_forward_pre_hook(
            lambda memory, args, kept=found[layer]: kept.append(of_heads(memory, args[0]))
        )
        for layer, memory in memories.items()
    ]
    device = input_device(model)
    training = model.training
    model.eval()
    try:
        for batch in _batches(windows, batch_size):
            model.model(input_ids=batch.to(device), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {layer: torch.cat(kept) for layer, kept in found.items()}


def _batches(windows: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    """Windows of equal length together, [at most size, T] each, so that none is padded."""
    by_length: dict[int, list[torch.Tensor]] = {}
    for window in windows:
        by_length.setdefault(len(window), []).append(window)
    return [
        torch.stack(alike[start : start + size])
        for alike in by_length.values()
        for start in range(0, len(alike), size)
    ]


@torch.no_grad()
def query_keys(
    queries: torch.Tensor, n: int, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column sub-keys [M, n, d] for queries [P, M, D], by product quantisation.

    In each half of each head the queries' mean favours some keys for all queries alike and tells
    none apart. So keys are made orthogonal to the mean m: then q.K = (q - m).K exactly, and queries
    are centred without a change to the formula. All keys of a half have one length, so a query
    selects by angle. Their directions start as the centres of a spherical k-means of what is left
    of the queries, and then both halves together are moved to where slots are used evenly
    (`even_use`): k-means evens out the sub-keys, not their pairs. The length is set so that the
    scores of a query spread over the sub-keys as they do, on average, with keys drawn from
    U(+-d^-1/2): standard deviation |q| / sqrt(3 d).
    """
    generator = torch.Generator().manual_seed(seed)
    sides = halves(queries)  # [M, P, d] each
    means = [points.mean(1, keepdim=True) for points in sides]  # [M, 1, d]
    left = [across(points, mean) for points, mean in zip(sides, means, strict=True)]
    starts = [spherical_clusters(points, n, generator) for points in left]
    keys = []
    for points, mean, found in zip(sides, means, even_use(left, starts, generator), strict=True):
        directions = normalize(across(found, mean), dim=-1)
        wanted = points.norm(dim=-1).mean(-1) / (3 * points.shape[-1]) ** 0.5  # [M]
        ratio = wanted / _spread(points, directions).clamp(min=1e-12)
        keys.append(directions * ratio[:, None, None])
    return keys[0], keys[1]


def across(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """`vectors` [..., P, d] less their part along `mean` [..., 1, d]."""
    unit = normalize(mean, dim=-1)
    return vectors - (vectors * unit).sum(-1, keepdim=True) * unit


def _spread(points: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a query's scores over the keys, mean over queries: [M]."""
    parts = [
        torch.bmm(part, keys.mT).std(-1, correction=0).sum(-1)
        for part in _parts(points, keys.shape[1])
    ]
    return torch.stack(parts).sum(0) / points.shape[1]


def _parts(points: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
    """`points` [M, P, d] in parts small enough for their scores against n keys."""
    return points.split(max(1, SCORES // (len(points) * n)), dim=1)


def spherical_clusters(
    points: torch.Tensor, n: int, generator: torch.Generator, steps: int = LLOYD_STEPS
) -> torch.Tensor:
    """Unit centres [M, n, d] of points [M, P, d] clustered by angle, each of the M sets for itself.

    Spherical k-means (Dhillon and Modha 2001): a long point weighs as much as a short one. Starts
    as k-means++ does, at points drawn with a chance in proportion to their squared distance from
    the centres so far. A centre left without points starts anew at the point worst served.
    """
    units = normalize(points, dim=-1)
    heads = len(units)
    centres = _far_apart(units, n, generator)
    for _ in range(steps):
        sums, counts, fits = torch.zeros_like(centres), centres.new_zeros(heads, n), []
        for part in _parts(units, n):
            fit, nearest = torch.bmm(part, centres.mT).max(-1)  # [M, p]
            members = part.new_zeros(heads, part.shape[1], n).scatter_(-1, nearest[..., None], 1)
            sums += torch.bmm(members.mT, part)  # a sum of fixed order, on GPUs too
            counts += members.sum(1)
            fits.append(fit)
        centres = normalize(sums, dim=-1)
        for head in (counts == 0).any(-1).nonzero().flatten().tolist():
            empty = (counts[head] == 0).nonzero().flatten()
            worst = torch.cat([fit[head] for fit in fits]).argsort(stable=True)
            centres[head, empty] = units[head, worst[: len(empty)]]
    return centres


def _far_apart(units: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """n of the unit vectors [M, P, d] of each set, drawn as k-means++ does: [M, n, d]."""
    heads, count, size = units.shape
    distance = units.new_ones(heads, count, dtype=torch.float64)
    chosen = []
    for _ in range(n):
        ends = distance.cumsum(-1)  # [M, P]
        draw = torch.rand(heads, 1, generator=generator, dtype=torch.float64).to(ends.device)
        index = torch.searchsorted(ends, draw * ends[:, -1:]).clamp(max=count - 1)  # [M, 1]
        centre = units.gather(1, index[..., None].expand(-1, -1, size))  # [M, 1, d]
        distance = distance.minimum(1 - (units * centre).sum(-1).double()).clamp(min=1e-12)
        chosen.append(centre)
    return torch.cat(chosen, 1)


def even_use(
    sides: list[torch.Tensor], directions: list[torch.Tensor], generator: torch.Generator
) -> list[torch.Tensor]:
    """`directions` [M, n, d] of both halves, moved so that queries use all n * n slots evenly.

    Down the gradient of KL(even || p), each head's own: p(i, j) is the mean over queries of
    softmax_i(row scores) softmax_j(column scores), soft reads standing in for the k best. Every
    query's scores are first scaled to a standard deviation of SHARPNESS over the keys. That
    divergence is large where some slots are used hardly at all, which an entropy would pass over.

    Args:
        sides: halves of queries across their mean, [M, P, d].
        directions: where the row and the column keys start.
    """
    free = [start.clone().requires_grad_() for start in directions]
    optimizer = torch.optim.Adam(free, lr=EVEN_RATE)
    batch = EVEN_BATCH * directions[0].shape[1]
    for step in range(EVEN_STEPS):
        optimizer.param_groups[0]["lr"] = EVEN_RATE * (1 - step / EVEN_STEPS)
        drawn = torch.randint(sides[0].shape[1], (batch,), generator=generator)
        drawn = drawn.to(sides[0].device)
        with torch.enable_grad():
            soft = [_soft(points[:, drawn], keys) for points, keys in zip(sides, free, strict=True)]
            used = torch.bmm(soft[0].mT, soft[1]) / batch  # [M, n, n]
            (-used.clamp(min=1e-12).log().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [keys.detach() for keys in free]


def _soft(points: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Softmax over the keys of the points' scaled scores, [M, P, n]."""
    scores = torch.bmm(points, normalize(keys, dim=-1).mT)
    scale = scores.detach().std(-1, keepdim=True).clamp(min=1e-12)
    return (scores * (SHARPNESS / scale)).softmax(-1)


# ---------------------------------------------------------------- dead keys, and an even load


@torch.no_grad()
def revive(
    keys: torch.Tensor, hits: torch.Tensor, points: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Move the dead sub-keys of one half, in place, to where queries share a busy key.

    Dead is a sub-key with less than 5% of an even share of its head's reads. It is moved toward a
    query of `points`, drawn with a chance in proportion to the load of the key that serves that
    query best, plus noise. Across the mean query it gets the mean length of the keys that the
    head's reads go to; along the mean, which raises or lowers a key's scores for all queries
    alike, it gets their mean part: so it neither loses everywhere nor wins everywhere.

    Args:
        keys: [M, n, d].
        hits: reads of each sub-key, [M, n]; a head without any read is left alone.
        points: recent halves of queries, [M, P, d].
        generator: of the CPU.

    Returns:
        Which were moved, bool [M, n]; all others are left bit for bit.
    """
    share = hits.double() / hits.sum(-1, keepdim=True).clamp(min=1)  # [M, n]
    dead = (share < DEAD / keys.shape[1]) & (hits.sum(-1, keepdim=True) > 0)
    for head in dead.any(-1).nonzero().flatten().tolist():
        old, load = keys[head].float(), share[head].float()
        asked = points[head].float()  # [P, d]
        mean = asked.mean(0, keepdim=True)
        along = load @ (old @ normalize(mean, dim=-1).T)  # [1]
        length = load @ across(old, mean).norm(dim=-1)
        count = int(dead[head].sum())
        chance = load[(asked @ old.T).argmax(-1)].cpu() + 1e-9  # [P]
        drawn = torch.multinomial(chance, count, count > len(chance), generator=generator)
        toward = normalize(across(asked[drawn.to(asked.device)], mean), dim=-1)
        noise = torch.randn(toward.shape, generator=generator).to(toward.device)
        toward = across(toward + noise * NOISE / toward.shape[-1] ** 0.5, mean)
        new = length * normalize(toward, dim=-1) + along * normalize(mean, dim=-1)
        keys[head, dead[head]] = new.to(keys.dtype)
    return dead


def imbalance(points: torch.Tensor, keys: torch.Tensor, hits: torch.Tensor) -> torch.Tensor:
    """How uneven the load of one half's sub-keys is, a scalar: 1 where even, n at the worst.

    The loss of Fedus et al. 2021 (Switch Transformers, eq. 4), for each head: n * sum_i f_i P_i
    over its n sub-keys, f_i the share of its reads that went to sub-key i (counts, without a
    gradient), P_i the mean over queries of the softmax of their scores over the sub-keys. Mean
    over heads.

    Args:
        points: halves of queries, [M, P, d].
        keys: [M, n, d].
        hits: reads of each sub-key, [M, n].
    """
    wide = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(points.device.type, enabled=False):
        scores = torch.bmm(points.to(wide), keys.to(wide).mT)  # [M, P, n]
        likely = scores.softmax(-1).mean(1)  # [M, n]
        share = hits.to(wide) / hits.sum(-1, keepdim=True)
        return keys.shape[1] * (share * likely).sum(-1).mean()


def loads(weights: torch.Tensor, slots: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads of each row and each column sub-key, int64 [M, n] both.

    Of weights and slots [P, M, k] as retrieved; a weight of 0 (a head of a smaller k) is no read.
    """
    flat, read = (x.transpose(0, 1).flatten(1) for x in (slots, (weights > 0).long()))  # [M, P*k]
    rows = flat.div(n, rounding_mode="floor")
    empty = torch.zeros(len(flat), n, dtype=torch.int64, device=flat.device)
    return empty.scatter_add(1, rows, read), empty.scatter_add(1, flat - rows * n, read)
