"""Options shared by commands: where models run, how texts are read, paths as people type them."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from analysis import check_model
from kernels.errors import MidusError
from midus_model import load
from tests.analysis.clocks import counting
from tests.models import tiny
from workbench.cli import amplify, app, common, doctor, measure, models, options, study, usage
from workbench.runs import RunFolder, free_place
from workbench.training.settings import bf16_of, trainer_arguments, training_device

RUNS_MODEL = (
    measure.importance, measure.rank, measure.roles, usage.memory, usage.costs, amplify.amplify,
    doctor.doctor, models.upscale, models.train, study.demo,
)  # fmt: skip
READS_TEXT = tuple(c for c in RUNS_MODEL if c not in (usage.costs, study.demo))
SMALL = ["--num-keys", "4", "--top-k", "2", "--latent-dim", "4"]


def midus(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Any, *says: str) -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith("midus: note:")]
    assert result.exit_code == 2 and len(lines) == 1, (result.stderr, result.exception)
    assert all(part in lines[0] for part in says), lines[0]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder to work in, with a tiny model."""
    home = tmp_path / "my home"
    home.mkdir()
    tiny("llama").save_pretrained(home / "a model")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


# ---------------------------------------------------------------- declared once


@pytest.mark.parametrize("command", RUNS_MODEL, ids=lambda c: c.__name__)
def test_every_command_that_runs_a_model_is_told_where_and_how(command: Any) -> None:
    known = inspect.signature(command).parameters
    assert {"device", "dtype"} <= set(known) and not {"placed", "read", "within"} & (
        {p.name for p in known.values() if p.annotation in (options.Placed, options.Reader)}
    )
    assert ("bos" in known and "context" in known) is (command in READS_TEXT)


def test_what_is_made_of_the_options_reaches_the_command() -> None:
    seen: dict[str, Any] = {}

    @options.runs_model
    @options.reads_text
    @options.measures
    def command(
        name: str = "x", *, placed: options.Placed, read: options.Reader, within: options.Within
    ) -> None:
        seen.update(placed=placed, read=read, within=within, name=name)

    command(device="cpu", context=64, within="1m")
    assert seen["placed"] == options.Placed("cpu", "auto") and seen["name"] == "x"
    found = options.parameters(*(seen[key] for key in ("placed", "read", "within")))
    assert found == {
        "device": "cpu", "dtype": "auto", "context": 64, "bos": "first", "chat": False,
        "text_column": None, "within": 60.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), (" 2M ", 120)],
)
def test_times(text: str, seconds: float) -> None:
    assert options.parse_time(text) == seconds
    assert options.parse_time(None) is None


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "10 minutes", "5m1h", "m", "1e3", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(MidusError, match="give a time such as 600"):
        options.parse_time(text)


def test_an_option_that_a_function_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(MidusError, match="--text-column does not apply to sorted"):
        options.taken(sorted, {"text_column": "a"})
    assert options.taken(sorted, {"key": None}) == {"key": None}


# ---------------------------------------------------------------- the first line


def test_the_first_line_says_where_a_run_runs(there: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        done = midus("memory", "pico-midus", "--limit", 1, "--context", 64, "--dtype", dtype,
                     "--device", "cpu", "-o", f"run {dtype}")  # fmt: skip
        assert done.exit_code == 0, (done.stderr, done.exception)
        first = done.stdout.splitlines()[0]
        assert first.startswith("pico-midus on cpu (") and f", {dtype}: needs about " in first
        run = RunFolder.open(there / f"run {dtype}")
        asked = run.manifest["parameters"]
        assert (asked["device"], asked["dtype"], asked["context"]) == ("cpu", dtype, 64)
        assert run.load_table("memory_usage").attrs["context"] == 64


@pytest.mark.parametrize("command", ["importance", "rank", "roles", "doctor", "train", "costs"])
def test_a_device_or_precision_that_is_not_there_is_one_line(command: str, there: Path) -> None:
    refused(midus(command, "pico-midus", "--device", "cuda:99"), "cuda:99", "this machine has cpu")
    refused(midus(command, "pico-midus", "--dtype", "int4"), "int4", "bfloat16")
    assert not (there / "runs").exists()


def test_going_on_with_a_run_asked_otherwise_is_refused(there: Path) -> None:
    line = ["importance", "pico", "--limit", 2, "--method", "gradient", "-o", there / "cut"]
    assert midus(*line, "--context", 32).exit_code == 0
    RunFolder.open(there / "cut").fail("cut")
    refused(midus(*line, "--context", 64), "other context;")
    refused(midus(*line, "--context", 32, "--dtype", "bfloat16"), "other dtype;")
    refused(midus(*line, "--context", 32, "--device", "cpu"), "other device;")
    assert midus(*line, "--context", 32).exit_code == 0


def test_too_little_memory_is_one_note(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="memory may run out"):
        options.tell(load("pico"), needs=10**15)
    assert "needs about 1000000 GB" in capsys.readouterr().out


# ---------------------------------------------------------------- training


def test_a_training_runs_and_computes_as_asked(there: Path) -> None:
    for dtype, said in (("float32", ""), ("bfloat16", ", computed in bfloat16")):
        done = midus("train", "pico", "--limit", 2, "--steps", 1, "--batch-size", 1, "--context",
                     32, "--device", "cpu", "--dtype", dtype, "-o", dtype)  # fmt: skip
        assert done.exit_code == 0, (done.stderr, done.exception)
        assert done.stdout.startswith("pico on cpu (") and f"float32{said}: " in done.stdout
        assert load(there / dtype / "models" / "trained").dtype == torch.float32
    refused(midus("train", "pico", "--dtype", "float16"), "float16", "bfloat16")


def test_the_trainer_is_on_the_device_that_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert training_device("cpu") == cpu and bf16_of("bfloat16", cpu)
    assert not bf16_of("float32", cpu)
    every = {"eval": 1, "save": 1, "log": 1}
    made = trainer_arguments(Path("x"), 1, 1, 1e-3, every, None, False, 0, cpu)
    assert made.device == cpu and not made.bf16


# ---------------------------------------------------------------- names and folders


@pytest.mark.parametrize("given", ["--output=~/out", "-o=~/out", "-o ~/out"])
def test_a_tilde_is_the_home_folder_wherever_it_stands(given: str, there: Path) -> None:
    done = midus("upscale", "~/a model", *given.split(" "), *SMALL)
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert (there / "out" / "config.json").is_file() and not (there / "~").exists()
    assert load("~/out").config.num_hidden_layers == 6


def test_lines_of_what_is_next_can_be_pasted(there: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("workbench.hints.shutil.which", lambda name: "/usr/bin/midus")
    done = midus("upscale", "pico", "-o", "a deeper one", *SMALL)
    line = done.stdout.split("Next: ")[1].splitlines()[0]
    assert shlex.split(line)[:3] == ["midus", "train", "a deeper one"]
    done = midus("memory", "pico-midus", "--limit", 1, "--context", 32, "-o", "my run's")
    lines = done.stdout.split("Next: ")[1].splitlines()[0].split(", or ")
    assert shlex.split(lines[0]) == ["midus", "figures", "my run's"]
    assert shlex.split(lines[1]) == ["midus", "explore", "--run", "my run's"]


@pytest.mark.parametrize("name", ["m" * 80, "漢" * 80, "é" * 80, "a b" * 26, "x" * 250])
def test_run_folders_of_models_with_long_names(name: str, there: Path) -> None:
    place = common.free_folder("importance", name)
    place.mkdir(parents=True)
    (place / f".{'0' * 40}.tmp").touch()
    second = common.free_folder("importance", name)
    assert second != place and len(second.name.encode()) < 200
    RunFolder.create(second, "importance").finish()
    assert place.name.startswith("importance-") and not place.name.endswith("-")
    assert free_place("r", "short").name == "short"


def test_a_relative_model_of_a_run_is_found_from_anywhere(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = midus("upscale", "a model", "-o", "deeper", *SMALL)
    assert done.exit_code == 0
    run = RunFolder.create("runs/mine", "memory")
    for label, where in (("before", "a model"), ("after", "./deeper"), ("shipped", "pico")):
        run.add_model(label, where)
    (there / "elsewhere").mkdir()
    monkeypatch.chdir(there / "elsewhere")
    found = RunFolder.open(there / "runs" / "mine")
    assert Path(found.model_path("before")).samefile(there / "a model")
    assert Path(found.model_path("after")).samefile(there / "deeper")
    assert found.model_path("shipped") == "pico"
    assert load(found.model_path("after")).config.num_hidden_layers == 6


# ---------------------------------------------------------------- time


@pytest.fixture
def rows(there: Path) -> Path:
    """24 documents of token ids, and beside `a model` a deeper one."""
    ids = [[(7 * n + 3 * i) % 50 + 1 for i in range(16 + n % 7)] for n in range(24)]
    path = there / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"input_ids": row}) for row in ids))
    assert midus("upscale", "a model", "-o", "deeper", *SMALL).exit_code == 0
    return path


def test_before_and_after_are_measured_on_the_documents_that_a_time_holds(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["importance", "a model", "--after", "deeper", "--data", rows, "--baseline", "zero"]
    for name in ("a model", "deeper"):
        check_model(load(name))
    clock = counting(monkeypatch, 1.0)
    done = midus(*line, "--within", "25000s", "-o", "run")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert 25_000 < clock.now < 50_000
    run = RunFolder.open("run")
    before, after = (run.load_table(f"importance_{side}") for side in ("before", "after"))
    assert before.attrs["documents"] == after.attrs["documents"]
    assert 8 <= after.attrs["within"]["documents"] < 24
    assert run.has_table("amplification")


def test_evidence_keeps_to_the_time_too(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = counting(monkeypatch, 1.0)
    line = ["rank", "a model", "--data", rows, "--top", 2, "--evidence", "--within", "100000s"]
    done = midus(*line, "-o", "run")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert clock.now < 300_000
    tables = [RunFolder.open("run").load_table(n) for n in ("ranking", "evidence", "prune_curve")]
    assert [table.attrs["within"]["seconds"] for table in tables] == [100_000] * 3
    assert tables[1].attrs["within"]["documents"] < 24


@pytest.mark.parametrize(
    ("text", "budget"), [("5000", 5000), ("0.25", 0.25), ("all", "all"), (None, None)]
)
def test_budgets(text: str | None, budget: Any, there: Path) -> None:
    found = measure.parse_budget(text)
    assert found == budget and type(found) is type(budget)
    refused(midus("rank", "pico", "--budget", "half"), "--budget is 'half'", "0.25")
