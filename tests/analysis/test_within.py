"""The measurement that fits a time: it ends in time, says what it left out, and can be repeated."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import head_importance, rank_heads, ranking
from analysis.amplification import amplification
from analysis.documents import Documents, documents
from analysis.estimates import left_out
from analysis.shortened import fair_order, lessened, passes_of
from analysis.within import LEAST, SHORTEST, enough_documents
from kernels.errors import MidusError
from midus_model import load
from tests.analysis.clocks import counting
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
LENGTHS = [16 + n % 7 for n in range(24)]

Measured = Callable[..., Any]


def texts() -> Documents:
    return random_texts(LENGTHS, context=24)


def long_texts() -> Documents:
    return random_texts([240 + n for n in range(10)], context=64)


MEASUREMENTS: dict[str, Measured] = {
    "ablation": lambda model, **given: head_importance(model, texts(), **given),
    "ablation zero": lambda model, **given: head_importance(
        model, texts(), baseline="zero", **given
    ),
    "ablation resample": lambda model, **given: head_importance(
        model, texts(), baseline="resample", **given
    ),
    "ablation, long texts": lambda model, **given: head_importance(model, long_texts(), **given),
    "taylor": lambda model, **given: head_importance(model, texts(), method="taylor", **given),
    "integrated gradients": lambda model, **given: head_importance(
        model, texts(), method="integrated_gradients", **given
    ),
    "shapley": lambda model, **given: head_importance(
        model, texts(), method="shapley", permutations=4, **given
    ),
    "rank": lambda model, **given: rank_heads(model, texts(), top=4, **given),
    "rank, long texts": lambda model, **given: rank_heads(model, long_texts(), top=4, **given),
    "rank taylor": lambda model, **given: rank_heads(
        model, texts(), top=4, method="taylor", **given
    ),
    "prune": lambda model, **given: analysis.prune_curve(model, None, texts(), steps=4, **given),
    "evidence": lambda model, **given: analysis.evidence(model, texts(), top=4, **given),
    "effects": lambda model, **given: analysis.memory_effects(model, texts(), **given),
    "slots": lambda model, **given: analysis.memory_effects(model, texts(), of="slots", **given),
    "dose": lambda model, **given: analysis.dose_response(model, None, texts(), draws=2, **given),
    "roles": lambda model, **given: analysis.head_roles(model, texts(), sequences=8, **given),
}


@pytest.fixture(scope="module")
def grown() -> Any:
    """A model that was checked before: that is no part of what is planned."""
    model = memory_model(double=False)
    analysis.check_model(model)
    return model


@pytest.fixture(scope="module")
def double() -> Any:
    model = memory_model()
    analysis.check_model(model)
    return model


@pytest.fixture(scope="module")
def whole_time(grown: Any) -> Callable[[str], float]:
    """What a measurement takes without a limit, by the clock of one second a token and block."""

    @cache
    def found(name: str) -> float:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clock = counting(patch, 1.0)
            MEASUREMENTS[name](grown)
            return clock.now

    return found


SOME = ("ablation, long texts", "rank", "roles", "dose")


def of(names: Any) -> list[Any]:
    """All measurements, most of them only in the full matrix."""
    return [
        pytest.param(name, marks=[] if name in names else [pytest.mark.verify])
        for name in MEASUREMENTS
    ]


def equal(a: pd.DataFrame, b: pd.DataFrame) -> None:
    numbers = [name for name in a.columns if name != "by_document"]
    pd.testing.assert_frame_equal(a[numbers], b[numbers], check_exact=True)
    if "by_document" in a.columns:
        pairs = zip(a["by_document"], b["by_document"], strict=True)
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


@pytest.mark.parametrize(
    ("share", "slower"),
    [(0.45, 1.0), (0.75, 3.0), pytest.param(0.75, 1.0, marks=pytest.mark.verify)],
    ids=["less than half", "other work begins", "three quarters"],
)
@pytest.mark.parametrize("name", of(SOME))
def test_it_ends_in_time_and_is_repeated_without_a_clock(
    name: str,
    share: float,
    slower: float,
    grown: Any,
    whole_time: Callable[[str], float],
    monkeypatch: Any,
) -> None:
    run, asked = MEASUREMENTS[name], share * whole_time(name)
    said: list[str] = []
    clock = counting(monkeypatch, 1.0)
    clock.after, clock.slower = 0.5 * asked, slower
    try:
        table = run(grown, within=asked, progress=lambda d, t, text: said.append(text))
    except MidusError as error:
        assert str(error).startswith("within is") and "about" in str(error)
        assert clock.now <= 0.5 * asked, "refused before the time was spent"
        pytest.skip("refused")
    piece = slower * 5 * 64 * 30  # one window, all heads
    assert clock.now <= 1.1 * asked + piece, (clock.now, asked)
    found = table.attrs["within"]
    json.dumps(found)
    assert found["seconds"] == asked and found["used"] == pytest.approx(clock.now, abs=1e-3)
    # A race that settles before its time leaves nothing out.
    assert found.get("left_out") or table.attrs.get("stopped") == "settled"
    assert left_out(table.attrs) == said[-1]
    # Stored and read back, as the explorer has it; on a clock that would stop it at once.
    clock.seconds = 1e9
    again = run(grown, within=json.loads(json.dumps(found)))
    equal(table, again)
    assert again.attrs["within"]["repeat"] == found["repeat"]
    assert again.attrs["within"].get("left_out") == found.get("left_out")


@pytest.mark.parametrize("name", of(["ablation", "rank"]))
def test_with_time_to_spare_nothing_is_left_out(
    name: str, grown: Any, whole_time: Callable[[str], float], monkeypatch: Any
) -> None:
    counting(monkeypatch, 1.0)
    table = MEASUREMENTS[name](grown, within=20 * whole_time(name))
    assert not table.attrs["within"].get("left_out"), table.attrs["within"]
    assert left_out(table.attrs).endswith("left out: nothing")


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("share", [0.75, 0.55])
def test_documents_are_those_of_limit_and_the_table_is_its_table(
    share: float, double: Any, whole_time: Callable[[str], float], monkeypatch: Any
) -> None:
    model = double
    counting(monkeypatch, 1.0)
    table = head_importance(model, texts(), within=share * whole_time("ablation"))
    repeat = table.attrs["within"]["repeat"]
    assert repeat["tokens"] is None and repeat["heads"] is None and "cut" not in repeat
    assert LEAST <= repeat["limit"] < len(texts())
    plain = head_importance(model, texts(), limit=repeat["limit"])
    assert table.attrs["documents"] == plain.attrs["documents"]
    np.testing.assert_allclose(table["score"], plain["score"], atol=1e-12)
    np.testing.assert_allclose(table["ci_low"], plain["ci_low"], atol=1e-12)


def test_what_a_slower_machine_did_not_reach_is_left_out_whole(
    double: Any, whole_time: Callable[[str], float], monkeypatch: Any
) -> None:
    """Documents in the order of `limit`; with baseline zero the rest is just what they give."""
    model, piece = double, 4.0 * whole_time("ablation zero") / len(texts())  # a document
    clock = counting(monkeypatch, 1.0)
    clock.after, clock.slower = 8_000, 4.0
    table = head_importance(model, texts(), baseline="zero", within=20_000)
    assert clock.now <= 20_000 + piece, "what is under way at the time is brought to its end"
    assert "cut" in table.attrs["within"]["repeat"]
    count = table.attrs["within"]["documents"]
    assert 1 <= count < table.attrs["within"]["repeat"]["limit"]
    plain = head_importance(model, texts(), baseline="zero", limit=count)
    assert table.attrs["documents"] == plain.attrs["documents"]
    np.testing.assert_allclose(table["score"], plain["score"], atol=1e-12)


def test_long_documents_are_cut_before_heads_are_left_out(double: Any, monkeypatch: Any) -> None:
    model = double
    counting(monkeypatch, 1.0)
    table = head_importance(model, long_texts(), within=120_000)
    repeat = table.attrs["within"]["repeat"]
    assert repeat["limit"] == LEAST and SHORTEST <= repeat["tokens"] < 400
    assert table["score"].notna().all()
    plain = head_importance(model, lessened(long_texts(), LEAST, repeat["tokens"]))
    np.testing.assert_allclose(table["score"], plain["score"], atol=1e-12)


def test_few_heads_are_exact_and_the_others_have_no_score(double: Any, monkeypatch: Any) -> None:
    model = double
    counting(monkeypatch, 1.0)
    table = head_importance(model, long_texts(), within=60_000)
    found = table.attrs["within"]
    exact = table["score"].notna()
    assert 1 <= exact.sum() == found["heads"] < len(table) == found["heads_of"]
    assert any("exact ablation of" in one for one in found["left_out"])
    few = lessened(long_texts(), LEAST, SHORTEST)
    plain = head_importance(model, few)
    for column in ("score", "ci_low", "ci_high"):
        np.testing.assert_allclose(table[column][exact], plain[column][exact], atol=1e-12)
        assert table[column][~exact].isna().all()
    # The exact ones are those of largest first-order effect, and that is its own column.
    assert table["first_order"][exact].min() >= table["first_order"][~exact].max()
    assert table["by_document"].map(len).nunique() == 1
    with pytest.raises(MidusError, match="needs a score of every head"):
        amplification(table, table)
    with pytest.raises(MidusError, match="cannot be normalised"):
        head_importance(model, long_texts(), within=60_000, normalise="share")


def test_tables_with_heads_left_out_are_stored_and_drawn(
    double: Any, monkeypatch: Any, tmp_path: Any
) -> None:
    counting(monkeypatch, 1.0)
    table = head_importance(double, long_texts(), within=60_000)
    analysis.tables.save(table, tmp_path / "table")
    equal(analysis.tables.load(tmp_path / "table"), table)
    assert analysis.tables.load(tmp_path / "table").attrs["within"] == table.attrs["within"]
    analysis.figures.importance_map(table)
    analysis.paper.importance_map(table)


def test_tasks_are_never_cut(monkeypatch: Any) -> None:
    tasks = random_tasks([150 + n for n in range(24)], [2] * 24, context=256)
    model = tiny("llama", max_position_embeddings=256)
    counting(monkeypatch, 1.0)
    for within in (40_000, 20_000):
        try:
            table = head_importance(model, tasks, within=within)
        except MidusError:
            continue
        assert table.attrs["within"]["repeat"]["tokens"] is None
        ranked = rank_heads(model, tasks, top=4, within=within)
        repeat = ranked.attrs["within"]["repeat"]
        assert repeat["tokens"] is None and repeat["context"] is None


@pytest.mark.parametrize("affordable", [50, 1000, 1500, 2000, 4000, 5000, 10**6])
def test_no_more_tokens_are_chosen_than_can_be_paid(affordable: int) -> None:
    for docs in (texts(), long_texts()):
        found = enough_documents(docs, affordable)
        if found is None:
            least = lessened(docs, LEAST, SHORTEST)
            assert passes_of(least) > affordable
            continue
        limit, tokens = found
        assert passes_of(lessened(docs, limit, tokens)) <= affordable
        if limit is not None and tokens is None:
            assert passes_of(lessened(docs, limit + 1)) > affordable
        if tokens is not None:
            assert passes_of(lessened(docs, limit, tokens + 1)) > affordable


def test_the_order_is_that_of_limit() -> None:
    docs = texts()
    order = fair_order(docs)
    for limit in (1, 5, 23):
        chosen = documents(docs, limit=limit)
        assert [item.id for item in chosen] == [docs[i].id for i in sorted(order[:limit])]


# ---------------------------------------------------------------- races


@pytest.fixture(scope="module")
def many_heads() -> Any:
    """64 heads in 4 blocks, so that all of them cost more than a screen."""
    shape = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 4}
    model = tiny("llama", **shape)
    analysis.check_model(model)
    return model


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the lengths that users have: the choice is the same, and faster tested."""
    for where, name, value in (
        ("race_in_time", "LONG", 32), ("race_in_time", "SHORT", 8), ("within", "SHORTEST", 32),
    ):  # fmt: skip
        monkeypatch.setattr(f"analysis.{where}.{name}", value)


def race_texts(context: int = 64) -> Documents:
    return random_texts([64] * 24, context=context)


@pytest.mark.parametrize(
    ("within", "kind", "context"),
    [(330_000, "full", None), (140_000, "full", 32), (45_000, "screened", 32),
     (20_000, "screened", 16), (16_000, "screened", 8)],
)  # fmt: skip
def test_races_are_chosen_from_the_best_down(
    within: float,
    kind: str,
    context: int | None,
    many_heads: Any,
    small_windows: None,
    monkeypatch: Any,
) -> None:
    clock = counting(monkeypatch, 1.0)
    table = rank_heads(many_heads, race_texts(), top=3, within=within)
    repeat = table.attrs["within"]["repeat"]
    assert (repeat["race"]["kind"], repeat["context"]) == (kind, context), table.attrs["within"]
    assert 0.5 * within <= clock.now <= 1.05 * within
    minimum = table.attrs["minimum"]
    assert (table["exact"] >= (minimum if kind == "full" else 2)).all()
    assert (table["exact"] >= minimum).sum() >= 4
    if kind == "screened":
        assert "conditional" in table.attrs and table["first_order"].notna().all()


def test_a_race_without_the_others_gives_them_no_score(
    many_heads: Any, small_windows: None, monkeypatch: Any
) -> None:
    docs, asked = race_texts(), 9_000
    clock = counting(monkeypatch, 1.0)
    table = rank_heads(many_heads, docs, top=1, within=asked)
    assert table.attrs["within"]["repeat"]["race"]["kind"] == "bare"
    raced = table["exact"] > 0
    assert clock.now <= 1.05 * asked and 2 <= raced.sum() < len(table)
    assert table["score"][raced].notna().all()
    assert table.loc[~raced, ["score", "ci_low", "p_top"]].isna().all(axis=None)
    assert raced[: raced.sum()].all(), "those without a score come last"
    assert table["first_order"][~raced].is_monotonic_decreasing
    assert table["first_order"][raced].min() >= table["first_order"][~raced].max()
    assert table.attrs["screened"] == (~raced).sum()
    again = rank_heads(many_heads, docs, top=1, within=table.attrs["within"])
    equal(table, again)


def test_a_full_race_is_that_of_its_budget_and_documents(
    many_heads: Any, small_windows: None, monkeypatch: Any
) -> None:
    docs = race_texts()
    counting(monkeypatch, 1.0)
    table = rank_heads(many_heads, docs, top=3, within=140_000)
    repeat = table.attrs["within"]["repeat"]
    few = lessened(docs, repeat["limit"], repeat["tokens"], repeat["context"])
    monkeypatch.setattr(ranking, "_heavy", lambda *given: [])  # no such pass within a time
    plain = rank_heads(many_heads, few, top=3, budget=repeat["race"]["evaluations"])
    assert plain[["layer", "head", "exact"]].equals(table[["layer", "head", "exact"]])
    np.testing.assert_allclose(plain["score"], table["score"], atol=1e-5)
    assert table.attrs["stopped"] == plain.attrs["stopped"] == "budget"


@pytest.mark.parametrize("budget", [300, 0.2])
def test_a_budget_holds_within_a_time_too(
    budget: float, many_heads: Any, small_windows: None, monkeypatch: Any
) -> None:
    """64 heads with 16 windows each are 1,024 evaluations: more than the budget."""
    docs = race_texts()
    counting(monkeypatch, 1.0)
    table = rank_heads(many_heads, docs, top=3, budget=budget, within=10_000_000)
    assert 0 < table.attrs["evaluations"] <= (budget if budget > 1 else budget * 64 * 24)
    assert table.attrs["within"]["repeat"]["context"] is None, "there is time for whole windows"
    assert table.attrs["screened"] and (table["exact"] >= 2).all()
    plain = rank_heads(many_heads, docs, top=3, budget=budget)
    assert table.attrs["evaluations"] == plain.attrs["evaluations"]
    equal(table, rank_heads(many_heads, docs, top=3, budget=budget, within=table.attrs["within"]))


def test_the_noise_of_half_precision_is_that_of_the_heads_that_were_measured(
    monkeypatch: Any,
) -> None:
    half = tiny("llama").bfloat16()
    counting(monkeypatch, 1.0)
    chosen = {"limit": LEAST, "tokens": None, "heads": 3, "batch": {"exact ablation": 1}}
    given = {"repeat": chosen | {"half precision": True}}
    table = head_importance(half, texts(), within=given)
    exact = table["score"].notna()
    assert exact.sum() == 3 and table.attrs["dtype_noise"]["p95"] > 0
    assert not table["below_noise"][~exact].any()


def test_a_context_that_was_chosen_is_kept(
    many_heads: Any, small_windows: None, monkeypatch: Any
) -> None:
    counting(monkeypatch, 1.0)
    table = rank_heads(many_heads, race_texts(context=32), top=3, within=60_000)
    assert table.attrs["within"]["repeat"]["context"] is None
    assert table.attrs["context"] == 32


# ---------------------------------------------------------------- bad input, and the real clock


@pytest.mark.parametrize("within", [0, -3, float("nan"), float("inf"), "10m", True, {"seconds": 3}])
def test_a_time_that_is_none_is_refused(within: Any) -> None:
    for run in (head_importance, rank_heads, analysis.head_roles):
        with pytest.raises(MidusError, match="within"):
            run(tiny("llama"), texts(), within=within)


def test_a_budget_of_all_and_a_time_exclude_each_other() -> None:
    with pytest.raises(MidusError, match="leave budget 'all' out"):
        rank_heads(tiny("llama"), texts(), top=4, budget="all", within=5)


def test_too_short_a_time_is_one_line_with_what_would_do(grown: Any, monkeypatch: Any) -> None:
    clock = counting(monkeypatch, 1.0)
    for name, run in MEASUREMENTS.items():
        clock.now = 0.0
        with pytest.raises(MidusError, match="within is .* about") as caught:
            run(grown, within=100.0)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(("name", "short"), [("ablation", 100), ("rank", 5000), ("rank", 7200)])
def test_the_time_that_would_do_does(name: str, short: float, grown: Any, monkeypatch: Any) -> None:
    """Of a race where the time holds a sample of the work; below that its speed is a guess."""
    clock, run = counting(monkeypatch, 1.0), MEASUREMENTS[name]
    with pytest.raises(MidusError) as caught:
        run(grown, within=short)
    said = re.search(r"give about (?:(\d+) h ?)?(?:(\d+) min)?(?:(\d+) s)?", str(caught.value))
    assert said is not None
    hours, minutes, seconds = (int(part or 0) for part in said.groups())
    clock.now = 0.0
    run(grown, within=3600 * hours + 60 * minutes + seconds)


@pytest.mark.parametrize("measure", [head_importance, rank_heads])
def test_a_first_order_method_is_proposed_only_where_the_metric_has_a_slope(
    measure: Any, monkeypatch: Any
) -> None:
    counting(monkeypatch, 1.0)
    for metric, proposed in (("loss", True), ("accuracy", False)):
        with pytest.raises(MidusError, match="within is") as caught:
            of_measure = {"top": 4} if measure is rank_heads else {}
            measure(tiny("llama"), texts(), metric=metric, within=20.0, **of_measure)
        assert ("first-order" in str(caught.value)) is proposed, str(caught.value)


@pytest.mark.parametrize("measure", [head_importance, rank_heads, analysis.head_roles])
def test_on_the_machines_own_clock(measure: Any) -> None:
    model = load("pico")
    docs = documents(None, model=model)
    start, asked = time.monotonic(), 4.0
    try:
        table = measure(model, docs, within=asked)
    except MidusError as error:  # a machine at its limit
        assert "within is" in str(error)
        return
    took = time.monotonic() - start
    assert table.attrs["within"]["left_out"], "all of it takes many minutes"
    # On a machine that does other work too; how exactly time is kept to is tested by the work done.
    assert 0 < table.attrs["within"]["used"] <= took + 0.001 < 60  # rounded to milliseconds
