"""What is in slots: planted reads in their contexts, promoted tokens, nearest slots, one text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.memory import memory_contents, memory_usage, memory_view, nearest_slots, slot_tokens
from analysis.memory.contents import DEFAULT_SLOTS
from kernels.errors import DataError, HeadError, MidusError
from midus_model import load
from tests.analysis.memory_models import (
    LATENT,
    LENGTHS,
    N_KEYS,
    PLANTED_BLOCK,
    SIZE,
    TOP_K,
    WEIGHTS,
    first_slot,
    planted,
    second_slot,
    texts,
    up_scaled,
)
from tests.models import HEADS, VOCABULARY, tiny
from tests.reference import float64_reference, memories, watched

CODE = [
    "import os\nfor name in os.listdir('.'):\n    print(name)\n" * 3,
    "def f(x):\n    return x\n",
]
few = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


# ---------------------------------------------------------------- contents


@pytest.mark.parametrize("head", [None, 2])
def test_planted_reads_are_found_where_they_were_planted(head: int | None):
    """All reads of two slots, listed by hand and sorted, with their ties."""
    data = texts(LENGTHS)
    table = memory_contents(
        planted(), data, block=PLANTED_BLOCK, slots=[9, 4], head=head, contexts=6
    )
    for slot in (9, 4):
        reads = [
            (-weight, document, position, h)
            for document, item in enumerate(data)
            for position, token in enumerate(item.ids.tolist())
            for h in (range(HEADS) if head is None else [head])
            for weight, named in zip(WEIGHTS, (first_slot, second_slot), strict=True)
            if named(token, h) == slot
        ]
        expected = sorted(reads)[:6]
        found = table[table["slot"] == slot]
        assert found["rank"].tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(found["weight"], [-w for w, *_ in expected], rtol=1e-6)
        columns = ["document", "position", "head"]
        places = [(data[d].id, position, h) for _, d, position, h in expected]
        assert list(found[columns].itertuples(index=False, name=None)) == places
        tokens = [int(data[d].ids[position]) for _, d, position, _ in expected]
        assert found["token_id"].tolist() == tokens
    assert table["slot"].unique().tolist() == [9, 4] and set(table["block"]) == {PLANTED_BLOCK}
    assert table[["before", "token", "after", "text"]].isna().all().all()  # no tokenizer
    assert table.attrs["table"] == "memory_contents" and table.attrs["slots"] == [9, 4]


@pytest.mark.parametrize("head", [None, 1])
def test_the_slots_most_used_come_first_by_default(head: int | None):
    model, data = up_scaled(), texts(LENGTHS)
    table = memory_contents(model, data, block=2, head=head, contexts=2)
    slots = memory_usage(model, data).all_slots()
    slots = slots[(slots["block"] == 2) & (slots["head"].eq(head) if head is not None else True)]
    weight = slots.groupby("slot")["weight"].sum().sort_values(ascending=False, kind="stable")
    assert table["slot"].unique().tolist() == weight.index[:DEFAULT_SLOTS].tolist()
    assert table.groupby("slot").size().max() == 2


def test_contexts_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch):
    from analysis.memory import stream

    model, data = up_scaled(), texts(LENGTHS)
    table = memory_contents(model, data, block=5, contexts=3)
    monkeypatch.setattr(stream, "BATCH_POSITIONS", 40)
    again = memory_contents(model, data, block=5, contexts=3)
    columns = ["slot", "head", "rank", "document", "position"]
    assert table[columns].equals(again[columns])


@few
def test_contexts_are_cut_from_the_text():
    table = memory_contents(data=CODE, block=2, slots=range(4096), head=0, contexts=2, width=5)
    tokenizer = load_tokenizer()
    for row in table.itertuples():
        ids = tokenizer(CODE[int(row.document)])["input_ids"]
        at = row.position
        assert ids[at] == row.token_id and row.token == tokenizer.decode([ids[at]])
        assert row.text == row.before + row.token
        assert row.text == tokenizer.decode(ids[max(0, at - 4) : at + 1])
        assert row.after == tokenizer.decode(ids[at + 1 : at + 3])
    assert len(table) > 20


def load_tokenizer() -> Any:
    from midus_model import load_tokenizer

    return load_tokenizer("pico-midus")


@few
def test_contents_and_view_of_the_shipped_model_agree():
    """The heaviest read of every slot, from the reads of each text on its own."""
    model = load("pico-midus")
    table = memory_contents(model, CODE, block=5, slots=range(4096), contexts=1)
    views = [memory_view(model, text).assign(document=str(n)) for n, text in enumerate(CODE)]
    every = pd.concat(views).query("block == 5")
    best = every.groupby("slot")["weight"].max()
    assert table["slot"].tolist() == best.index.tolist()
    np.testing.assert_allclose(table["weight"], best, rtol=1e-4)


# ---------------------------------------------------------------- tokens


def test_a_planted_value_promotes_and_suppresses_its_tokens():
    """Head h writes slot s along direction 16 h + s mod 8, which has two tokens of its own."""
    model = planted()
    norm, directions = model.model.norm.weight.data.abs_(), HEADS * LATENT
    model.lm_head.weight.data.zero_()
    for head in range(HEADS):
        for latent in range(LATENT):
            token, direction = 3 + head * LATENT + latent, head * SIZE + latent
            model.lm_head.weight.data[token, direction] = 1.0
            model.lm_head.weight.data[token + directions, direction] = -1.0
    table = slot_tokens(model, PLANTED_BLOCK, 13)
    rows = []
    for head in range(HEADS):
        token, logit = 3 + head * LATENT + 13 % LATENT, float(norm[head * SIZE + 13 % LATENT])
        rows.append((head, "promotes", 1, token, logit))
        rows.append((head, "suppresses", 1, token + directions, -logit))
    columns = ["head", "direction", "rank", "token_id", "logit"]
    found = list(table[columns].itertuples(index=False, name=None))
    assert [row[:4] for row in found] == [row[:4] for row in rows]
    np.testing.assert_allclose(table["logit"], [row[4] for row in rows], rtol=1e-6)
    assert table["token"].isna().all()
    one = slot_tokens(model, PLANTED_BLOCK, 13, head=2)
    assert one["head"].unique().tolist() == [2] and len(one) == 2


@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])  # the second mixes heads linearly
def test_logits_equal_the_final_norm_and_head_on_what_is_written(family: str):
    """A read forced to one slot by hand, its norm's scale divided out, in float64."""
    model = float64_reference(up_scaled(family))
    (layer, memory), *_ = memories(model)
    index, slot = 1, 11
    written: list[torch.Tensor] = []

    def only(_: Any, __: Any, found: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.zeros_like(found[0])
        weights[0, index, 0] = 1.0
        return weights, torch.full_like(found[1], slot)

    hooks = [
        memory.retrieved.register_forward_hook(only),
        memory.register_forward_hook(lambda _, args, out: written.append(out[0, 0])),
    ]
    with torch.no_grad():
        model(torch.tensor([[5]]))
        scale = (written[0].pow(2).mean() + model.model.norm.variance_epsilon).sqrt()
        logits = model.lm_head(model.model.norm(written[0])) * scale
    for hook in hooks:
        hook.remove()
    table = slot_tokens(model, layer, slot, head=index, top=VOCABULARY)
    centred = logits - logits.mean()
    by_token = table.set_index("token_id")["logit"].sort_index()
    np.testing.assert_allclose(by_token, centred.numpy(), rtol=1e-9)
    assert len(table) == VOCABULARY and centred.abs().max() > 0.01


def test_tokens_of_the_shipped_model_are_words_in_order():
    table = slot_tokens("pico-midus", 2, 17, top=5)
    assert len(table) == 8 * 2 * 5 and table["token"].map(type).eq(str).all()
    for (_, direction), part in table.groupby(["head", "direction"]):
        size = part["logit"].abs()
        assert size.is_monotonic_decreasing and part["rank"].tolist() == [1, 2, 3, 4, 5]
        assert (part["logit"] > 0).eq(direction == "promotes").all()


def test_a_fresh_slot_speaks_for_no_token():
    model = up_scaled()
    model.model.layers[2].memory.bank.data[3] = 0.0
    assert slot_tokens(model, 2, 3).empty
    with pytest.raises(MidusError, match='value of slot 3 is zero.*by="key"'):
        nearest_slots(model, 2, 3)


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("head", [None, 1])
def test_nearest_values_by_cosine(head: int | None):
    model = up_scaled()
    memory = model.model.layers[2].memory
    values = memory.bank.detach().double()
    if head is not None:
        values = values @ memory.head_proj[head].detach().double()
    expected = torch.cosine_similarity(values, values[9][None], dim=1)
    table = nearest_slots(model, 2, 9, top=63, head=head)
    others = [slot for slot in expected.argsort(descending=True).tolist() if slot != 9]
    assert table["nearest"].tolist() == others
    np.testing.assert_allclose(table["cosine"], expected[others], rtol=1e-9)
    assert (table["nearest"] == table["row"] * N_KEYS + table["col"]).all()
    assert len(nearest_slots(model, 2, 9)) == 10


def test_nearest_keys_by_the_distance_of_composed_keys():
    model = up_scaled()
    memory = model.model.layers[2].memory
    rows, cols = memory.row_keys[3].detach().double(), memory.col_keys[3].detach().double()
    composed = torch.stack([torch.cat([r, c]) for r in rows for c in cols])  # [N, D]
    expected = torch.stack([(key - composed[20]).norm() for key in composed])
    table = nearest_slots(model, 2, 20, top=63, by="key", head=3)
    others = [slot for slot in expected.argsort().tolist() if slot != 20]
    assert table["nearest"].tolist() == others
    np.testing.assert_allclose(table["distance"], expected[others], rtol=1e-9)


# ---------------------------------------------------------------- one text


def test_view_of_planted_reads():
    ids = [3, 20, 37, 3]
    table = memory_view(planted(), ids)
    assert len(table) == HEADS * len(ids) * 2
    for row in table.itertuples():
        named = first_slot if row.rank == 1 else second_slot
        assert row.slot == named(ids[row.position], row.head)
        assert row.weight == pytest.approx(WEIGHTS[row.rank - 1])
        assert row.token_id == ids[row.position] and row.block == PLANTED_BLOCK


def test_view_equals_the_scores_of_all_slots():
    model, ids = up_scaled("mistral"), texts([30])[0].ids.tolist()
    with watched(model) as choices:
        table = memory_view(model, ids)
    assert choices.margin > 1e-5
    for (layer, memory), slots in zip(memories(model), choices.slots, strict=True):
        part = table[table["block"] == layer]
        found = part["slot"].to_numpy().reshape(HEADS, len(ids), TOP_K)
        np.testing.assert_array_equal(np.sort(found), slots[0].transpose(0, 1).numpy())
        assert part["head"].unique().tolist() == memory.heads
    weight = table.groupby(["block", "head", "position"])["weight"]
    np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-6)
    assert table["weight"].eq(weight.cummin()).all()  # best first


def test_view_of_a_text_names_its_tokens():
    table = memory_view("pico-midus", "import os\n")
    first = table[(table["block"] == 2) & (table["head"] == 0) & (table["rank"] == 1)]
    assert "".join(first["token"]) == "<|endoftext|>import os\n"  # texts begin with a start token
    assert table["head"].nunique() == 8 and table["block"].unique().tolist() == [2, 5, 8]


# ---------------------------------------------------------------- errors


def test_places_without_memory_name_what_exists():
    model, data = up_scaled(), texts(LENGTHS)
    there = "there is memory at block 2 heads 0-3; block 5 heads 0-3$"
    for call in (
        lambda: memory_contents(model, data, block=1),
        lambda: slot_tokens(model, 1, 0),
        lambda: nearest_slots(model, 1, 0),
    ):
        with pytest.raises(HeadError, match=f"^block 1 is no memory block; {there}"):
            call()
    for call in (
        lambda: memory_contents(model, data, block=2, head=4),
        lambda: slot_tokens(model, 2, 0, head=4),
        lambda: nearest_slots(model, 2, 0, by="key", head=4),
    ):
        with pytest.raises(HeadError, match=f"^block 2 head 4 is no memory head; {there}"):
            call()


@pytest.mark.parametrize("slot", [-1, 64, 1.5, "3", True])
def test_slots_out_of_range_name_the_range(slot: Any):
    model = up_scaled()
    for call in (
        lambda: memory_contents(model, texts(LENGTHS), block=2, slots=[slot]),
        lambda: slot_tokens(model, 2, slot),
        lambda: nearest_slots(model, 2, slot),
    ):
        with pytest.raises(MidusError, match=r"slot is .*0 to 63$"):
            call()


def test_other_wrong_inputs_are_one_clear_line():
    base, model, data = tiny(), up_scaled(), texts(LENGTHS)
    for call in (
        lambda: memory_contents(base, data, block=2),
        lambda: slot_tokens(base, 2, 0),
        lambda: nearest_slots(base, 2, 0),
        lambda: memory_view(base, [3, 4]),
    ):
        with pytest.raises(MidusError, match="has no memory blocks.*'pico-midus'$"):
            call()
    with pytest.raises(DataError, match="70 tokens and the model's context holds 64"):
        memory_view(model, list(range(3, 73)))
    with pytest.raises(HeadError, match=r'by="key".*give head=, one of \[0, 1, 2, 3\]'):
        nearest_slots(model, 2, 0, by="key")
    with pytest.raises(MidusError, match="by is 'name'; it must be one of value, key"):
        nearest_slots(model, 2, 0, by="name")
    for name in ("contexts", "width"):
        with pytest.raises(MidusError, match=f"{name} is 0; it must be a whole number"):
            memory_contents(model, data, block=2, **{name: 0})
    model.model.layers[2].self_attn.v_proj.weight.data.fill_(float("nan"))
    for call in (
        lambda: memory_contents(model, data, block=2, slots=[1]),
        lambda: memory_view(model, [3, 4]),
    ):
        with pytest.raises(MidusError, match="block 2 are not finite"):
            call()
