"""`midus amplify`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from analysis.amplify import amplify as amplified
from analysis.dose import GAINS
from midus_model import load
from workbench.cli import app
from workbench.runs import RunFolder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def midus_amplify(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["amplify", "pico", *map(str, arguments)])


def test_loss_before_and_after_and_the_model_are_kept(texts: Path, tmp_path: Path) -> None:
    line = ("--heads", "5:1,4:0", "--gain", 1.5, "--data", texts)
    result = midus_amplify(*line, "--save", tmp_path / "louder", "-o", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "with 2 heads at gain 1.5" in result.output and "Dose" not in result.output
    run = RunFolder.open(tmp_path / "run")
    table = run.load_table("dose_response")
    assert run.done and table["arm"].tolist() == ["chosen"] * 2
    assert run.summary["after"] == table["loss"].iloc[1] != run.summary["before"]
    folded = amplified(load("pico"), [(5, 1), (4, 0)], 1.5).folded()
    kept = load(run.model_path("after"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(kept(ids).logits, folded(ids).logits)


def test_dose_has_the_curve_and_its_controls(texts: Path, tmp_path: Path) -> None:
    line = ("--heads", "5:1", "--gain", 3, "--data", texts, "--dose", "--draws", 2)
    result = midus_amplify(*line, "-o", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "matched norm" in result.output and "Dose and response (nats/token)" in result.output
    table = RunFolder.open(tmp_path / "run").load_table("dose_response")
    assert sorted(set(table["arm"])) == ["chosen", "matched_norm", "random"]
    assert table["gain"].tolist() == [*GAINS, 3] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--heads", "9:0", "--gain", 2), "head (9, 0) does not exist"),
        (("--heads", "loud", "--gain", 2), "layer:head pairs"),
        (("--heads", "5:1,5:1", "--gain", 2), "given twice"),
        (("--heads", "5:1", "--gain", "nan"), "must be finite"),
        (("--heads", "5:1", "--gain", 2, "--data", "nowhere.txt"), "nowhere.txt"),
        (("--heads", "5:1", "--gain", 2, "--metric", "bits"), "metric is 'bits'"),
    ],
)
def test_a_wrong_input_is_one_line(
    options: tuple[object, ...], words: str, texts: Path, tmp_path: Path
) -> None:
    data = () if "--data" in options else ("--data", texts)
    result = midus_amplify(*options, *data, "-o", tmp_path / "run")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("midus: note:")]
    assert result.exit_code == 2 and len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "run").exists()


def test_nothing_is_measured_for_a_model_that_cannot_be_kept(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    line = ("--heads", "5:1", "--gain", 2, "--data", texts, "-o", tmp_path / "run")
    result = midus_amplify(*line, "--save", tmp_path / "mine")
    assert result.exit_code == 2 and "exists already" in result.stderr
    assert not (tmp_path / "run").exists()
