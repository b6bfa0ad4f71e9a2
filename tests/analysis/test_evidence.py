"""Prune curves against hooks by hand, and evidence on rankings of known quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from analysis import evidence, head_importance, prune_curve
from analysis.documents import Document, Documents
from analysis.engine import batch_of, window_values
from analysis.evidence import _agreement, _overlap
from kernels.errors import HeadError, MidusError
from midus_model import head_sites, upscale
from tests.models import VOCABULARY, tiny
from tests.reference import fill_banks, float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


@pytest.fixture(scope="module")
def model() -> Any:
    small = upscale(tiny("llama"), num_keys=4, top_k=3, latent_dim=8, blocks=[1])
    return float64_reference(fill_banks(small))


@pytest.fixture(scope="module")
def data() -> Documents:
    generator = torch.Generator().manual_seed(3)
    items = [
        Document(str(n), torch.randint(3, VOCABULARY, (9 + n,), generator=generator), f"{n:064x}")
        for n in range(24)
    ]
    return Documents("random", items, 20)


@torch.no_grad()
def loss_without(model: Any, data: Documents, heads: list[int]) -> float:
    """Loss a token with some heads' outputs zero, by a hook each."""
    sites, hooks = head_sites(model), []
    for i in heads:

        def change(_: Any, args: tuple, i: int = i) -> tuple:
            outputs = args[0].clone()
            outputs[..., sites[i].start : sites[i].stop] = 0
            return (outputs,)

        hooks.append(sites[i].module.register_forward_pre_hook(change))
    batch = batch_of(data.windows, torch.device("cpu"))
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    total = float(window_values(model, hidden, batch).sum())
    for hook in hooks:
        hook.remove()
    return total / sum(unit["tokens"] for unit in data.units)


def test_points_are_the_losses_with_those_heads_ablated(model: Any, data: Documents) -> None:
    importance = head_importance(model, data, baseline="zero")
    table = prune_curve(model, None, data, baseline="zero", steps=4, draws=2)
    best = np.argsort(-importance["score"].to_numpy(), kind="stable")
    assert len(table) == 4 * 5 and table["removed"].max() == len(importance)
    for name, order in (("best first", best), ("worst first", best[::-1])):
        curve = table[table["order"] == name]
        for removed, score in zip(curve["removed"], curve["score"], strict=True):
            assert score == pytest.approx(
                loss_without(model, data, list(order[:removed])), abs=1e-9
            )
    ends = table.groupby(["order", "draw"])["score"]
    assert np.ptp(ends.first()) < 1e-9 and np.ptp(ends.last()) < 1e-9
    assert (table["ci_low"] <= table["score"]).all() and (table["score"] <= table["ci_high"]).all()


def test_area_is_the_mean_loss_added(model: Any, data: Documents) -> None:
    table = prune_curve(model, None, data, steps=3, draws=1)
    curve = table[table["order"] == "best first"]
    added, share = curve["score"].to_numpy() - curve["score"].iloc[0], curve["share"].to_numpy()
    by_hand = sum(
        (added[i] + added[i + 1]) / 2 * (share[i + 1] - share[i]) for i in range(len(share) - 1)
    )
    assert table.attrs["areas"]["best first"] == pytest.approx(by_hand)
    assert set(table.attrs["areas"]) == {"worst first", "best first", "random"}


def test_a_ranking_may_be_a_table_or_pairs(model: Any, data: Documents) -> None:
    table = head_importance(model, data).sort_values("score", ascending=False, kind="stable")
    pairs = list(zip(table["layer"], table["head"], strict=True))
    first, second = (prune_curve(model, r, data, steps=2, draws=1) for r in (table, pairs))
    assert first["score"].equals(second["score"])
    with pytest.raises(HeadError, match="names 3 heads.*every head of the model once"):
        prune_curve(model, pairs[:3], data)
    with pytest.raises(HeadError):
        prune_curve(model, pairs[:-1] + [pairs[0]], data)
    with pytest.raises(MidusError, match="steps is 0"):
        prune_curve(model, pairs, data, steps=0)


def test_evidence_has_a_row_a_comparison(model: Any, data: Documents) -> None:
    others = {"same": data, "fewer": Documents("fewer", data.items[:20], 20)}
    table = evidence(model, data, methods=("ablation", "gradient"), top=4, others=others)
    assert table["kind"].tolist() == ["split half"] * 2 + ["method", "data", "data", "pruning"]
    assert table["overlap"][:5].between(0, 1).all()
    assert (table["ci_low"] <= table["ci_high"])[:5].all()
    assert table["spearman"][3] == pytest.approx(1) and table["overlap"][3] == 1
    for row, second in (
        (2, head_importance(model, data, method="gradient")),
        (4, head_importance(model, others["fewer"])),
    ):
        tables = head_importance(model, data), second
        ranks = [np.argsort(np.argsort(one["score"].to_numpy())) for one in tables]
        assert table["spearman"][row] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    pruning = table.iloc[5]
    areas = table.attrs["areas"]
    span = areas["best first"] - areas["worst first"]
    assert pruning["area"] == pytest.approx(span)
    assert pruning["random_at"] == pytest.approx((areas["random"] - areas["worst first"]) / span)


def test_known_agreements() -> None:
    import pandas as pd

    one = pd.DataFrame({"score": np.arange(40.0)})
    same, turned = (
        _agreement("method", "a", "b", one, one, 5),
        _agreement("method", "a", "b", one, one[::-1].reset_index(drop=True), 5),
    )
    assert same["spearman"] == pytest.approx(1) and same["overlap"] == 1
    assert turned["spearman"] == pytest.approx(-1) and turned["overlap"] == 0
    assert _overlap(np.array([3.0, 2, 1, 0]), np.array([3.0, 0, 2, 1]), 2) == 0.5


def test_errors_name_the_argument(model: Any, data: Documents) -> None:
    with pytest.raises(MidusError, match="methods is 'lrp'"):
        evidence(model, data, methods=("lrp",))
    with pytest.raises(MidusError, match="a top between"):
        evidence(model, data, top=0)
