"""The ranking: the exhaustive sweep when it may see all; right and cheap when it may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.documents import documents
from analysis.importance import head_importance
from analysis.ranking import _Race, rank_heads
from midus_model import upscale
from midus_model.errors import MidusError
from tests.models import tiny, tokens


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


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_with_every_window_the_ranking_is_the_sweep_sorted(model, texts, baseline):
    full = 24 * len(texts.windows)
    ranking = rank_heads(model, texts, baseline=baseline, top=5, confidence=0.999999, budget=full)
    sweep = head_importance(model, texts, baseline=baseline)
    order = np.argsort(-sweep["score"].to_numpy(), kind="stable")
    measured = ranking[ranking["exact"] == len(texts.windows)]
    assert len(measured) >= 5
    exact = {(r.layer, r.head): r for r in sweep.itertuples()}
    for row in measured.itertuples():
        twin = exact[row.layer, row.head]
        assert row.score == pytest.approx(twin.score, abs=1e-5)
        np.testing.assert_allclose(row.by_document, twin.by_document, atol=1e-5)
    top = sweep.iloc[order[:5]]
    chosen = ranking.iloc[:5]
    assert {*zip(chosen["layer"], chosen["head"], strict=True)} == {
        *zip(top["layer"], top["head"], strict=True)
    }


def test_same_seed_same_ranking(model, texts):
    first, second = (rank_heads(model, texts, top=4, budget=600, seed=3) for _ in range(2))
    assert first.drop(columns="by_document").equals(second.drop(columns="by_document"))


def test_budget_is_kept_and_said(model, texts):
    ranking = rank_heads(model, texts, top=4, budget=200)
    assert ranking.attrs["evaluations"] == ranking["exact"].sum() <= 200
    assert ranking.attrs["stopped"] == "budget"
    assert ranking["p_top"].sum() == pytest.approx(4)


def test_gradient_ranking_is_the_gradient_table_sorted(model, texts):
    ranking = rank_heads(model, texts, method="gradient", top=4)
    sweep = head_importance(model, texts, method="gradient")
    assert ranking["score"].tolist() == sorted(sweep["score"], reverse=True)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("top", 0), ("top", 24), ("confidence", 1.0), ("budget", 3), ("method", "magic"),
     ("baseline", "median"), ("metric", "bleu")],
)  # fmt: skip
def test_bad_arguments_are_named(model, texts, argument, value):
    with pytest.raises(MidusError, match=argument):
        rank_heads(model, texts, **{argument: value})


def race_on(truth: np.ndarray, noise: float, windows: int, seed: int, top: int) -> _Race:
    """A race on scores known by construction: head h scores truth[h] plus noise on each window."""
    docs = documents([[1, 2, 3]] * windows, context=8, model=tiny("llama"))
    race = _Race(len(truth), docs, top, 0.95, seed)
    rng = np.random.default_rng(1000 + seed)
    shared = rng.normal(0, noise, windows)
    planted = truth[:, None] + shared + rng.normal(0, noise, (len(truth), windows))
    for start in range(0, windows, 4):
        active = np.flatnonzero(race.active)
        race.record(active, start, planted[active, start : start + 4] * race.mean_tokens)
        if start >= 16 and race.settle():
            race.stopped = "settled"
            break
    return race


def test_a_planted_top_set_is_found_without_seeing_everything():
    truth = np.concatenate([np.full(4, 1.0), np.linspace(-0.2, 0.2, 12)])
    for seed in range(20):
        race = race_on(truth, 0.5, 800, seed, top=4)
        assert race.stopped == "settled"
        assert set(np.flatnonzero(race.accepted)) == {0, 1, 2, 3}
        assert race.counts.sum() < 0.5 * 16 * 800


def test_confidence_sequences_cover_the_truth_when_stopped_early():
    truth = np.array([0.9, 0.8, 0.1, 0.0, -0.1, 0.05])
    covered = []
    for seed in range(60):
        found = race_on(truth, 0.6, 600, seed, top=2).intervals()
        covered.append(((found["ci_low"] <= truth) & (truth <= found["ci_high"])).all())
    assert np.mean(covered) >= 0.95
