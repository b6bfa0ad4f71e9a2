"""Locks: one process at a time, told who it is, let go by the kernel, and no litter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernels import locks
from kernels.errors import RunError

HOLD = """
import sys
from kernels import locks
held = locks.hold(sys.argv[1], wait="wait" in sys.argv)
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def process(place: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that asks for `place` and keeps it until it is told to end."""
    line = [sys.executable, "-c", HOLD, str(place), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as started:  # type: ignore[call-overload]
        yield started
        started.kill()


def said(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def free(place: Path) -> bool:
    with process(place) as other:
        return said(other) == "held"


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with process(place, "rank", "pico") as other:
        assert said(other) == "held"
        with pytest.raises(RunError) as caught:
            locks.hold(place)
        line = str(caught.value)
        assert re.search(
            rf"^{place} is being written by process {other.pid} on \S+ since \d{{4}}-\S+ \S+ "
            r"\(-c \S+ rank pico\); wait until it has ended, or give another folder$",
            line,
        )
    locks.hold(place).release()
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_holds_nothing_and_what_it_leaves_is_taken_along(tmp_path: Path) -> None:
    with process(tmp_path / "run") as other:
        assert said(other) == "held"
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with locks.hold(tmp_path / "run"):
        assert not free(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_it_holds_while_the_place_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    with locks.hold(place):
        place.rename(tmp_path / "old")
        assert not free(place)
        (tmp_path / "new").mkdir()
        (tmp_path / "new").rename(place)
        assert not free(place)
    assert free(place)


def test_a_link_and_a_way_round_are_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locks.hold(tmp_path / "link"):
        assert not free(tmp_path / "run" / ".." / "run")


def test_a_process_may_hold_a_place_twice(tmp_path: Path) -> None:
    first, second = locks.hold(tmp_path / "run"), locks.hold(tmp_path / "run")
    first.release()
    first.release()
    assert not free(tmp_path / "run")
    second.release()
    assert free(tmp_path / "run")
    third = locks.hold(tmp_path / "run")
    del third
    assert free(tmp_path / "run")


def test_neither_forks_nor_children_have_a_part_in_it(tmp_path: Path) -> None:
    """A fork that ends lets nothing go; one that lives on, or a program, keeps nothing."""
    held = locks.hold(tmp_path / "run")
    ended = os.fork()
    if not ended:
        held.release()
        os._exit(0)
    os.waitpid(ended, 0)
    assert not free(tmp_path / "run")
    reader, writer = os.pipe()
    living = os.fork()
    if not living:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                             close_fds=False, stderr=subprocess.DEVNULL)  # fmt: skip
    held.release()
    assert free(tmp_path / "run")
    os.close(writer)
    os.waitpid(living, 0)
    os.close(reader)
    child.communicate(b"\n")


def test_who_waits_has_it_next(tmp_path: Path) -> None:
    held = locks.hold(tmp_path / "run")
    with process(tmp_path / "run", "wait") as other:
        held.release()
        assert said(other) == "held"


def test_folders_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    held = locks.hold(tmp_path / "a" / "b" / "run")
    assert (tmp_path / "a" / "b").is_dir()
    held.release()
    assert not list(tmp_path.iterdir())
    with locks.hold(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "mine").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_names_of_any_length_have_a_lock(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e9" * 127, "x", ".x", "x y\n"):
        place = tmp_path / name
        with locks.hold(place):
            assert not free(place)
        assert free(place)
    with locks.hold(tmp_path / ("x" * 255)):
        assert free(tmp_path / ("x" * 254 + "y"))


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder", "second name"])
def test_nothing_planted_is_written_to_or_waited_for(tmp_path: Path, kind: str) -> None:
    mine, lock = tmp_path / "mine", tmp_path / ".run.lock"
    mine.write_text("mine")
    make = {
        "link": lambda: lock.symlink_to(mine),
        "link to nothing": lambda: lock.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "second name": lambda: lock.hardlink_to(mine),
    }
    make[kind]()
    with pytest.raises(RunError, match="give another folder") as caught:
        locks.hold(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert mine.read_text() == "mine" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("record", [b"", b"1\n2", b"x\n\n\n", b"\xff" * 2000, b"9" * 5000])
def test_whatever_stands_in_it_is_one_line(tmp_path: Path, record: bytes) -> None:
    with process(tmp_path / "run") as other:
        assert said(other) == "held"
        (tmp_path / ".run.lock").write_bytes(record)
        with pytest.raises(RunError, match="is being written by another process; wait") as caught:
            locks.hold(tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_where_only_the_place_can_be_written_the_lock_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and real(path, mode))
    with locks.hold(tmp_path / "run"):
        assert [path.name for path in tmp_path.rglob("*")] == ["run", locks.INSIDE]
    assert not list((tmp_path / "run").iterdir())


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.warns(UserWarning, match="has no locks"), locks.hold(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "/dev/null/run", "/proc/run"])
def test_where_no_file_can_be_made_is_one_line(place: str) -> None:
    with pytest.raises(RunError, match=f"cannot write to {place}: .*; give another folder"):
        locks.hold(place)
