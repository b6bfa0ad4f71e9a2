"""Progress as a file: what a job's page reads while the command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import common


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIDUS_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


def read(place: Path) -> dict[str, Any]:
    assert [file.name for file in place.parent.iterdir()] == [place.name]  # no draft is left
    return json.loads(place.read_text())


def test_first_and_last_of_every_stage_are_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with common.progress() as report:
        report(40, 100, "ablation")
        first = read(place)
        assert (first["done"], first["total"], first["first"]) == (40, 100, 40)
        for done in range(41, 101):
            report(done, 100, "ablation")
        last = read(place)
        assert (last["done"], last["first"], last["text"]) == (100, 40, "ablation")
        assert first["spent"] == 0 <= last["spent"]
        report(1, 100, "ablation of the second model")  # as long, and begun anew
        again = read(place)
        assert (again["done"], again["first"], again["spent"]) == (1, 1, 0)
        report(0, 0, "step 2 of 3")
        assert (read(place)["total"], read(place)["text"]) == (0, "step 2 of 3")
    assert "ablation 100/100" in capsys.readouterr().err


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDUS_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    with common.progress() as report:
        report(1, 1, "ablation")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDUS_PROGRESS", str(tmp_path / "nowhere" / "progress.json"))
    with common.progress() as report:
        report(1, 1, "ablation")
    assert not (tmp_path / "nowhere").exists()


def test_a_clock_that_is_set_changes_no_progress(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour back, then two forth: every report but those within a quarter second is written."""
    wall, since_start = 1_000_000.0, 50.0
    monkeypatch.setattr("time.time", lambda: wall)
    monkeypatch.setattr("time.monotonic", lambda: since_start)
    with common.progress() as report:
        for done, step in ((1, 0.0), (2, -3600.0), (3, 7200.0)):
            wall, since_start = wall + step, since_start + 10
            report(done, 10, "ablation")
            assert (read(place)["done"], read(place)["spent"]) == (done, 10 * (done - 1))
