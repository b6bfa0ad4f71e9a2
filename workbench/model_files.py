"""The files of a model that a run made, by hash: a folder that is no longer it is not opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

LEFT_OUT = {".md"}  # a model card may be written anew
OPENED = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}  # by loaders


def fingerprints(folder: Path) -> dict[str, list[Any]]:
    """Bytes, time of change (ns) and sha256 of each file of a model's folder, by its way there."""
    return {name: _fingerprint(folder / name) for name in _names(folder)}


def changed(folder: Path, known: Mapping[str, Any]) -> str | None:
    """What differs from `fingerprints`, or None. A file of the same size and time is not read."""
    there = _names(folder)
    for name in sorted(set(known) | {n for n in there if Path(n).suffix in OPENED}):
        if name not in known:
            return f"{name} was added"
        if name not in there:
            return f"{name} is missing"
        size, modified, digest = known[name]
        try:
            if _stamp(folder / name) != [size, modified] and _hashed(folder / name) != digest:
                return f"{name} has another checksum"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _names(folder: Path) -> list[str]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(
        way.as_posix()
        for way in found
        if way.suffix not in LEFT_OUT and not any(part.startswith(".") for part in way.parts)
    )


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _fingerprint(path: Path) -> list[Any]:
    return [*_stamp(path), _hashed(path)]


def _hashed(path: Path) -> str:
    return _sha256(path, *_stamp(path))


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Once a process, for as long as the file is not changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
