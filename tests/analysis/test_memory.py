"""Memory usage: equal to counting by hand, right about padding and overlaps, typed errors."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis import memory, tables
from analysis.documents import Document, Documents, documents
from analysis.memory import MemoryUsage, memory_usage
from midus_model import upscale
from midus_model.errors import HeadError, MidusError, ModelError
from tests.models import CONTEXT, HEADS, VOCABULARY, tiny

N_KEYS, TOP_K = 8, 3


def up_scaled(family: str = "llama", num_keys: int = N_KEYS, top_k: int = TOP_K, **kwargs: Any):
    """A tiny model with memory blocks; banks are not zero, so that reads reach later blocks."""
    model = upscale(tiny(family), num_keys=num_keys, top_k=top_k, latent_dim=8, **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.model.layers:
            if hasattr(block, "memory"):
                bank = block.memory.bank
                bank.copy_(0.3 * torch.randn(bank.shape, generator=generator))
    return model


def texts(lengths: list[int], context: int = 16) -> Documents:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return Documents("random", documents(ids, model=tiny(), context=context).items, context)


LENGTHS = [40, 7, 16, 17, 2, 31, 46, 15] + [3] * 13  # 20 documents or more: no warning


def by_hand(model: Any, data: Documents) -> tuple[dict[Any, Any], ...]:
    """Hits, weights and the k weights of every read, one window at a time, over all N slots."""
    hits, mass, reads = Counter(), Counter(), {}
    seen: set[tuple[int, int]] = set()
    for window in data.windows:
        inputs: dict[int, torch.Tensor] = {}
        hooks = [
            block.memory.register_forward_pre_hook(
                lambda _, args, layer=layer, inputs=inputs: inputs.__setitem__(layer, args[0])
            )
            for layer, block in enumerate(model.model.layers)
            if hasattr(block, "memory")
        ]
        with torch.no_grad():
            model(window.ids[None])
        for hook in hooks:
            hook.remove()
        for position in range(len(window.ids)):
            if (window.document, window.start + position) in seen:
                continue
            seen.add((window.document, window.start + position))
            for layer, head_outputs in inputs.items():
                layer_memory = model.model.layers[layer].memory
                every = head_outputs[0, position].view(HEADS, -1)
                for index, head in enumerate(layer_memory.heads):
                    first, second = every[head].chunk(2)
                    rows = layer_memory.row_keys[index] @ first
                    columns = layer_memory.col_keys[index] @ second
                    best = (rows[:, None] + columns[None]).flatten().topk(TOP_K)
                    weights = best.values.softmax(-1)
                    reads.setdefault((layer, head), []).append(weights.detach().double())
                    for slot, weight in zip(best.indices.tolist(), weights.tolist(), strict=True):
                        hits[layer, head, slot] += 1
                        mass[layer, head, slot] += weight
    return hits, mass, reads


@pytest.mark.parametrize("family", ["llama", "qwen3-wide", "mistral"])
def test_counts_equal_counting_by_hand(family: str):
    model, data = up_scaled(family), texts(LENGTHS)
    usage = memory_usage(model, data)
    hits, mass, reads = by_hand(model, data)
    slots = usage.all_slots()
    found = {(b, h, s): n for b, h, s, n in slots[["block", "head", "slot", "hits"]].values}
    assert found == dict(hits)
    for block, head, slot, weight in slots[["block", "head", "slot", "weight"]].values:
        assert weight == pytest.approx(mass[block, head, slot], rel=1e-4)
    assert (slots["slot"] == slots["row"] * N_KEYS + slots["col"]).all()
    for row in usage.itertuples():
        own = np.array([w for (b, h, _), w in mass.items() if (b, h) == (row.layer, row.head)])
        share = own / own.sum()
        weights = torch.stack(reads[row.layer, row.head])
        assert row.slots == N_KEYS**2
        assert row.dead == N_KEYS**2 - len(own)
        assert row.coverage == pytest.approx(len(own) / N_KEYS**2)
        assert row.entropy == pytest.approx(-(share * np.log(share)).sum(), abs=1e-4)
        assert row.effective_slots == pytest.approx(math.exp(row.entropy))
        assert row.kl_uniform == pytest.approx(math.log(N_KEYS**2) - row.entropy)
        effective = torch.special.entr(weights).sum(-1).exp().mean()
        assert row.effective_k == pytest.approx(float(effective), rel=1e-4)
        assert row.top1_weight == pytest.approx(float(weights[:, 0].mean()), rel=1e-4)


def test_a_token_counts_once_and_padding_never():
    model, data = up_scaled(), texts(LENGTHS)
    usage = memory_usage(model, data)
    assert (usage["tokens"] == sum(LENGTHS)).all()
    assert (usage["hits"] == TOP_K * sum(LENGTHS)).all()
    np.testing.assert_allclose(usage["weight"], sum(LENGTHS), rtol=1e-6)
    by_head = usage.all_slots().groupby(["block", "head"])["weight"].sum()
    np.testing.assert_allclose(usage["weight"], by_head)


def test_a_tasks_windows_count_once_where_they_overlap():
    ids = torch.arange(3, 43)
    items = [Document(str(i), ids, str(i), scored_from=30) for i in range(20)]
    data = Documents("tasks", items, context=16)
    covered = {(w.document, w.start + i) for w in data.windows for i in range(len(w.ids))}
    usage = memory_usage(up_scaled(), data)
    assert len(data.windows) == 20 and (usage["tokens"] == len(covered)).all()


@pytest.mark.parametrize("positions", [1, 64])
def test_batching_changes_nothing(monkeypatch: pytest.MonkeyPatch, positions: int):
    model, data = up_scaled(), texts(LENGTHS)
    usage = memory_usage(model, data)
    monkeypatch.setattr(memory, "BATCH_POSITIONS", positions)
    again = memory_usage(model, data)
    assert usage.all_slots()["hits"].equals(again.all_slots()["hits"])
    np.testing.assert_allclose(usage["entropy"], again["entropy"], rtol=1e-5)


class Planted(nn.Module):
    """Queries that ask for slot t mod N at position t of every window, for every head."""

    def __init__(self, keys: int, constant: bool):
        super().__init__()
        self.keys, self.constant = keys, constant

    def forward(self, head_outputs: torch.Tensor) -> torch.Tensor:
        batch, length, width = head_outputs.shape
        query = torch.zeros(length, HEADS, 2, width // HEADS // 2)
        for t in range(length):
            slot = 6 if self.constant else t % self.keys**2
            query[t, :, 0, slot // self.keys] = 1.0
            query[t, :, 1, slot % self.keys] = 1.0
        return query.flatten(1).expand(batch, -1, -1)


@pytest.mark.parametrize("constant", [True, False], ids=["one slot", "all slots alike"])
def test_planted_keys_give_planted_usage(constant: bool):
    keys = 4
    model = up_scaled(num_keys=keys, top_k=1)
    layers = [layer for layer, b in enumerate(model.model.layers) if hasattr(b, "memory")]
    for layer in layers:
        block = model.model.layers[layer]
        block.self_attn.o_proj = Planted(keys, constant)
        for half in (block.memory.row_keys, block.memory.col_keys):
            half.data = torch.eye(keys, half.shape[-1]).expand_as(half).clone()
    usage = memory_usage(model, texts([16] * 20))
    used = 1 if constant else keys**2
    assert (usage["coverage"] == used / keys**2).all()
    assert (usage["dead"] == keys**2 - used).all()
    np.testing.assert_allclose(usage["effective_slots"], used)
    np.testing.assert_allclose(usage["kl_uniform"], math.log(keys**2 / used), atol=1e-12)
    np.testing.assert_allclose(usage[["effective_k", "top1_weight"]], 1.0)
    slots = usage.slots(layers[0], 2)
    assert slots["slot"].tolist() == ([6] if constant else list(range(16)))
    assert slots["hits"].tolist() == ([320] if constant else [20] * 16)
    assert slots["row"].tolist()[0] == (1 if constant else 0)


def test_slots_are_most_hit_first_and_describe_themselves():
    usage = memory_usage(up_scaled(), texts(LENGTHS))
    slots = usage.slots(np.int64(2), 1)
    order = list(zip(-slots["hits"], slots["slot"], strict=True))
    assert list(slots.columns) == ["slot", "row", "col", "hits", "weight"]
    assert order == sorted(order) and (slots["hits"] > 0).all()
    assert slots.attrs["slots"] == N_KEYS**2 and slots.attrs["block"] == 2
    assert len(slots) == N_KEYS**2 - usage.set_index(["layer", "head"]).loc[(2, 1), "dead"]


def test_table_has_no_nan_and_says_what_it_measured(tmp_path: Any):
    usage = memory_usage(up_scaled(), texts(LENGTHS))
    assert not usage.isna().any().any()
    assert set(usage["kind"]) == {"memory"} and usage["source_layer"].tolist()[0] == 1
    assert usage.attrs["table"] == "memory_usage" and len(usage.attrs["documents"]) == len(LENGTHS)
    tables.save(usage, tmp_path / "usage")
    tables.save(usage.all_slots(), tmp_path / "slots")
    restored = tables.load(tmp_path / "usage")
    assert restored.attrs == usage.attrs and np.array_equal(restored.values, usage.values)
    assert np.array_equal(tables.load(tmp_path / "slots").values, usage.all_slots().values)


def test_counts_survive_selection_and_pickling():
    usage = memory_usage(up_scaled(), texts(LENGTHS))
    whole = usage.slots(2, 0)
    for other in (usage[usage["layer"] == 2], usage.copy()):
        assert isinstance(other, MemoryUsage) and other.slots(2, 0).equals(whole)


def test_memory_for_chosen_heads_only():
    usage = memory_usage(up_scaled(heads=[(1, 2), (1, 3), (3, 0)]), texts(LENGTHS))
    assert usage[["layer", "head"]].values.tolist() == [[2, 2], [2, 3], [5, 0]]
    with pytest.raises(HeadError, match=r"block 2 head 0 .* block 2 heads 2, 3; block 5 heads 0$"):
        usage.slots(2, 0)


@pytest.mark.parametrize("place", [(0, 0), (2, HEADS), (99, 0), (-1, 0), ("2", 0), (2, None)])
def test_slots_out_of_range_name_what_exists(place: tuple[Any, Any]):
    usage = memory_usage(up_scaled(), texts([8] * 20))
    with pytest.raises(HeadError, match="block 2 heads 0-3; block 5 heads 0-3"):
        usage.slots(*place)


def test_the_model_is_left_as_it_was():
    model = up_scaled().train()
    steps: list[tuple[int, int]] = []
    memory_usage(
        model, texts([8] * 20), progress=lambda done, total, _: steps.append((done, total))
    )
    assert model.training and steps[-1] == (20, 20)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        memory_usage(model, texts([8] * 20), progress=lambda *_: 1 // 0)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bfloat16_reads_are_finite():
    usage = memory_usage(up_scaled().to(torch.bfloat16), texts([CONTEXT] * 20, CONTEXT))
    assert np.isfinite(usage.drop(columns="kind").astype(float)).all().all()


def test_errors_are_one_clear_line():
    with pytest.raises(MidusError, match="has no memory blocks.*pico-midus") as raised:
        memory_usage(tiny(), texts([8] * 20))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError):
        memory_usage("no-such-model")
    with pytest.raises(MidusError, match="no counts of slots"):
        MemoryUsage({"layer": [0]}).slots(0, 0)
    broken = up_scaled()
    broken.model.layers[2].self_attn.v_proj.weight.data.fill_(math.nan)
    with pytest.raises(MidusError, match="block 2 are not finite"):
        memory_usage(broken, texts([8] * 20))
