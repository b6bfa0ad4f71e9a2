"""Files that may be damaged: JSON with one kind of error, and the errors of libraries as a line.

`tokenizers`, `safetensors` and `transformers` say what is wrong with a file by exceptions of every
kind, Rust's panics among them, which are not even an `Exception`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernels.errors import MidusError

LARGEST = 64 * 2**20  # bytes of a JSON file
DEEPEST = 100  # levels: what draws or copies a value goes down in it by itself
LONGEST = 200  # characters of what a library says
TOO_DEEP = f"nested deeper than {DEEPEST} levels"


# ---------------------------------------------------------------- JSON


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a file of JSON in UTF-8 holds; every text in it can be shown.

    Raises OSError where it cannot be read, and ValueError, in one line, for all that it can be
    wrong in: no regular file, too large, no UTF-8, no JSON, a key twice in one object, nested
    deeper than 100 levels, or a text that is none (half a surrogate pair).
    """
    try:
        found = json.loads(_content(Path(path)), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    _check(found)
    return found


def opened(path: Path) -> int:
    """A regular file's descriptor; a pipe or a device is not waited for.

    Raises OSError, and ValueError where it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("no regular file")
    return descriptor


def _content(path: Path) -> str:
    with open(opened(path), "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text (byte {error.start})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} twice in one object")
    return found


def _check(found: Any) -> None:
    level, depth = [found], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(TOO_DEEP)
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += value.keys()
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                _check_text(value)
        level, depth = deeper, depth + 1


def _check_text(value: str) -> None:
    try:
        value.encode("utf-8", "surrogateescape")  # as the bytes of a file's name are held
    except UnicodeEncodeError:
        raise ValueError("a text that is no Unicode (half a surrogate pair)") from None


# ---------------------------------------------------------------- what libraries raise


@contextmanager
def in_one_line(line: Callable[[BaseException], MidusError]) -> Iterator[None]:
    """Turns whatever a library raises, a panic of Rust's too, into the error that `line` makes.

    For calls of libraries alone: around our own code it would hide our faults. Our own errors, and
    an interruption, pass as they are.
    """
    try:
        yield
    except MidusError:
        raise
    except Exception as error:
        raise line(error) from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise line(error) from error


def said(error: BaseException) -> str:
    """What an error says, in one line, its beginning; a KeyError's key alone says nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    elif isinstance(error, RecursionError):
        text = TOO_DEEP
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return (text or type(error).__name__)[:LONGEST]
