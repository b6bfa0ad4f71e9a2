from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis import tables
from analysis.intervals import t_interval
from kernels.errors import IncomparableTables, MidusError, ModelError


@dataclass(frozen=True)
class Site:
    layer: int
    kind: str
    head: int
    source_layer: int


SITES = [Site(0, "attention", 0, 0), Site(0, "attention", 1, 0), Site(1, "memory", 0, 0)]
WEIGHTS = np.array([10, 30, 5, 55])
SCORES = np.random.default_rng(0).normal(size=(3, 4))


def attrs(**changes):
    documents = [
        {"id": f"file {i}", "tokens": int(w), "sha256": f"{i:064x}"} for i, w in enumerate(WEIGHTS)
    ]
    return {
        "table": "head_importance",
        "method": "ablation",
        "baseline": "mean",
        "metric": "loss",
        "unit": "nats/token",
        "documents": documents,
        "clean_loss": np.float32(2.5),
        **changes,
    }


def table(**changes):
    return tables.head_table(SITES, SCORES, WEIGHTS, attrs(**changes))


def test_head_table_has_the_promised_columns_and_numbers():
    made = table()
    assert tuple(made.columns) == tables.COLUMNS
    assert list(made["kind"]) == ["attention", "attention", "memory"]
    np.testing.assert_allclose(made["score"], np.average(SCORES, axis=1, weights=WEIGHTS))
    expected = t_interval(SCORES, WEIGHTS)
    np.testing.assert_array_equal(made["stderr"], expected.stderr)
    np.testing.assert_array_equal(made["ci_high"], expected.high)
    np.testing.assert_array_equal(made["ci_high_all"], expected.high_all)
    assert (made["unit"] == "document").all()
    assert "4 documents are too few" in made.attrs["interval_note"]
    np.testing.assert_array_equal(np.array(made["by_document"].tolist()), SCORES)
    assert json.loads(json.dumps(made.attrs)) == made.attrs
    assert made.attrs["schema"] == tables.SCHEMA


def test_a_method_may_bring_its_own_intervals():
    own = {name: [1.0, 2.0, 3.0] for name in ("score", "stderr", "ci_low", "ci_high")}
    unmeasured = np.full((3, 4), np.nan)  # racing leaves documents out
    made = tables.head_table(SITES, unmeasured, WEIGHTS, attrs(), intervals=own)
    assert list(made["score"]) == [1.0, 2.0, 3.0]
    assert made["ci_low_all"].isna().all() and (made["unit"] == "window").all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(MidusError, match=r"\[3 heads, 4 documents\]; got \[2, 4\]"):
        tables.head_table(SITES, SCORES[:2], WEIGHTS, attrs())
    with pytest.raises(MidusError, match="lists 1 documents"):
        tables.head_table(SITES, SCORES, WEIGHTS, attrs(documents=[{}]))


# ---------------------------------------------------------------- comparison


def test_tables_of_one_measurement_compare():
    assert tables.comparable(table(), table(method="taylor", model="other")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "accuracy"}, "metric 'loss' and 'accuracy'"),
        ({"baseline": "zero"}, "baseline 'mean' and 'zero'"),
        ({"unit": "share"}, "unit"),
        ({"documents": attrs()["documents"][::-1]}, "differ in content"),
        (
            {"documents": [{**d, "tokens": d["tokens"] + 1} for d in attrs()["documents"]]},
            "10 and 11 tokens in document 'file 0'",
        ),
    ],
)
def test_others_refuse_unless_forced(changes, message):
    a, b = table(), table(**changes)
    with pytest.raises(IncomparableTables, match=message) as caught:
        tables.comparable(a, b)
    assert "\n" not in str(caught.value)
    assert len(tables.comparable(a, b, force=True)) == 1


def test_fewer_documents_or_none_refuse():
    short = tables.head_table(
        SITES, SCORES[:, :3], WEIGHTS[:3], attrs(documents=attrs()["documents"][:3])
    )
    with pytest.raises(IncomparableTables, match="4 and 3 documents"):
        tables.comparable(table(), short)
    with pytest.raises(IncomparableTables, match="second table does not say"):
        tables.comparable(table(), pd.DataFrame())


# ---------------------------------------------------------------- provenance


def test_versions_name_what_runs():
    found = tables.versions()
    assert set(found) == {"torch", "transformers", "midus"}
    assert torch.__version__.split("+")[0] in found["torch"]


def test_display_names_carry_no_folders(tmp_path):
    class Named(nn.Module):
        name_or_path = str(tmp_path / "my-model")

    assert tables.display_name("pico") == "pico"
    assert tables.display_name("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    assert tables.display_name(tmp_path / "run") == "run"
    assert tables.display_name("./somewhere/run") == "run"
    assert tables.display_name(Named()) == "my-model"
    assert tables.display_name(nn.Linear(1, 1)) == "Linear"


def test_model_hash_follows_the_definition():
    model = nn.Sequential(nn.Linear(3, 2)).to(torch.bfloat16)
    text = hashlib.sha256()
    for name in ("0.bias", "0.weight"):
        parameter = model.get_parameter(name).detach()
        text.update(f"{name} torch.bfloat16 {list(parameter.shape)}\n".encode())
        text.update(parameter.view(torch.int16).numpy().tobytes())
    assert tables.model_hash(model) == text.hexdigest()


def test_model_hash_sees_any_change_and_only_a_change():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    first = tables.model_hash(model)
    model.eval().requires_grad_(False)
    assert tables.model_hash(model) == first
    model[1].bias[2] += 1e-6
    assert tables.model_hash(model) != first
    assert tables.model_hash(nn.ParameterList([nn.Parameter(torch.tensor(1.0))]))
    with pytest.raises(ModelError, match="no data"):
        tables.model_hash(nn.Linear(2, 2, device="meta"))


def test_model_hash_tells_shapes_and_types_apart():
    def hashed(tensor):
        return tables.model_hash(nn.ParameterList([nn.Parameter(tensor)]))

    zeros = torch.zeros(2, 3)
    several = {hashed(z) for z in (zeros, zeros.view(3, 2), zeros.half().repeat(1, 2))}
    assert len(several) == 3
