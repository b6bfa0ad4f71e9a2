"""Manifests with a checksum of themselves, and the models that a run made, by hash."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from kernels.errors import RunError
from workbench import manifests, model_files
from workbench.runs import RunFolder


def run_folder(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "r", "train", ["midus"], {"lr": 1e-5, "ü": [1, None]})
    run.finish({"loss": 1.5, "nothing": float("nan")})
    return run


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.verify)])
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, every: int) -> None:
    path = run_folder(tmp_path).path / "manifest.json"
    content, known = path.read_bytes(), repr(manifests.read(path.parent))
    drawn, refused = random.Random(0), 0
    bits = range(0, 8 * len(content) - every, every)
    for start in bits:
        bit = start + drawn.randrange(every)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert repr(manifests.read(path.parent)) == known  # white space, say
        except RunError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0.8 * len(bits)


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_without_its_checksum_is_refused_and_an_older_one_is_not(tmp_path: Path) -> None:
    path = run_folder(tmp_path).path / "manifest.json"
    edited(path, summary={"loss": 0.1})
    with pytest.raises(RunError, match="checksum differs"):
        RunFolder.open(path.parent)
    known = json.loads(path.read_text())
    del known["sha256"]
    path.write_text(json.dumps(known))
    with pytest.raises(RunError, match="checksum differs"):
        RunFolder.open(path.parent)
    del known["made"], known["inputs"]
    path.write_text(json.dumps(known | {"schema": 1}))
    older = RunFolder.open(path.parent)
    assert older.summary == {"loss": 0.1}
    older.add_model("before", "pico")
    assert json.loads(path.read_text())["schema"] == 2


# ---------------------------------------------------------------- models


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "r", "train")
    folder = run.path / "models" / "m"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", "tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 9)
    run.add_model("after", "models/m")
    return run


def flip(path: Path, keep_time: bool = False) -> None:
    content, time = bytearray(path.read_bytes()), path.stat()
    content[5] ^= 4
    path.write_bytes(content)
    # Of the same size, and at a time that the file system may not tell apart from before.
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns + (0 if keep_time else 1)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_is_no_longer_what_was_made_is_refused(trained: RunFolder, name: str) -> None:
    assert trained.model_path("after") == str(trained.path / "models" / "m")
    flip(trained.path / "models" / "m" / name)
    with pytest.raises(RunError, match=f"{name} has another checksum") as caught:
        RunFolder.open(trained.path).model_path("after")
    assert "\n" not in str(caught.value)


def test_missing_and_added_files_are_refused_and_a_new_card_is_not(trained: RunFolder) -> None:
    folder = trained.path / "models" / "m"
    (folder / "README.md").write_text("mine")
    (folder / "notes.csv").write_text("mine")
    trained.model_path("after")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match=r"adapter_config\.json was added"):
        trained.model_path("after")
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        trained.model_path("after")


def test_files_of_the_same_size_and_time_are_not_read(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model_files, "_hashed", lambda path: pytest.fail("read"))
    trained.model_path("after")
    monkeypatch.undo()
    shutil.copytree(trained.path, tmp_path / "copy", copy_function=shutil.copyfile)
    assert RunFolder.open(tmp_path / "copy").model_path("after")  # other times, same content


def test_only_models_that_the_run_made_are_hashed(trained: RunFolder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    trained.add_model("before", str(base))
    trained.add_model("shipped", "pico")
    trained.add_model("saved", os.path.relpath(base, trained.path), made=True)
    assert set(trained.manifest["made"]) == {"after", "saved"}
    flip_all = base / "config.json"
    flip_all.write_text("[]")
    assert trained.model_path("before")
    with pytest.raises(RunError, match="not the model that this run made"):
        trained.model_path("saved")
    trained.add_model("saved", "pico")
    assert trained.model_path("saved") == "pico"
