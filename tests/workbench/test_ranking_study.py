"""The ranking experiment: its table, its verdicts, and its pages, on a tiny model and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import head_importance
from analysis.race import enough
from kernels.errors import RunError
from tests.analysis.samples import random_texts
from tests.models import tiny
from workbench.ranking_study import __main__ as script
from workbench.ranking_study import exhaustive as module
from workbench.ranking_study import replays, report
from workbench.ranking_study.exhaustive import Exhaustive, exhaustive
from workbench.ranking_study.races import ALL_DRAWN, VARIANTS
from workbench.ranking_study.replays import (
    ALL,
    heavy_first,
    judged,
    replay,
    study,
    summary,
    ties,
)

LENGTHS = [12, 9, 20, 17, 33, 8, 14, 11, 19, 10] * 3


def planted(windows: int = 240, heads: int = 8, seed: int = 0, step: float = 0.3) -> Exhaustive:
    """Normal effects with a step from head to head, 12 windows a document, all alike."""
    rng = np.random.default_rng(seed)
    effects = step * np.arange(heads)[::-1, None] + rng.normal(0, 1, (heads, windows))
    places = np.stack([np.arange(heads) // 4, np.arange(heads) % 4], axis=1)
    first = effects + rng.normal(0, 0.1, effects.shape)
    about = {"model": "planted", "model_hash": "0" * 64, "data": "none", "data_hash": "0" * 64,
             "documents": 20, "windows": windows, "full_windows": windows, "tokens": windows,
             "context": 2, "baseline": "mean", "dtype": "float64"}  # fmt: skip
    clusters = np.arange(windows) // 12
    return Exhaustive(effects, first, np.ones(windows), clusters, places, (1.0, 10.0), about)


def test_the_table_is_the_sweep_by_window_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny("llama"), random_texts(LENGTHS)
    place = tmp_path / "exhaustive.safetensors"
    whole = exhaustive(tmp_path / "whole.safetensors", model, data)
    np.testing.assert_allclose(whole.scores, head_importance(model, data)["score"], atol=1e-6)
    taylor = head_importance(model, data, method="taylor")["score"]
    first = whole.first_order.sum(1) / whole.weights.sum()
    np.testing.assert_allclose(first, taylor, atol=1e-6)
    assert whole.about["windows"] == len(data.windows) == whole.effects.shape[1]

    calls, real = [], module.measured

    def interrupted(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exhaustive(place, model, data)
    again = exhaustive(place, model, data)
    assert len(calls) == 1 + -(-len(data.windows) // module.BATCH)
    np.testing.assert_array_equal(again.effects, whole.effects)
    with pytest.raises(RunError, match="another model or data"):
        exhaustive(place, tiny("llama", seed=1), data)
    place.write_bytes(b"no table")
    with pytest.raises(RunError, match="damaged"):
        exhaustive(place, model, data)


def test_verdicts() -> None:
    tied = np.zeros((6, 6), dtype=bool)
    for i, j in ((0, 3), (1, 4), (2, 5)):
        tied[i, j] = tied[j, i] = True
    truth = {0, 1, 2}
    assert judged({0, 1, 2}, truth, tied) == "same"
    assert judged({3, 1, 2}, truth, tied) == "tie"
    assert judged({4, 3, 2}, truth, tied) == "tie"
    assert judged({4, 1, 2}, truth, tied) == "wrong"  # 0 and 4 are apart
    assert judged({5, 4, 2}, truth, tied) == "wrong"
    assert judged({3, 4, 5}, truth, tied) == "wrong"  # three swaps


def test_ties_are_wider_where_windows_of_a_document_are_alike() -> None:
    table = planted()
    turns = np.random.default_rng(1).normal(0, 1, 20)[table.clusters]
    table.effects[3] += turns - turns.mean()
    found = ties(table)
    assert found["documents"].sum() > found["windows"].sum()
    assert found["documents"].diagonal().all() and not found["documents"][0, 7]
    gap = table.effects[3] - table.effects[5]
    lead = gap.mean() / gap.std(ddof=1) * np.sqrt(gap.size)
    assert found["windows"][3, 5] == (abs(lead) <= 1.96)


def test_windows_come_first_where_the_ranking_would_take_them() -> None:
    assert heavy_first(planted(), planted().evaluations, 0.95) == []  # too few heads for the pass
    table = planted(heads=16)
    table.first_order[2, [5, 40]] = 90.0
    few, most = 16 * enough(16, 0.95), table.evaluations
    assert heavy_first(table, few, 0.95) == [] and set(heavy_first(table, most, 0.95)) == {5, 40}
    race, _ = replay(table, "as shipped", most, 0, 3, 0.95)
    assert race.known == 2 and replay(table, ALL_DRAWN, most, 0, 3, 0.95)[0].known == 0


def test_every_kind_of_race_ends_with_the_truth_when_it_may_see_all() -> None:
    table = planted()
    for name in VARIANTS:
        race, work = replay(table, name, ALL, 0, 3, 0.999999)
        assert set(race.ranking()[:3].tolist()) == table.top_set(3), name
        assert race.stopped in ("settled", "documents")
        assert work.clean <= work.forwards < table.evaluations + 10 * table.effects.shape[1]


def test_summary_counts_what_races_found() -> None:
    row = summary(planted(), "as shipped", ALL, seeds=10, top=3)
    assert row["same_set"] == row["success"] == row["settled"] == 1 and row["settled_wrong"] == 0
    assert row["success_low"] == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)  # Wilson at 10 of 10
    assert row["covered_together"] == 1 and row["cost"] <= row["cost_max"] < 1
    assert sum(row["stopped"].values()) == 10 and row["p_top"]["brier"] < 0.01
    name = "plain 95% intervals, uncorrected"
    careless = summary(planted(step=0.03), name, ALL, seeds=20, top=3)
    assert careless["covered_together"] < 0.7 and careless["settled_wrong"] > 0


def test_tables_and_json_hold_every_race() -> None:
    found = study(planted(), seeds=2, top=3, confidence=0.95, parts=1)
    assert {row["seeds"] for row in found["races"] if row["race"] != "as shipped"} == {1}
    assert {row["seeds"] for row in found["races"] if row["race"] == "as shipped"} == {2}
    json.dumps(found)
    assert report.at_a_quarter(found)["budget"] == 0.25
    for name in VARIANTS:
        assert report.parts(found).count(f"| {name} |") == 2
    (first,) = {row["first"] for row in found["races"] if row["race"] == ALL_DRAWN}
    assert first == 0
    for make in report.TABLES.values():
        lines = [line for line in make(found).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "planted" in report.setting(found) and "240 windows" in report.setting(found)


def test_the_study_goes_on_at_the_row_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = replays.summary

    def interrupted(table: Exhaustive, name: str, *given: Any, **how: Any) -> dict[str, Any]:
        made.append(name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(table, name, *given, **how)

    monkeypatch.setattr(replays, "summary", interrupted)
    kept: list[list[dict[str, Any]]] = []
    how: dict[str, Any] = {"seeds": 1, "top": 3, "confidence": 0.95}
    with pytest.raises(KeyboardInterrupt):
        study(planted(), **how, keep=lambda rows: kept.append(list(rows)))
    assert len(kept[-1]) == 3
    again = study(planted(), **how, rows=kept[-1])
    assert again["races"] == study(planted(), **how)["races"]
    assert len(made) == 4 + len(again["races"]) - 3 + len(again["races"]) and made[3] == made[4]


def test_rows_of_other_races_are_made_anew(tmp_path: Path) -> None:
    place, asked = tmp_path / "rows.json", {"seeds": 2, "top": 3}
    assert script._kept(place, asked) == []
    place.write_text(json.dumps(asked | {"rows": [{"race": "as shipped"}]}))
    assert len(script._kept(place, asked)) == 1 and script._kept(place, asked | {"top": 4}) == []
    place.write_text("{")
    assert script._kept(place, asked) == []


def test_what_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    work = ["--work", str(tmp_path / "run"), "--docs", str(tmp_path)]
    assert script.main([*work, "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
    (tmp_path / "ranking.md").write_text("# no markers")
    assert script.main(work) == 2
    assert "no markers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
