"""Descriptions of runs and jobs as JSON objects in files: a damaged one is one line and no more.

They are small, and lie in folders that others can write too: manifests, jobs, progress.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from kernels.errors import MidusError, RunError

LARGEST = 64 * 2**20  # bytes
DEEPEST = 100  # levels: what draws or copies a value goes down in it by itself


def read_object(
    path: str | os.PathLike[str],
    *,
    error: type[MidusError] = RunError,
) -> dict[str, Any]:
    """The object in a JSON file; every text in it can be shown.

    Raises FileNotFoundError where there is no such file, and `error`, one line, where it cannot be
    read or holds anything else: no regular file, too large, no UTF-8, no JSON, no object, nested
    deeper than 100 levels, or a text that is none (half a surrogate pair).
    """
    try:
        found = json.loads(_content(Path(path)))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {_kind(found)}, not an object")
        _check(found)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        if isinstance(problem, RecursionError):
            reason = f"nested deeper than {DEEPEST} levels"
        line = " ".join((reason or str(problem) or type(problem).__name__).split())
        raise error(f"{path} is damaged ({line[:200]})") from problem
    return found


def read_end(path: str | os.PathLike[str], most: int = 2**16) -> str:
    """The last `most` bytes of a text file, what is no UTF-8 replaced; "" where there is none."""
    try:
        descriptor = _opened(Path(path))
    except (OSError, ValueError):
        return ""
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - most))
        return file.read(most).decode("utf-8", errors="replace")


def _content(path: Path) -> str:
    with open(_opened(path), "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST:,} bytes")
    return content.decode("utf-8")


def _opened(path: Path) -> int:
    """A regular file's descriptor; a pipe or a device is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("no regular file")
    return descriptor


def _check(found: Any) -> None:
    level, depth = [found], 0
    while level:
        if depth > DEEPEST:
            raise RecursionError
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += value.keys()
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                value.encode("utf-8")
        level, depth = deeper, depth + 1


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


__all__ = ["read_end", "read_object"]
