"""The results of a run: JSON lines in one file that is only ever appended to.

Every line has `stage`, `kind`, `device` (its name), `tiny`, `run` and `at`. Kinds: "machine",
"row" (and whatever else a stage finds, with a `key`), "failure" (a `key` that could not be
measured), "left out" (for want of time), "end" (of a stage: `status` and `error`), and "afresh"
(what the named stages found before it no longer counts).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "results.jsonl"
Line = dict[str, Any]


def plain(value: Any) -> Any:
    """`value` as JSON has it: what is not finite becomes None, what is unknown its text."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def append(path: Path, line: Line) -> None:
    """One whole line, in one write, on the disk when this returns.

    A line that a killed run left without its end is closed first, so that it spoils no other.
    """
    at = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(plain(line | at), ensure_ascii=False) + "\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            text = "\n" + text
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[Line]:
    """All whole lines, in order; none where there is no file. A torn line is passed over."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("stage"), str):
            found.append(line)
    return found


def counted(lines: Iterable[Line], device: str, tiny: bool) -> list[Line]:
    """The lines that count: of this device and kind of run, and made after the last "afresh"."""
    found: list[Line] = []
    for line in lines:
        if line.get("device") != device or bool(line.get("tiny")) != tiny:
            continue
        if line.get("kind") == "afresh":
            found = [old for old in found if old["stage"] not in line.get("stages", [])]
        else:
            found.append(line)
    return found


def of_stage(lines: Iterable[Line], stage: str, kind: str | None = None) -> list[Line]:
    """The lines of one stage; those with a key once each, the last that was written."""
    all_of = [line for line in lines if line["stage"] == stage]
    last = {line["key"]: line for line in all_of if "key" in line}
    return [
        line
        for line in all_of
        if kind in (None, line.get("kind")) and ("key" not in line or last[line["key"]] is line)
    ]


def status(lines: Iterable[Line], stage: str) -> str | None:
    """How the stage ended last, or None where it never did."""
    ends = of_stage(lines, stage, "end")
    return ends[-1].get("status") if ends else None
