"""One writer at a time: a lock of the operating system, held while a folder or a file is written.

    with locks.hold("runs/mine"):
        ...

It is on a hidden file beside the place, `.NAME.lock`, so that it also holds while the place itself
is not there yet, renamed or replaced; where only the place can be written, on `.lock` inside. In
the file stands who holds it. The kernel lets go when the holder ends, however that comes about.
The file goes with `release`; a kill leaves it, unlocked, for the next holder to take and remove.

What holds where: on a local disk, between all processes of the machine, those in containers too;
on NFS and SMB also between machines, as their servers' locks do; where a file system has no locks
(some of FUSE, Lustre mounted without `flock`) a warning says so and nothing is held. The process
is the holder: it may hold a place twice, its threads are not kept apart, and a process that it
forks or starts has no part in the lock.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
import threading
import time
import warnings
import weakref
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kernels.errors import MidusError, RunError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LONGEST = 240  # bytes of a hidden name: a file's may have 255
POLL = 0.1  # seconds
TRIES = 100
INSIDE = ".lock"  # where nothing can be written beside the place
RECORD = 1000  # bytes of what the file says of its holder
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Hold:
    """A place that this process holds, until `release`, the end of `with`, or of the object."""

    def __init__(self, lock: _Lock) -> None:
        self._release = weakref.finalize(self, _let_go, lock)

    def release(self) -> None:
        """Let go; the second call does nothing."""
        self._release()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(
    place: str | os.PathLike[str], *, wait: bool = False, error: type[MidusError] = RunError
) -> Hold:
    """Hold a folder or file that is about to be written; it need not be there.

    Folders above it are made, and removed by `release` if nothing came into them.

    Args:
        wait: until another process has let go, in place of an error.
        error: raised where it cannot be held.

    Raises `error`, one line, where another process holds it (who, since when, and what would do),
    or where no lock file can be written.
    """
    shown = Path(place).expanduser()
    path = _lock_file(shown)
    while True:
        with _guard:
            lock = _held.get(path) or _taken(path, shown, error)
            if isinstance(lock, _Lock):
                lock.holds += 1
                if lock.descriptor is not None:  # else the collector has just dropped its last hold
                    return Hold(lock)
                continue
        if not wait:
            raise error(f"{shown} is being written by {lock}")
        time.sleep(POLL)


def hold_for_all(place: str | os.PathLike[str]) -> AbstractContextManager[Hold | None]:
    """`hold` for a job of several processes (torchrun, accelerate): the first holds for all."""
    return nullcontext() if int(os.environ.get("RANK", "0")) else hold(place)


def is_left(place: str | os.PathLike[str]) -> bool:
    """Whether a lock of a place lies there: one that is held, or one that a kill has left."""
    return os.path.lexists(_lock_file(Path(place).expanduser()))


# ---------------------------------------------------------------- within this process


@dataclass(eq=False)
class _Lock:
    path: Path
    descriptor: int | None
    made: list[Path] = field(default_factory=list)  # folders, the outermost first
    holds: int = 0


_held: dict[Path, _Lock] = {}
_guard = threading.RLock()


def _let_go(lock: _Lock) -> None:
    with _guard:
        lock.holds -= 1
        if lock.holds or lock.descriptor is None:
            return
        _held.pop(lock.path, None)
        descriptor, lock.descriptor = lock.descriptor, None
        with suppress(OSError):  # while it is held: nobody else can have this file by now
            lock.path.unlink()
        os.close(descriptor)
        if sys.platform == "win32":  # where no open file can be removed
            with suppress(OSError):
                lock.path.unlink()
        for folder in reversed(lock.made):
            with suppress(OSError):
                folder.rmdir()


def _forked() -> None:
    """In a forked process: the locks are the parent's, and end with it and not with this one."""
    global _guard
    _guard = threading.RLock()
    for lock in _held.values():
        if lock.descriptor is not None:
            os.close(lock.descriptor)
            lock.descriptor = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


# ---------------------------------------------------------------- between processes


def _taken(path: Path, place: Path, error: type[MidusError]) -> _Lock | str:
    """The lock on the file that lies at `path`, or who has it."""
    for tries_left in reversed(range(TRIES)):
        try:
            made, descriptor = _folders(path.parent), _opened(path)
        except OSError as problem:
            if isinstance(problem, FileNotFoundError) and tries_left:
                continue  # a folder went away meanwhile
            reason = problem.strerror or str(problem)
            raise error(f"cannot write to {place}: {reason}; give another folder") from problem
        lock = _Lock(path, descriptor, made)
        try:
            if not _locked(descriptor):
                return _holder(descriptor)
            if _lies_at(path, descriptor):
                _say_who(descriptor)
                _held[path] = lock
                return lock
        finally:
            if _held.get(path) is not lock:  # or its holder has removed the file meanwhile
                os.close(descriptor)
    return "processes that come and go"


def _lock_file(place: Path) -> Path:
    """Where the lock of a place lies, links in its path followed."""
    real = Path(os.path.realpath(place))
    above = real.parent
    if not real.name or (real.is_dir() and not os.access(above, os.W_OK | os.X_OK)):
        return real / INSIDE
    name = f".{real.name}.lock"
    if len(os.fsencode(name)) > LONGEST:
        import hashlib

        name = f".{hashlib.sha256(os.fsencode(real.name)).hexdigest()}.lock"
    return above / name


def _folders(folder: Path) -> list[Path]:
    """Make the folders down to this one; those that were not there, the outermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _opened(path: Path) -> int:
    """The file's descriptor, which programs started later do not get."""
    descriptor = os.open(path, FLAGS, 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(f"{path} is no lock file, and may be removed")
    return descriptor


def _locked(descriptor: int) -> bool:
    """Whether the lock is had; also where there are no locks, with a warning."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # so that the record can be read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        warnings.warn(
            f"this file system has no locks ({error.strerror}): start no second command that "
            "writes the same folder",
            stacklevel=4,
        )
    return True


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False


# ---------------------------------------------------------------- who it is


def _say_who(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]) if sys.argv else ""
    lines = (str(os.getpid()), platform.node(), since, command)
    record = "\n".join(" ".join(line.split()) for line in lines)
    with suppress(OSError):  # a full disk: the lock holds without it
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.truncate(descriptor, 0)
        os.write(descriptor, record.encode(errors="replace")[:RECORD])


def _holder(descriptor: int) -> str:
    """Who holds a lock, and what would do."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        record = os.read(descriptor, RECORD).decode(errors="replace").split("\n")
        pid, host, since, command = (" ".join(line.split()) for line in record)
        command = command if len(command) <= 120 else f"{command[:117]}..."
        who = f"process {int(pid)} on {host} since {since} ({command})"
    except (OSError, ValueError):
        who = "another process"
    return f"{who}; wait until it has ended, or give another folder"


__all__ = ["INSIDE", "Hold", "hold", "hold_for_all"]
