"""Screen, then ablate: what is spent, what is told of what was missed, and the ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import head_importance, rank_heads
from analysis.screen import Known, chosen, in_turn, missed, planned
from kernels.errors import MidusError
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import tiny

TEXTS = [20] * 24


def test_nominations_come_in_turn() -> None:
    orders = [np.array([3, 1, 0, 2]), np.array([1, 2, 3, 0]), np.array([3, 2, 1, 0])]
    assert in_turn(orders).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("heads", "windows", "top", "share"),
    [(270, 24, 16, 0.1), (270, 24, 16, 0.05), (270, 200, 16, 0.1), (48, 1416, 16, 0.05),
     (1024, 24, 16, 0.05), (32, 24, 2, 0.2), (48, 96, 8, 1.0), (16, 3, 2, 1.0)],
)  # fmt: skip
def test_a_plan_keeps_to_its_budget(heads: int, windows: int, top: int, share: float) -> None:
    budget, minimum = int(share * heads * windows), min(16, windows)
    plan = planned(heads, windows, top, budget, minimum)
    tried = plan.candidates + plan.drawn
    assert top < plan.raced <= plan.second <= tried <= heads and 2 * plan.trial <= windows
    assert plan.candidates > top and (plan.drawn > 0) == (tried < heads)
    # The race begins with what the trial measured of its heads.
    assert (tried + plan.second) * plan.trial + plan.race - 2 * plan.trial * plan.raced == budget
    assert plan.race >= plan.raced * max(minimum, 2 * plan.trial)


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(MidusError, match="budget is 100 .* needs 274"):
        planned(270, 24, 16, 100, 16)
    assert planned(270, 24, 16, 274, 16).raced == 17


def test_who_is_drawn_and_raced_and_what_is_measured() -> None:
    """The better of each round stay, drawn or not, and nothing is measured twice."""
    plan = planned(40, 24, 2, 200, 16)
    order, windows = (np.random.default_rng(seed).permutation(n) for seed, n in ((0, 40), (1, 24)))
    values = np.arange(40.0)[:, None] + np.zeros(24)
    calls: list[tuple[int, int]] = []

    def measure(heads: np.ndarray, at: np.ndarray) -> np.ndarray:
        calls.extend((int(head), int(window)) for head in heads for window in at)
        return values[np.ix_(heads, at)]

    known = Known(40, 24, measure)
    who = chosen(plan, order, windows, known, np.random.default_rng(1))
    assert who.candidates.tolist() == order[: plan.candidates].tolist()
    assert set(who.drawn) <= set(who.out) and not set(who.candidates) & set(who.out)
    tried = np.sort(np.concatenate([who.candidates, who.drawn]))
    assert who.raced.tolist() == tried[-plan.raced :].tolist()
    assert len(calls) == len(set(calls)) == known.evaluations
    assert known.evaluations == (len(tried) + plan.second) * plan.trial
    whole = known(who.raced, windows)
    np.testing.assert_array_equal(whole, values[np.ix_(who.raced, windows)])
    assert len(calls) == len(set(calls))
    assert known.counts[who.raced].tolist() == [24] * plan.raced


@pytest.mark.parametrize("population,inside,drawn", [(217, 3, 11), (217, 40, 11), (30, 2, 10)])
def test_the_bound_on_what_is_missed_holds(population: int, inside: int, drawn: int) -> None:
    """Exactly: over all that may be drawn, in at least 95%; the estimate is right on average."""
    hits = np.arange(min(inside, drawn) + 1)
    chance = stats.hypergeom.pmf(hits, population, inside, drawn)
    told = [missed(drawn, int(hit), population) for hit in hits]
    holds = sum(p for p, (_, high) in zip(chance, told, strict=True) if high >= inside)
    assert holds >= 0.95
    assert sum(p * mean for p, (mean, _) in zip(chance, told, strict=True)) == pytest.approx(inside)
    # No looser than it must be: one fewer would already be improbable.
    assert all(stats.hypergeom.cdf(hit, population, high + 1, drawn) <= 0.05
               for hit, (_, high) in zip(hits, told, strict=True)
               if high < population - drawn + hit)  # fmt: skip
    assert missed(0, 0, 0) == (0.0, 0)


@pytest.fixture(scope="module")
def ranked() -> tuple[Any, Any, Any]:
    model, data = tiny("llama", num_hidden_layers=8), random_texts(TEXTS)
    return model, data, rank_heads(model, data, method="screen", top=2, budget=0.2)


def test_a_ranking_by_screen(ranked: Any) -> None:
    model, data, table = ranked
    attrs, found = table.attrs, table.attrs["screen"]
    assert len(table) == 32 and attrs["method"] == "screen" and attrs["table"] == "ranking"
    kinds = table["screen"].value_counts()
    assert kinds["raced"] == found["raced"] == len(table) - attrs["screened"]
    assert kinds["out"] == len(found["out"]) == 32 - found["candidates"] - found["drawn"]
    assert attrs["evaluations"] == table["exact"].sum() <= int(0.2 * attrs["exhaustive"])
    assert attrs["exhaustive"] == 32 * 24
    raced = table["screen"] == "raced"
    assert table.index[raced].tolist() == list(range(found["raced"]))
    assert table.loc[raced, "score"].notna().all() and table.loc[~raced, "score"].isna().all()
    assert table["first_order"].notna().all()
    listed = table.loc[table["screen"] == "out", ["layer", "head"]].to_numpy().tolist()
    assert sorted(listed) == sorted(found["out"])
    assert "were not ablated" in attrs["conditional"]
    assert found["missed"] <= found["missed_high"] and found["recall_low"] <= found["recall"]
    exact = head_importance(model, data).set_index(["layer", "head"])["score"]
    for row in table[raced & (table["exact"] == 24)].itertuples():
        assert row.score == pytest.approx(exact[row.layer, row.head], abs=1e-6)
    best = set(exact.nlargest(2).index)
    tried = set(zip(table["layer"], table["head"], strict=True)) - {
        tuple(one) for one in found["out"]
    }
    top = set(zip(table["layer"][:2], table["head"][:2], strict=True))
    assert top == best or not best <= tried  # what was tried and is best is found


def test_it_is_the_same_again(ranked: Any) -> None:
    model, data, table = ranked
    again = rank_heads(model, data, method="screen", top=2, budget=0.2)
    assert again.drop(columns="by_document").equals(table.drop(columns="by_document"))
    assert again.attrs == table.attrs


def test_memory_heads_and_metrics_without_a_gradient() -> None:
    table = rank_heads(memory_model(), random_texts(TEXTS), method="screen", top=1, budget=0.2)
    assert len(table) == 20 and (table["kind"] == "memory").sum() == 4
    tasks = random_tasks([18] * 24, [2] * 24)
    found = rank_heads(tiny("llama"), tasks, method="screen", metric="accuracy", top=1, budget=0.3)
    assert found.attrs["unit"] == "accuracy"


def test_what_a_screen_does_not_take() -> None:
    model, data = tiny("llama"), random_texts(TEXTS)
    with pytest.raises(MidusError, match="needs .* give more"):  # a tenth is too little here
        rank_heads(tiny("llama", num_hidden_layers=1), data, method="screen", top=1)
    for budget in ("all", 1.5, True):
        with pytest.raises(MidusError, match="takes a number of evaluations, or a share"):
            rank_heads(model, data, method="screen", top=2, budget=budget)
    with pytest.raises(MidusError, match="not to a time"):
        rank_heads(model, data, method="screen", top=2, within=60)
    with pytest.raises(MidusError, match="method is 'screen'"):
        head_importance(model, data, method="screen")
