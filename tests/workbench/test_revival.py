"""Revival and the balance loss inside a training, on a tiny model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels import product_key_select
from kernels.errors import MidusError, UpscaleError
from midus_model import upscale
from midus_model.keys import halves, imbalance, loads, memories_of, queries_of
from tests.models import tiny, tokens
from tests.reference import fill_banks
from workbench.revival import Balance, Revival, asked, watching

N_KEYS, TOP_K = 12, 2


def grown(**options: Any) -> Any:
    return upscale(tiny(), num_keys=N_KEYS, top_k=TOP_K, latent_dim=8, **options).train()


def reads(memory: Any, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads of each row and column sub-key, [M, n] each, from a selection of our own."""
    return loads(*product_key_select(queries, memory.row_keys, memory.col_keys, TOP_K), N_KEYS)


def step_of(model: Any, revival: Revival, ids: torch.Tensor, step: int, most: int = 100) -> Any:
    """One optimiser step with the callback's calls around it; the optimiser."""
    optimizer = torch.optim.AdamW(
        [p for m in memories_of(model).values() for p in (m.row_keys, m.col_keys, m.bank)], lr=1e-3
    )
    with watching(model, [revival.look]):
        model(ids, labels=ids).loss.backward()
    optimizer.step()
    now = SimpleNamespace(global_step=step, max_steps=most)
    revival.on_step_end(None, now, None, optimizer=optimizer)
    return optimizer


def test_looks_see_every_training_read_and_no_other() -> None:
    model, ids, seen = grown(heads=[(0, 1), (2, 0), (2, 3)]), tokens(2, 9), []
    with watching(model, [lambda *read: seen.append(read)]):
        model(ids)
        model.eval()
        model(ids)
    model(ids)
    assert [memory for memory, _, _ in seen] == list(memories_of(model).values())
    for (memory, queries, hits), known in zip(
        seen, queries_of(model, list(ids), batch_size=2).values(), strict=True
    ):
        torch.testing.assert_close(queries.detach(), known)
        for mine, expected in zip(hits, reads(memory, known), strict=True):
            assert torch.equal(mine, expected)
    assert all(not memory._forward_pre_hooks for memory in memories_of(model).values())


def test_planted_dead_keys_come_back_and_their_optimiser_state_is_new() -> None:
    model, ids = fill_banks(grown(blocks=[1])), tokens(4, 30)  # a bank of zeros moves no key
    (memory,) = memories_of(model).values()
    (queries,) = queries_of(model, list(ids)).values()
    model.train()
    with torch.no_grad():  # the mean of all others never wins, and is hardly ever second
        for head, key in ((1, 4), (3, 0)):
            memory.row_keys[head, key] = 0
            memory.row_keys[head, key] = memory.row_keys[head].mean(0)
    rows, cols = reads(memory, queries)
    idle = [(counts < 0.05 * counts.sum(-1, keepdim=True) / N_KEYS) for counts in (rows, cols)]
    assert idle[0][1, 4] and idle[0][3, 0]
    revival = Revival(model, every=1, seed=0)
    before = memory.row_keys.detach().clone(), memory.col_keys.detach().clone()
    optimizer = step_of(model, revival, ids, step=1)
    assert revival.revived == [[1, int(idle[0].sum() + idle[1].sum())]]
    for keys, old, dead in zip((memory.row_keys, memory.col_keys), before, idle, strict=True):
        shift = (keys - old).abs().amax(-1)
        assert (shift[dead] > 0.01).all() and (shift[~dead] < 0.0011).all()
        for name in ("exp_avg", "exp_avg_sq"):
            moments = optimizer.state[keys][name].abs().amax(-1)
            assert (moments[dead] == 0).all() and (moments[~dead] > 0).any()
    rows, _ = reads(memory, queries)
    assert rows[1, 4] > 0 and rows[3, 0] > 0


def test_revival_waits_for_its_step_and_leaves_time_to_learn() -> None:
    model, ids = grown(blocks=[1]), tokens(2, 20)
    revival = Revival(model, every=3, seed=0)
    for step in range(1, 10):
        step_of(model, revival, ids, step, most=9)
    assert [step for step, _ in revival.revived] == [3, 6]
    kept = revival.state()["attributes"]
    counted = torch.tensor(kept["hits"]["2"])
    assert (counted.sum(-1) == 3 * ids.numel() * TOP_K).all()  # reads of steps 7 to 9


def test_its_state_goes_on_where_it_was() -> None:
    model, ids = grown(blocks=[1]), tokens(2, 20)
    revival, again = Revival(model, every=5, seed=0), Revival(model, every=5, seed=0)
    step_of(model, revival, ids, step=5)
    step_of(model, revival, ids, step=6)
    again.on_train_begin(None, SimpleNamespace(stateful_callbacks={"Revival": revival.state()}), 0)
    assert again.state() == revival.state() and again.revived[0][0] == 5


def test_the_balance_loss_adds_its_gradient_and_not_its_value() -> None:
    model, ids = grown(), tokens(2, 20)
    balance = Balance(0.5)
    with watching(model, [balance.look]):
        loss = model(ids, labels=ids).loss
        total = balance.added_to(loss)
    assert torch.equal(total, loss)
    memories = memories_of(model)
    keys = [getattr(m, side) for m in memories.values() for side in ("row_keys", "col_keys")]
    found = torch.autograd.grad(total, keys)
    parts = []
    for memory, queries in zip(
        memories.values(), queries_of(model, list(ids)).values(), strict=True
    ):
        keys_of = memory.row_keys, memory.col_keys
        sides = zip(halves(queries), keys_of, reads(memory, queries), strict=True)
        parts += [imbalance(*side) for side in sides]
    expected = torch.autograd.grad(0.5 * sum(parts) / len(parts), keys)
    for mine, theirs in zip(found, expected, strict=True):  # the bank is zero: no other gradient
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(MidusError, match="revive_every is 0"):
        asked(grown(), 0, 0.0)
    with pytest.raises(MidusError, match="balance_weight is -1"):
        asked(grown(), None, -1.0)
    with pytest.raises(UpscaleError, match="no memory blocks"):
        asked(tiny(), 5, 0.0)
    assert asked(tiny(), None, 0.0) == {}
    assert asked(grown(), 5, 0.1) == {"revive_every": 5, "balance_weight": 0.1}
