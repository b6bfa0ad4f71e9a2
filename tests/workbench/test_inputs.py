"""A run is gone on with only where weights, configuration, texts and code are as they were."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from analysis import tables
from analysis.documents import documents
from kernels.errors import RunError
from midus_model import load, upscale
from tests.models import tiny
from workbench import demo, inputs
from workbench.cli import app
from workbench.inputs import differences, inputs_of
from workbench.recipe import Recipe, Study
from workbench.runs import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals:UserWarning")


# ---------------------------------------------------------------- what they are


def test_every_kind_of_input_has_its_own_hash() -> None:
    def of(model: Any, ids: list[list[int]]) -> dict[str, str]:
        return inputs_of({"m": model}, {"t": documents(ids, model=model, context=16)})

    ids = [[3, 4, 5, 6], [7, 8, 9]]
    first = of(tiny(), ids)
    assert set(first) == {
        "weights of m", "configuration of m", "text of t", "midus", "torch", "transformers",
    }  # fmt: skip
    assert of(tiny(), ids) == first
    assert _changed(first, of(tiny(seed=1), ids)) == ["weights of m"]
    assert _changed(first, of(tiny(rms_norm_eps=1e-3), ids)) == ["configuration of m"]
    assert _changed(first, of(tiny(), [*ids, [1, 2]])) == ["text of t"]


def _changed(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return [name for name in first if first[name] != second[name]]


def test_the_same_text_in_other_tokens_is_another_input() -> None:
    class Letters:
        model_max_length = 16

        def __init__(self, shift: int) -> None:
            self.shift = shift

        def __call__(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
            return {"input_ids": [[ord(c) - 97 + self.shift for c in text] for text in texts]}

        def __len__(self) -> int:
            return 30

    found = [
        inputs_of({}, {"t": documents(["abcd"] * 20, tokenizer=Letters(shift), context=16)})
        for shift in (0, 1)
    ]
    assert _changed(*found) == ["text of t"]


def test_differences_name_what_changed_and_both_values() -> None:
    was = {"a": "1" * 64, "b": "2.0", "c": 3}
    assert differences(was, dict(was)) == ""
    now = {"a": "2" * 64, "b": "2.1", "c": 3, "d": "x"}
    assert differences(was, now) == (
        "a: 111111111111 then, 222222222222 now, b: 2.0 then, 2.1 now, d: nothing then, x now"
    )


def test_a_hash_is_made_once_until_a_parameter_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = upscale(tiny(), num_keys=4, top_k=2, latent_dim=4)
    first = tables.remembered_hash(model)
    made: list[Any] = []
    digest = tables.hashlib.sha256
    monkeypatch.setattr(tables.hashlib, "sha256", lambda *a: made.append(a) or digest(*a))
    assert tables.model_hash(model) == first and not made
    parameter = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        parameter[0, 0] += 1
    assert tables.model_hash(model) != first and made
    with torch.no_grad():
        parameter[0, 0] -= 1
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(parameter.detach() * 2)
    assert tables.model_hash(model) != first
    made.clear()
    assert tables.model_hash(tiny()) == tables.model_hash(tiny()) and len(made) == 2


# ---------------------------------------------------------------- the run folder


def test_a_run_of_other_inputs_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place, was = tmp_path / "run", {"weights of m": "a" * 64, "torch": "2"}
    RunFolder.begin(place, "rank", None, {"top": 2}, inputs=was)
    assert RunFolder.begin(place, "rank", None, {"top": 2}, inputs=was).manifest["inputs"] == was
    kept = (place / "manifest.json").read_bytes()
    for other in (was | {"weights of m": "b" * 64}, {}, None):
        with pytest.raises(RunError, match="other inputs .*weights of m: aaaaaaaaaaaa then, "):
            RunFolder.begin(place, "rank", None, {"top": 2}, inputs=other)
    assert (place / "manifest.json").read_bytes() == kept
    now = {"weights of m": "b" * 64}
    again = RunFolder.begin(place, "rank", None, {"top": 2}, inputs=now, overwrite=True)
    assert again.manifest["inputs"] == now


def test_an_unfinished_run_that_does_not_say_what_it_was_made_of_is_refused(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path / "run", "rank", None, {})
    del run.manifest["inputs"]
    run.resume()
    with pytest.raises(RunError, match="torch: nothing then, 2 now.*--overwrite"):
        RunFolder.begin(tmp_path / "run", "rank", None, {}, inputs={"torch": "2"})


# ---------------------------------------------------------------- every command


def midus(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model `base` that knows letters, `grown` from it, and texts."""
    letters = ["?", " ", *string.ascii_letters]
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=54,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )  # fmt: skip
    )
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(letters)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    grown = upscale(base.eval(), num_keys=4, top_k=2, latent_dim=4)
    for model, name in ((base, "base"), (grown, "grown")):
        model.save_pretrained(tmp_path / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(
            tmp_path / name
        )
    rows = [{"text": "the quick brown fox jumps " * (2 + i % 3)} for i in range(22)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def other_weights(folder: Path) -> str:
    for path in (folder / "base", folder / "grown"):
        state = load_file(path / "model.safetensors")
        state["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
        save_file(state, path / "model.safetensors", {"format": "pt"})
    return "weights of "


def other_configuration(folder: Path) -> str:
    for path in (folder / "base" / "config.json", folder / "grown" / "config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.01}))
    return "configuration of "


def other_text(folder: Path) -> str:
    text = (folder / "t.jsonl").read_text()
    (folder / "t.jsonl").write_text(text.replace("quick", "quack", 1))
    return "text of t.jsonl"


COMMANDS: dict[str, tuple[object, ...]] = {
    "importance": ("base", "--after", "grown"),
    "rank": ("base", "--top", 2, "--evidence"),
    "roles": ("base",),
    "amplify": ("base", "--heads", "0:1", "--gain", 1.5, "--dose", "--draws", 1),
    "doctor": ("grown", "--before", "base", "--no-timing"),
    "train": ("grown", "--steps", 2, "--batch-size", 2, "--log-usage", "--eval-data", "t.jsonl"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_goes_on_only_with_what_it_began_with(
    command: str, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once its first table is saved, then its inputs change, then they are put back."""
    line = (command, *COMMANDS[command], "--data", "t.jsonl", "-o", "run")
    real, others = RunFolder.save_table, (other_weights, other_configuration, other_text)

    def once(self: RunFolder, *given: Any) -> None:
        real(self, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_table", once)
        assert midus(*line).exit_code == 130
    kept = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    given = [*there.glob("base/*"), *there.glob("grown/*"), there / "t.jsonl"]
    before = {path: path.read_bytes() for path in given}
    assert len(kept) > 1
    for change in others:
        says = change(there)
        found = midus(*line)
        said = [one for one in found.stderr.splitlines() if not one.startswith("midus: note:")]
        assert found.exit_code == 2 and len(said) == 1, (found.output, found.exception)
        assert "was begun with other inputs" in said[0] and says in said[0], said
        assert "then, " in said[0] and said[0].endswith("or --overwrite to start again")
        assert {path: path.read_bytes() for path in kept} == kept
        for path, content in before.items():
            path.write_bytes(content)
    done = midus(*line)
    assert done.exit_code == 0, (done.output, done.exception)
    assert RunFolder.open("run").done


def test_other_code_is_another_input(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("train", "grown", "--steps", 1, "--batch-size", 2, "--data", "t.jsonl", "-o", "run")
    assert midus(*line).exit_code == 0
    again = midus(*line)
    assert again.exit_code == 0 and "holds this training, finished" in again.stdout
    real = inputs.code()
    monkeypatch.setattr(inputs, "code", lambda: real | {"midus": "9.9 0123456789ab"})
    found = midus(*line)
    assert found.exit_code == 2 and f"midus: {real['midus']} then, 9.9 0123456789ab now" in (
        found.stderr
    )


def test_a_study_of_another_base_or_other_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, texts = Recipe(steps=1), documents([list(range(9))] * 20, model="pico")
    monkeypatch.setattr(Study, "measured", (texts, texts))
    for name in ("heldout", "training_texts"):
        monkeypatch.setattr(Study, name, texts)

    def stop(self: Study, *given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "run", recipe=recipe)
    RunFolder.begin(tmp_path / "run", "demo", None, recipe.parameters(),
                    inputs=Study(recipe).inputs()).log("kept")  # fmt: skip
    fewer = documents([list(range(8))] * 20, model="pico")
    with monkeypatch.context() as patch:
        patch.setattr(Study, "training_texts", fewer)
        with pytest.raises(RunError, match="other inputs .text of training: "):
            demo.run_demo(tmp_path / "run", recipe=recipe)
    base = load("pico")
    with torch.no_grad():
        base.lm_head.weight[0, 0] += 1
    monkeypatch.setattr(Study, "base", base)
    with pytest.raises(RunError, match="other inputs .weights of pico: "):
        demo.run_demo(tmp_path / "run", recipe=recipe)
