"""`midus upscale`: budgets by importance, keys from queries, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from midus_model import load
from tests.models import tiny, tokens
from workbench.cli import app
from workbench.runs import RunFolder

SMALL = ("--num-keys", 8, "--top-k", 2, "--latent-dim", 8)
SCORES = {(3, 1): 0.4, (5, 0): 0.1, (3, 2): 0.02, (1, 1): 0.3}


def midus(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Any, *words: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("midus: note:")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """A run of `midus rank` whose top set is the first three of SCORES."""
    rows = [(layer, head, "attention", score) for (layer, head), score in SCORES.items()]
    table = pd.DataFrame(rows, columns=["layer", "head", "kind", "score"])
    table.attrs = {"top": 3}
    run = RunFolder.begin(tmp_path / "rank", "rank", None, {})
    run.save_table("ranking", table)
    run.write_json("ranking.json", {"heads": [list(head) for head in list(SCORES)[:3]]})
    run.finish({})
    return tmp_path / "rank" / "ranking.json"


def test_a_budget_by_importance(ranked: Path, tmp_path: Path) -> None:
    made = {}
    for budget in ("uniform", "importance"):
        line = ("--heads", ranked, "--budget", budget, "-o", tmp_path / budget)
        result = midus("upscale", "pico", *line, *SMALL)
        assert result.exit_code == 0, (result.output, result.exception)
        made[budget] = load(tmp_path / budget)
    assert "2-4" in result.output and "4-16" in result.output or "1-4" in result.output
    uniform, shared = made.values()
    assert shared.num_parameters() <= uniform.num_parameters()
    assert [e["heads"] for e in shared.config.layer_map if e["heads"]] == [[1, 2], [0]]
    first, second = (sizes for sizes in shared.config.memory_sizes if sizes)
    assert first["num_keys"] > second["num_keys"] and first["top_k"] == [4, 1]
    assert uniform.config.memory_sizes is None


def test_scores_beside_the_heads_in_one_file(tmp_path: Path) -> None:
    heads, scores = [[3, 1], [5, 0]], [0.4, 0.1]
    given = tmp_path / "mine.json"
    line = ("upscale", "pico", "-o", tmp_path / "new", *SMALL, "--budget", "importance", "--heads")
    given.write_text(json.dumps({"heads": heads}))
    refused(midus(*line, given), "not a score for each", "midus rank", '"scores"')
    given.write_text(json.dumps({"heads": heads, "scores": scores[:1]}))
    refused(midus(*line, given), "not a score for each")
    given.write_text(json.dumps({"heads": heads, "scores": ["a", "b"]}))
    refused(midus(*line, given), "must be numbers")
    refused(midus(*line, "3:1,5:0"), "give --heads a ranking.json")
    refused(midus(*line[:-1]), "give --heads a ranking.json")
    assert not (tmp_path / "new").exists()
    given.write_text(json.dumps({"heads": heads, "scores": scores}))
    assert midus(*line, given).exit_code == 0
    sizes = [s for s in load(tmp_path / "new").config.memory_sizes if s]
    assert [s["num_keys"] for s in sizes] == sorted((s["num_keys"] for s in sizes), reverse=True)


def test_keys_from_queries(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n" * 4} for i in range(20)]
    text.write_text("\n".join(map(json.dumps, rows)))
    line = ("upscale", "pico", "-o", tmp_path / "new", *SMALL, "--blocks", "3,")
    result = midus(*line, "--key-init", "queries", "--calibration", text)
    assert result.exit_code == 0, (result.output, result.exception)
    assert load(tmp_path / "new").config.key_init == "queries"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "greedy"], ["--budget is 'greedy'", "uniform or importance"]),
        (["--key-init", "queries"], ["give --calibration"]),
        (["--calibration", "heldout"], ["--key-init queries alone"]),
        (["--key-init", "zero"], ["--key-init is 'zero'"]),
        (["--key-init", "queries", "--calibration", "nowhere.txt"], ["nowhere.txt"]),
    ],
)
def test_what_is_refused(options: list[str], words: list[str], tmp_path: Path) -> None:
    refused(midus("upscale", "pico", "-o", tmp_path / "new", *SMALL, *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_llama_3_and_a_name_of_eighty_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one working directory to another, by relative path, ~ and a name with a space."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    place = Path("models") / ("eighty characters " + "x" * 62)
    assert len(place.name) == 80
    tiny("llama", rope_parameters=rope).save_pretrained(place)
    made = place.with_name("deeper")
    result = midus("upscale", Path("~") / place, "-o", made, *SMALL)
    assert result.exit_code == 0, (result.output, result.exception)
    last = result.output.strip().splitlines()[-1]  # no Next: it has no tokenizer to read text with
    assert last.endswith(str(made / "README.md")) and "Next:" not in result.output
    assert "import midus_model" in (made / "README.md").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    new, base = load(f"../{made}/"), load(tmp_path / place)
    assert torch.equal(new(tokens()).logits, base(tokens()).logits)
    assert new.config.base_model_name == place.name
    result = midus("upscale", Path("..") / place, "-o", "a b", *SMALL)
    assert result.output.strip().splitlines()[-1].endswith("a b/README.md")


def test_what_does_not_fit_its_configuration_is_one_line(tmp_path: Path) -> None:
    tiny("llama", attention_bias=True).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_bias": False}))
    refused(midus("upscale", tmp_path / "base", "-o", tmp_path / "new"), "without a place", "bias")
    assert not (tmp_path / "new").exists()
