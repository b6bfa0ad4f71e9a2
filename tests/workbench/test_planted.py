"""Code planted in models, adapters and run folders is not run by any command, whoever says yes."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import apps
from analysis import figures
from analysis.documents import documents
from analysis.figures import save_html
from apps.parts import access
from kernels.errors import ModelError
from midus_model import SHIPPED, upscale
from tests.analysis.test_figure_names import EVERY, sheet
from tests.midus_model.planted import Runs, plant
from tests.models import tiny
from workbench.cli import app
from workbench.training.train import train

YES = "y\n" * 50
COMMANDS = {
    "documents": ["documents", "TEXTS", "--model", "PLACE"],
    "importance": ["importance", "PLACE", "--data", "TEXTS", "--method", "gradient"],
    "rank": ["rank", "PLACE", "--data", "TEXTS"],
    "roles": ["roles", "PLACE", "--data", "TEXTS"],
    "memory": ["memory", "PLACE", "--data", "TEXTS"],
    "upscale": ["upscale", "PLACE", "--output", "OUT"],
    "train": ["train", "PLACE", "--data", "TEXTS", "--steps", "1", "--output", "OUT"],
    "amplify": ["amplify", "PLACE", "--heads", "0:0", "--gain", "2", "--output", "OUT"],
    "doctor": ["doctor", "PLACE"],
    "costs": ["costs", "PLACE"],
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "def f(x):\n    return x\n" * 4}))
    return path


def midus(command: str, place: Path, texts: Path, output: Path) -> Any:
    known = {"PLACE": place, "TEXTS": texts, "OUT": output}
    words = [str(known.get(word, word)) for word in COMMANDS[command]]
    return CliRunner().invoke(app, words, input=YES)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_models_code(
    command: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place, mark = plant(tmp_path, "all")
    result = midus(command, place, texts, tmp_path / "out")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("midus: note:")]
    assert result.exit_code == 2 and len(lines) == 1 and "never run" in lines[0], result.output
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_code_is_left_out_with_a_word(texts: Path, tmp_path: Path) -> None:
    place, mark = plant(tmp_path, "unknown tokenizer")
    for command, code in (("rank", 2), ("upscale", 0)):
        result = midus(command, place, texts, tmp_path / "out")
        assert result.exit_code == code and "never run" in result.stderr, result.output
    assert "saved without a tokenizer" in result.stderr
    assert not mark.exists() and (tmp_path / "out" / "model.safetensors").exists()
    for file in (tmp_path / "out").glob("*.json"):
        assert "auto_map" not in file.read_text()


# ---------------------------------------------------------------- run folders


STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")
NOT_READ = ("training_args.bin", "pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata")


@pytest.mark.parametrize("file", [*STATE, *NOT_READ])
def test_a_checkpoint_of_a_training_runs_no_code(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer keeps its own state as pickles, which it reads as tensors and numbers alone."""
    ids = [[1, 2, 3, 4, 5, 6, 7, 8] * 8] * 4
    texts = documents(ids, model=tiny("llama"), context=16)
    options = {"steps": 2, "batch_size": 2, "save_every": 1, "bf16": False, "device": "cpu"}
    opened, read = {}, vars(torch)["load"]

    def load(place: Any, *args: Any, **more: Any) -> Any:
        opened[Path(place).name] = more.get("weights_only")
        return read(place, *args, **more)

    def run() -> None:
        model = upscale(tiny("llama"), num_keys=4, top_k=2, latent_dim=4)
        train(model, texts, tmp_path / "run", **options)

    run()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    checkpoint, mark = tmp_path / "run" / "checkpoints" / "checkpoint-1", tmp_path / "mark"
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / file).parent.mkdir(exist_ok=True)
    with (checkpoint / file).open("wb") as stream:
        torch.save(Runs(mark), stream)
    monkeypatch.setattr("torch.load", load)
    with suppress(Exception):  # that it is damaged is another matter
        run()
    assert all(only is True for only in opened.values()) and not opened.keys() & set(NOT_READ)
    assert not mark.exists()


# ---------------------------------------------------------------- the explorer


def test_an_adapter_leads_the_explorer_to_no_other_folder(tmp_path: Path) -> None:
    """Nor to a download."""
    for folder in ("models/adapter", "models/base", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("models/base", "outside"):
        shutil.copyfile(SHIPPED["pico"] / "config.json", tmp_path / folder / "config.json")
    config = tmp_path / "models" / "adapter" / "adapter_config.json"
    given, _ = access.given_folders(
        ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    )
    for base, says in (
        (str(tmp_path / "outside"), "was not given to the explorer"),
        ("../../outside", "was not given to the explorer"),
        ("owner/name", "downloads nothing"),
        ("/etc/../etc", "was not given to the explorer"),
    ):
        config.write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=says):
            given.check_model(str(config.parent))
    for base in ("pico", str(tmp_path / "models" / "base"), "../base"):
        config.write_text(json.dumps({"base_model_name_or_path": base}))
        assert given.check_model(str(config.parent)) == str(config.parent.resolve())


# ---------------------------------------------------------------- pages


class Tags(HTMLParser):
    """The tags of a page and the names of their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))


HOSTILE = "</script><script>alert(1)</script></title><img src=x onerror=alert(1)><!--"


@pytest.mark.parametrize("which", [pytest.param(p.values[0], marks=p.marks) for p in EVERY[::6]])
def test_a_name_is_no_markup_in_a_saved_page(which: str, tmp_path: Path) -> None:
    pages = []
    for name in ("a plain name of a model, as long as the other, which has signs in it", HOSTILE):
        figure, _ = sheet(which, name, figures)
        pages.append(save_html(figure, tmp_path / "figure").read_text())
    assert Tags(pages[0]).found == Tags(pages[1]).found
    assert "<script>alert" not in pages[1] and "<img src=x" not in pages[1]


def test_no_page_takes_html() -> None:
    """Texts of runs and models reach the explorer's pages as text and Markdown, its map as text."""
    taking = ("unsafe_allow_html", "st.html(", "innerHTML", "insertAdjacentHTML", "document.write")
    pages = [
        path for kind in ("py", "js") for path in Path(apps.__file__).parent.rglob(f"*.{kind}")
    ]
    assert len(pages) > 20
    found = [(path.name, word) for path in pages for word in taking if word in path.read_text()]
    assert not found
