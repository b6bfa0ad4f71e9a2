"""Memory usage: equal to counting by hand, right about padding and overlaps, typed errors."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from analysis import estimates, tables
from analysis.documents import Document, Documents, documents
from analysis.memory import MemoryUsage, memory_contents, memory_usage, memory_view, stream
from analysis.memory.contents import _Best
from analysis.memory.usage import Tally
from kernels.errors import HeadError, MidusError, ModelError
from midus_model import memory as memory_module
from tests.analysis.memory_models import (
    LENGTHS,
    N_KEYS,
    PLANTED_BLOCK,
    PLANTED_KEYS,
    PLANTED_SLOTS,
    TOP_K,
    WEIGHTS,
    first_slot,
    planted,
    second_slot,
    texts,
    up_scaled,
)
from tests.models import CONTEXT, HEADS, tiny
from tests.reference import memories, watched


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


FAMILIES = ["llama", "qwen3-wide", "mistral"]  # qwen3-wide has linear mixing


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_keys_and_of_other_heads_equal_loops_over_slots(family: str):
    usage = memory_usage(up_scaled(family), texts(LENGTHS))
    slots = usage.all_slots()
    share: dict[Any, dict[int, float]] = {}
    for (block, head), part in slots.groupby(["block", "head"]):
        total = part["weight"].sum()
        share[block, head] = dict(zip(part["slot"], part["weight"] / total, strict=True))
    for row in usage.itertuples():
        own = share[row.layer, row.head]
        for half, name in enumerate(("row", "col")):
            by_key: Counter = Counter()
            for slot, p in own.items():
                by_key[divmod(slot, N_KEYS)[half]] += p
            assert getattr(row, f"{name}_coverage") == len(by_key) / N_KEYS
            found = getattr(row, f"{name}_entropy")
            assert found == pytest.approx(nats(np.array(list(by_key.values()))))
        others = [one for at, one in share.items() if at[0] == row.layer and at[1] != row.head]
        overlaps = [sum(min(p, one.get(s, 0.0)) for s, p in own.items()) for one in others]
        assert row.collisions == pytest.approx(sum(overlaps) / len(overlaps))
    for row in usage.blocks().itertuples():
        heads = {at: one for at, one in share.items() if at[0] == row.block}
        used = {slot for one in heads.values() for slot in one}
        mean = [sum(one.get(s, 0.0) for one in heads.values()) / len(heads) for s in used]
        assert row.coverage == len(used) / N_KEYS**2 and row.dead == N_KEYS**2 - len(used)
        assert row.effective_slots == pytest.approx(math.exp(nats(np.array(mean))))
        of_heads = usage.loc[usage["layer"] == row.block, "collisions"]
        assert row.collisions == pytest.approx(of_heads.mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_read_ratio_equals_norms_token_by_token(family: str):
    """Each head alone through `out_proj` where there is one; its own slice where there is none."""
    model, data = up_scaled(family), texts([20] * 20, context=20)
    usage = memory_usage(model, data)
    for layer, memory in memories(model):
        ratios, whole = [], []
        for window in data.windows:
            stream_in, written = looked_at(model, layer, window.ids)
            size = memory.head_dim
            for x, o in zip(stream_in, written, strict=True):
                spans = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
                if memory.out_proj is None:
                    ratios.append([float(o[s].norm() / x[s].norm()) for s in spans])
                    whole.append(float(o.norm() / x.norm()))
                else:
                    weight = memory.out_proj.weight.detach().double()
                    ratios.append([float((weight[:, s] @ o[s]).norm() / x.norm()) for s in spans])
                    whole.append(float((weight @ o).norm() / x.norm()))
        found = usage.loc[usage["layer"] == layer, "read_ratio"]
        np.testing.assert_allclose(found, np.mean(ratios, axis=0), rtol=1e-4)
        blocks = usage.blocks().set_index("block")
        assert blocks.loc[layer, "read_ratio"] == pytest.approx(np.mean(whole), rel=1e-4)


def looked_at(model: Any, layer: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream [T, d] that enters a memory block, and what its heads write [T, H*D]: float64."""
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[layer]
    hooks = [
        block.input_layernorm.register_forward_pre_hook(
            lambda _, args: seen.__setitem__("stream", args[0])
        ),
        block.memory.out.register_forward_pre_hook(
            lambda _, args: seen.__setitem__("written", args[0])
        ),
    ]
    with torch.no_grad():
        model(ids[None])
    for hook in hooks:
        hook.remove()
    return seen["stream"][0].double(), seen["written"][0].double()


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the short passes that an estimate times, for tests that watch every pass."""
    monkeypatch.setattr(estimates, "seconds_a_pass", lambda *_: 1e-6)


@pytest.mark.usefixtures("no_estimate")
def test_the_shipped_model_on_two_documents_equals_the_scores_of_all_slots():
    """Against float64 scores of every slot; no choice is so narrow that fp32 could miss it."""
    from midus_model import load

    model = load("pico-midus")
    whole = documents(limit=2, model=model)
    data = documents([item.ids[320:360].tolist() for item in whole], model=model)
    with watched(model) as choices:
        usage = memory_usage(model, data)
    assert choices.margin > 1e-5 and len(choices.slots) == 3
    for (layer, memory), slots in zip(memories(model), choices.slots, strict=True):
        for index, head in enumerate(memory.heads):
            expected = np.bincount(slots[:, :, index].flatten(), minlength=4096)
            found = usage.slots(layer, head).set_index("slot")["hits"]
            assert found.to_dict() == {s: n for s, n in enumerate(expected) if n}


def test_the_retrieval_that_is_counted_is_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch):
    """Slots are chosen once a block and batch; what somebody changes them to is what counts."""
    model, data, calls = up_scaled(), texts([16] * 20), []
    select = memory_module.product_key_select
    monkeypatch.setattr(
        memory_module, "product_key_select", lambda *args: calls.append(1) or select(*args)
    )
    memory_usage(model, data)
    assert len(calls) == 2  # two blocks, one batch
    retrieved = model.model.layers[2].memory.retrieved
    hook = retrieved.register_forward_hook(
        lambda _, args, out: (out[0], torch.full_like(out[1], 5))
    )
    usage = memory_usage(model, data)
    hook.remove()
    assert usage.slots(2, 0)["slot"].tolist() == [5]
    assert usage.slots(5, 0)["slot"].nunique() > 1


@pytest.mark.usefixtures("no_estimate")
def test_a_pass_ends_at_the_last_memory_block():
    model, ran = up_scaled(blocks=[0]), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    memory_usage(model, texts([16] * 20))
    assert ran == list(model.model.layers[:2])


@pytest.mark.parametrize("watcher", [Tally, lambda *at: _Best(*at, range(N_KEYS**2), None, 4)])
def test_what_is_kept_does_not_grow_with_tokens(monkeypatch: pytest.MonkeyPatch, watcher: Any):
    """Everything that hangs on a watcher is measured after 32 windows and after 256."""
    monkeypatch.setattr(stream, "BATCH_POSITIONS", 256)
    model, sizes = up_scaled(blocks=[0]), []
    for documents_read in (32, 256):
        seen = watcher(1, model.model.layers[1].memory)
        stream.streamed(model, texts([16] * documents_read).windows, {1: seen})
        kept = {name: size_of(value) for name, value in vars(seen).items()}
        assert kept.pop("kept", 0) <= 4 * N_KEYS**2
        sizes.append(kept)
    assert sizes[0] == sizes[1] and max(sizes[0].values()) <= max(HEADS * N_KEYS**2, 256)


def size_of(value: Any) -> int:
    """Numbers held by an attribute of a watcher."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, stream.Positions):
        return value.index.numel()
    assert isinstance(value, int | list | slice | torch.device | None), value
    return len(value) if isinstance(value, list) else 1


def test_windows_are_batched_one_at_a_time():
    """No array over all tokens is made: the batches come from a generator, in reach of a batch."""
    windows = texts([16] * 400).windows
    found = stream.batches_of(windows, torch.device("cpu"))
    batch, positions = next(found)
    assert batch.ids.shape == (2048 // 16, 16) and len(positions.index) == 2048
    assert sum(len(p.index) for _, p in found) == 400 * 16 - 2048


def test_heads_that_read_fewer_slots_hit_fewer():
    """A head's own k: weight beyond it is 0, and that is no read, of whatever slot."""
    own = {(layer, head): 1 + head % TOP_K for layer in (1, 3) for head in range(HEADS)}
    model, data = up_scaled(top_k=own), texts([16] * 20)
    usage = memory_usage(model, data)
    assert usage["hits"].tolist() == [320 * k for k in own.values()]
    np.testing.assert_allclose(usage["weight"], 320, rtol=1e-6)
    assert (usage.all_slots()["weight"] > 0).all()
    best = memory_contents(model, data, block=2, slots=range(N_KEYS**2), head=0, contexts=320)
    assert len(best) == 320 and (best["weight"] == 1).all()
    view = memory_view(model, [5, 6])
    assert view.groupby(["block", "head"]).size().tolist() == [2 * k for k in own.values()]


def test_one_head_collides_with_nobody():
    usage = memory_usage(up_scaled(heads=[(1, 2)]), texts(LENGTHS))
    assert usage["collisions"].tolist() == [0.0] and len(usage.blocks()) == 1


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
    monkeypatch.setattr(stream, "BATCH_POSITIONS", positions)
    again = memory_usage(model, data)
    assert usage.all_slots()["hits"].equals(again.all_slots()["hits"])
    np.testing.assert_allclose(usage["entropy"], again["entropy"], rtol=1e-5)


@pytest.mark.parametrize("constant", [True, False], ids=["one token", "all tokens alike"])
@pytest.mark.parametrize("mixing", ["none", "linear"])
def test_planted_keys_give_planted_usage(constant: bool, mixing: str):
    """Identity keys and queries that name slots: every column is known by hand."""
    model = planted(output_mixing=mixing)
    if mixing == "linear":
        model.model.layers[PLANTED_BLOCK].memory.out_proj.weight.data = 3 * torch.eye(64)
    ids = [7] * PLANTED_SLOTS if constant else list(range(16, 16 + PLANTED_SLOTS))
    usage = memory_usage(model, documents([ids] * 20, model=tiny(), context=16))
    tokens = 20 * PLANTED_SLOTS
    for row in usage.itertuples():
        expected = np.zeros(PLANTED_SLOTS)
        for token in ids:
            expected[first_slot(token, row.head)] += 20 * WEIGHTS[0]
            expected[second_slot(token, row.head)] += 20 * WEIGHTS[1]
        slots = usage.slots(PLANTED_BLOCK, row.head).set_index("slot")["weight"]
        np.testing.assert_allclose(slots.reindex(range(PLANTED_SLOTS), fill_value=0), expected)
        assert row.tokens == tokens and row.hits == 2 * tokens
        assert row.coverage == (2 / PLANTED_SLOTS if constant else 1)
        assert row.row_coverage == (1 / PLANTED_KEYS if constant else 1)
        assert row.col_coverage == (2 / PLANTED_KEYS if constant else 1)
        by_row = expected.reshape(PLANTED_KEYS, PLANTED_KEYS).sum(1) / tokens
        by_col = expected.reshape(PLANTED_KEYS, PLANTED_KEYS).sum(0) / tokens
        assert row.row_entropy == pytest.approx(nats(by_row), abs=1e-12)
        assert row.col_entropy == pytest.approx(nats(by_col), abs=1e-6)
        assert row.row_entropy == pytest.approx(0.0 if constant else math.log(4), abs=1e-12)
        assert row.effective_k == pytest.approx(math.exp(nats(np.array(WEIGHTS))))
        assert row.top1_weight == pytest.approx(0.75)
    if constant:
        # By head: {7: 3/4, 4: 1/4}, {8: 3/4, 9: 1/4}, {9: 3/4, 8: 1/4}, {10: 3/4, 8: 1/4}.
        overlaps = [0, 1 / 2 + 1 / 4, 1 / 2 + 1 / 4, 1 / 4 + 1 / 4]
        np.testing.assert_allclose(usage["collisions"], np.array(overlaps) / 3, atol=1e-6)
    # Every read is 3/4 of one unit vector and 1/4 of another; a stream of ones has norm 8, each
    # head's slice of it 4. The read of four heads is twice as long as that of one.
    read = math.hypot(*WEIGHTS)
    of_head, of_block = (
        (read / 4, 2 * read / 8) if mixing == "none" else (3 * read / 8, 6 * read / 8)
    )
    np.testing.assert_allclose(usage["read_ratio"], of_head, rtol=1e-6)
    blocks = usage.blocks().iloc[0]
    assert blocks["read_ratio"] == pytest.approx(of_block)
    assert blocks["tokens"] == tokens and blocks["heads"] == HEADS
    assert blocks["dead"] == (16 - len({4, 7, 8, 9, 10}) if constant else 0)


def nats(shares: np.ndarray) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


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


def hooked(module: Any) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def test_the_model_is_left_as_it_was():
    model = up_scaled().train()
    steps: list[tuple[int, int]] = []
    memory_usage(
        model, texts([8] * 20), progress=lambda done, total, _: steps.append((done, total))
    )
    assert model.training and steps[-1] == (20, 20)
    assert not any(hooked(module) for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        memory_usage(model, texts([8] * 20), progress=lambda *_: 1 // 0)
    assert model.training
    assert not any(hooked(module) for module in model.modules())


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
