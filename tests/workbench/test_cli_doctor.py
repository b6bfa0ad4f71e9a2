"""`midus doctor`: findings with their evidence and advice, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from analysis.doctor import ADVICE
from midus_model import load, load_tokenizer, upscale
from workbench.cli import app
from workbench.runs import RunFolder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def midus_doctor(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_a_model_that_was_not_trained_yet(texts: Path, tmp_path: Path) -> None:
    fresh = upscale(load("pico"), blocks=1, num_keys=8, top_k=2, latent_dim=8)
    fresh.save_pretrained(tmp_path / "fresh")
    load_tokenizer("pico").save_pretrained(tmp_path / "fresh")
    line = (tmp_path / "fresh", "--data", texts, "--no-timing", "-o", tmp_path / "run")
    result = midus_doctor(*line)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "memory unused: switching all memory off costs 0.0000" in result.output
    assert f"try: {ADVICE['memory unused']}" in result.output.replace("\n", " ")
    assert "not looked for: general ability lost (no model before was given)" in result.output
    run = RunFolder.open(tmp_path / "run")
    assert run.done and "memory unused" in run.summary["findings"]
    assert list(run.load_table("doctor")["finding"]) == run.summary["findings"]


def test_a_base_model_is_refused(texts: Path, tmp_path: Path) -> None:
    result = midus_doctor("pico", "--data", texts, "-o", tmp_path / "run")
    assert result.exit_code == 2 and "no memory" in result.stderr
    assert not (tmp_path / "run").exists()
