"""Descriptions of runs and jobs as JSON objects in files: a damaged one is one line and no more.

They are small, and lie in folders that others can write too: manifests, jobs, progress.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels.errors import MidusError, RunError
from kernels.reading import opened, read_json, said

CHECK = "sha256"


def read_object(
    path: str | os.PathLike[str],
    *,
    error: type[MidusError] = RunError,
) -> dict[str, Any]:
    """The object in a JSON file; every text in it can be shown.

    Raises FileNotFoundError where there is no such file, and `error`, one line, where it cannot be
    read or holds anything else (see `kernels.reading.read_json`).
    """
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {_kind(found)}, not an object")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        raise error(f"{path} is damaged ({said(problem)})") from problem
    return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as JSON gives it back, with the checksum over all of it as "sha256"."""
    plain = json.loads(json.dumps(content))
    return plain | {CHECK: digest(plain)}


def read_sealed(path: str | os.PathLike[str], *, error: type[MidusError] = RunError) -> Any:
    """What was written `sealed`; as `read_object`, and `error` where it is not as it was."""
    found = read_object(path, error=error)
    if found.pop(CHECK, None) != digest(found):
        raise error(f"{path} is damaged (the checksum differs)")
    return found


def digest(content: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of an object: keys sorted, no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_end(path: str | os.PathLike[str], most: int = 2**16) -> str:
    """The last `most` bytes of a text file, what is no UTF-8 replaced; "" where there is none."""
    try:
        descriptor = opened(Path(path))
    except (OSError, ValueError):
        return ""
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - most))
        return file.read(most).decode("utf-8", errors="replace")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


__all__ = ["CHECK", "digest", "read_end", "read_object", "read_sealed", "sealed"]
