from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["documents", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.csv"
    path.write_text("prompt,answer,foil,note\nimport ,os,sys,a b\nimport, os, re,c d\n")
    return path


def test_what_is_read_is_shown(tasks: Path) -> None:
    code, out, err = run(str(tasks), "--bos", "every", "--context", "8", "--show", "1")
    assert code == 0, err
    assert "tasks.csv: 2 documents, 2 scored tokens, 2 windows of at most 8 tokens" in out
    assert "at the start of every window" in out
    assert '"import"[610] | "Ġos"[574]' in out and 'foil: | "Ġsys"[653]' in out
    assert "and 1 document more" in out
    assert "note: in 1 of 2 rows the answer begins inside a token" in out


def test_options_reach_the_reader(tasks: Path, tmp_path: Path) -> None:
    code, out, _ = run(str(tasks), "--text-column", "note", "--bos", "none")
    assert code == 0 and 'none (bos="none")' in out and "tasks.csv:2 (2 tokens" in out
    lines = [json.dumps({"text": None if i % 3 else f"import os{i}"}) for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, out, _ = run(str(tmp_path / "rows.jsonl"), "--limit", "2")
    assert code == 0 and "2 documents" in out
    assert "left out: 6 rows are null (the first: rows.jsonl, line 2)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chat"], "no chat template"),
        (["--bos", "all"], "bos must be one of first, every, none"),
        (["--text-column", "body"], "has no column 'body'; it has prompt, answer, foil, note"),
        (["--split", "dev"], "split must be"),
        (["--model", "nothing"], "no model at 'nothing'"),
        (["--context", "9999"], "longer than the model's"),
    ],
)
def test_refusals_are_one_line(tasks: Path, options: list[str], message: str) -> None:
    code, out, err = run(str(tasks), *options)
    assert code == 2 and not out
    assert message in err and len(err.strip().splitlines()) == 1
