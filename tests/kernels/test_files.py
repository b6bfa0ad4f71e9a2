"""Files and folders whole or not there: kills, full disks, two writers, links, drafts swept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from kernels import files
from kernels.errors import DataError, ModelError, RunError

ROOT = Path(__file__).resolve().parents[2]
# Kills itself at the n-th call that touches the filesystem, n given; prints nothing.
KILLED = """
import os, signal, sys
from pathlib import Path
from kernels import files
if sys.argv[3] == "without":
    files._exchange = lambda one, other: False
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
place = Path(sys.argv[1])
sys.addaudithook(hook)
if place.name == "model":
    with files.replacing(place) as draft:
        draft.mkdir()
        (draft / "weights").write_text("new" * 1000)
        (draft / "config").write_text("new")
else:
    files.write_file(place, "new")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def model(place: Path, text: str) -> Path:
    with files.replacing(place) as draft:
        draft.mkdir()
        (draft / "weights").write_text(text)
    return place


def run(code: str, *arguments: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, timeout=60)
    return done.returncode


def dead_draft(target: Path, moved: str | None = None) -> Path:
    """What a writer leaves that was killed; `moved`: between the two renames of a replacement."""
    draft = target.with_name(f".{target.name}.0123456789ab.tmp")
    draft.mkdir()
    (draft / files.WRITER).touch()
    (draft / target.name).write_text("new")
    if moved is not None:
        (draft / files.REPLACED).write_text(moved)
    return draft


def test_text_bytes_json_and_callbacks_replace_a_file(tmp_path: Path) -> None:
    place = tmp_path / "below" / "file.txt"
    assert files.write_file(place, "schön") == place and place.read_text("utf-8") == "schön"
    files.write_file(place, b"\x00\xff")
    assert place.read_bytes() == b"\x00\xff"
    files.write_file(place, lambda path: path.write_text(path.name))
    assert place.read_text() == "file.txt"  # what is written knows its name and suffix
    files.write_json(place, {"ü": 1.5})
    assert place.read_text("utf-8") == '{\n "ü": 1.5\n}\n'
    assert names(place.parent) == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    files.write_file(tmp_path / "file", "")
    model(tmp_path / "model", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "folder").stat().st_mode


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_what_lay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place = model(tmp_path / "model", "first")
    (place / "stale").touch()
    model(place, "second")
    assert names(place) == ["weights"] and (place / "weights").read_text() == "second"
    place = tmp_path / "file"
    place.write_text("a file")
    model(place, "third")
    assert (place / "weights").read_text() == "third"
    assert names(tmp_path) == ["file", "model"]


def test_a_link_is_replaced_and_what_it_points_to_untouched(tmp_path: Path) -> None:
    kept = model(tmp_path / "kept", "old")
    (tmp_path / "model").symlink_to(kept)
    (tmp_path / "file").symlink_to(kept / "weights")
    model(tmp_path / "model", "new")
    files.write_file(tmp_path / "file", "new")
    assert (kept / "weights").read_text() == "old"
    assert not (tmp_path / "model").is_symlink() and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_an_exception_leaves_the_target_and_no_draft(tmp_path: Path) -> None:
    place = model(tmp_path / "model", "old")
    with pytest.raises(ZeroDivisionError), files.replacing(place) as draft:
        draft.mkdir()
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "new" / "x") as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["model"] and (place / "weights").read_text() == "old"


def test_nothing_written_replaces_nothing(tmp_path: Path) -> None:
    place = model(tmp_path / "model", "old")
    with files.replacing(place):
        pass
    assert (place / "weights").read_text() == "old" and names(tmp_path) == ["model"]


def test_what_exists_is_kept_where_it_may_not_be_replaced(tmp_path: Path) -> None:
    place = model(tmp_path / "model", "old")
    with (
        pytest.raises(ModelError, match="exists already"),
        files.replacing(place, replace=False, error=ModelError) as draft,
    ):
        draft.mkdir()
    assert (place / "weights").read_text() == "old"


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("When writing: disk quota"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # tokenizers
    RuntimeError(
        "[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed"
    ),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),  # too
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failed_write_is_one_typed_line(tmp_path: Path, failure: Exception) -> None:
    (tmp_path / "file").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise failure

    with pytest.raises(DataError) as caught:
        files.write_file(tmp_path / "file", fail, error=DataError)
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "file") in text and "give another folder" in text
    assert ("free some space" in text) == ("disk quota" not in str(failure))
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_other_exceptions_keep_their_type(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ValueError("no such dtype")

    with pytest.raises(ValueError, match="no such dtype"):
        files.write_file(tmp_path / "file", fail)


@pytest.mark.parametrize("name", ["", "..", ".writer"])
def test_a_place_needs_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="no name of its own"):
        files.write_file(tmp_path / name if name else "/", "text")
    assert not names(tmp_path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for place in (tmp_path / "file" / "x", tmp_path / "folder", tmp_path / ("n" * 256)):
        with pytest.raises(RunError, match=r"^cannot write to .*give another folder$"):
            files.write_file(place, "text")
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["below"]


@pytest.mark.parametrize("letter", ["n", "ü", "語"])
def test_the_longest_names_can_be_written(tmp_path: Path, letter: str) -> None:
    name = letter * (255 // len(letter.encode()))
    files.write_file(tmp_path / name, "text")
    files.write_file(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_sweep_removes_drafts_whose_writer_is_gone_and_no_others(tmp_path: Path) -> None:
    dead_draft(tmp_path / "a")
    dead_draft(tmp_path / "a.b")
    (tmp_path / "below").mkdir()
    dead_draft(tmp_path / "below" / "c")
    (tmp_path / ".a.tmp").mkdir()  # no draft of ours
    (tmp_path / ".0123456789ab.tmp").mkdir()
    with files.replacing(tmp_path / "live") as draft:
        draft.write_text("live")
        assert files.sweep(tmp_path, "a") == 1
        assert files.sweep(tmp_path) == 1
        assert files.sweep(tmp_path, deep=True) == 1
        assert draft.exists() and files.is_draft(draft.parent)
    assert names(tmp_path) == [".0123456789ab.tmp", ".a.tmp", "below", "live"]
    assert files.sweep(tmp_path / "absent") == 0


def test_sweep_never_follows_a_link(tmp_path: Path) -> None:
    dead = dead_draft(tmp_path / "a")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".x.0123456789ab.tmp").symlink_to(dead)
    (tmp_path / "run" / "linked").symlink_to(tmp_path)
    assert files.sweep(tmp_path / "run", deep=True) == 0 and dead.exists()
    (dead / "behind").symlink_to(tmp_path / "run")
    assert files.sweep(tmp_path) == 1 and (tmp_path / "run").exists()


def test_a_draft_killed_before_it_was_locked_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".a.0123456789ab.tmp").mkdir()
    assert files.sweep(tmp_path) == 1 and not names(tmp_path)


def test_a_writer_whose_unlocked_draft_is_swept_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = Path.mkdir, []

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        make(path, *arguments, **named)
        if files.is_draft(path) and not swept:
            swept.append(files.sweep(tmp_path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    files.write_file(tmp_path / "file", "text")
    assert swept == [1] and names(tmp_path) == ["file"]


def test_a_target_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    dead_draft(tmp_path / "model", moved="old")
    files.recover(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "old" and names(tmp_path) == ["model"]
    dead_draft(tmp_path / "model", moved="older")
    files.recover(tmp_path / "model")  # not missed, so nothing is looked for
    files.sweep(tmp_path)
    assert (tmp_path / "model").read_text() == "old" and names(tmp_path) == ["model"]


def test_where_there_are_no_locks_drafts_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    dead_draft(tmp_path / "a")
    files.write_file(tmp_path / "file", "text")
    assert files.sweep(tmp_path) == 0 and (tmp_path / ".a.0123456789ab.tmp").exists()


def killed_everywhere(place: Path, old: str, mode: str, read: Callable[[], str], step: int) -> int:
    """A kill at every `step`-th call: old or new after it, new and nothing else after a second."""
    for at in range(1, 200, step):
        ended = run(KILLED, str(place), str(at), mode)
        files.recover(place)
        assert read() in (old, "new"), f"call {at}"
        if ended == 0:
            assert names(place.parent) == [place.name]
            return at
        assert ended == -9
    raise AssertionError("it makes more calls than that")


@pytest.mark.parametrize("mode", ["exchange", "without"])
@pytest.mark.parametrize("kind", ["file", "model"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.verify)])
def test_a_kill_at_any_call_leaves_old_or_new(
    tmp_path: Path, kind: str, mode: str, step: int
) -> None:
    place = tmp_path / "below" / kind
    inner = place / "config" if kind == "model" else place
    if kind == "model":
        with files.replacing(place) as draft:
            draft.mkdir()
            (draft / "config").write_text("old")
    else:
        files.write_file(place, "old")
    assert killed_everywhere(place, "old", mode, inner.read_text, step) > 9
