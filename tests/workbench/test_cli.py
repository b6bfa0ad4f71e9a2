"""The command line: every bad input is one line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from workbench.cli import app, common, explore
from workbench.runs import RunFolder

ROOT = Path(__file__).resolve().parents[2]
ALPHABET = list(string.ascii_letters)
SMALL = ["--num-keys", "4", "--top-k", "2", "--latent-dim", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny random Llama on disc, with a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=54, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(["?", " ", *ALPHABET])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"text": "the quick brown fox jumps over the lazy dog " * (2 + i % 3)} for i in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def midus(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("midus: note:")]
    assert len(lines) == 1 and lines[0].startswith("midus: "), result.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in result.output


# ---------------------------------------------------------------- what works


def test_help_names_every_command():
    result = midus("--help")
    commands = ["demo", "upscale", "train", "importance", "rank", "memory", "figures", "costs"]
    assert result.exit_code == 0
    for name in [*commands, "documents", "explore"]:
        assert name in result.output
        helped = midus(name, "--help")
        assert helped.exit_code == 0 and "Example" in helped.output


def test_a_cheap_method_says_how_far_it_agrees_with_ablation(model, texts, tmp_path):
    asked = ("importance", model, "--data", texts, "--method", "taylor", "--limit", "8")
    result = midus(*asked, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "agreement with exact ablation: rank correlation with effects" in result.output
    assert RunFolder.open(tmp_path / "run").load_table("importance_before").attrs["agreement"]
    result = midus(*asked, "--no-agreement", "-o", tmp_path / "without")
    assert result.exit_code == 0 and "exact ablation:" not in result.output


def test_a_ranking_by_screen_ends_with_what_it_left_out(model, texts, tmp_path):
    place = tmp_path / "run"
    asked = ("rank", model, "--data", texts, "--method", "screen", "--top", "1", "-o", place)
    refused(midus(*asked, "--budget", "10"), "--budget is 10", "screen")
    result = midus(*asked, "--budget", "0.9", "--overwrite")
    assert result.exit_code == 0, result.output
    last = result.output.strip().splitlines()[-1]
    assert "conditional on a screen to first order" in last and "were not ablated" in last
    assert RunFolder.open(place).load_table("ranking").attrs["screen"]["raced"] >= 2
    assert json.loads((place / "ranking.json").read_text())["heads"]


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys\nsys.argv = ['midus', '--help']\nfrom workbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    assert not stop.code and 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_goes_all_the_way(model, texts, tmp_path):
    """upscale, train, importance before and after, rank, memory, costs, figures."""
    grown, trained = tmp_path / "grown", tmp_path / "trained"
    assert midus("upscale", model, "-o", grown, *SMALL).exit_code == 0
    left = grown.with_name(f".{grown.name}.0123456789ab.tmp")
    left.mkdir()  # of a writer that was killed once the model was in its place
    refused(upscale(model, grown, *SMALL), "exists already")
    assert not left.exists()
    line = ("train", grown, "--data", texts, "--steps", 2, "--batch-size", 2, "-o", trained)
    result = midus(*line, "--eval-data", texts)
    assert result.exit_code == 0, result.output
    run = RunFolder.open(trained)
    assert run.done and run.load_table("training")["step"].max() == 2
    assert "finished" in midus(*line, "--eval-data", texts).output
    after = run.model_path("after")

    for name, arguments in {
        "importance": (model, "--after", after, "--data", texts),
        "rank": (model, "--data", texts, "--top", 2),
        "memory": (after, "--data", texts),
        "costs": (after, "--against", model),
    }.items():
        result = midus(name, *arguments, "-o", tmp_path / name)
        assert result.exit_code == 0, (name, result.output, result.exception)
        assert RunFolder.open(tmp_path / name).done
    assert set(RunFolder.open(tmp_path / "importance").tables) == {
        "importance_before", "importance_after", "amplification",
    }  # fmt: skip
    ranking = json.loads((tmp_path / "rank" / "ranking.json").read_text())
    assert len(ranking["heads"]) == 2
    chosen = ("--heads", tmp_path / "rank" / "ranking.json", "--slots", 16, "--top-k", 2)
    assert midus("upscale", model, "-o", tmp_path / "chosen", *chosen).exit_code == 0

    drawn = midus("figures", tmp_path / "importance", "--format", "svg", "--format", "pdf")
    assert drawn.exit_code == 0, drawn.output
    figures = {path.name for path in (tmp_path / "importance" / "figures").iterdir()}
    assert {"importance_map.svg", "importance_map.pdf", "amplification.svg"} <= figures
    assert not list(tmp_path.rglob("*.tmp"))


def test_explore_is_bound_to_this_machine(tmp_path):
    assert explore.explorer().name == "explorer.py"
    runs, models = tmp_path / "runs", tmp_path / "models"
    line = explore.command(Path("apps/explorer.py"), [tmp_path], runs, [models], 8600, True)
    assert line[line.index("--server.address") + 1] == "127.0.0.1"
    assert line[line.index("--browser.gatherUsageStats") + 1] == "false"
    given = line[line.index("--") + 1 :]
    assert given == ["--runs", str(runs), "--run", str(tmp_path), "--models", str(models)]
    line = explore.command(Path("apps/explorer.py"), [], runs, [], None, False)
    assert line[-3:] == ["--", "--runs", str(runs)]


# ---------------------------------------------------------------- what is refused


def upscale(model, output, *more):
    return midus("upscale", model, "-o", output, *more)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-keys", 4, "--top-k", 5], ["--top-k is 5"]),
        (["--slots", 1000], ["perfect square", "961", "1024"]),
        (["--slots", 0], ["perfect square"]),
        (["--slots", 16, "--num-keys", 5], ["one of the two"]),
        ([*SMALL, "--heads", "9:0"], ["head (9, 0) does not exist"]),
        ([*SMALL, "--heads", "nonsense"], ["layer:head"]),
        ([*SMALL, "--blocks", "1,7"], ["0-1"]),
        ([*SMALL, "--blocks", "x"], ["number of blocks"]),
        ([*SMALL, "--method", "solo"], ["method is 'solo'"]),
        ([*SMALL, "--placement", "under"], ["placement is 'under'"]),
    ],
)
def test_upscale_refuses(model, tmp_path, options, words):
    refused(upscale(model, tmp_path / "new", *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_loaded(model, texts, tmp_path):
    no_model = tmp_path / "none"
    refused(upscale(no_model, tmp_path / "new", *SMALL), "no model at")
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    (classifier / "config.json").write_text(json.dumps(config))
    refused(upscale(classifier, tmp_path / "new", *SMALL), "no causal language model")
    other = tmp_path / "gpt2"
    other.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (other / "config.json").write_text(json.dumps(config))
    for command in ("importance", "rank", "memory", "train"):
        result = midus(command, other, "--data", texts, "-o", tmp_path / "new")
        refused(result, "'gpt2'", "supported are")
    assert not (tmp_path / "new").exists()


def test_damaged_weights(model, texts, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(midus("importance", damaged, "--data", texts, "-o", tmp_path / "r"), "cannot be read")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["importance", "rank", "train"])
@pytest.mark.parametrize("text", ["", "a"])
def test_text_with_nothing_to_predict(model, tmp_path, command, text):
    (tmp_path / "short.txt").write_text(text)
    result = midus(command, model, "--data", tmp_path / "short.txt", "-o", tmp_path / "r")
    refused(result, "short")
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    rows = [
        {"prompt": f"the {a}quick brown", "answer": " fox", "foil": " dog"} for a in ALPHABET[:22]
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_users_own_task(model, tasks, texts, tmp_path):
    given = ("--data", tasks, "--metric", "logit_difference")
    result = midus("importance", model, *given, "-o", tmp_path / "i")
    assert result.exit_code == 0 and "logits/task" in result.output
    table = RunFolder.open(tmp_path / "i").load_table("importance_before")
    assert table.attrs["metric"] == "logit_difference" and len(table.attrs["documents"]) == 22
    result = midus("rank", model, *given, "--top", 2, "--evidence", "-o", tmp_path / "r")
    assert result.exit_code == 0 and "How far to trust it" in result.output, result.output
    run = RunFolder.open(tmp_path / "r")
    assert {"ranking", "evidence", "prune_curve"} <= set(run.tables)
    refused(
        midus("importance", model, "--data", texts, "--metric", "logit_difference"),
        "no foil", "prompt, answer and foil",
    )  # fmt: skip


def test_groups_conventions_and_budgets(model, texts, tmp_path):
    result = midus("importance", model, "--data", texts, "--group", "kv", "-o", tmp_path / "kv")
    assert result.exit_code == 0, result.output
    assert len(RunFolder.open(tmp_path / "kv").load_table("importance_before")) == 2
    line = ("importance", model, "--data", texts, "--method", "gradient", "--baseline", "zero")
    result = midus(*line, "--convention", "michel", "-o", tmp_path / "michel")
    assert result.exit_code == 0 and "relative" in result.output
    result = midus(*line, "--memory-budget", "64MB", "-o", tmp_path / "budget")
    assert result.exit_code == 0, result.output
    refused(midus(*line, "--memory-budget", "lots"), "--memory-budget is 'lots'", "512MB")
    refused(midus(*line, "--memory-budget", "1KB"), "--memory-budget is 1024 bytes")
    refused(midus(*line, "--convention", "lrp"), "convention is 'lrp'", "bertology")


def test_an_interrupted_measurement_goes_on(model, texts, tmp_path, monkeypatch):
    """The run folder keeps what was measured; the same command ends with the same table."""
    monkeypatch.setattr("analysis.sweep.SAVE_SECONDS", 0)
    line = ("importance", model, "--data", texts)
    assert midus(*line, "-o", tmp_path / "whole").exit_code == 0
    from analysis import ablation

    resume, calls = ablation.Resumed.resume, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", interrupted)
    assert midus(*line, "-o", tmp_path / "cut").exit_code == 130
    assert list((tmp_path / "cut" / "partial").iterdir())
    monkeypatch.setattr(ablation.Resumed, "resume", resume)
    refused(midus(*line, "--seed", 3, "-o", tmp_path / "cut"), "a run with other seed")
    assert midus(*line, "-o", tmp_path / "cut").exit_code == 0
    one, two = (
        RunFolder.open(tmp_path / name).load_table("importance_before") for name in ("whole", "cut")
    )
    assert one["score"].equals(two["score"]) and not (tmp_path / "cut" / "partial").exists()
    refused(midus(*line, "-o", tmp_path / "cut"), "holds a run already")


def test_several_processes_go_on_together(model, texts, tmp_path, monkeypatch):
    """Interrupted alone before its second model, finished by two processes."""
    grown = tmp_path / "grown"
    assert midus("upscale", model, "-o", grown, *SMALL).exit_code == 0
    line = ("importance", model, "--after", grown, "--data", texts, "-o", tmp_path / "run")
    from analysis import ablation

    resume, calls = ablation.Resumed.resume, []

    def interrupted(*args):
        calls.append(1)
        if len(args[0].model.model.layers) == 3:
            raise KeyboardInterrupt
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", interrupted)
    assert midus(*line).exit_code == 130 and calls
    assert RunFolder.open(tmp_path / "run").tables == ["importance_before"]
    several = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "workbench.cli")
    done = subprocess.run(
        [sys.executable, *several, *map(str, line)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Saved in") == 1
    run = RunFolder.open(tmp_path / "run")
    assert run.done and "amplification" in run.tables
    monkeypatch.setattr(ablation.Resumed, "resume", resume)
    assert midus(*line[:-1], tmp_path / "alone").exit_code == 0
    one, two = (
        RunFolder.open(tmp_path / name).load_table("importance_after") for name in ("alone", "run")
    )
    assert (one["score"] - two["score"]).abs().max() < 1e-9


def test_before_and_after_are_compared_as_measured(model, texts):
    for more in (("--normalise", "share"), ("--convention", "michel")):
        refused(midus("importance", model, "--after", model, "--data", texts, *more), "--after")


def test_roles(model, texts, tmp_path):
    assert midus("importance", model, "--data", texts, "-o", tmp_path / "i").exit_code == 0
    result = midus(
        "roles", model, "--data", texts, "--importance", tmp_path / "i", "-o", tmp_path / "roles"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    run = RunFolder.open(tmp_path / "roles")
    assert set(run.tables) == {"roles", "role_importance", "importance_before"}


def test_training_on_too_little_text(model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    result = midus("train", model, "--data", tmp_path / "short.txt", "-o", tmp_path / "r")
    refused(result, "too few to train on")
    assert not (tmp_path / "r").exists()


def test_memory_of_a_model_without_memory(model, texts, tmp_path):
    result = midus("memory", model, "--data", texts, "-o", tmp_path / "r")
    refused(result, "no memory blocks")
    assert not (tmp_path / "r").exists()


def test_places_that_cannot_be_written(model, texts, tmp_path):
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "run"
    for command in ("importance", "rank", "train"):
        refused(midus(command, model, "--data", texts, "-o", below), "is a file")
    refused(upscale(model, below, *SMALL), "is a file")
    refused(midus("demo", "-o", below), "is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    refused(midus("importance", model, "--data", texts, "-o", tmp_path / "full"), "holds files")
    refused(upscale(model, tmp_path / "full", *SMALL, "--overwrite"), "exists already")
    assert (tmp_path / "full" / "thesis.tex").exists()


def test_runs_that_cannot_be_read(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 99, "midus": "9.9"}')
    for arguments in (("figures", tmp_path), ("explore", "--run", tmp_path)):
        refused(midus(*arguments), "made by midus 9.9")
    refused(midus("figures", tmp_path / "none"), "no run folder")
    run = RunFolder.create(tmp_path / "empty", "rank")
    refused(midus("figures", run.path), "no table that a figure is drawn from")
    refused(midus("figures", run.path, "--format", "gif"), "--format is 'gif'")
    refused(midus("figures", run.path, "--figure", "pie"), "no figure 'pie'")


def test_usage_errors_exit_with_2():
    assert midus("importance", "--nonsense").exit_code == 2
    assert midus("nonsense").exit_code == 2


def test_the_other_package_named_kernels(monkeypatch):
    known = metadata.distribution("torch")
    real = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", lambda n: known if n == "kernels" else real(n))
    refused(midus("costs", "pico"), "cannot share an environment")


def test_an_interrupted_command_exits_with_130(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.echo", lambda text, err=False: said.append(text))
    said: list[str] = []
    with pytest.raises(common.typer.Exit) as stopped:
        common.reports(interrupted)()
    assert stopped.value.exit_code == 130
    assert len(said) == 1 and "goes on" in said[0] and "\n" not in said[0]


def test_debug_shows_the_error_itself(tmp_path):
    result = midus("--debug", "figures", tmp_path)
    assert type(result.exception).__name__ == "RunError"


def test_a_real_process_prints_one_line(tmp_path):
    line = [sys.executable, "-m", "workbench.cli", "rank", str(tmp_path / "none"), "-o"]
    done = subprocess.run([*line, str(tmp_path / "r")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "no model at" in done.stderr
    assert list(tmp_path.iterdir()) == []
