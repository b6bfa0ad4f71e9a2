"""One head on one text: patterns and effects against transformers' own and by brute force."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from analysis import figures
from analysis.head_view import LONGEST, head_view
from analysis.memory.text import tokenizer_of
from analysis.tables import load as load_table
from analysis.tables import save
from kernels.errors import DataError, HeadError
from midus_model import load
from tests.analysis.memory_models import PLANTED_BLOCK, first_slot, planted, second_slot, up_scaled
from tests.models import HEADS, HIDDEN, LAYERS, tiny, tokens

FAMILIES = ["llama", "qwen3", "qwen3-wide", "mistral"]
IDS = tokens(1, 30)[0].tolist()


@torch.no_grad()
def kept(model: Any, ids: list[int]) -> dict[str, torch.Tensor]:
    """The input of every module that writes head outputs, and of the final norm, by name."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0]}))
        for name, module in model.named_modules()
        if name == "model.norm" or name.endswith((".o_proj", ".memory.out", ".memory.out_proj"))
    ]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return {name: value[0] for name, value in found.items()}


def lens(model: Any, added: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of what was added [T, d], the final norm's scale being the stream's [T, d]."""
    norm = model.model.norm
    scale = norm(stream) / (stream * norm.weight)  # the clean scale, from the norm itself
    return model.lm_head(added * scale.nanmedian(-1, keepdim=True).values * norm.weight)


def check_effects(table: Any, logits: torch.Tensor, ids: list[int]) -> None:
    for row in table.itertuples():
        line = logits[row.position]
        np.testing.assert_allclose(row.raises, line.topk(5).values, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(line[row.promotes_ids], row.raises, rtol=1e-3, atol=1e-6)
        lowest = line.topk(5, largest=False).values
        np.testing.assert_allclose(row.lowers, lowest, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(line[row.suppresses_ids], row.lowers, rtol=1e-3, atol=1e-6)
        if row.position + 1 < len(ids):
            want = float(line[ids[row.position + 1]] - line.mean())
            assert row.next == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert math.isnan(table["next"].iloc[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_those_of_transformers(family: str) -> None:
    model = tiny(family)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = eager(torch.tensor([IDS]), output_attentions=True).attentions
    for layer, head in ((0, 3), (LAYERS - 1, 1)):
        table = head_view(model, IDS, layer, head)
        want = patterns[layer][0, head]  # [T, T]
        for row in table.itertuples():
            assert len(row.pattern) == row.position + 1
            seen = want[row.position, : len(row.pattern)]
            torch.testing.assert_close(torch.tensor(row.pattern), seen)
            assert row.pattern[row.looks_at] == row.weight == max(row.pattern)
            positive = [weight for weight in row.pattern if weight > 0]
            entropy = -sum(weight * math.log(weight) for weight in positive)
            assert row.entropy == pytest.approx(entropy, abs=1e-4)
    if family == "mistral":  # its window of 16 tokens shows
        assert max(table["pattern"].iloc[-1][: len(IDS) - 16]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_the_heads_slice_through_the_unembedding(family: str) -> None:
    model = tiny(family)
    inputs = kept(model, IDS)
    layer, head = 2, 3
    output = model.model.layers[layer].self_attn.o_proj
    size = output.in_features // HEADS
    alone = torch.zeros_like(inputs[f"model.layers.{layer}.self_attn.o_proj"])
    span = slice(head * size, (head + 1) * size)
    alone[:, span] = inputs[f"model.layers.{layer}.self_attn.o_proj"][:, span]
    with torch.no_grad():
        added = output(alone)
        logits = lens(model, added, inputs["model.norm"])
    table = head_view(model, IDS, layer, head)
    np.testing.assert_allclose(table["norm"], added.norm(dim=-1), rtol=1e-4)
    check_effects(table, logits, IDS)


@pytest.mark.parametrize("mixing", ["concat", "linear"])
def test_a_memory_head_looks_with_its_own_attention_and_writes_what_it_reads(mixing: str) -> None:
    options = {} if mixing == "concat" else {"output_mixing": "linear"}
    model = up_scaled(heads=[(1, 1), (1, 3), (2, 0)], **options)
    assert model.config.layer_map[2]["heads"] == [1, 3]
    inputs, name = kept(model, IDS), "model.layers.2.memory"
    size = HIDDEN // HEADS
    alone = torch.zeros(len(IDS), HIDDEN)
    alone[:, 3 * size :] = inputs[f"{name}.out"][:, 3 * size :]
    with torch.no_grad():
        memory = model.model.layers[2].memory
        added = alone if memory.out_proj is None else memory.out_proj(alone)
        logits = lens(model, added, inputs["model.norm"])
    table = head_view(model, IDS, 2, 3)
    assert table.attrs["kind"] == "memory" and table.attrs["source_layer"] == 1
    assert table["norm"].min() > 0
    np.testing.assert_allclose(table["norm"], added.norm(dim=-1), rtol=1e-4)
    check_effects(table, logits, IDS)

    # The query is the pattern's mean of the head's values: head 3 is second of its two.
    attention, values = model.model.layers[2].self_attn, []
    hooks = [attention.v_proj.register_forward_hook(lambda _, __, out: values.append(out[0]))]
    queries = []
    hooks += [memory.register_forward_pre_hook(lambda _, args: queries.append(args[0][0]))]
    with torch.no_grad():
        model(torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    value, query = values[0][:, size:], queries[0][:, 3 * size :]  # [T, D]
    for row in table.itertuples():
        found = torch.tensor(row.pattern) @ value[: len(row.pattern)]
        torch.testing.assert_close(found, query[row.position], rtol=1e-4, atol=1e-5)


def test_a_planted_memory_head_promotes_what_its_slots_write() -> None:
    """Slots are read with weights 3/4 and 1/4, and write unit vectors of the head's slice."""
    model, head, size = planted(), 2, HIDDEN // HEADS
    model.model.layers[0]._forward_hooks.clear()  # its stream of ones, which no block would give
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:HIDDEN] = torch.eye(HIDDEN)  # token v reads direction v
    table = head_view(model, IDS, PLANTED_BLOCK, head)
    stream = kept(model, IDS)["model.norm"]
    for row in table.itertuples():
        slots = first_slot(IDS[row.position], head), second_slot(IDS[row.position], head)
        directions = [head * size + slot % 8 for slot in slots]
        assert directions[0] != directions[1] and row.promotes_ids[:2] == directions
        mean_square = float(stream[row.position].square().mean())
        scale = (mean_square + model.model.norm.variance_epsilon) ** -0.5
        np.testing.assert_allclose(row.raises[:2], [0.75 * scale, 0.25 * scale], rtol=1e-3)
        assert row.norm == pytest.approx(math.hypot(0.75, 0.25), rel=1e-4)


def test_the_table_says_what_it_shows(tmp_path: Any) -> None:
    model = load("pico")
    table = head_view(model, "import os\nimport sys\n", 3, 1)
    assert "".join(table["token"]).endswith("import os\nimport sys\n")
    assert table.attrs["tokens"] == table["token"].tolist()
    attrs = {"model": "pico", "layer": 3, "kind": "attention", "head": 1, "source_layer": 3}
    assert table.attrs.items() >= (attrs | {"cut": 0, "table": "head_view"}).items()
    names = [tokenizer_of(model).decode([one]) for one in table["promotes_ids"].iloc[4]]
    assert table["promotes"].iloc[4] == names and len(names) == 5
    save(table, tmp_path / "view")
    again = load_table(tmp_path / "view")
    assert again.attrs == table.attrs
    assert list(again["pattern"].iloc[3]) == table["pattern"].iloc[3]
    drawn = [figures.attention_pattern(view).to_json() for view in (table, again)]
    assert drawn[0] == drawn[1]


def test_a_long_text_is_cut_and_what_is_shown_stays_the_same() -> None:
    model = tiny(max_position_embeddings=512)
    ids = tokens(1, 300, seed=4)[0].tolist()
    long, short = head_view(model, ids, 1, 2), head_view(model, ids[:LONGEST], 1, 2)
    assert long.attrs["cut"] == 300 - LONGEST and short.attrs["cut"] == 0
    assert len(long) == LONGEST and long.equals(short)
    assert head_view(tiny(), ids, 1, 2).attrs["cut"] == 300 - 64  # all that this model holds


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 4), "block 0 has heads 0, 1, 2, 3"),
        ((2, 0), "block 2 has heads 1, 3"),
        ((9, 0), "the model has blocks 0 to 5"),
        ((-1, 0), "the model has blocks 0 to 5"),
        ((0.0, 1), "no head 1 in block 0.0"),
        ((0, "1"), "no head '1' in block 0"),
    ],
)
def test_a_head_that_is_not_there_is_named(place: tuple[Any, Any], message: str) -> None:
    model = up_scaled(heads=[(1, 1), (1, 3), (2, 0)])
    with pytest.raises(HeadError, match=message) as caught:
        head_view(model, IDS, *place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", []])
def test_an_empty_text_is_refused(text: Any) -> None:
    with pytest.raises(DataError):
        head_view("pico", text, 0, 0)
