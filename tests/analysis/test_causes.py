"""Effects of memory against plain forward passes of models whose parameters are edited by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance, tables
from analysis.causes import (
    edited_slot,
    generation_effects,
    memory_effects,
    scaled_memory,
    token_effects,
)
from analysis.documents import Documents
from analysis.memory import memory_usage
from kernels.errors import DataError, HeadError, MidusError
from midus_model import upscale
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import CONTEXT, HEADS, HIDDEN, VOCABULARY, tiny, tokens
from tests.reference import fill_banks, float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

LENGTHS = [12, 33, 9, 20]
SIZE = HIDDEN // HEADS
MODELS: dict[str, dict[str, Any]] = {
    "two blocks": {"blocks": [0, 2]},
    "linear mixing": {"family": "qwen3-wide", "blocks": [1]},
    "chosen heads": {"heads": [(0, 3), (2, 1), (2, 2)]},
}


def many_slots(num_keys: int, blocks: list[int]) -> Any:
    """A model in float64 whose banks are not wholly read."""
    model = upscale(tiny(), blocks=blocks, num_keys=num_keys, top_k=3, latent_dim=8)
    return float64_reference(fill_banks(model))


def memories(model: Any) -> dict[int, Any]:
    stack = enumerate(model.model.layers)
    return {at: block.memory for at, block in stack if hasattr(block, "memory")}


@torch.no_grad()
def edited(model: Any, edit: Callable[[dict[int, Any]], Any]) -> Any:
    """A copy of the model whose memories `edit` has changed."""
    other = copy.deepcopy(model)
    edit(memories(other))
    return other


@torch.no_grad()
def losses(model: Any, data: Documents) -> np.ndarray:
    """Mean loss of every unit's scored tokens, one window at a time: [units]."""
    sums = np.zeros(len(data.units))
    for window in data.windows:
        logits = model(window.ids[None]).logits[0, :-1].double()[window.scored]
        sums[window.unit] += float(
            F.cross_entropy(logits, window.ids[1:][window.scored], reduction="sum")
        )
    return sums / [unit["tokens"] for unit in data.units]


def matrix(table: pd.DataFrame) -> np.ndarray:
    return np.array(table["by_document"].tolist())


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}


# ---------------------------------------------------------------- effects on documents


def scale_head(block: int, head: int, gain: float) -> Callable[[dict[int, Any]], Any]:
    return lambda found: found[block].head_proj[found[block].heads.index(head)].mul_(gain)


@pytest.mark.parametrize("gain", [0.0, -0.5, 2.0])
@pytest.mark.parametrize("name", MODELS)
def test_effects_equal_models_with_edited_parameters(name: str, gain: float) -> None:
    model, data = memory_model(**MODELS[name]), random_texts(LENGTHS)
    clean = losses(model, data)
    tables_of = {of: memory_effects(model, data, of=of, gain=gain) for of in ("heads", "blocks")}
    edits = {
        "heads": [
            scale_head(block, head, gain)
            for block, memory in memories(model).items()
            for head in memory.heads
        ],
        "blocks": [
            lambda found, block=block: found[block].bank.mul_(gain) for block in memories(model)
        ],
    }
    for of, table in tables_of.items():
        expected = [losses(edited(model, edit), data) - clean for edit in edits[of]]
        np.testing.assert_allclose(matrix(table), expected, atol=1e-9)
        assert np.abs(expected).max() > 1e-3
    whole = memory_effects(model, data, of="all", gain=gain)
    everywhere = edited(model, lambda found: [memory.bank.mul_(gain) for memory in found.values()])
    np.testing.assert_allclose(matrix(whole)[0], losses(everywhere, data) - clean, atol=1e-9)
    assert whole.attrs["clean_loss"] == pytest.approx(
        np.average(clean, weights=[unit["tokens"] for unit in data.units])
    )


@pytest.mark.parametrize("gain", [0.0, 1.5])
@pytest.mark.parametrize("name", MODELS)
def test_a_slot_for_all_heads_is_its_row_of_the_bank_scaled(name: str, gain: float) -> None:
    model, data = memory_model(**MODELS[name]), random_texts(LENGTHS)
    clean = losses(model, data)
    pairs = [(block, slot) for block in memories(model) for slot in (0, 5, 11)]
    table = memory_effects(model, data, of="slots", slots=pairs, gain=gain)
    expected = []
    for block, slot in pairs:
        other = edited(model, lambda found, b=block, s=slot: found[b].bank[s].mul_(gain))
        expected.append(losses(other, data) - clean)
    np.testing.assert_allclose(matrix(table), expected, atol=1e-9)
    assert np.abs(expected).max() > 1e-3
    assert table[["block", "slot"]].values.tolist() == [list(pair) for pair in pairs]
    assert table["head"].isna().all()


@contextmanager
def read_less(memory: Any, head: int, slot: int) -> Iterator[None]:
    """One head's read of one slot taken out of what it writes, from the scores of all N slots."""
    index, span = memory.heads.index(head), slice(head * SIZE, (head + 1) * SIZE)
    taken: list[torch.Tensor] = []

    def read(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        rows, columns = args[0][..., span].split(SIZE // 2, -1)
        scores = (
            (rows @ memory.row_keys[index].T)[..., :, None]
            + (columns @ memory.col_keys[index].T)[..., None, :]
        ).flatten(-2)
        best = scores.topk(memory.top_k)
        weight = (best.values.softmax(-1) * (best.indices == slot)).sum(-1, keepdim=True)
        taken.append(weight * (memory.bank[slot] @ memory.head_proj[index]))

    def write(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        outputs = args[0].clone()
        outputs[..., span] -= taken.pop()
        return (outputs,)

    hooks = [
        memory.register_forward_pre_hook(read),
        memory.out.register_forward_pre_hook(write),
    ]
    yield
    for hook in hooks:
        hook.remove()


def test_a_slot_for_one_head_is_taken_from_that_head_alone() -> None:
    model, data = memory_model(blocks=[0, 2]), random_texts(LENGTHS)
    clean, first = losses(model, data), min(memories(model))
    usage = memory_usage(model, data)
    triples = [(first, head, int(usage.slots(first, head)["slot"][0])) for head in range(HEADS)]
    table = memory_effects(model, data, of="slots", slots=triples)
    expected = []
    for block, head, slot in triples:
        with read_less(memories(model)[block], head, slot):
            expected.append(losses(model, data) - clean)
    np.testing.assert_allclose(matrix(table), expected, atol=1e-9)
    assert np.abs(expected).max() > 1e-3
    assert table["head"].tolist() == table["reader"].tolist() == list(range(HEADS))
    # The same as columns of a table, where missing heads make numbers floats.
    named = pd.DataFrame(triples, columns=["block", "head", "slot"]).astype(float)
    again = memory_effects(model, data, of="slots", slots=named)
    assert matrix(again).tolist() == matrix(table).tolist()


@pytest.mark.parametrize("metric", ["loss", "kl", "logit_difference", "accuracy"])
def test_heads_equal_head_importance(metric: str) -> None:
    model = memory_model(double=False, blocks=[0, 2])
    data = random_tasks([12, 9, 15, 11], [2, 3, 1, 2], [2, 3, 1, 2])
    table = memory_effects(model, data, of="heads", metric=metric, seed=4)
    every = head_importance(model, data, baseline="zero", metric=metric, seed=4)
    heads = every[every["kind"] == "memory"]
    assert table["block"].tolist() == heads["layer"].tolist()
    for column in ("head", "source_layer", "score", "stderr", "ci_low", "ci_high", "by_document"):
        assert table[column].tolist() == heads[column].tolist()
    clean = "clean_loss" if metric == "loss" else "clean"
    assert table.attrs[clean] == every.attrs[clean]
    assert table.attrs["unit"] == every.attrs["unit"]


def test_slots_are_measured_by_a_task_too() -> None:
    model, data = memory_model(), random_tasks([12, 9, 15, 11], [2, 3, 1, 2], [2, 3, 1, 2])

    @torch.no_grad()
    def differences(network: Any) -> np.ndarray:
        found = []
        for item in data:
            assert item.decision is not None
            at, wrong = item.decision
            logits = network(item.ids[None]).logits[0, at - 1]
            found.append(float(logits[item.ids[at]] - logits[wrong]))
        return np.array(found)

    (block,) = memories(model)
    pairs = [(block, slot) for slot in range(16)]
    table = memory_effects(model, data, of="slots", slots=pairs, metric="logit_difference")
    clean = differences(model)
    for slot in range(16):
        other = edited(model, lambda found, s=slot: found[block].bank[s].zero_())
        np.testing.assert_allclose(matrix(table)[slot], clean - differences(other), atol=1e-9)
    assert table.attrs["weighting"] == "documents"


def test_default_slots_are_the_heaviest_and_stand_beside_their_heads() -> None:
    model, data = many_slots(8, [0, 2]), random_texts(LENGTHS)
    table = memory_effects(model, data, of="slots")
    reads = memory_usage(model, data).all_slots()
    heads = memory_effects(model, data, of="heads").set_index(["block", "head"])
    blocks = memory_effects(model, data, of="blocks").set_index("block")
    for block in memories(model):
        here = reads[reads["block"] == block]
        weight = here.groupby("slot")["weight"].sum()
        rows = table[table["block"] == block]
        assert len(rows) == 16
        assert rows["weight"].tolist() == pytest.approx(weight.nlargest(16).tolist())
        for row in rows.itertuples():
            of_slot = here[here["slot"] == row.slot].set_index("head")
            assert row.weight == pytest.approx(weight[row.slot])
            assert row.hits == of_slot["hits"].sum()
            assert row.reader == of_slot["weight"].idxmax()
            assert row.head_score == pytest.approx(heads.loc[(block, row.reader), "score"])
            assert row.block_score == pytest.approx(blocks.loc[block, "score"])
            sure = blocks.loc[block, "ci_low"] > 0
            assert row.share == pytest.approx(row.score / row.block_score if sure else np.nan,
                                              nan_ok=True)  # fmt: skip


def test_a_share_is_of_the_head_where_one_is_named() -> None:
    """A memory that copies what the lm_head wants, so that each head surely helps."""
    model, data = memory_model(blocks=[2]), random_texts([20] * 4)
    (block,) = memories(model)
    triples = [(block, 1, slot) for slot in range(16)]
    table = memory_effects(model, data, of="slots", slots=triples)
    head = memory_effects(model, data, of="heads").set_index("head").loc[1]
    whole = head["score"] if head["ci_low"] > 0 else np.nan
    np.testing.assert_allclose(table["share"], table["score"] / whole)
    np.testing.assert_allclose(table["head_score"], head["score"])


def test_a_slot_that_nobody_reads_costs_nothing() -> None:
    model, data = many_slots(16, [1]), random_texts(LENGTHS)
    (block,) = memories(model)
    hit = set(memory_usage(model, data).all_slots()["slot"])
    unread = next(slot for slot in range(256) if slot not in hit)
    table = memory_effects(model, data, of="slots", slots=[(block, unread)])
    row = table.iloc[0]
    assert row["hits"] == row["weight"] == 0 and row["reader"] is pd.NA
    assert set(matrix(table)[0]) == {0.0} and math.isnan(row["head_score"])
    assert math.isfinite(row["block_score"])


@pytest.mark.parametrize("of", ["heads", "blocks", "all", "slots"])
def test_tables_survive_the_disc(of: str, tmp_path: Any) -> None:
    model, data = memory_model(blocks=[0, 2]), random_texts(LENGTHS)
    steps: list[tuple[int, int]] = []
    table = memory_effects(
        model, data, of=of, progress=lambda done, total, _: steps.append((done, total))
    )
    tables.save(table, tmp_path / "effects")
    again = tables.load(tmp_path / "effects")
    assert again.attrs == table.attrs and again.attrs["of"] == of
    pd.testing.assert_frame_equal(again, table)
    assert steps[-1][0] == steps[-1][1] > 0
    assert hooks_of(model) == 0


# ---------------------------------------------------------------- contexts


def planted() -> Any:
    """One memory block at the end, whose every read is slots 0 and 1 with weight 1/2 each.

    Keys of zero give every slot the same score, and the lowest slots come first. Slot 1 holds the
    numbers 1 to 4 and the others zero; head 2 writes twice these into the first four of its
    dimensions, the other heads nothing.
    """
    model = upscale(tiny(), blocks=[3], num_keys=2, top_k=2, latent_dim=4)
    (memory,) = memories(model).values()
    with torch.no_grad():
        for part in (memory.row_keys, memory.col_keys, memory.bank, memory.head_proj):
            part.zero_()
        memory.bank[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        memory.head_proj[2, :, :4] = 2 * torch.eye(4)
    return model


@torch.no_grad()
def planted_logits(ids: torch.Tensor, gain: float) -> torch.Tensor:
    """Logits after the last token with the planted memory scaled, in float64 from the base: [V]."""
    base = tiny()
    states: list[torch.Tensor] = []
    hook = base.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    base(ids[None])
    hook.remove()
    state = states[0][0, -1].double()
    state[2 * SIZE : 2 * SIZE + 4] += gain * torch.tensor([1.0, 2.0, 3.0, 4.0])
    norm = base.model.norm
    normed = state / (state.square().mean() + norm.variance_epsilon).sqrt() * norm.weight.double()
    return base.lm_head.weight.double() @ normed


@pytest.mark.parametrize("gain", [0.0, 0.25, -1.0, 3.0])
def test_a_planted_slot_changes_the_logits_by_the_known_amount(gain: float) -> None:
    model, ids = planted(), tokens(1, 10)[0]
    before, after = planted_logits(ids, 1.0), planted_logits(ids, gain)
    (block,) = memories(model)
    whole = VOCABULARY
    for part in ({"slot": 1}, {"slot": 1, "head": 2}, {"head": 2}, {}):
        table = token_effects(model, ids.tolist(), block=block, **part, gain=gain, top=whole)
        assert len(table) == whole and table["difference"].is_monotonic_decreasing
        chosen = table["token_id"].to_numpy().copy()
        for column, expected in {
            "before": before, "after": after, "difference": after - before,
            "probability_before": before.softmax(-1), "probability_after": after.softmax(-1),
        }.items():  # fmt: skip
            np.testing.assert_allclose(table[column], expected[chosen], atol=3e-5)
        kl = (before.softmax(-1) * (before.log_softmax(-1) - after.log_softmax(-1))).sum()
        assert table.attrs["kl"] == pytest.approx(float(kl), abs=1e-5)
    assert (after - before).abs().max() > 0.1
    for part in ({"slot": 0}, {"slot": 3}, {"slot": 1, "head": 1}, {"head": 0}):
        table = token_effects(model, ids.tolist(), block=block, **part, gain=gain)
        assert table.empty and table.attrs["kl"] == 0


def test_the_tokens_shown_are_the_most_raised_and_the_most_lowered() -> None:
    model, ids = planted(), tokens(1, 10)[0]
    change = planted_logits(ids, 0.0) - planted_logits(ids, 1.0)
    order = change.argsort(descending=True).tolist()
    table = token_effects(model, ids.tolist(), top=3)
    assert table["token_id"].tolist() == order[:3] + order[-3:]
    assert table["token"].isna().all(), "this model has no tokenizer"


@pytest.mark.parametrize("factor", [0.0, 2.0, -0.5])
def test_an_edited_slot_is_a_scaled_one(factor: float) -> None:
    model, ids = planted(), tokens(1, 10)
    (block,) = memories(model)
    with torch.no_grad():
        with edited_slot(model, block, 1, [factor, 2 * factor, 3 * factor, 4 * factor]):
            logits = model(ids).logits[0, -1].double()
        np.testing.assert_allclose(logits, planted_logits(ids[0], factor), atol=3e-5)


def test_off_is_the_base_and_one_is_the_model_itself() -> None:
    model, ids = memory_model(double=False, blocks=[0, 2]), tokens()
    with torch.no_grad():
        clean = model(ids).logits
        with scaled_memory(model):
            assert torch.equal(model(ids).logits, tiny()(ids).logits)
        for part in ({}, {"block": 1}, {"block": 1, "head": 3}, {"block": 4, "slot": 7}):
            with scaled_memory(model, **part, gain=1.0):
                assert torch.equal(model(ids).logits, clean)


def test_scaled_memory_nests_and_has_gradients() -> None:
    model, ids = memory_model(), tokens()
    (block,) = memories(model)
    with scaled_memory(model, block=block, gain=0.5), scaled_memory(model, head=1, block=block):
        halved = model(ids).logits
        halved.sum().backward()
    by_head = memories(model)[block].head_proj.grad.flatten(1).abs().sum(1)
    assert by_head[1] == 0 and (by_head[[0, 2, 3]] > 0).all()
    by_hand = edited(model, lambda found: found[block].head_proj.mul_(0.5)[1].zero_())
    torch.testing.assert_close(halved, by_hand(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contexts_leave_no_trace_after_an_error(dtype: torch.dtype) -> None:
    model, ids = memory_model(double=False, blocks=[0, 2]), tokens()
    with torch.no_grad():
        memories(model)[1].bank[3] = torch.tensor([-0.0, 1e-40, *[0.1] * 6])
    before, model = bits(model), model.to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for make in (
        lambda: scaled_memory(model),
        lambda: scaled_memory(model, block=1, head=2, slot=3, gain=2.0),
        lambda: edited_slot(model, 1, 3, torch.full((8,), 7.0)),
    ):
        with torch.no_grad():
            clean = model(ids).logits
        with pytest.raises(ZeroDivisionError), make():
            with torch.no_grad():
                assert not torch.equal(model(ids).logits, clean)
            raise ZeroDivisionError
        assert hooks_of(model) == 0
        for name, parameter in model.named_parameters():
            whole = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(parameter.view(whole), before[name].view(whole)), name
        with torch.no_grad():
            assert torch.equal(model(ids).logits, clean)


# ---------------------------------------------------------------- text


@torch.no_grad()
def greedy(model: Any, ids: list[int], new: int) -> list[int]:
    """The most likely token, again and again, the whole text anew each time."""
    made: list[int] = []
    for _ in range(new):
        made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def test_generation_equals_greedy_passes_over_the_whole_text() -> None:
    model, ids = memory_model(blocks=[0, 2]), tokens(1, 7)[0].tolist()
    model.generation_config.eos_token_id = None
    off = edited(model, lambda found: found[1].bank.zero_())
    expected = greedy(model, ids, 12), greedy(off, ids, 12)
    parts = next(i for i, (a, b) in enumerate(zip(*expected, strict=True)) if a != b)
    table = generation_effects(model, ids, block=1, max_new_tokens=12)
    assert (table["before_id"].tolist(), table["after_id"].tolist()) == expected
    assert table.attrs["parts_at"] == parts
    assert table["same"].tolist() == [a == b for a, b in zip(*expected, strict=True)]
    same = generation_effects(model, ids, block=1, gain=1.0, max_new_tokens=5)
    assert same.attrs["parts_at"] is None and same["same"].all()


def test_generation_ends_at_an_end_token() -> None:
    model, ids = memory_model(blocks=[0, 2]), tokens(1, 7)[0].tolist()
    model.generation_config.eos_token_id = None
    off = edited(model, lambda found: found[1].bank.zero_())
    before, after = greedy(model, ids, 12), greedy(off, ids, 12)
    firsts = {t: [made.index(t) if t in made else 11 for made in (before, after)] for t in before}
    end = next(token for token, (one, other) in firsts.items() if one != other)
    lengths = [first + 1 for first in firsts[end]]
    model.generation_config.eos_token_id = [end, VOCABULARY + 1]
    table = generation_effects(model, ids, block=1, max_new_tokens=12)
    assert table["before_id"].dropna().tolist() == before[: lengths[0]]
    assert table["after_id"].dropna().tolist() == after[: lengths[1]]
    assert len(table) == max(lengths) and not table["same"][min(lengths) :].any()
    assert table[["before", "after"]].isna().all().all(), "this model has no tokenizer"


def test_the_shipped_model_speaks_in_words(tmp_path: Any) -> None:
    raised = token_effects(None, "import os\nimport ", top=4)
    assert len(raised) == 8 and raised["token"].map(type).eq(str).all()
    said = generation_effects(None, "import os\nimport ", max_new_tokens=4)
    assert "".join(said["before"]) == said.attrs["before"] and len(said) == 4
    for name, table in (("raised", raised), ("said", said)):
        tables.save(table, tmp_path / name)
        again = tables.load(tmp_path / name)
        assert again.attrs == table.attrs
        pd.testing.assert_frame_equal(again, table)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("part", "error", "words"),
    [
        ({"block": 0}, HeadError, "block 0 is no memory block.*block 2"),
        ({"block": 2, "head": 9}, HeadError, "head 9 is no memory head.*heads 0-3"),
        ({"block": 2, "slot": 16}, MidusError, "slot is 16; .*0 to 15"),
        ({"block": 2, "slot": -1}, MidusError, "slot is -1"),
        ({"block": 2, "slot": 1.5}, MidusError, "slot is 1.5"),
        ({"slot": 3}, MidusError, "give block, one of 2"),
        ({"head": 3}, MidusError, "give block, one of 2"),
        ({"gain": math.nan}, MidusError, "gain is nan; it must be a finite number"),
        ({"gain": math.inf}, MidusError, "gain is inf"),
        ({"gain": "0"}, MidusError, "gain is '0'"),
        ({"gain": True}, MidusError, "gain is True"),
    ],
)
def test_parts_that_do_not_exist(part: dict[str, Any], error: type, words: str) -> None:
    model = memory_model(double=False)
    with pytest.raises(error, match=words) as caught, scaled_memory(model, **part):
        raise AssertionError
    assert "\n" not in str(caught.value) and hooks_of(model) == 0
    for ask in (token_effects, generation_effects):
        with pytest.raises(error, match=words):
            ask(model, [3, 4, 5], **part)


def test_heads_without_memory_are_refused() -> None:
    model = memory_model(double=False, heads=[(0, 3), (2, 1)])
    with (
        pytest.raises(HeadError, match="block 1 head 0 is no memory head.*block 1 heads 3"),
        scaled_memory(model, block=1, head=0),
    ):
        raise AssertionError
    with pytest.raises(HeadError, match="block 4 head 2"):
        memory_effects(model, random_texts(LENGTHS), of="slots", slots=[(4, 2, 0)])


@pytest.mark.parametrize("value", [[1.0] * 7, 3.0, [math.nan] * 8, "text", [[1.0] * 8]])
def test_values_that_do_not_fit_a_slot(value: Any) -> None:
    model = memory_model(double=False)
    before = bits(model)
    with pytest.raises(MidusError, match="8") as caught, edited_slot(model, 2, 3, value):
        raise AssertionError
    assert "\n" not in str(caught.value)
    assert all(torch.equal(bits(model)[name], kept) for name, kept in before.items())


def test_models_without_memory_are_refused() -> None:
    base, data = tiny(), random_texts(LENGTHS)
    for ask in (
        lambda: scaled_memory(base).__enter__(),
        lambda: edited_slot(base, 0, 0, [1.0]).__enter__(),
        lambda: memory_effects(base, data),
        lambda: token_effects(base, [3, 4]),
        lambda: generation_effects(base, [3, 4]),
    ):
        with pytest.raises(MidusError, match="has no memory blocks.*pico-midus") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "neurons"}, "of is 'neurons'; it must be one of heads, blocks, all, slots"),
        ({"gain": math.nan}, "gain is nan"),
        ({"slots": [(2, 1)]}, "slots are given, but of is 'heads'"),
        ({"of": "slots", "slots": []}, "no slots were given"),
        ({"of": "slots", "slots": [(2, 1, 1, 1)]}, "pairs"),
        ({"of": "slots", "slots": [2, 1]}, "pairs"),
        ({"of": "slots", "slots": [(2, 1.5)]}, "1.5 is no whole number"),
        ({"of": "slots", "slots": [(2, 99)]}, "slot is 99"),
        ({"of": "slots", "slots": [(2, None)]}, "a slot needs its block and its number"),
        ({"of": "slots", "slots": pd.DataFrame({"slot": [1]})}, "pairs"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MidusError, match=words) as caught:
        memory_effects(memory_model(double=False), random_texts(LENGTHS), **options)
    assert "\n" not in str(caught.value)


def test_texts_that_do_not_fit() -> None:
    model = memory_model(double=False)
    long = [3] * (CONTEXT + 1)
    with pytest.raises(DataError, match=f"the text has {CONTEXT + 1} tokens; .*{CONTEXT}"):
        token_effects(model, long)
    with pytest.raises(DataError, match="with 10 new ones.*or fewer new tokens"):
        generation_effects(model, long[:-5], max_new_tokens=10)
    for empty in ([], [3]):
        for ask in (token_effects, generation_effects):
            with pytest.raises(DataError, match="too short|empty"):
                ask(model, empty)
    with pytest.raises(DataError):
        token_effects(None, "")
    with pytest.raises(MidusError, match="top is 0"):
        token_effects(model, [3, 4], top=0)
    with pytest.raises(MidusError, match="max_new_tokens is 0"):
        generation_effects(model, [3, 4], max_new_tokens=0)
