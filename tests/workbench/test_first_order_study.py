"""The study of cheap scores: its measures by hand, its replays, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import head_importance
from kernels.errors import DataError, RunError
from tests.analysis.samples import random_texts
from tests.models import tiny
from workbench.first_order_study import __main__ as script
from workbench.first_order_study import measure, report
from workbench.first_order_study.texts import evenly
from workbench.ranking_study.exhaustive import Exhaustive

PAGE = "\n".join(f"<!-- results:{name} -->\n<!-- /results -->" for name in report.TABLES)


def planted(heads: int = 96, windows: int = 24, seed: int = 0) -> Exhaustive:
    """A few large effects, many near zero; every window alike but for noise."""
    rng = np.random.default_rng(seed)
    effects = rng.gamma(0.4, 1, (heads, 1)) + rng.normal(0, 0.3, (heads, windows))
    places = np.stack([np.arange(heads) // 8, np.arange(heads) % 8], axis=1)
    return Exhaustive(
        effects, effects, np.ones(windows), np.arange(windows), places, (1.0, 60.0), {}
    )


def test_agreement_by_hand() -> None:
    table = planted()
    same = measure.agreement(table, table.effects, top=8)
    assert same["spearman"] == pytest.approx(1) and same["sign"] == 1
    assert same["found_score"] == {"1": 1.0, "2": 1.0, "4": 1.0}
    turned = measure.agreement(table, -table.effects, top=8)
    assert turned["spearman"] == pytest.approx(-1) and turned["found_size"]["2"] == 1.0
    assert turned["found_score"]["1"] == 0


def test_a_screen_with_a_good_order_finds_the_top_set_and_keeps_to_its_budget() -> None:
    table = planted()
    order = np.argsort(-table.scores)
    found = measure.replays(table, order, top=8, share=0.15, seeds=10)
    assert found["recall"] > 0.9 and found["missed"] == 0 and found["tried"] == 1
    assert found["evaluations"] <= 0.15 * table.evaluations
    assert found["recall_low_95"] <= found["recall"] <= found["recall_high_95"]
    lost = measure.replays(table, order[::-1], top=8, share=0.15, seeds=10)
    assert lost["recall"] < 0.5 and lost["missed"] > 3 and lost["told"] > 1
    assert lost["bound_holds"] >= 0.9


def test_what_is_kept_goes_on_and_belongs_to_its_model(tmp_path: Path) -> None:
    model, docs = tiny("llama", num_hidden_layers=2), random_texts([20] * 24)
    found = measure.study(tmp_path, model, docs, top=2, shares=(0.9,), seeds=2)
    again = measure.study(tmp_path, model, docs, top=2, shares=(0.9,), seeds=2)
    assert found == again and set(found["methods"]) == set(measure.CHEAP)
    exact = head_importance(model, docs)["score"]
    taylor = head_importance(model, docs, method="taylor", agreement=False)["score"]
    expected = float((np.sign(exact) == np.sign(taylor)).mean())
    assert found["methods"]["taylor"]["sign"] == expected
    (tmp_path / "exhaustive.safetensors").unlink()
    with pytest.raises(RunError, match="another model or data"):
        measure.study(tmp_path, tiny("llama", seed=1, num_hidden_layers=2), docs, top=2,
                      shares=(0.9,), seeds=2)  # fmt: skip


def test_documents_are_spread_and_of_like_length() -> None:
    docs = evenly("pico", "topics", 20, 60, 60)
    assert len(docs) == len(docs.windows) == 20 and {len(d.ids) for d in docs} == {60}
    assert [d.id for d in docs] == sorted({d.id for d in docs})
    with pytest.raises(DataError, match="documents is 9999; it must be between 1 and"):
        evenly("pico", "heldout", 9999, 60, 60)


def test_the_page_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = script.Case("heldout", 20, 33, 32, 2, (0.9,))
    monkeypatch.setattr(script, "CASES", {"pico": case})
    monkeypatch.setattr(script, "loaded", lambda name: tiny("llama", num_hidden_layers=2))
    monkeypatch.setattr(script, "evenly", lambda *_: random_texts([20] * 24))
    (tmp_path / "first-order.md").write_text(PAGE)
    given = ["--work", str(tmp_path / "work"), "--docs", str(tmp_path), "--models", "pico"]
    assert script.main([*given, "--seeds", "2"]) == 0
    page = (tmp_path / "first-order.md").read_text()
    assert "| pico | `relp` |" in page and "| pico | 90% |" in page
    assert json.loads((tmp_path / "first-order.json").read_text())["pico"]["top"] == 2
    assert script.main([*given, "--seeds", "1"]) == 2
