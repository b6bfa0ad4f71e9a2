"""`midus memory` with its options, and the benchmark of what counting costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from analysis import estimates
from analysis.memory import memory_usage
from tests.analysis.memory_models import texts as random_ids
from tests.analysis.memory_models import up_scaled
from workbench import memory_bench
from workbench.cli import app
from workbench.runs import RunFolder

CODE = "import os\n\nfor name in sorted(os.listdir('.')):\n    print(name, len(name))\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": CODE * (1 + n % 3)}) for n in range(20)))
    return path


def midus(*arguments: object):
    return CliRunner().invoke(app, ["memory", *map(str, arguments)])


def test_slots_and_stability_are_printed_and_saved(texts, tmp_path):
    line = ("--data", texts, "--slots", "2:0", "--against", texts, "--limit", 20)
    result = midus("pico-midus", *line, "-o", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exception)
    run = RunFolder.open(tmp_path / "run")
    assert set(run.tables) == {
        "memory_usage", "memory_slots", "memory_blocks", "memory_stability", "memory_contents",
        "memory_tokens",
    }  # fmt: skip
    assert run.load_table("memory_stability")["similarity"].min() > 0.999  # the same texts
    contents = run.load_table("memory_contents")
    assert contents["slot"].nunique() == 32 and set(contents["head"]) == {0}
    assert set(run.load_table("memory_tokens")["slot"]) == set(contents["slot"])
    assert "Slots most used in block 2, head 0" in result.output
    assert str(contents["slot"][0]) in result.output and "similarity" in result.output


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ("1", "block 1 is no memory block; there is memory at block 2 heads 0-7"),
        ("2:8", "block 2 head 8 is no memory head"),
        ("two", "--slots is 'two'; give a block such as 2"),
        ("2:0:1", "--slots is '2:0:1'"),
    ],
)
def test_slots_that_are_not_there(texts, tmp_path, slots, words):
    result = midus("pico-midus", "--data", texts, "--slots", slots, "-o", tmp_path / "run")
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*one document, so intervals")
def test_the_benchmark_reads_the_tokens_that_it_says(texts, tmp_path, capsys):
    line = ["--tokens", "1000", "--data", str(texts), "--out", str(tmp_path / "bench.json")]
    memory_bench.main(line)
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["tokens"] == 1000 and found["model"] == "pico-midus"
    assert found["ratio"] == found["usage_seconds"] / found["plain_seconds"] > 0
    assert found["peak_bytes_at_once"] >= found["peak_bytes_in_chunks"] > 0
    assert "1,000 tokens" in capsys.readouterr().out


def test_the_benchmark_is_made_of_parts_that_run_the_same_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimates, "seconds_a_pass", lambda *_: 1e-6)  # which runs short passes
    model, seen = up_scaled(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    docs = memory_bench.of_tokens(random_ids([40, 100, 3]), 5_000)
    assert sum(len(item.ids) for item in docs) == 5_000
    memory_bench.plain_passes(model, docs)
    plain, seen[:] = list(seen), []
    memory_usage(model, docs)
    assert len(plain) == len(seen) > 1
    assert all(torch.equal(one, other) for one, other in zip(plain, seen, strict=True))
    parts = memory_bench.chunks(docs, 1_000)
    assert [item.id for part in parts for item in part] == [item.id for item in docs]
    assert all(1_000 <= sum(len(item.ids) for item in part) < 1_064 for part in parts[:-1])
