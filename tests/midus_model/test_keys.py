"""Sub-keys: planted clusters are found, the formula stays, dead keys alone are moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import product_key_select
from kernels.errors import DataError, MidusError, UpscaleError
from midus_model import upscale
from midus_model.keys import (
    across,
    halves,
    imbalance,
    loads,
    memories_of,
    queries_of,
    query_keys,
    revive,
    set_query_keys,
    spherical_clusters,
)
from tests.models import HEADS, VOCABULARY, tiny, tokens
from tests.reference import float64_reference

N_KEYS, TOP_K = 8, 3


def grown(family: str = "llama", **options: Any) -> Any:
    return upscale(tiny(family), num_keys=N_KEYS, top_k=TOP_K, latent_dim=8, **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors [count, size] that stand at right angles to one another."""
    square = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q[:count].float()


def lopsided(positions: int = 4000, seed: int = 0) -> torch.Tensor:
    """Queries [P, 2, 12] with a mean that is longer than what differs, and uneven directions."""
    mean = 3 * torch.randn(2, 12, generator=seeded(100))
    scale = torch.logspace(0, -1, 12)
    return mean + scale * torch.randn(positions, 2, 12, generator=seeded(seed))


def coverage(queries: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Share of each head's slots that are read, [M]."""
    _, slots = product_key_select(queries, rows, cols, TOP_K)
    found = [len(slots[:, head].unique()) for head in range(queries.shape[1])]
    return torch.tensor(found) / rows.shape[1] ** 2


# ---------------------------------------------------------------- where keys start


def test_clustering_finds_planted_clusters() -> None:
    planted = torch.stack([directions(5, 8, seed=s) for s in (1, 2)])  # [2, 5, 8]
    members = torch.arange(400) % 5
    points = planted[:, members] * torch.rand(2, 400, 1, generator=seeded()).add(0.1)
    points = points + 0.01 * torch.randn(points.shape, generator=seeded(3))
    found = spherical_clusters(points, 5, seeded())
    likeness = planted @ found.transpose(1, 2)  # [2, 5, 5]
    assert likeness.max(-1).values.min() > 0.99
    assert all(len(row.argmax(-1).unique()) == 5 for row in likeness)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 5))


def test_a_centre_without_points_starts_anew_where_points_are_served_worst() -> None:
    first, second = directions(2, 6)
    points = torch.cat([first.expand(40, 6), second.expand(1, 6)])[None]
    found = spherical_clusters(points, 2, seeded(1), steps=3)[0]
    assert (found @ torch.stack([first, second]).T).max(0).values.min() > 0.999


def test_keys_are_across_the_mean_so_that_the_formula_centres_queries() -> None:
    queries = lopsided()
    for points, keys in zip(halves(queries), query_keys(queries, N_KEYS), strict=True):
        mean = points.mean(1, keepdim=True)
        plain, centred = (x.double() @ keys.double().mT for x in (points, points - mean))
        assert mean.norm(dim=-1).min() > 1
        assert (plain - centred).abs().max() < 1e-5 * plain.abs().max()
        torch.testing.assert_close(across(keys, mean), keys)


def test_scores_spread_over_the_keys_as_with_uniform_keys() -> None:
    queries = lopsided()
    bound = 6**-0.5
    uniform = torch.rand(2, 4096, 6, generator=seeded()) * 2 * bound - bound
    for points, keys in zip(halves(queries), query_keys(queries, N_KEYS), strict=True):
        spread = (points @ keys.mT).std(-1, correction=0).mean(-1)
        torch.testing.assert_close(
            spread, (points @ uniform.mT).std(-1).mean(-1), rtol=0.03, atol=0
        )


def test_coverage_is_above_that_of_uniform_keys() -> None:
    queries, more = lopsided(), lopsided(2000, seed=9)
    bound = 6**-0.5
    uniform = [torch.rand(2, 16, 6, generator=seeded(s)) * 2 * bound - bound for s in (0, 1)]
    best = coverage(more, *query_keys(queries, 16))
    assert (best > coverage(more, *uniform) + 0.1).all() and best.min() > 0.8


@pytest.mark.parametrize("options", [{}, {"heads": [(1, 0), (1, 2)]}], ids=["all", "two"])
def test_a_models_keys_come_from_its_own_queries_and_nothing_else_moves(
    options: dict[str, Any],
) -> None:
    model, ids = grown(**options), tokens(6, 40)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(ids).logits
    state = torch.random.get_rng_state()
    set_query_keys(model, ids, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    keys = {name for name in before if name.endswith(("row_keys", "col_keys"))}
    assert moved == keys and torch.equal(model(ids).logits, logits)
    for layer, memory in memories_of(model).items():
        queries = by_block(model, layer, ids)
        expected = query_keys(queries[:, memory.heads], N_KEYS, seed=3 + 1000 * layer)
        torch.testing.assert_close(memory.row_keys.data, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(memory.col_keys.data, expected[1], rtol=1e-3, atol=1e-4)


def by_block(model: Any, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """Attn' of block `layer` on the model's own stream, [P, H, D], one window at a time."""
    found = []
    block = model.model.layers[layer]
    handle = block.self_attn.register_forward_hook(lambda _, args, out: found.append(out[0][0]))
    with torch.no_grad():
        for window in ids:
            model(window[None])
    handle.remove()
    return torch.cat(found).unflatten(-1, (HEADS, -1))


def test_the_same_seed_gives_the_same_keys() -> None:
    models = [grown() for _ in range(3)]
    ids = tokens(6, 40)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        set_query_keys(model, ids, seed=seed)
    first, again, other = (list(memories_of(model).values())[0].row_keys for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_windows_of_any_lengths_are_each_seen_whole() -> None:
    model, ids = grown(), tokens(3, 30)
    ragged = [ids[0], ids[1, :7], ids[2, :7], ids[2, :1]]
    ((layer, found), *_) = queries_of(model, ragged).items()
    parts = [by_block(model, layer, window[None]) for window in ragged]
    assert len(found) == 45
    torch.testing.assert_close(found.sum(0), torch.cat(parts).sum(0), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(UpscaleError, match="no memory blocks"):
        set_query_keys(tiny(), tokens())
    with pytest.raises(DataError, match="5 tokens for 8 sub-keys"):
        set_query_keys(grown(), tokens(1, 5))
    with pytest.raises(DataError, match=f"token id {VOCABULARY}"):
        set_query_keys(grown(), [[VOCABULARY] * 20])
    with pytest.raises(UpscaleError, match="no weights"):
        set_query_keys(upscale(tiny().to("meta"), num_keys=8, top_k=3), tokens())
    broken = grown()
    with torch.no_grad():
        broken.model.layers[2].self_attn.v_proj.weight.fill_(torch.nan)
    with pytest.raises(MidusError, match="block 2 are not finite"):
        set_query_keys(broken, tokens(2, 20))


# ---------------------------------------------------------------- dead keys, and an even load


def test_exactly_the_dead_keys_are_revived() -> None:
    queries = lopsided()
    points = halves(queries)[0]
    keys, _ = query_keys(queries, N_KEYS)
    hits = torch.full((2, N_KEYS), 100)
    hits[0, [2, 5]] = torch.tensor([0, 3])
    hits[0, 6] = 6  # 5% of an even share is 4.6
    before = keys.clone()
    dead = revive(keys, hits, points, seeded())
    assert dead.nonzero().tolist() == [[0, 2], [0, 5]]
    assert torch.equal(keys[~dead], before[~dead])
    length = before[0, hits[0] > 10].norm(dim=-1).mean()
    torch.testing.assert_close(keys[dead].norm(dim=-1), length.expand(2), rtol=0.02, atol=0)
    again = before.clone()
    revive(again, hits, points, seeded())
    assert torch.equal(again, keys)


def test_a_head_that_was_not_read_is_left_alone() -> None:
    queries = lopsided()
    keys, _ = query_keys(queries, N_KEYS)
    before = keys.clone()
    hits = torch.zeros(2, N_KEYS, dtype=torch.int64)
    assert not revive(keys, hits, halves(queries)[0], seeded()).any()
    assert torch.equal(keys, before)


def test_revived_keys_are_selected_where_the_load_was() -> None:
    """Two clusters share one key, the other key is far off: revival gives the larger its own."""
    a, b, away, mean = directions(4, 12)
    clusters = torch.cat([a.expand(300, 12), b.expand(100, 12)])
    points = (5 * mean + clusters + 0.05 * torch.randn(400, 12, generator=seeded()))[None]
    keys = torch.stack([2 * (a + b) / 2**0.5 + mean, 2 * away - 3 * mean])[None]  # [1, 2, 12]
    best = (points @ keys.mT).argmax(-1)
    assert (best == 0).all()
    hits = torch.tensor([[400, 0]])
    assert revive(keys, hits, points, seeded(1)).tolist() == [[False, True]]
    best = (points @ keys.mT).argmax(-1)[0]
    served = [float((best[:300] == 1).float().mean()), float((best[300:] == 1).float().mean())]
    assert max(served) > 0.95 and min(served) < 0.05
    shared = points[0].mean(0)
    torch.testing.assert_close(keys[0, 1] @ shared, keys[0, 0] @ shared)


def test_loads_count_every_read() -> None:
    slots = torch.randint(0, 25, (7, 2, 3), generator=seeded())
    weights = torch.ones(7, 2, 3)
    weights[:, 1, 2] = 0  # the second head reads two slots only
    rows, cols = loads(weights, slots, 5)
    for head, read in enumerate((slots[:, 0].flatten(), slots[:, 1, :2].flatten())):
        for key in range(5):
            assert rows[head, key] == sum(int(slot) // 5 == key for slot in read)
            assert cols[head, key] == sum(int(slot) % 5 == key for slot in read)


def test_imbalance_is_one_where_even_and_n_where_one_key_gets_all() -> None:
    points = torch.zeros(2, 6, 4)
    points[..., 0] = 1
    keys = torch.randn(2, 5, 4, generator=seeded()) * torch.tensor([0, 1, 1, 1])
    assert imbalance(points, keys, torch.full((2, 5), 3)).item() == pytest.approx(1)
    keys[:, 2, 0] = 100
    hits = torch.zeros(2, 5)
    hits[:, 2] = 9
    assert imbalance(points, keys, hits).item() == pytest.approx(5)


def test_imbalance_has_the_gradient_of_finite_differences() -> None:
    model = float64_reference(grown(blocks=[1]))
    (memory,) = memories_of(model).values()
    (queries,) = queries_of(model, list(tokens(2, 20))).values()
    retrieved = product_key_select(queries, memory.row_keys, memory.col_keys, TOP_K)
    points = queries.transpose(0, 1)[..., : queries.shape[-1] // 2].contiguous()
    hits = loads(*retrieved, N_KEYS)[0]
    keys = memory.row_keys.detach().clone().requires_grad_()
    value = imbalance(points, keys, hits)
    value.backward()
    assert keys.grad is not None and keys.grad.abs().max() > 1e-3
    for at in [(0, 0, 0), (1, 3, 2), (3, 7, 5)]:
        nudge = torch.zeros_like(keys)
        nudge[at] = 1e-5
        up, down = (imbalance(points, keys.detach() + s * nudge, hits) for s in (1, -1))
        assert keys.grad[at].item() == pytest.approx(float(up - down) / 2e-5, abs=1e-9)
    step = imbalance(points, keys.detach() - keys.grad, hits)
    assert step < value
