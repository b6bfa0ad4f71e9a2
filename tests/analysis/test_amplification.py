"""Amplification: zero by construction before training, and what a hand count says after."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.amplification import amplification, gini_rise
from analysis.documents import documents
from analysis.importance import head_importance
from analysis.statistics import concentration
from analysis.tables import head_table, load, save
from kernels.errors import IncomparableTables
from midus_model import HeadSite, upscale
from tests.models import tiny, tokens

DOCUMENTS = [{"id": str(i), "tokens": 10 + i, "sha256": f"{i:064d}"} for i in range(24)]


def planted(scores: dict[tuple[int, str, int, int], np.ndarray], **attrs) -> object:
    """A table from (layer, kind, head, source layer) -> score by document."""
    sites = [HeadSite(la, k, h, s, "", None, 0, 1, h) for la, k, h, s in scores]
    weights = [entry["tokens"] for entry in DOCUMENTS]
    known = {"metric": "loss", "baseline": "mean", "unit": "nats/token", "method": "ablation"}
    return head_table(sites, list(scores.values()), weights,
                      {**known, "documents": DOCUMENTS, **attrs})  # fmt: skip


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    draws = {name: rng.normal(size=24) * 0.01 for name in "abcdef"}
    before = planted({
        (0, "attention", 0, 0): 0.2 + draws["a"],
        (0, "attention", 1, 0): -0.1 + draws["b"],
    })  # fmt: skip
    after = planted({
        (0, "attention", 0, 0): 0.3 + draws["c"],
        (0, "attention", 1, 0): 0.1 + draws["d"],
        (1, "memory", 0, 0): 0.05 + draws["e"],
        (1, "memory", 1, 0): -0.02 + draws["f"],
    }, inserted_layers=[1])  # fmt: skip
    return before, after


def test_parts_sums_and_shares_are_as_counted_by_hand(tables):
    before, after = tables
    table = amplification(before, after, chosen=[(0, 0)])
    b, a = before["score"].to_numpy(), after["score"].to_numpy()
    np.testing.assert_allclose(table["after_base"], a[:2])
    np.testing.assert_allclose(table["after_memory"], a[2:])
    assert (table["after_copy"] == 0).all()
    np.testing.assert_allclose(table["score"], a[:2] + a[2:] - b)
    positive = np.maximum(a, 0)
    np.testing.assert_allclose(table["share_before"], [1, 0])
    np.testing.assert_allclose(table["share_after"], (positive[:2] + positive[2:]) / positive.sum())
    assert np.isfinite(table["ratio"][0]) and np.isnan(table["ratio"][1])
    assert (table["ci_low"] < table["score"]).all() and (table["score"] < table["ci_high"]).all()
    assert table.attrs["chosen"] == [[0, 0]]
    assert table.attrs["concentration"]["before"]["effective_heads"] == pytest.approx(1)


def test_changes_are_flagged_by_false_discovery_rate_and_shrunk():
    rng = np.random.default_rng(7)
    heads = [(0, "attention", head, 0) for head in range(48)]
    noise = {head: rng.normal(size=24) for head in heads}
    before = planted({head: 0.1 + 0.01 * noise[head] for head in heads}, bootstrap_unit="document")
    gained = {head: 0.02 * (head[2] < 4) - 0.02 * (head[2] == 4) for head in heads}
    after = planted({
        head: 0.1 + gained[head] + 0.01 * rng.normal(size=24) for head in heads
    })  # fmt: skip
    table = amplification(before, after)
    flags = table["changed"].tolist()
    assert flags[:5] == ["amplified"] * 4 + ["weakened"] and flags[5:] == [""] * 43
    assert ((table["p"] < 0.05)[5:]).any()  # which each for itself would name
    np.testing.assert_array_equal(table["changed"] != "", table["q"] <= table.attrs["fdr"])
    assert (table["q"] >= table["p"]).all()
    assert (table["shrunk"].abs() <= table["score"].abs()).all()
    assert table["shrunk"][5:].abs().max() < 0.5 * table["score"][5:].abs().max()
    assert (table["ci_low_all"] < table["ci_low"]).all() and (table["unit"] == "document").all()
    assert (table["share_ci_high_all"] > table["share_ci_high"]).all()


def test_the_gini_of_what_is_left_of_a_base_counts_inserted_heads_with_theirs(tables):
    before, after = tables
    found = gini_rise(before, after)
    spread = amplification(before, after).attrs["concentration"]
    sums = amplification(before, after)["after"]
    assert found.estimate == pytest.approx(
        concentration(sums)["gini"] - spread["before"]["gini"], abs=1e-9
    )
    assert found.low < found.estimate < found.high


def test_copies_are_told_from_the_base_by_the_inserted_layers(tables):
    before, _ = tables
    scores = {
        (layer, "attention", head, 0): np.full(24, 1.0 + layer + head)
        for layer in (0, 1)
        for head in (0, 1)
    }
    table = amplification(before, planted(scores, inserted_layers=[0]))
    np.testing.assert_allclose(table["after_base"], [2, 3])
    np.testing.assert_allclose(table["after_copy"], [1, 2])


@pytest.mark.parametrize("method", ["midus", "llama-pro"])
def test_an_untrained_upscaled_model_amplifies_nothing(method):
    base = tiny("llama")
    sizes = {"num_keys": 8, "top_k": 4, "latent_dim": 8} if method == "midus" else {}
    docs = documents(tokens(24, 20).tolist(), model=base)
    before = head_importance(base, docs)
    after = head_importance(upscale(base, method, **sizes), docs)
    table = amplification(before, after)
    np.testing.assert_allclose(table["score"], 0, atol=1e-7)
    np.testing.assert_allclose(table["share_score"], 0, atol=1e-5)


def test_survives_the_disc(tables, tmp_path):
    table = amplification(*tables)
    save(table, tmp_path / "amplification")
    back = load(tmp_path / "amplification")
    assert back.attrs == table.attrs
    assert back.drop(columns="by_document").equals(table.drop(columns="by_document"))


def test_other_measures_and_strange_heads_are_refused(tables):
    before, after = tables
    other = after.copy()
    other.attrs = {**after.attrs, "baseline": "zero"}
    with pytest.raises(IncomparableTables, match="baseline"):
        amplification(before, other)
    amplification(before, other, force=True)
    with pytest.raises(IncomparableTables, match="up-scaled"):
        amplification(after, before)
    strange = planted({(0, "attention", 7, 0): np.ones(24)})
    with pytest.raises(IncomparableTables, match="head 7"):
        amplification(before, strange)


def test_what_does_not_belong_together_is_not_subtracted(tables):
    before, after = tables
    for key, other, named in (
        ("method", "gradient", "two methods, 'ablation' and 'gradient'"),
        ("heads_are", "kv groups", "heads_are 'query heads' and 'kv groups'"),
        ("weighting", "documents", "weighting 'tokens' and 'documents'"),
    ):
        changed = after.copy()
        changed.attrs = after.attrs | {key: other}
        with pytest.raises(IncomparableTables, match=named):
            amplification(before, changed)
    for table in (before, after):
        table.attrs = table.attrs | {"normalise": "share"}
    with pytest.raises(IncomparableTables, match=r"normalised \(share\).*leave normalise out"):
        amplification(before, after)
