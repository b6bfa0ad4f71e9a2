"""Damaged files of every kind: a clean refusal or an equal result, no traceback, hang or change.

A failure names kind and seed; `python -m tests.damage.judge SAMPLES KIND:SEED:1` repeats it, with
SAMPLES a folder that `tests.damage.samples.make` has filled.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from analysis import documents
from analysis.benchmark_figure import benchmark_ratios
from kernels.errors import LONGEST, DamagedTokenizer, DataError, MidusError, ModelError
from kernels.reading import in_one_line, read_json, said
from midus_model import load
from tests.damage import judge, samples
from tests.damage.kinds import KINDS
from tests.damage.mutations import ANY, JSON, TENSORS, TEXT, damaged
from workbench.cli import app

# Mutations of each kind in the long form; what takes longest to read has fewer.
COUNT, SLOW = 55, 12
SHORT = ("config", "weights", "tokenizer.json", "adapter_model.safetensors", "rows.jsonl",
         "rows.parquet", "plain.txt.gz", "table", "manifest", "sweep", "ranking", "benchmark",
         "study", "job's job.json")  # fmt: skip
FEW = 4


def count(name: str) -> int:
    return SLOW if name.startswith("training") else COUNT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of samples, one of each kind."""
    root = tmp_path_factory.mktemp("samples")
    samples.make(root)
    return root


def wrong(found: list[dict[str, object]]) -> list[str]:
    """What went wrong, a line each, with what repeats it."""
    return [
        f"{one['kind']}:{one['seed']}:1 ({one['damage']}): {one['why']}"
        for one in found
        if one["verdict"] == "wrong"
    ]


def test_a_few_of_many_kinds(whole: Path) -> None:
    asked = {name: range(FEW) for name in SHORT} | {"training's optimizer.pt": range(1)}
    found = list(judge.run(whole, asked))
    assert len(found) == sum(map(len, asked.values()))
    assert not wrong(found), "\n".join(wrong(found))
    seen = Counter(one["verdict"] for one in found)
    assert seen["refused"] > 20 and seen["equal"] > 2, seen


@pytest.mark.verify
@pytest.mark.parametrize("name", KINDS)
def test_kind(name: str, whole: Path) -> None:
    found = list(judge.run(whole, {name: range(count(name))}))
    print(name, json.dumps(Counter(one["verdict"] for one in found)))
    assert len(found) == count(name)
    assert not wrong(found), "\n".join(wrong(found))


def test_two_thousand_in_all() -> None:
    assert sum(map(count, KINDS)) >= 2000


# ---------------------------------------------------------------- the harness itself


def test_damage_is_the_same_for_a_seed_and_never_none() -> None:
    given = {"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}
    text = json.dumps(given, indent=1).encode()
    lines = b"\n".join([json.dumps(given).encode()] * 3)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(8)
    for form, data in (("json", text), ("lines", lines), ("text", text), ("safetensors", tensors)):
        drawn = [damaged("a kind", seed, data, form) for seed in range(400)]
        assert drawn == [damaged("a kind", seed, data, form) for seed in range(400)]
        assert all(one.gone or one.data != data for one in drawn)
        own = {"json": JSON, "lines": JSON, "text": TEXT, "safetensors": TENSORS}[form]
        kinds = {one.label.partition(":")[0] for one in drawn}
        assert {*ANY, *own} <= kinds, {*ANY, *own} - kinds


# ---------------------------------------------------------------- kernels.reading


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "Expecting value"),
        (b"\xff", "no UTF-8 text"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 200 + b"]" * 200, "nested deeper"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b'["\\ud800"]', "no Unicode"),
    ],
)
def test_json_that_is_none(content: bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=line) as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_only_what_libraries_raise_becomes_a_line() -> None:
    from tokenizers.pre_tokenizers import FixedLength

    def line(error: BaseException) -> MidusError:
        return MidusError(f"damaged: {said(error)}")

    with pytest.raises(MidusError, match="damaged: it has no 'key'"), in_one_line(line):
        {}["key"]  # noqa: B018
    with pytest.raises(KeyboardInterrupt), in_one_line(line):
        raise KeyboardInterrupt
    with pytest.raises(MidusError, match="^own$"), in_one_line(line):
        raise MidusError("own")
    with pytest.raises(MidusError, match="damaged: chunk size"), in_one_line(line):
        FixedLength(0).pre_tokenize_str("text")  # a panic of Rust, no Exception


# ---------------------------------------------------------------- readers


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of a model's folder, to be damaged."""
    return Path(shutil.copytree(whole / "model", tmp_path / "model"))


def test_a_panic_of_the_tokenizer_is_one_line(model: Path) -> None:
    edited(model / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 0})
    with pytest.raises(DataError, match="the tokenizer cannot read these texts: chunk size"):
        documents(["a text of some words"], model=model)


def test_a_damaged_tokenizer_is_not_taken_for_none(model: Path, tmp_path: Path) -> None:
    edited(model / "tokenizer.json", model={"type": "BPE"})
    ids = [[1, 2, 3, 4]]
    with pytest.raises(DamagedTokenizer, match="cannot be read"):
        documents(ids, model=model)
    done = CliRunner().invoke(app, ["upscale", str(model), "--output", str(tmp_path / "new")])
    assert done.exit_code == 2 and "the tokenizer of" in done.stderr
    assert not (tmp_path / "new").exists()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model / file).unlink()
    assert len(documents(ids, model=model)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**40},
        {"vocab_size": 2**31},
        {"intermediate_size": 2**40},
        {"hidden_size": 2**30, "head_dim": 2**28},
    ],
)
def test_sizes_are_compared_before_they_are_allocated(change: dict[str, int], model: Path) -> None:
    edited(model / "config.json", **change)
    with pytest.raises(ModelError) as caught:
        load(model)
    line = str(caught.value)
    assert "asks for" in line or "no model can be made" in line, line


def test_a_value_of_any_length_is_no_long_message(model: Path) -> None:
    edited(model / "config.json", model_type="x" * 100_000)
    with pytest.raises(ModelError) as caught:
        load(model)
    line = str(caught.value)
    assert len(line) <= LONGEST and "is of model type" in line and "supported are" in line, line


def test_a_benchmark_without_its_ratios(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole / "bench" / "benchmark.json", tmp_path))
    rows = json.loads(path.read_text())["rows"]
    for row in (
        {},
        {**rows[0], "x_ffn": "fast"},
        {**rows[0], "tokens": 0},
        {**rows[0], "x_ffn": 9},
    ):
        edited(path, rows=[row])
        with pytest.raises(DataError, match=r"is no benchmark\.json of `midus bench`: .*row 0"):
            benchmark_ratios(path)
