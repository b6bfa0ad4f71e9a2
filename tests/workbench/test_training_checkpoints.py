"""Checkpoints: sealed when saved, refused when touched, the one before in their place."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.errors import RunError
from tests.workbench.trainings import deeper, random_texts, weights
from workbench.training import checkpoints
from workbench.training.checkpoints import SEAL, by_step, fault, newest_whole, prune, seal
from workbench.training.train import train

OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 2, "lr": 1e-2, "save_every": 2, "bf16": False}


@pytest.fixture(scope="module")
def texts():
    return random_texts()


@pytest.fixture(scope="module")
def trained(texts: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A finished training's folder with two checkpoints, its weights, and its table."""
    place = tmp_path_factory.mktemp("trained")
    model = deeper()
    table = train(model, texts, place, **OPTIONS)
    return place, weights(model), table


def copied(trained: Any, tmp_path: Path) -> Path:
    place = tmp_path / "copy"
    shutil.copytree(trained[0], place)
    shutil.rmtree(place / "model")
    return place


# ---------------------------------------------------------------- mutations


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def longer(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes([rng.randrange(256)]))


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def linked(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def piped(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    cut, flipped, longer, missing, linked, piped,
)  # fmt: skip


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def mutated(place: Path, path: Path, damage: Any, rng: random.Random) -> None:
    """The damaged file is told by name and the checkpoint before is taken, or all is as it was."""
    newest = place / "checkpoints" / "checkpoint-4"
    kept = path.read_bytes()
    sealed = json.loads((newest / SEAL).read_text())
    damage(path, rng)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = newest_whole(place / "checkpoints")
    if found == newest:  # white space between the checksums: read as it was written
        assert path.name == SEAL and json.loads(path.read_text()) == sealed
    else:
        assert found == place / "checkpoints" / "checkpoint-2"
        assert len(told) == 1 and "checkpoint-4 is not used" in str(told[0].message)
        assert path.name in str(told[0].message) or path.name == SEAL
    path.unlink(missing_ok=True)
    path.write_bytes(kept)


def test_every_file_is_sealed_and_every_damage_is_found(trained: Any, tmp_path: Path) -> None:
    place = copied(trained, tmp_path)
    newest = place / "checkpoints" / "checkpoint-4"
    names = {path.name for path in files_of(newest)}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", SEAL,
            "trainer_state.json", "config.json"} <= names  # fmt: skip
    assert "training_args.bin" not in names
    assert set(json.loads((newest / SEAL).read_text())) == names - {SEAL}
    rng = random.Random(0)
    for path in files_of(newest):
        for damage in DAMAGES:
            mutated(place, path, damage, rng)
    assert newest_whole(place / "checkpoints") == newest


@pytest.mark.verify
def test_two_thousand_damages(trained: Any, tmp_path: Path) -> None:
    place, rng = copied(trained, tmp_path), random.Random(1)
    files = files_of(place / "checkpoints" / "checkpoint-4")
    for _ in range(2000):
        mutated(place, rng.choice(files), rng.choice(DAMAGES), rng)


@pytest.mark.parametrize("name", ["optimizer.bin", "pytorch_model.bin", "scaler.pt", "sub/x.pt"])
def test_a_file_that_was_not_saved_with_it_is_damage(
    name: str, trained: Any, tmp_path: Path
) -> None:
    place = copied(trained, tmp_path)
    newest = place / "checkpoints" / "checkpoint-4"
    (newest / name).parent.mkdir(exist_ok=True)
    (newest / name).write_bytes(b"x")
    assert fault(newest) == f"{name} was not saved with it"


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "model.safetensors"])
def test_the_one_before_a_damaged_checkpoint_gives_the_undisturbed_result(
    name: str, trained: Any, texts: Any, tmp_path: Path
) -> None:
    place, model = copied(trained, tmp_path), deeper()
    flipped(place / "checkpoints" / "checkpoint-4" / name, random.Random(2))
    with pytest.warns(UserWarning, match=f"checkpoint-4 is not used: {name} is damaged"):
        table = train(model, texts, place, **OPTIONS)
    assert all(torch.equal(value, weights(model)[n]) for n, value in trained[1].items())
    assert table.equals(trained[2])
    assert newest_whole(place / "checkpoints") == place / "checkpoints" / "checkpoint-4"


def test_without_a_whole_one_training_starts_at_the_beginning(
    trained: Any, texts: Any, tmp_path: Path
) -> None:
    place, model, seen = copied(trained, tmp_path), deeper(), []
    (place / "checkpoints" / "checkpoint-4" / SEAL).unlink()  # as a kill while saving leaves it
    cut(place / "checkpoints" / "checkpoint-2" / "scheduler.pt", random.Random(3))
    with pytest.warns(UserWarning) as told:
        train(model, texts, place, progress=lambda *step: seen.append(step), **OPTIONS)
    said = [str(one.message) for one in told]
    assert any("checkpoint-4 is not used: its saving was not finished" in line for line in said)
    assert any("checkpoint-2 is not used: scheduler.pt is damaged" in line for line in said)
    assert any("is whole: the training starts at the beginning" in line for line in said)
    assert seen[0][0] == 0
    assert all(torch.equal(value, weights(model)[n]) for n, value in trained[1].items())


def test_what_was_being_removed_when_all_was_saved_is_removed(
    trained: Any, texts: Any, tmp_path: Path
) -> None:
    """After the last step nothing is saved any more, and so nothing else would remove it."""
    place, model = copied(trained, tmp_path), deeper()
    half = place / "checkpoints" / "checkpoint-1"
    shutil.copytree(place / "checkpoints" / "checkpoint-2", half)
    (half / SEAL).unlink()
    (half / "config.json").unlink()
    table = train(model, texts, place, **OPTIONS)
    assert [path.name for path in by_step(place / "checkpoints")] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert table.equals(trained[2])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_planted_pickle_does_not_run(
    sealed: bool, name: str, trained: Any, texts: Any, tmp_path: Path
) -> None:
    """Refused by its checksum; sealed anew, by the reader, which knows tensors alone."""
    place = copied(trained, tmp_path)
    newest = place / "checkpoints" / "checkpoint-2"
    shutil.rmtree(place / "checkpoints" / "checkpoint-4")
    planted = tmp_path / "it_ran"
    (newest / name).write_bytes(f"cos\nsystem\n(S'touch {planted}'\ntR.".encode())
    if sealed:
        seal(newest)
        with pytest.raises(RunError, match="checkpoint-2 holds more than numbers; remove it"):
            train(deeper(), texts, place, **OPTIONS)
    else:
        with pytest.warns(UserWarning, match=f"{name} is damaged"):
            train(deeper(), texts, place, **OPTIONS)
    assert not planted.exists()


# ---------------------------------------------------------------- whose they are


@pytest.mark.parametrize("content", [None, "{", "[1]", "[" * 100_000, "\udcff"])
def test_checkpoints_of_an_unknown_training_are_neither_used_nor_thrown_away(
    content: str | None, trained: Any, texts: Any, tmp_path: Path
) -> None:
    place = copied(trained, tmp_path)
    if content is None:
        (place / "training.json").unlink()
    else:
        (place / "training.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match="training.json.* is missing or damaged; restore it"):
        train(deeper(), texts, place, **OPTIONS)
    assert newest_whole(place / "checkpoints") is not None


def test_another_model_text_or_code_is_named_with_both_hashes(
    trained: Any, texts: Any, tmp_path: Path
) -> None:
    place = copied(trained, tmp_path)
    about = json.loads((place / "training.json").read_text())
    for name in ("model", "rows", "midus"):
        changed = about | {name: "0" * 64}
        (place / "training.json").write_text(json.dumps(changed))
        new = about[name][:12] if name != "midus" else about[name]
        with pytest.raises(RunError, match=f"other {name}: 000000000000 then, {new} now"):
            train(deeper(), texts, place, **OPTIONS)


# ---------------------------------------------------------------- which are kept


def test_the_newest_by_step_are_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (2, 4, 10, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "x").write_text(str(step))
        seal(tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 - step, 1e9 - step))
    (tmp_path / "checkpoint-99x").mkdir()
    prune(tmp_path)
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-8", "checkpoint-10"]
    assert (tmp_path / "checkpoint-99x").is_dir()


def test_a_clock_set_back_an_hour_between_checkpoints_loses_none(
    texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.seal

    def aged(place: Path) -> None:
        real(place)
        step = int(place.name.split("-")[1])
        os.utime(place, (1e9 - 3600 * step, 1e9 - 3600 * step))

    monkeypatch.setattr(checkpoints, "seal", aged)
    train(deeper(), texts, tmp_path, **OPTIONS | {"save_every": 1})
    kept = by_step(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-3", "checkpoint-4"]
    assert all(fault(path) is None for path in kept)
