"""A training that diverges stops where it does, in one line, and keeps nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from analysis.documents import documents
from kernels.errors import Diverged, MidusError, RunError
from midus_model import load, upscale
from tests.models import tiny as stored
from tests.workbench.trainings import deeper, random_texts, tiny, weights
from workbench.cli import app
from workbench.recipe import Recipe, Study
from workbench.runs import RunFolder
from workbench.training import divergence, trainer
from workbench.training import train as module
from workbench.training.divergence import Watch, largest
from workbench.training.train import train

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {
    "steps": 6, "batch_size": 2, "lr": 1e-2, "save_every": 2, "bf16": False, "train": "all",
}  # fmt: skip


@pytest.fixture(scope="module")
def texts():
    return random_texts()


def bare(model: Any, monkeypatch: Any) -> None:
    """Nothing is spoiled."""


def last_matrix(model: Any) -> torch.nn.Parameter:
    return model.model.layers[-1].mlp.down_proj.weight


def scaled_from(step: int, factor: float) -> Any:
    """A gradient hook that multiplies by `factor` from that backward pass on."""
    seen = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return gradient * factor if len(seen) >= step else gradient

    return hook


def infinite_gradient(model: Any, monkeypatch: Any) -> None:
    last_matrix(model).register_hook(scaled_from(4, float("inf")))


def huge_gradient(model: Any, monkeypatch: Any) -> None:
    """Every number is finite, and the norm is not: clipping by it would make all of them 0."""
    last_matrix(model).register_hook(scaled_from(4, 1e25))


def infinite_loss(model: Any, monkeypatch: Any) -> None:
    """The loss alone: gradients are as they would be."""
    seen: list[int] = []
    real = trainer.ContinualTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return real(self, *args, **kwargs) + (float("inf") if len(seen) == 4 else 0)

    monkeypatch.setattr(trainer.ContinualTrainer, "compute_loss", compute_loss)


def evaluated_nan(model: Any, passes: int) -> None:
    """In evaluation alone, after so many forward passes of it."""
    seen: list[int] = []

    def hook(layer: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(not layer.training)
        return output * float("nan") if sum(seen) > passes and not layer.training else output

    model.model.layers[0].mlp.register_forward_hook(hook)


def after_each_step(monkeypatch: Any, spoil: Any) -> None:
    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(self, *args, **kwargs)
        spoil(self)
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def infinite_weight(model: Any, monkeypatch: Any) -> None:
    """A finite gradient whose step goes out of all bounds."""
    after_each_step(monkeypatch, lambda _: last_matrix(model).data[0].fill_(float("-inf")))


def infinite_state(model: Any, monkeypatch: Any) -> None:
    """In the optimiser's state alone, which a checkpoint holds too."""

    def spoil(optimizer: Any) -> None:
        for state in optimizer.state.values():
            state["exp_avg_sq"].fill_(float("inf"))

    after_each_step(monkeypatch, spoil)


SPOILED = {
    "a learning rate too high": (bare, {"lr": 1e32}, 3, "is nan"),
    "an infinite weight": (infinite_weight, {}, 1, "the largest trained weight is inf"),
    "an infinite gradient": (infinite_gradient, {}, 4, "gradient norm is nan|norm is inf"),
    "a gradient whose norm overflows": (huge_gradient, {}, 4, "the gradient norm is inf"),
    "an infinite loss": (infinite_loss, {}, 4, "the loss is inf"),
    "bfloat16": (infinite_loss, {"bf16": True}, 4, "the loss is inf"),
    "accumulated gradients": (infinite_loss, {"accumulate": 2}, 2, "the loss is inf"),
    "the optimiser's state": (infinite_state, {}, 2, "optimiser's largest number is inf"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_a_training_stops_at_the_first_number_that_is_not_finite(
    kind: str, texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, changes, step, says = SPOILED[kind]
    options = OPTIONS | changes
    accumulated = options.pop("accumulate", 1)
    real = module.trainer_arguments

    def arguments(*args: Any) -> Any:
        made = real(*args)
        made.gradient_accumulation_steps = accumulated
        return made

    monkeypatch.setattr(module, "trainer_arguments", arguments)
    model = tiny()
    before = weights(model)
    spoil(model, monkeypatch)
    with pytest.raises(Diverged, match=says) as found:
        train(model, texts, tmp_path, run="mine", **options)
    message = str(found.value)
    assert found.value.step == step and isinstance(found.value, RunError)
    assert message.startswith(f"the training of mine diverged at step {step} of 6: ")
    assert "\n" not in message and not (tmp_path / "model").exists()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == (["checkpoint-2"] if step > 2 else [])
    if step > 3:  # the one saved after step 2 is where the loss of step 3 came from
        place = tmp_path / "checkpoints" / "checkpoint-2"
        assert found.value.checkpoint == str(place)
        assert f"last good checkpoint: {place} (loss " in message
        assert f"; go on from it by `midus train {place} --lr" in message
        kept = load(place)
        assert torch.isfinite(largest(kept.parameters()))
        log = json.loads((place / "trainer_state.json").read_text())["log_history"]
        assert all(entry["loss"] == entry["loss"] for entry in log)
    else:
        assert found.value.checkpoint is None and "there is no good checkpoint before it" in message
    assert before.keys() == weights(model).keys()


def test_a_held_out_loss_that_is_not_finite_stops_too(texts: Any, tmp_path: Path) -> None:
    model = tiny()
    evaluated_nan(model, -(-len(texts.windows) // 2))  # from the second evaluation on
    with pytest.raises(Diverged, match="step 4 of 6: the held-out loss is nan") as found:
        train(model, texts, tmp_path, eval_documents=texts, eval_every=4, **OPTIONS)
    assert found.value.checkpoint == str(tmp_path / "checkpoints" / "checkpoint-2")
    assert not (tmp_path / "checkpoints" / "checkpoint-4").exists()


@pytest.mark.parametrize(
    "given", [{"lr": float("nan")}, {"lr": 1e38}, {"lr": 0}, {"weight_decay": float("inf")}]
)
def test_rates_that_are_no_rates_are_refused(given: Any, texts: Any, tmp_path: Path) -> None:
    with pytest.raises(MidusError, match=f"{next(iter(given))} .*it must be|they must be"):
        train(tiny(), texts, tmp_path / "x", **OPTIONS | given)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_a_model_that_is_not_finite_is_told_before_anything_is_written(
    where: str, texts: Any, tmp_path: Path
) -> None:
    model = deeper()
    if where == "parameter":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[1, 2] = float("nan")
    else:
        model.model.rotary_emb.inv_freq[0] = float("inf")
    with pytest.raises(Diverged, match="1 of the .* numbers of .* are not finite") as found:
        train(model, texts, tmp_path / "x", steps=2, batch_size=2)
    assert found.value.step == 0 and not (tmp_path / "x").exists()


def test_what_another_process_found_stops_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "agreed", lambda first: min(first, 0))
    watch = Watch("mine", 5, 1e-2, tmp_path)
    with pytest.raises(Diverged, match="at step 3 of 5: the loss is not finite in another process"):
        watch.check(3, {"loss": 1.0, "gradient norm": 2.0})


@pytest.mark.verify
def test_one_process_of_two_diverges_and_both_stop(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, str(script), str(tmp_path)], env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").read_text() == "3 the loss is not finite in another process"
    assert (tmp_path / "1").read_text() == "3 the loss is inf"
    assert not (tmp_path / "run" / "model").exists()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]


TWO = """
import os, sys
from pathlib import Path
from tests.workbench.trainings import random_texts, tiny
from workbench.training import trainer
from workbench.training.train import train
from analysis.documents import documents
from kernels.errors import Diverged

rank, seen, real = os.environ["RANK"], [], trainer.ContinualTrainer.compute_loss

def compute_loss(self, *args, **kwargs):
    seen.append(1)
    return real(self, *args, **kwargs) + (float("inf") if (rank, len(seen)) == ("1", 3) else 0)

trainer.ContinualTrainer.compute_loss = compute_loss
try:
    train(tiny(), random_texts(), Path(sys.argv[1]) / "run", steps=6, batch_size=2, lr=1e-2,
          save_every=2, bf16=False, train="all", device="cpu")
except Diverged as error:
    found = str(error).split(": ")[1].split(";")[0]
    (Path(sys.argv[1]) / rank).write_text(f"{error.step} {found}")
"""


# ---------------------------------------------------------------- the command, a study


def midus(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def stopped(result: Any) -> str:
    """The one line of a command that ended with exit code 1."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("midus: ")]
    lines = [line for line in lines if not line.startswith("midus: note:")]
    assert result.exit_code == 1 and len(lines) == 1, (result.output, result.exception)
    return lines[0]


def test_the_command_ends_with_1_and_the_run_is_marked_failed(tmp_path: Path) -> None:
    line = ("train", "pico", "--limit", 2, "--batch-size", 1, "--context", 32, "--device", "cpu",
            "--dtype", "float32", "--steps", 4, "--save-every", 1,
            "-o", tmp_path / "run")  # fmt: skip
    said = stopped(midus(*line, "--lr", 1e33))
    assert "the training of pico diverged at step 3 of 4" in said
    run = RunFolder.open(tmp_path / "run")
    assert run.manifest["status"] == "failed" and f"midus: {run.manifest['message']}" == said
    assert not (tmp_path / "run" / "models").exists() and run.tables == []
    # What the line says to do next can be done.
    hint = said.split("`")[1].split()
    assert hint[:2] == ["midus", "train"] and Path(hint[2]).name == "checkpoint-1"
    again = [*line[2:-1], tmp_path / "again"]
    done = midus("train", hint[2], *again, "--lr", 1e-3)
    assert done.exit_code == 0, (done.output, done.exception)


def test_a_base_with_one_nan_ends_with_1_and_leaves_no_folder(tmp_path: Path) -> None:
    model = stored("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path / "base")
    texts = tmp_path / "ids.jsonl"
    texts.write_text("\n".join(json.dumps({"input_ids": list(range(3, 99))}) for _ in range(4)))
    said = stopped(
        midus("train", tmp_path / "base", "--data", texts, "--steps", 1, "-o", tmp_path / "run")
    )
    assert "1 of the 6,144 numbers of model.layers.1.mlp.down_proj.weight" in said
    assert not (tmp_path / "run").exists()


def test_a_study_stops_and_says_which_arm_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents([list(range(3, 99))] * 20, model="pico", context=16)
    monkeypatch.setattr(Study, "training_texts", texts)
    study = Study(Recipe(batch_size=1), dtype="float32", device="cpu")
    with (
        pytest.raises(Diverged, match="training of midus"),
        RunFolder.create(tmp_path, "demo") as run,
    ):
        study.folder = run
        study._trained_on(upscale(study.base, "llama-pro"), "midus", 1e33, 0, 3, evaluated=False)
    said = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["arm"], line["step"]) for line in said] == [
        ("diverged", "midus", 3)
    ]
    assert run.manifest["status"] == "failed"
