"""Checkpoints of a training: whose they are, whether they are whole, and which are kept.

A checkpoint is sealed once it is written: `sha256.json` in it has every file's checksum. One
without, or with a file that is not as it was saved, is not loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from kernels.errors import RunError
from kernels.files import write_json, writing
from kernels.reading import read_json
from workbench.inputs import differences

SEAL = "sha256.json"
KEPT = 2  # checkpoints, so that a damaged one has one before it


def claim(place: Path, about: dict[str, Any], resume: bool) -> None:
    """Make `place` this training's own: its description beside the checkpoints.

    Raises RunError where checkpoints of another training lie there, or of one that is not known.
    """
    path, folder = place / "training.json", place / "checkpoints"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    elif by_step(folder):
        differing = differences(_described(path), json.loads(json.dumps(about)))
        if differing:
            raise RunError(
                f"{place} holds checkpoints of another training (other {differing}); give another "
                "folder, or --overwrite to start again"
            )
    write_json(path, about)
    with writing(folder):
        folder.mkdir(exist_ok=True)


def _described(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path}, which says what the checkpoints beside it are of, is missing or damaged; "
            "restore it, give another folder, or --overwrite to start again"
        ) from error


def by_step(folder: Path) -> list[Path]:
    """Every checkpoint, whole or not, the newest last."""
    found = [p for p in folder.glob("*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", p.name)]
    return sorted(found, key=step_of)


def newest(folder: Path, last_step: int) -> Path | None:
    """The newest sealed checkpoint of at most that step, not looked into."""
    sealed = [path for path in by_step(folder) if (path / SEAL).is_file()]
    return next((path for path in reversed(sealed) if step_of(path) <= last_step), None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def logged_loss(checkpoint: Path) -> float | None:
    """The last loss that was logged before a checkpoint was saved."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        return float(losses[-1]) if losses else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint all of whose files are as they were saved; warns of those passed."""
    every = by_step(folder)
    for path in reversed(every):
        problem = fault(path)
        if problem is None:
            return path
        warnings.warn(f"the checkpoint {path} is not used: {problem}", stacklevel=2)
    if every:
        warnings.warn(
            f"no checkpoint in {folder} is whole: the training starts at the beginning",
            stacklevel=2,
        )
    return None


def seal(checkpoint: Path) -> None:
    """Write the checksums of all files of a checkpoint, the last thing that is written of it."""
    sums = {name: _sha256(checkpoint / name) for name in sorted(_files(checkpoint))}
    write_json(checkpoint / SEAL, sums)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by name of the first file; None where it is whole."""
    if not (checkpoint / SEAL).is_file():
        return f"its saving was not finished (it has no {SEAL})"
    try:
        sums = dict(read_json(checkpoint / SEAL))
    except (OSError, ValueError, TypeError):
        return f"{SEAL} is damaged"
    there = _files(checkpoint)
    for name in sorted(there | sums.keys()):
        if name not in there:
            return f"{name} is missing"
        if name not in sums:
            return f"{name} was not saved with it"
        try:
            same = (checkpoint / name).is_file() and _sha256(checkpoint / name) == sums[name]
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if not same:
            return f"{name} is damaged (its checksum differs)"
    return None


@contextmanager
def reading(checkpoint: Path | None) -> Iterator[None]:
    """Raises RunError where torch finds more than tensors in it, of which it runs nothing.

    Nothing that was saved here does; somebody then wrote the checksums too.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is None or type(error).__name__ != "UnpicklingError":
            raise
        raise RunError(f"{checkpoint} holds more than numbers; remove it") from error


def prune(folder: Path) -> None:
    """Remove all but the newest checkpoints. By step: a clock may be set back while one trains."""
    for path in by_step(folder)[:-KEPT]:
        (path / SEAL).unlink(missing_ok=True)  # first, so that half of one is never taken for whole
        shutil.rmtree(path, ignore_errors=True)


def _files(checkpoint: Path) -> set[str]:
    """Everything in a checkpoint but folders, its seal, and hidden files, by its path there."""
    return {
        path.relative_to(checkpoint).as_posix()
        for path in checkpoint.rglob("*")
        if not path.name.startswith(".") and (path.is_symlink() or not path.is_dir())
    } - {SEAL}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
