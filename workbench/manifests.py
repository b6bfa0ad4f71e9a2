"""A run's manifest: what it was asked and what it has, in one JSON file with its own checksum.

The checksum is sha256 over the canonical JSON (keys sorted, no spaces) of everything else in it.
Manifests of earlier versions (schema 1) have none and are read as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels import files
from kernels.errors import RunError
from workbench.records import CHECK, digest, read_object, sealed

SCHEMA = 2
READ = (1, SCHEMA)
MANIFEST = "manifest.json"
# What each field is, and what lies in it where that is a text.
KINDS: dict[str, type] = {
    "kind": str, "status": str, "parameters": dict, "models": dict, "tables": list,
    "figures": list, "summary": dict, "created": str, "command": list, "versions": dict,
    "message": str, "midus": str, "inputs": dict, "made": dict,
}  # fmt: skip
TEXTS = ("models", "tables", "figures")
FIELDS = ("kind", "status", "parameters", "models", "tables", "figures", "summary")


def new(
    kind: str,
    command: Sequence[str] | None,
    parameters: Mapping[str, Any] | None,
    inputs: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The manifest of a run that begins."""
    versions = _versions()
    return {
        "schema": SCHEMA,
        "midus": versions["midus"],
        "kind": kind,
        "status": "running",
        "created": now(),
        "command": list(sys.argv if command is None else command),
        "parameters": dict(parameters or {}),
        "versions": versions,
        "models": {},
        "made": {},
        "tables": [],
        "figures": [],
        "summary": {},
        "inputs": dict(inputs or {}),
    }


def write(place: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in the folder `place`; RunError where it cannot be written."""
    files.write_json(place / MANIFEST, sealed({**manifest, "schema": SCHEMA}))


def read(place: Path) -> dict[str, Any]:
    """The manifest in the folder `place`; RunError, one line, where it is none of ours."""
    path = place / MANIFEST
    if not path.is_file():
        raise RunError(f"{place} is no run folder: it has no {MANIFEST}; give a run's own folder")
    then = "restore it or make the run again"
    try:
        manifest = read_object(path)
    except (RunError, FileNotFoundError) as error:
        raise RunError(f"{error}; {then}") from error
    if "schema" not in manifest:
        raise RunError(f"{path} is damaged (it names no schema); {then}")
    if manifest["schema"] not in READ:
        raise RunError(
            f"{place} was made by midus {manifest.get('midus', 'of another version')} (run schema "
            f"{manifest['schema']}, this one reads {SCHEMA}); open it with that version"
        )
    known = manifest.pop(CHECK, None)
    if known != (digest(manifest) if known or manifest["schema"] > 1 else None):
        raise RunError(f"{path} is damaged (the checksum differs); {then}")
    missing = [field for field in FIELDS if field not in manifest]
    if missing:
        raise RunError(f"{path} is damaged (it lacks {', '.join(missing)}); {then}")
    odd = [name for name, kind in KINDS.items() if not isinstance(manifest.get(name, kind()), kind)]
    odd += [name for name in TEXTS if name not in odd and not _are_texts(manifest[name])]
    if odd:
        raise RunError(f"{path} is damaged (its {odd[0]} are of another kind); {then}")
    return manifest


def now() -> str:
    """The time as manifests and logs have it: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _are_texts(values: Any) -> bool:
    inside = values.values() if isinstance(values, dict) else values
    return all(isinstance(value, str) for value in inside)


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    try:
        found["midus"] = metadata.version("midus-workbench")
    except metadata.PackageNotFoundError:
        found["midus"] = "checkout"
    return found
