"""What lies in a folder, so that two runs of one command can be set against each other."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from analysis import tables
from kernels.errors import MidusError
from tests.crash.faults import RANDOM
from workbench.runs import MANIFEST, SHIPPED, RunFolder

# Times, and what is told apart by chance: equal runs differ in them.
TIMES = {
    "created", "finished", "time", "seconds", "latency_ms", "pid", "process", "started", "spent",
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "checksum", "sha256",
}  # fmt: skip
NANOSECONDS = 10**17  # of a file's time, which manifests hold beside its hash
DRAWN = (".pdf", ".svg", ".png", ".html")  # there, and not empty
LOGS = ("log.jsonl", "code", "output.txt", "progress.json", "python.draft")
CHECKPOINTS = "checkpoints"  # of the Trainer, of which the model beside them is made


def state(root: Path) -> dict[str, Any]:
    """Relative path -> what it holds, less times; folders end in a slash."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() and not _left_to_the_next(path):
            found[f"{name}/"] = True
        elif path.is_file() and path.name not in LOGS and not _left_to_the_next(path):
            found[name] = _content(path)
    return found


def _left_to_the_next(path: Path) -> bool:
    """Of a job that is done: its lock, and a draft of the exit code; the next start takes them."""
    names = path.parts[path.parts.index(".jobs") + 1 :] if ".jobs" in path.parts else ()
    lock = path.name == ".mine.lock"
    return lock or any(name.startswith(".code.") for name in names)


def _content(path: Path) -> Any:
    if path.suffix == ".parquet":
        return _table(path)
    if path.suffix in DRAWN:
        return path.stat().st_size > 0
    if CHECKPOINTS in path.parts:
        return True
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            return _timeless(json.loads(data))
        except ValueError:
            pass
    return hashlib.sha256(data).hexdigest()


def _table(path: Path) -> Any:
    """Every value as it is, bit for bit, and the attrs less times."""
    try:
        table = tables.load(path)
    except MidusError as error:
        return str(error)
    values = {name: [_bits(value) for value in table[name]] for name in table.columns}
    kinds = {name: str(kind) for name, kind in table.dtypes.items()}
    return {"values": values, "kinds": kinds, "attrs": _timeless(dict(table.attrs))}


def _bits(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    return [_bits(part) for part in value] if isinstance(value, list) else value


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _timeless(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [_timeless(part) for part in value]
    return None if isinstance(value, int) and value > NANOSECONDS else value


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for every path that is too much, missing or of other content."""
    lines = [f"left over: {name}" for name in sorted(found.keys() - wanted.keys())]
    lines += [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    lines += [
        f"differs: {name}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name] != wanted[name]
    ]
    return lines


def unreadable(root: Path) -> list[str]:
    """What a run folder below `root` lists and does not have, a line each."""
    lines = []
    for manifest in sorted(root.rglob(MANIFEST)):
        if any(part.startswith(".") for part in manifest.relative_to(root).parts):
            continue  # a draft, which nobody opens
        try:
            run = RunFolder.open(manifest.parent)
        except MidusError as error:
            lines.append(str(error))
            continue
        lines += [line for name in run.tables if (line := _why_not(run, name))]
        lines += _not_whole(run)
    return lines


def _why_not(run: RunFolder, name: str) -> str:
    try:
        run.load_table(name)
    except (MidusError, OSError, ValueError) as error:
        return f"table {name}: {error}"
    return ""


def _not_whole(run: RunFolder) -> list[str]:
    if not run.done:
        return []
    lines = [f"done, and without table {n}" for n in run.tables if not run.has_table(n)]
    for label, where in run.manifest["models"].items():
        if where not in SHIPPED and not (run.path / where / "config.json").is_file():
            lines.append(f"done, and without model {label}, {where}")
    for name in run.manifest["figures"]:
        if not list((run.path / "figures").glob(f"{name}.*")):
            lines.append(f"done, and without figure {name}")
    if run.kind == "train" and not (run.path / "models" / "trained" / "config.json").is_file():
        lines.append("done, and without the trained model")
    if run.kind != "doctor" and run.tables and not run.manifest["models"]:
        lines.append("done, and without a model's name")
    return lines


def digest(root: Path) -> str:
    """Of every byte below `root`, drafts' random names made equal: the same disc, the same end."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        whole.update(RANDOM.sub("*", str(path.relative_to(root))).encode())
        if path.is_file() and path.name not in LOGS:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def copy(source: Path, target: Path) -> None:
    """`target` as `source` is, whatever lay there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def drafts(root: Path) -> list[str]:
    """Hidden files and folders below `root`, which nobody may leave there.

    The folder of jobs is none, nor is a run that is to replace another: it is gone on with.
    """
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob(".*"))
        if path.name != ".jobs" and path.suffix != ".overwrite"
    ]


def emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
