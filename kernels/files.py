"""Files and folders that are whole or not there: written beside their place, then renamed.

A draft is a hidden folder `.NAME.<12 hex digits>.tmp` beside the target. It holds the thing itself
under its own name and `.writer`, an empty file that its writer keeps locked (flock) for as long as
it lives: whoever gets the lock knows that the writer is gone, whatever the clock, the machine or
the process number. Where a filesystem has no locks, drafts are left where they are.

What is synced: a file, or every file and folder of a folder, before it is renamed, and afterwards
the folder that names it (fsync; `sync=False` does without). So after a crash of the process, and
as far as the disk keeps what it acknowledges after a loss of power, the place has the old content
or the new one, whole. It lies here, where nothing else is imported, as `kernels.errors` does.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kernels.errors import MidusError, RunError

try:
    import fcntl
except ImportError:  # no POSIX: drafts are never swept
    fcntl = None  # type: ignore[assignment]

DRAFT = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
WRITER, REPLACED = ".writer", ".replaced"  # in a draft, beside the thing itself
LONGEST = 200  # bytes of the target's name in a draft's: a name may have 255
FULL = (errno.ENOSPC, errno.EDQUOT)
# What libraries say that write by themselves and raise no OSError: safetensors and tokenizers why,
# torch that its archive was cut short.
SAID = re.compile(r"os error \d+|no space left|i/o error", re.IGNORECASE)
CUT_SHORT = re.compile(r"PytorchStreamWriter failed|enforce fail at inline_container")
AT_FDCWD, RENAME_EXCHANGE = -100, 2

Content = str | bytes | Callable[[Path], object]


# ---------------------------------------------------------------- writing


def write_file(
    target: str | os.PathLike[str],
    content: Content,
    *,
    error: type[MidusError] = RunError,
    sync: bool = True,
) -> Path:
    """Replace the file `target` by text, bytes, or what `content(path)` writes to the path given.

    Returns the target. Raises `error`, one line, where it cannot be written; nothing is left then.
    """
    with replacing(target, error=error, sync=sync) as draft:
        if callable(content):
            content(draft)
        elif isinstance(content, bytes):
            draft.write_bytes(content)
        else:
            draft.write_text(content, encoding="utf-8")
    return Path(target).expanduser()


def write_json(
    target: str | os.PathLike[str],
    content: Any,
    *,
    error: type[MidusError] = RunError,
    sync: bool = True,
) -> Path:
    """Replace the file `target` by `content` as JSON; as `write_file`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # A file's name may hold bytes that are no UTF-8; so written, they are read as they were.
    return write_file(target, text.encode("utf-8", "backslashreplace"), error=error, sync=sync)


@contextmanager
def replacing(
    target: str | os.PathLike[str],
    *,
    error: type[MidusError] = RunError,
    sync: bool = True,
    replace: bool = True,
) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes the place of `target` at the end.

    Folders above are made. The target is at no time missing or half there: a folder is exchanged
    for the new one in one step where the system can; elsewhere a kill between the two steps leaves
    the old one in the draft, and `recover` or `sweep` puts it back. A symbolic link is itself
    replaced; what it points to is not touched. When the block raises, the draft is removed and the
    target is as it was. Nothing written means nothing replaced.

    Args:
        error: raised, one line, where something cannot be written, a full disk included.
        sync: whether to have it on the disk before it is renamed.
        replace: whether something may lie at the target already.
    """
    place = Path(target).expanduser()
    made: list[Path] = []
    try:
        with writing(place, error=error):
            _refuse_unnamed(place)
            _make(place.parent, made)
            sweep(place.parent, place.name)
            draft, lock = _new_draft(place)
        try:
            with writing(place, error=error):
                yield draft / place.name
                if os.path.lexists(draft / place.name):
                    if not replace and os.path.lexists(place):
                        raise error(f"{place} exists already; give another place")
                    if sync:
                        _sync(draft / place.name)
                    _take_place(draft, place)
                    if sync:
                        _sync_folder(place.parent)
        finally:
            _discard(draft)
            os.close(lock)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def move(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    error: type[MidusError] = RunError,
) -> None:
    """Rename a file or folder on the same filesystem into the place of `target`, synced first.

    Raises `error` where that cannot be; both are as they were then.
    """
    old, place = Path(source), Path(target)
    with writing(place, error=error):
        _sync(old)
        draft, lock = _new_draft(place)
        try:
            os.rename(old, draft / place.name)
            try:
                _take_place(draft, place)
            except OSError:
                os.rename(draft / place.name, old)
                raise
        finally:
            _discard(draft)
            os.close(lock)
        _sync_folder(place.parent)


@contextmanager
def writing(
    target: str | os.PathLike[str], *, error: type[MidusError] = RunError
) -> Iterator[None]:
    """A failed write inside, whichever library raises it, becomes one line of `error`.

    OSError, and what safetensors ("I/O error"), tokenizers (a bare Exception) and torch
    (PytorchStreamWriter) raise for a full or failing disk; every other exception passes.
    """
    try:
        yield
    except MidusError:
        raise
    except Exception as problem:
        reason = unwritten(problem)
        if reason is None:
            raise
        raise error(f"cannot write to {Path(target)}: {reason}") from problem


def unwritten(problem: BaseException) -> str | None:
    """Why a write failed and what would do, if `problem` says that one did; else None."""
    text = " ".join(str(problem).split())
    if isinstance(problem, OSError):
        reason = problem.strerror or text or type(problem).__name__
        full = problem.errno in FULL
    elif CUT_SHORT.search(text):
        reason, full = "torch could not write the whole file", True
    elif SAID.search(text):
        reason, full = text[:200], False
    else:
        return None
    full = full or "no space left" in text.lower()
    return f"{reason}; {'free some space, or ' if full else ''}give another folder"


# ---------------------------------------------------------------- what a kill leaves


def sweep(folder: str | os.PathLike[str], name: str | None = None, *, deep: bool = False) -> int:
    """Remove the drafts in `folder` whose writer is gone, never those of a live one; how many.

    A target that such a writer had moved aside and not yet replaced is put back.

    Args:
        name: of that target alone.
        deep: in every folder below too; symbolic links are not followed.
    """
    swept = 0
    start = f".{_short(name)}." if name is not None else "."
    try:
        with os.scandir(folder) as found:
            folders = [e.path for e in found if e.is_dir(follow_symlinks=False)]
    except OSError:
        return 0
    for path in map(Path, folders):
        if not DRAFT.fullmatch(path.name):
            swept += sweep(path, name, deep=True) if deep else 0
        elif path.name.startswith(start) and len(path.name) == len(start) + 16 or name is None:
            swept += _swept(path)
    return swept


def recover(target: str | os.PathLike[str]) -> None:
    """Put back a target that a killed writer had moved aside; to be called before it is missed."""
    place = Path(target).expanduser()
    if not os.path.lexists(place):
        sweep(place.parent, place.name)


def is_draft(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a draft's name: what is not there yet, for whoever lists a folder."""
    return DRAFT.fullmatch(Path(path).name) is not None


def _swept(draft: Path) -> bool:
    lock = _locked(draft / WRITER)
    if lock is None:
        return False
    try:
        _put_back(draft)
        _discard(draft)
    finally:
        os.close(lock)
    return not draft.exists()


def _put_back(draft: Path) -> None:
    """The old content of a target that is missing because the kill came between two renames."""
    old = draft / REPLACED
    names = [path.name for path in draft.iterdir() if path.name not in (WRITER, REPLACED)]
    if os.path.lexists(old) and len(names) == 1:
        place = draft.parent / names[0]
        if not os.path.lexists(place):
            with suppress(OSError):
                old.rename(place)


# ---------------------------------------------------------------- drafts


def _new_draft(place: Path) -> tuple[Path, int]:
    """A new draft folder for `place`, and the descriptor that holds its lock."""
    while True:
        draft = place.with_name(f".{_short(place.name)}.{secrets.token_hex(6)}.tmp")
        draft.mkdir()
        try:
            lock = os.open(draft / WRITER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileNotFoundError, FileExistsError):  # being swept already
            continue
        except OSError:
            _discard(draft)
            raise
        if _lock(lock) is not False and (draft / WRITER).exists():
            return draft, lock
        os.close(lock)


def _locked(path: Path) -> int | None:
    """The descriptor of a draft's lock, if nobody else has it: the writer is gone."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # killed before it had made it
    except OSError:
        return None
    if _lock(lock) and path.exists():
        return lock
    os.close(lock)
    return None


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was free and is ours now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _discard(draft: Path) -> None:
    """Remove a draft, its lock last; a link in it is removed, not followed."""
    for path in [p for p in draft.iterdir() if p.name != WRITER] if draft.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    shutil.rmtree(draft, ignore_errors=True)


def _take_place(draft: Path, place: Path) -> None:
    """Rename what is in the draft to `place`; what lay there is in the draft afterwards."""
    new = draft / place.name
    if not new.is_dir() or new.is_symlink():
        os.replace(new, place)
        return
    while True:
        try:
            os.rename(new, place)  # nothing there, or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        try:
            if not _exchange(new, place):
                _in_two_steps(draft, place)
            return
        except FileNotFoundError:  # another took it away meanwhile
            continue


def _in_two_steps(draft: Path, place: Path) -> None:
    os.rename(place, draft / REPLACED)
    try:
        os.rename(draft / place.name, place)
    except OSError:
        os.rename(draft / REPLACED, place)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the filesystem cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or not sys.platform.startswith("linux"):
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.ENOENT:
        raise FileNotFoundError(code, os.strerror(code), str(other))
    return False


def _make(folder: Path, made: list[Path]) -> None:
    """The folder and those above it; `made` gets the new ones, the innermost first."""
    for path in (folder, *folder.parents):
        if path.exists():
            break
        made.append(path)
    folder.mkdir(parents=True, exist_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            if not child.is_symlink():
                _sync(child)
        _sync_folder(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # some filesystems have it for files alone
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _short(name: str) -> str:
    return name.encode(errors="surrogateescape")[:LONGEST].decode(errors="ignore")


def _refuse_unnamed(place: Path) -> None:
    if place.name in ("", ".", "..", WRITER, REPLACED):
        raise OSError(errno.EINVAL, "it has no name of its own", str(place))


__all__ = [
    "is_draft", "move", "recover", "replacing", "sweep", "unwritten", "write_file", "write_json",
    "writing",
]  # fmt: skip
