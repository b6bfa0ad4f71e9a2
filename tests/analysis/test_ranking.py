"""The ranking: the exhaustive sweep when it may see all; frugal and honest when it may not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import few_heads
from analysis import ranking as module
from analysis.documents import documents
from analysis.importance import head_importance
from analysis.ranking import rank_heads
from analysis.ranking_words import summary
from analysis.subject import prepared
from kernels.errors import MidusError, ModelError
from midus_model import upscale
from tests.analysis.samples import random_tasks
from tests.models import tiny, tokens

HEADS = 24


@pytest.fixture(scope="module")
def model():
    model = upscale(tiny("llama"), num_keys=8, top_k=4, latent_dim=8)
    with torch.no_grad():
        for block in model.model.layers:
            if hasattr(block, "memory"):
                torch.nn.init.normal_(block.memory.bank, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def texts():
    rows = [row.tolist()[: 20 + 3 * (i % 9)] for i, row in enumerate(tokens(30, 48))]
    return documents(rows, context=24, tokenizer=None, model=tiny("llama"))


@pytest.fixture(scope="module")
def sweep(model, texts):
    return head_importance(model, texts)


def pairs(table: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(table["layer"], table["head"], strict=True))


@pytest.mark.parametrize("metric", ["loss", "kl"])
@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
def test_with_every_window_the_ranking_is_the_sweep_sorted(model, texts, baseline, metric):
    full = HEADS * len(texts.windows)
    how = {"baseline": baseline, "metric": metric}
    ranking = rank_heads(model, texts, top=5, confidence=0.999999, budget=full, **how)
    sweep = head_importance(model, texts, **how)
    measured = ranking[ranking["exact"] == len(texts.windows)]
    assert len(measured) >= 4
    exact = {(row.layer, row.head): row for row in sweep.itertuples()}
    for row in measured.itertuples():
        twin = exact[row.layer, row.head]
        assert row.score == pytest.approx(twin.score, abs=1e-5)
        np.testing.assert_allclose(row.by_document, twin.by_document, atol=1e-5)
    assert set(pairs(ranking[:5])) == set(pairs(sweep.nlargest(5, "score")))


def test_all_is_the_sweep_itself(model, texts, sweep):
    ranking = rank_heads(model, texts, top=5, budget="all")
    windows = len(texts.windows)
    assert pairs(ranking) == pairs(sweep.sort_values("score", ascending=False, kind="stable"))
    assert (ranking["exact"] == windows).all()
    assert ranking.attrs["evaluations"] == HEADS * windows
    assert ranking.attrs["stopped"] == "documents"
    assert "interval" not in ranking.attrs and (ranking["ci_low_all"] < ranking["ci_low"]).all()
    assert ranking["p_top"].tolist() == [1.0] * 5 + [0.0] * (HEADS - 5)  # of these documents, known


@pytest.mark.parametrize("how", [{"method": "taylor"}, {"method": "gradient"}, {"budget": "all"}])
def test_confidence_is_refused_where_there_is_no_race(model, texts, how):
    with pytest.raises(MidusError, match="confidence is 0.9; only a race has one"):
        rank_heads(model, texts, top=4, confidence=0.9, **how)
    assert rank_heads(model, texts, top=4, confidence=0.95, **how).attrs["confidence"] == 0.95


@pytest.mark.parametrize(("metric", "guarantee"), [("loss", "asymptotic"), ("accuracy", "exact")])
def test_a_race_says_what_kind_of_guarantee_it_has_and_how_its_tails_are(
    model, texts, metric, guarantee
):
    ranking = rank_heads(model, texts, top=4, budget=0.8, metric=metric)
    assert ranking.attrs["guarantee"] == guarantee and guarantee in ranking.attrs["interval"]
    assert ranking["tail_share"].between(0, 1).all()
    assert (ranking["carried_by"] <= ranking["exact"]).all()
    assert isinstance(ranking.attrs["tails"], str)
    around = ranking.iloc[:8]
    assert ranking.attrs["kurtosis"] == around["kurtosis"].max() >= 1
    assert ranking.attrs["tail_share"] == around["tail_share"].max()


def test_a_budget_that_pays_few_windows_states_no_error(model, texts):
    ranking = rank_heads(model, texts, top=4, budget=HEADS * 20)
    assert ranking.attrs["guarantee"] == "few windows" and ranking.attrs["stopped"] == "budget"
    assert ranking["exact"].min() < ranking.attrs["enough"]
    assert "at no stated error" in summary(ranking)


def test_windows_that_are_heavy_to_first_order_come_first_where_the_budget_pays(
    model, texts, monkeypatch
):
    """Whatever gradients say, a race to the end gives the sweep's scores."""
    sizes = np.ones((HEADS, len(texts.windows)))
    sizes[3, [5, 11]] = 60.0, 70.0
    monkeypatch.setattr(module, "first_order_by_window", lambda subject: sizes)
    ranking = rank_heads(model, texts, top=4, budget=1.0)
    assert ranking.attrs["first"] == 2 and ranking.attrs["minimum"] == 2 + module.MINIMUM
    assert rank_heads(model, texts, top=4, budget=500).attrs["first"] == 0  # it does not pay
    assert rank_heads(model, texts, top=4, budget=1.0, metric="accuracy").attrs["first"] == 0


def test_first_order_sizes_by_window_add_up_to_those_by_head(model, texts):
    subject = prepared(model, texts)
    every = list(range(len(texts.windows)))
    tokens = sum(int(texts.windows[index].scored.sum()) for index in every)
    found = few_heads.first_order_by_window(subject).sum(1) / tokens
    np.testing.assert_allclose(found, few_heads.first_order(subject, every), rtol=1e-4)


def test_a_race_measures_what_the_sweep_measures(model, texts, sweep):
    """The intervals of a race that was cut short hold the sweep's scores, at high confidence."""
    ranking = rank_heads(model, texts, top=4, confidence=0.9999, budget=0.6)
    exact = dict(zip(pairs(sweep), sweep["score"], strict=True))
    truth = np.array([exact[pair] for pair in pairs(ranking)])
    slack = 1e-6
    assert (ranking["ci_low"] - slack <= truth).all() and (
        truth <= ranking["ci_high"] + slack
    ).all()
    # Documents that were seen whole carry the sweep's own score.
    by_document = dict(zip(pairs(sweep), sweep["by_document"], strict=True))
    whole = np.array([len(item.ids) <= texts.context for item in texts])
    found = 0
    for row in ranking.itertuples():
        here = np.array(row.by_document)
        seen = whole & np.isfinite(here)
        found += seen.sum()
        expected = np.array(by_document[row.layer, row.head])
        np.testing.assert_allclose(here[seen], expected[seen], atol=1e-5)
    assert found > 20


def test_same_seed_same_ranking_and_another_draws_others(model, texts):
    first, second, other = (
        rank_heads(model, texts, top=4, budget=600, seed=seed) for seed in (3, 3, 4)
    )
    assert first.drop(columns="by_document").equals(second.drop(columns="by_document"))
    assert not first["score"].equals(other["score"])


@pytest.mark.parametrize("budget", [450, 0.5, None])
def test_budget_is_kept_and_said(model, texts, budget):
    ranking = rank_heads(model, texts, top=4, budget=budget)
    full = HEADS * len(texts.windows)
    allowed = {450: 450, 0.5: full // 2, None: min(full, module.PER_HEAD * HEADS)}[budget]
    assert ranking.attrs["evaluations"] == ranking["exact"].sum() <= allowed
    assert ranking.attrs["stopped"] in ("settled", "budget", "documents")
    assert (ranking.attrs["stopped"] == "budget") == (budget is not None)
    assert ranking.attrs["exhaustive"] == full and ranking.attrs["screened"] == 0
    assert (ranking["exact"] >= ranking.attrs["minimum"]).all()
    assert ranking["p_top"].sum() == pytest.approx(4)
    json.dumps(ranking.attrs)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_where_the_minimum_is_not_paid_gradients_choose_and_it_is_said(model, texts, metric):
    ranking = rank_heads(model, texts, top=4, budget=200, metric=metric)
    attrs = ranking.attrs
    assert ranking["exact"].sum() <= 200 and attrs["stopped"] == "budget"
    assert attrs["screened"] == HEADS - 5 and "screen by gradient" in attrs["conditional"]
    kept = ranking[ranking["exact"] >= attrs["minimum"]]
    assert pairs(kept) == pairs(ranking[:5])
    gradients = head_importance(model, texts, method="gradient")
    assert len(set(pairs(kept)) & set(pairs(gradients.nlargest(8, "score")))) >= 4


def test_gradient_ranking_is_the_gradient_table_sorted(model, texts):
    ranking = rank_heads(model, texts, method="gradient", top=4)
    sweep = head_importance(model, texts, method="gradient")
    assert ranking["score"].tolist() == sorted(sweep["score"], reverse=True)
    assert (ranking["exact"] == 0).all() and ranking["p_top"].sum() == pytest.approx(4)


def test_a_task_is_ranked_by_its_documents():
    base, docs = tiny("llama"), random_tasks([9 + i % 5 for i in range(24)], [2] * 24, [2] * 24)
    how: dict[str, Any] = {"metric": "logit_difference", "baseline": "zero"}
    ranking = rank_heads(base, docs, top=3, budget=1.0, confidence=0.999999, **how)
    sweep = head_importance(base, docs, **how)
    exact = dict(zip(pairs(sweep), sweep["score"], strict=True))
    full = ranking[ranking["exact"] == 24]
    assert len(full) >= 2 and ranking.attrs["unit"] == "logits/task"
    for row in full.itertuples():
        assert row.score == pytest.approx(exact[row.layer, row.head], abs=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("top", 0), ("top", 24), ("confidence", 1.0), ("budget", 3), ("budget", 0.001),
     ("budget", "some"), ("budget", True), ("budget", -5), ("method", "magic"),
     ("baseline", "median"), ("metric", "bleu")],
)  # fmt: skip
def test_bad_arguments_are_named(model, texts, argument, value):
    with pytest.raises(MidusError, match=argument) as caught:
        rank_heads(model, texts, **{argument: value})
    assert argument != "top" or "between 1 and 23" in str(caught.value)


def test_losses_that_are_not_finite_are_refused(texts):
    broken = tiny("llama")
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    with pytest.raises(ModelError, match="finite"):
        rank_heads(broken, texts, top=4, baseline="zero")
