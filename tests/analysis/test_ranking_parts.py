"""What a ranking allows itself and how its tables are put together, without a model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import ranking as module
from analysis.estimates import FIRST_ORDER
from analysis.race import enough
from analysis.race_found import TIED
from analysis.subject import Unit
from analysis.tables import head_table
from kernels.errors import MidusError
from tests.models import tiny

UNITS = [Unit(layer, "attention", head, layer, ()) for layer in (0, 1) for head in (0, 1, 2)]


def table_of(units: list[Unit], by_document: np.ndarray, tokens: list[int]) -> pd.DataFrame:
    documents = [{"id": str(n), "sha256": "", "tokens": count} for n, count in enumerate(tokens)]
    return head_table(units, by_document, tokens, {"documents": documents, "kind": "test"})


# ---------------------------------------------------------------- how much is allowed


def test_a_budget_is_a_number_or_a_share() -> None:
    given = [7, np.int64(7), 0.25, 1.0, np.float32(0.5), True, 0.0, 1.5, -0.1, "0.5", None]
    found = [module._evaluations(budget, 1001) for budget in given]
    assert found == [7, 7, 250, 1001, 500, None, None, None, None, None, None]


def test_what_a_race_is_allowed() -> None:
    heads, windows, least = 10, 100, 10 * 2 + 4 * 14  # two for each, sixteen for top + 1
    allowed = [
        module._allowed(budget, 3, heads, windows, False)
        for budget in (None, "all", least, 0.5, 5000)
    ]
    assert allowed == [560, None, 76, 500, 1000]
    assert module._allowed(None, 3, heads, 20, False) == 200
    assert module._allowed(None, 3, heads, windows, True) == sys.maxsize
    for budget in (75, 0.07, "most", True):
        with pytest.raises(MidusError, match="at least 76 evaluations.*16 windows for 4 of 10"):
            module._allowed(budget, 3, heads, windows, False)
    with pytest.raises(MidusError, match="leave budget 'all' out"):
        module._allowed("all", 3, heads, windows, True)


def test_what_a_screen_is_allowed() -> None:
    found = [module._allowed_to_screen(b, 1000, False) for b in (None, 0.3, 40, 2000)]
    assert found == [100, 300, 40, 1000]
    with pytest.raises(MidusError, match="share of all there are"):
        module._allowed_to_screen("all", 1000, False)
    with pytest.raises(MidusError, match="leave within out"):
        module._allowed_to_screen(0.1, 1000, True)


def test_windows_come_in_parts() -> None:
    assert module._parts(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert module._parts(6, 3) == [slice(0, 3), slice(3, 6)]


def test_a_first_order_pass_is_made_where_it_costs_little(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "evaluation_passes", lambda model, units: 1.5)
    least = math.ceil(FIRST_ORDER * 80 / (0.4 * 1.5))
    assert module._sized(None, UNITS, 80, least) and not module._sized(None, UNITS, 80, least - 1)


def test_heavy_windows_are_looked_for_where_there_is_room(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "evaluation_passes", lambda model, units: 1e9)
    monkeypatch.setattr(module, "first_order_by_window", lambda subject: "sizes")
    monkeypatch.setattr(module, "heavy_windows", lambda sizes, most: [sizes, most])
    drawn = enough(6, 0.95)
    assert drawn > 16 and enough(6, 0.05) < 16

    def heavy(room: int, bound: float | None = None, windows: int = 99, confidence=0.95) -> Any:
        docs, metric = SimpleNamespace(windows=range(windows)), SimpleNamespace(bound=bound)
        subject: Any = SimpleNamespace(units=UNITS, docs=docs, metric=metric, model=None)
        least = max(16, enough(6, confidence))
        return module._heavy(subject, 6 * (least + room) + 5, confidence)

    assert heavy(7) == ["sizes", 3] and heavy(1) == ["sizes", 0] and heavy(0) == []
    assert heavy(7, bound=1.0) == [] and heavy(7, windows=drawn) == []
    assert heavy(7, windows=drawn + 1) == heavy(7)
    assert heavy(7, windows=17, confidence=0.05) == heavy(7)
    monkeypatch.setattr(module, "evaluation_passes", lambda model, units: 1e-9)
    assert heavy(7) == []


@pytest.mark.parametrize("method", ["ablation", "screen"])
def test_a_screen_s_passes_are_in_its_estimate(method: str, monkeypatch: Any) -> None:
    class Asked(Exception):
        pass

    def asked(network: Any, docs: Any, *, cost: Any, **how: Any) -> Any:
        raise Asked(cost)

    monkeypatch.setattr(module, "prepared", asked)
    texts = [list(range(1, 9))] * 40
    with pytest.raises(Asked) as caught:
        module.rank_heads(tiny(), texts, method=method, top=2)
    beside = caught.value.args[0].beside
    found = {} if beside is None else beside(tiny(), UNITS, 40)
    assert found == (module.screening_passes(tiny(), 40) if method == "screen" else {})


@pytest.mark.parametrize("tasks", [False, True])
def test_what_a_race_costs_and_what_would_be_cheaper(tasks: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "evaluation_passes", lambda model, units: 2.0)
    windows = [SimpleNamespace(ids=range(size)) for size in (256, 256, 128, 256)]

    class Docs(list):
        pass

    docs: Any = Docs([SimpleNamespace(is_task=tasks)])
    docs.windows = windows
    cost = module._cost(docs, 2, 12)
    assert cost.passes(None, UNITS) == {module.STAGE: 12 * 2.0 / 4}
    assert module._cost(docs, 2, 10**6).passes(None, UNITS)[module.STAGE] == 24 * 2.0 / 4
    assert "at most" in cost.text and "at most" not in module._cost(docs, 2, sys.maxsize).text
    assert cost.options is not None and not cost.limit
    smooth, rough = (SimpleNamespace(smooth=flag) for flag in (True, False))
    found = {one.python: one.seconds for one in cost.options(60.0, 5.0, smooth)}
    expected = {"method='gradient'": 20.0}
    if not tasks:  # a task's window is not cut
        expected["context=128"] = 60 * 128 / 224
    assert {name: found.pop(name) for name in expected} == pytest.approx(expected)
    assert list(found) == ["within=60"]
    assert "method='gradient'" not in [one.python for one in cost.options(60.0, 5.0, rough)]
    monkeypatch.setattr(module, "evaluation_passes", lambda model, units: 100.0)
    assert module._cost(docs, 2, 12).passes(None, UNITS)[module.SCREENING] == FIRST_ORDER
    docs.windows = windows[2:3]
    short = module._cost(docs, 2, 12).options
    assert short is not None and "context=128" not in [o.python for o in short(9.0, 1.0, smooth)]


# ---------------------------------------------------------------- tables


def test_a_sorted_table_ties_neighbours_as_a_t_test_of_documents_does() -> None:
    rng = np.random.default_rng(1)
    by_document = rng.normal(size=(6, 8)) + np.array([0.0, 1.5, 0.2, 4.0, 1.4, 0.1])[:, None]
    tokens = [30, 50, 20, 60, 40, 70, 10, 20]
    table = table_of(UNITS, by_document, tokens)
    found = module._sorted(table, 2, 5)
    weights = np.array(tokens) / sum(tokens)
    order = np.argsort(-(by_document @ weights))
    assert list(zip(found["layer"], found["head"], strict=True)) == [
        (UNITS[i].layer, UNITS[i].head) for i in order
    ]
    expected = []
    for above, below in zip(order[:-1], order[1:], strict=True):
        gap = by_document[above] - by_document[below]
        lead = gap @ weights
        error = math.sqrt(((weights * (gap - lead)) ** 2).sum() * 8 / 7)
        expected.append(bool(stats.t.sf(lead / error, 7) >= TIED))
    assert found["tied_with_next"].tolist() == [*expected, False]
    assert True in expected and False in expected
    assert found["p_top"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert (found["exact"] == 5).all()
    said = found.attrs
    assert (said["top"], said["confidence"], said["stopped"]) == (2, 0.95, "documents")
    assert said["evaluations"] == 30
    assert found.attrs["screened"] == 0 and found.attrs["table"] == "ranking"


def raced_table(units: list[Unit]) -> pd.DataFrame:
    table = table_of(units, np.arange(2.0 * len(units)).reshape(-1, 2)[::-1], [3, 5])
    attrs = table.attrs
    table = table.assign(exact=7, tied_with_next=True, p_top=0.5)
    table.attrs = attrs
    return table


def test_first_order_sizes_stand_beside_the_heads_they_are_of() -> None:
    sizes = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    chosen = [UNITS[i] for i in (4, 0, 3)]
    table = raced_table(chosen)
    found = module._beside(table, SimpleNamespace(units=UNITS), sizes)  # type: ignore[arg-type]
    assert found["first_order"].tolist() == [0.5, 0.1, 0.4] and found.attrs == table.attrs


def test_heads_that_were_not_raced_come_last_by_their_first_order_sizes() -> None:
    sizes = np.array([0.1, 0.2, 0.9, 0.4, 0.5, 0.6])
    table = raced_table([UNITS[i] for i in (4, 0, 3)])
    subject: Any = SimpleNamespace(units=UNITS)
    found = module._with_the_others(table, subject, sizes)
    order = [(UNITS[i].layer, UNITS[i].head) for i in (4, 0, 3, 2, 5, 1)]
    assert list(zip(found["layer"], found["head"], strict=True)) == order
    assert found["first_order"].tolist() == [0.5, 0.1, 0.4, 0.9, 0.6, 0.2]
    assert found["exact"].tolist() == [7, 7, 7, 0, 0, 0] and found["exact"].dtype == int
    assert found["tied_with_next"].tolist() == [True] * 3 + [False] * 3
    assert found["score"].isna().tolist() == [False] * 3 + [True] * 3
    assert found.attrs["screened"] == 3 and "left out 3 heads" in found.attrs["conditional"]
    assert found.attrs["documents"] == table.attrs["documents"]


def test_what_is_measured_is_what_ablation_adds(monkeypatch: Any) -> None:
    """In parts of the plan's windows, every piece told with the tokens and passes it took."""
    monkeypatch.setattr(module, "ablation_passes", lambda model, units: [0.5] * len(units))
    told: list[Any] = []
    monkeypatch.setattr(module, "did", lambda stage, amount: told.append((stage, amount)))
    docs = SimpleNamespace(windows=[SimpleNamespace(ids=range(10 + n)) for n in range(9)])
    values = np.random.default_rng(0).normal(size=(6, 9))
    asked: list[Any] = []

    def ablated(windows: list[int], heads: list[int]) -> Any:
        asked.append(windows)
        return values[np.ix_(heads, windows)], None

    subject: Any = SimpleNamespace(
        units=UNITS, docs=docs, model=None, ablated=ablated, plan=SimpleNamespace(windows=2)
    )
    heads, windows = np.array([5, 0, 2]), np.array([8, 1, 4, 3, 0])
    found = module.measured(subject, heads, windows)
    np.testing.assert_array_equal(found, values[np.ix_(heads, windows)])
    assert asked == [[8, 1], [4, 3], [0]]
    assert told == [(module.STAGE, tokens * 2.5) for tokens in (18 + 11, 14 + 13, 10)]


@pytest.mark.parametrize("within", [None, 10.0])
def test_a_race_tells_how_far_it_is(within: float | None, monkeypatch: Any) -> None:
    """By evaluations, or by the time where that ends it; a screen only where nobody asks `may`."""
    said: list[Any] = []
    screened: list[Any] = []

    class Told:
        heads, windows, minimum, order = 6, 10, 4, np.arange(10)

        def run(self, measure: Any, every: int, told: Any, may: Any, step: int) -> None:
            told(12, 3)
            self.every = every

        def screen(self, order: np.ndarray, allowed: int) -> None:
            screened.append((order.tolist(), allowed))

    work = SimpleNamespace(within=within, time_left=4.0)
    monkeypatch.setattr(module, "current", lambda: work)
    monkeypatch.setattr(module, "first_order", lambda subject, windows: np.arange(6.0))
    race: Any = Told()
    subject: Any = None

    def run(allowed: int, may: Any = None) -> None:
        module._run(race, subject, allowed, lambda *given: said.append(given), may, measure=len)

    run(24)
    expected = (12, 24, f"{module.STAGE}, 3 heads in the race")
    assert said.pop() == (
        expected if within is None else (60, 100, f"{module.STAGE}, % of the time")
    )
    assert race.every == 24 and not screened
    work.time_left = -1.0
    run(23)
    assert screened == [([5, 4, 3, 2, 1, 0], 23)]
    assert within is None or said[-1][0] == 100
    run(23, may=len)
    assert len(screened) == 1
    run(10**9)
    assert race.every == 60


@pytest.mark.parametrize("kind", [module.BARE, module.SCREENED, "all"])
def test_a_race_in_time_says_what_was_left_out(kind: str, monkeypatch: Any) -> None:
    left: list[str] = []
    work = SimpleNamespace(record={"race": {}}, facts={}, leave_out=left.append)
    sizes = None if kind == "all" else np.arange(6.0)
    chosen = np.arange(6) if kind != module.BARE else np.array([1, 4, 5])
    entry = SimpleNamespace(kind=kind, heads=chosen, sizes=sizes, evaluations=40)
    screened: list[Any] = []

    @dataclass
    class Part:
        units: list[Unit]

    def race_of(part: Any) -> Any:
        count = len(part.units)
        counts = np.array([16] * (count - 1) + [5])
        return SimpleNamespace(
            order=np.arange(9), heads=count, spent=50, minimum=16, counts=counts, stopped="budget",
            screen=lambda order, budget: screened.append((order.tolist(), budget)),
        )  # fmt: skip

    monkeypatch.setattr(module, "current", lambda: work)
    monkeypatch.setattr(module, "entered", lambda *given: entry)
    monkeypatch.setattr(module, "windows_at_once", lambda *given: 3)
    monkeypatch.setattr(module, "permission", lambda *given: None)
    monkeypatch.setattr(module, "_run", lambda race, part, allowed, *rest: None)
    monkeypatch.setattr(module, "_table", lambda race, part: raced_table(part.units))
    for allowed, ended in ((56, True), (55, False)):
        left.clear()
        found = module._raced_in_time(race_of, Part(UNITS), allowed, 2, None)  # type: ignore[arg-type]
        assert ("evaluations that would settle the top set" in left) == ended
    assert "the 16 windows that 1 heads should have (at least 5)" in left
    assert any("exact ablation of 3 of 6" in text for text in left) == (kind == module.BARE)
    assert work.record["race"]["evaluations"] == 50
    assert work.facts == {"heads": len(chosen) - 1, "heads_of": 6}
    assert len(found) == 6 and ("first_order" in found) == (kind != "all")
    assert screened == ([([5, 4, 3, 2, 1, 0], 40)] * 2 if kind == module.SCREENED else [])
    assert found["score"].isna().sum() == (3 if kind == module.BARE else 0)
