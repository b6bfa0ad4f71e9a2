"""The comparison of chosen heads, random heads and all: arms, equal parameters, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import amplification, documents, head_importance
from kernels.errors import MidusError
from midus_model import upscale
from midus_model.config import layer_map_of
from tests.models import tiny
from tests.reference import fill_banks
from workbench import choice

TOP = [(0, 1), (0, 3), (2, 2)]
SIZES = {"num_keys": 32, "top_k": 2, "latent_dim": 24}


def memory_heads(model: Any) -> list[tuple[int, int]]:
    entries = layer_map_of(model.config)
    found = [(e["source"][0], e["heads"] or range(4)) for e in entries if e["kind"] == "memory"]
    return [(layer, head) for layer, heads in found for head in heads]


def test_random_heads_are_as_many_of_the_same_layers_and_others() -> None:
    drawn = [choice.heads_of("random", TOP, 4, seed) for seed in range(20)]
    for heads in drawn:
        assert [layer for layer, _ in heads] == [0, 0, 2]
        assert not set(heads) & set(TOP) and len(set(heads)) == 3
    assert len({tuple(heads) for heads in drawn}) > 1
    assert drawn[3] == choice.heads_of("random", TOP, 4, 3)


def test_where_a_layer_has_too_few_others_top_heads_fill_up() -> None:
    top = [(1, 0), (1, 1), (1, 2)]
    heads = choice.heads_of("random", top, 4, 0)
    assert (1, 3) in heads and len(set(heads)) == 3


@pytest.mark.parametrize("arm", choice.ARMS)
def test_arms_have_equal_parameters(arm: str) -> None:
    base = tiny("llama")
    budget = choice.added_parameters(choice.arm_model(base, "chosen", TOP, 0, **SIZES)[0])
    model, heads = choice.arm_model(base, arm, TOP, 5, **SIZES)
    assert memory_heads(model) == heads
    wider = upscale(base, heads=heads, **{**SIZES, "latent_dim": model.config.latent_dim + 1})
    assert choice.added_parameters(model) <= budget < choice.added_parameters(wider)


def test_what_cannot_be_made_equal_is_said() -> None:
    with pytest.raises(MidusError, match="give a larger bank"):
        choice.arm_model(tiny("llama"), "all", TOP, 0, num_keys=4, top_k=2, latent_dim=2)


@pytest.mark.filterwarnings("ignore:.*one document, so intervals")
def test_a_row_agrees_with_the_tables_of_importance() -> None:
    base = tiny("llama")
    model, heads = choice.arm_model(base, "chosen", TOP, 0, **SIZES)
    fill_banks(model)
    ids = torch.randint(128, (6, 30), generator=torch.Generator().manual_seed(0))
    texts = {"new": documents(ids.tolist(), model=base), "heldout": documents([[5, 6, 7]])}
    before, after = (head_importance(m, texts["new"]) for m in (base, model))
    row = choice.arm_row("chosen", 0, model, heads, texts, before)
    gained = amplification(before, after).set_index(["layer", "head"]).loc[heads]
    assert row["amplification"] == pytest.approx(gained["score"].mean(), abs=1e-7)
    expected = np.array(gained["by_document"].tolist()).mean(0)
    np.testing.assert_allclose(row["amplification_by_document"], expected, atol=1e-7)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert row["loss_new"] == pytest.approx(loss, abs=1e-5)


def table_of(values: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Rows from arm -> by seed -> by document; the three measures are alike."""
    rows: list[dict[str, Any]] = []
    for arm, seeds in values.items():
        for seed, found in enumerate(seeds):
            row: dict[str, Any] = {"arm": arm, "seed": seed}
            for measure in choice.MEASURES:
                row |= {measure: float(np.mean(found)), f"{measure}_by_document": found}
            rows.append(row)
    table = pd.DataFrame(rows)
    units = [{"id": str(i), "tokens": 10} for i in range(len(rows[0]["loss_new_by_document"]))]
    table.attrs = {"documents": {"new": units, "heldout": units}}
    return table


def test_a_contrast_is_paired_by_seed_and_document() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 40))
    chosen, random = noise + 2.0, noise + 2.5  # whatever the noise, half a nat between them
    table = table_of({"chosen": chosen.tolist(), "random": random.tolist()})
    contrast = choice.choice_contrast(table)
    assert list(contrast["first"].unique()) == ["chosen"] and len(contrast) == 3
    for row in contrast.itertuples():
        assert row.seeds == 3
        for value in (row.difference, row.ci_low, row.ci_high, row.seed_low, row.seed_high):
            assert value == pytest.approx(-0.5)


def test_seeds_that_disagree_widen_their_interval_only() -> None:
    chosen = np.array([[1.0], [2.0], [3.0]]) + np.zeros((3, 30))
    table = table_of({"chosen": chosen.tolist(), "all": (chosen * 0).tolist()})
    row = choice.choice_contrast(table).iloc[0]
    assert (row.second, row.difference) == ("all", 2.0)
    assert row.ci_low == row.ci_high == 2.0
    # by hand: t(2, 0.975) = 4.3027, standard error 1 / sqrt(3)
    assert row.seed_low == pytest.approx(2 - 4.302653 / np.sqrt(3), rel=1e-6)


def test_one_seed_has_no_interval_over_seeds() -> None:
    table = table_of({"chosen": [[1.0, 2.0]], "random": [[2.0, 2.0]]})
    row = choice.choice_contrast(table).iloc[0]
    assert np.isnan(row.seed_low) and row.difference == -0.5


def test_seeds_that_one_arm_lacks_are_left_out() -> None:
    table = table_of({"chosen": [[1.0, 1.0], [9.0, 9.0]], "all": [[0.5, 0.5]]})
    row = choice.choice_contrast(table).iloc[0]
    assert (row.seeds, row.difference) == (1, 0.5)
