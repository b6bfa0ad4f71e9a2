"""The sub-key experiment: its rows, how it goes on, and its pages, on a tiny setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.documents import documents
from kernels.errors import RunError
from midus_model.keys import halves, memories_of, queries_of
from tests.models import tiny, tokens
from workbench.key_study import __main__ as script
from workbench.key_study import report
from workbench.key_study.measure import (
    STARTS,
    TRAININGS,
    Experiment,
    Setting,
    rows_of,
    set_raw_keys,
)

CONTEXT = 16


class Small(Experiment):
    """A tiny model and random tokens in the place of pico and its texts."""

    base = tiny()
    heldout = documents(list(tokens(20, CONTEXT)), model=base, context=CONTEXT)
    training = documents(list(tokens(30, 60, seed=1)), model=base, context=CONTEXT)
    test = documents(list(tokens(20, 30, seed=2)), model=base, context=CONTEXT)


SETTING = Setting(calibration=20, num_keys=4, top_k=2, latent_dim=4, steps=1, batch_size=2,
                  revive_every=1, seeds=1)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "Experiment", Small)


def row(keys: str, seed: int, loss: float = 2.0, revived: bool = False) -> dict[str, Any]:
    return {"keys": keys, "revived": revived, "seed": seed, "tokens": 1024, "slots": 16,
            "coverage": 0.5 + 0.1 * seed, "coverage_worst": 0.4 - 0.1 * seed, "worst": [2, seed],
            "effective_slots": 10.0, "effective_k": 1.5, "seconds": 3.0, "moved": 7,
            "loss": loss, "loss_heldout": loss}  # fmt: skip


def test_windows_are_whole_apart_and_spread_over_the_documents() -> None:
    source = documents([list(range(3, 3 + n)) for n in (40, 5, 70, 33)], model=tiny(), context=16)
    every = rows_of(source, 100)
    assert " ".join(item.id for item in every) == "0@0 0@16 2@0 2@16 2@32 2@48 3@0 3@16"
    assert all(len(item.ids) == 16 for item in every)
    assert [item.id for item in rows_of(source, 4)] == ["0@0", "2@0", "2@32", "3@0"]


def test_raw_keys_lie_where_raw_queries_are(tmp_path: Path) -> None:
    experiment = Small(SETTING, tmp_path)
    plain, raw, again = (experiment.model("uniform", 0) for _ in range(3))
    for model in (raw, again):
        set_raw_keys(model, experiment.calibration, seed=1)
    queries = queries_of(raw, experiment.calibration)
    for layer, memory in memories_of(raw).items():
        assert torch.equal(memory.row_keys, memories_of(again)[layer].row_keys)
        points = halves(queries[layer])[0]
        about = (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1)
        near, far = (
            torch.cdist(points, keys.data).amin(-1).square().mean(1)
            for keys in (memory.row_keys, memories_of(plain)[layer].row_keys)
        )
        assert (near < 0.9 * about).all() and (near < far).all()


def test_coverage_counts_every_position_once(tmp_path: Path) -> None:
    found = Small(SETTING, tmp_path).coverage("queries", 0)
    assert found["tokens"] == 20 * CONTEXT and found["slots"] == 16
    assert 0 < found["coverage_worst"] <= found["coverage"] <= 1
    assert 1 <= found["effective_slots"] <= 16 and 1 <= found["effective_k"] <= 2


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_every_row_is_kept_as_it_comes_and_none_is_made_twice(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Small.trained, []

    def interrupted(self: Small, **which: Any) -> dict[str, Any]:
        calls.append(which)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, **which)

    monkeypatch.setattr(Small, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.run(SETTING, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "keys.json").read_text())
    assert len(kept["coverage"]) == 3 and len(kept["training"]) == 2
    found = script.run(SETTING, tmp_path / "run")
    assert calls[2] == calls[3] and len(calls) == 5
    assert found["training"][:2] == kept["training"] and found["coverage"] == kept["coverage"]
    assert {(r["keys"], r["revived"], r["seed"]) for r in found["training"]} == {
        (keys, revived, 0) for keys, revived in TRAININGS
    }
    assert not (tmp_path / "run" / "training").exists()
    assert len({(r["loss_tokens"], r["tokens"]) for r in found["training"]}) == 1
    with pytest.raises(RunError, match="other steps"):
        script.run(Setting(**{**SETTING.parameters(), "steps": 3}), tmp_path / "run")
    (tmp_path / "run" / "keys.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        script.run(SETTING, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_the_page_is_filled_in(tmp_path: Path, small: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        script, "Setting", lambda **given: Setting(**{**SETTING.parameters(), **given})
    )
    page = "\n".join(f"<!-- results:{name} -->\n<!-- /results -->" for name in report.TABLES)
    (tmp_path / "keys.md").write_text(page)
    work = ["--out", str(tmp_path / "run"), "--docs", str(tmp_path), "--coverage-only"]
    assert script.main([*work, "--seeds", "1", "--steps", "1", "--windows", "4"]) == 0
    text = (tmp_path / "keys.md").read_text()
    for keys in STARTS:
        assert f"| {keys} | 1 | 320 |" in text
    assert "Not measured yet." in text
    assert len(json.loads((tmp_path / "keys.json").read_text())["coverage"]) == 3


def test_tables_give_means_the_worst_head_and_paired_differences() -> None:
    losses = {
        ("uniform", False): (2.0, 2.4),
        ("queries", False): (1.9, 2.2),
        ("queries", True): (2.1, 2.3),
    }
    found = {
        "about": {},
        "coverage": [row(keys, seed) for keys in STARTS for seed in (0, 1)],
        "training": [
            row(keys, seed, loss, revived)
            for (keys, revived), each in losses.items()
            for seed, loss in enumerate(each)
        ],
    }
    assert "| uniform | 2 | 1,024 | 55.0% | 30.0% (2, 1) | 10 | 1.50 | 3.0 |" in report.coverage(
        found
    )
    assert "| queries | no | 2 | 2.0500 (1.9000 to 2.2000) |" in report.training(found)
    assert "| queries | no | -0.1500 | -0.1000, -0.2000 |" in report.differences(found)
    assert "| queries | yes | +0.0000 | +0.1000, -0.1000 |" in report.differences(found)
    assert "uniform | yes" not in report.differences(found)


def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--out", str(tmp_path / "run"), "--docs", str(tmp_path)]
    assert script.main([*work, "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
    (tmp_path / "keys.md").write_text("# no markers")
    assert script.main(work) == 2
    assert "no markers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
