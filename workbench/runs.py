"""The run folder: what a job was asked, what it found, and where everything lies.

    <run>/manifest.json  tables/<table>.{parquet,json}  figures/<figure>.{pdf,svg,png,html}
          models/<name>/  log.jsonl

The manifest is replaced whole at every change, so a killed job leaves a readable folder.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from kernels.errors import MidusError, RunError

SCHEMA = 1
MANIFEST = "manifest.json"
LOG = "log.jsonl"
LONGEST_NAME = 160  # bytes
SHIPPED = ("pico", "pico-midus", "smollm2")  # models by a name, whatever folder is called so
FIELDS = ("kind", "status", "parameters", "models", "tables", "figures", "summary")


class RunFolder:
    """One run on disc; as a context manager it records a failure, and removes itself if empty.

    with RunFolder.create("runs/mine", "importance") as run:
        run.save_table("importance_before", table)
        run.finish({"heads": 48})
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.shared = path  # the folder that all processes of a job see

    # ------------------------------------------------------------ opening

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        kind: str,
        command: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> RunFolder:
        """A new run folder. One that finished is replaced only with `overwrite`.

        Raises RunError where nothing can be written, where a finished run lies, or where a folder
        with other things in it lies.
        """
        place = Path(path).expanduser()
        check_place(place)
        if (place / MANIFEST).exists():
            _clear(place, overwrite)
        elif place.is_dir() and any(place.iterdir()):
            raise RunError(f"{place} holds files and is no run folder; give another folder")
        manifest = _new_manifest(kind, command, parameters)
        run = cls(place, manifest)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(_unwritable(place, error)) from error
        run._write()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """A run folder that exists; RunError where its manifest is missing, damaged or foreign."""
        place = Path(path).expanduser()
        return cls(place, _read_manifest(place))

    @classmethod
    def begin(
        cls,
        path: str | os.PathLike[str],
        kind: str,
        command: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> RunFolder:
        """The run that lies at `path` if it was asked the same, to be gone on with; else a new one.

        Raises RunError where a run of another kind or with other parameters lies there, unless
        `overwrite`.
        """
        place = Path(path).expanduser()
        if overwrite or not (place / MANIFEST).exists():
            return cls.create(place, kind, command, parameters, overwrite=overwrite)
        run = cls.open(place)
        asked = json.loads(json.dumps(dict(parameters or {})))
        was = run.manifest["parameters"]
        differing = sorted(k for k in asked | was if asked.get(k) != was.get(k))
        if run.kind != kind or differing:
            what = f"other {', '.join(differing)}" if run.kind == kind else f"kind {run.kind!r}"
            raise RunError(f"{place} holds a run with {what}; give another folder, or --overwrite")
        check_place(place)
        return run

    # ------------------------------------------------------------ what it holds

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def done(self) -> bool:
        return self.manifest["status"] == "done"

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.manifest["summary"])

    @property
    def tables(self) -> list[str]:
        return list(self.manifest["tables"])

    def has_table(self, name: str) -> bool:
        return name in self.manifest["tables"] and self._table(name).with_suffix(".json").is_file()

    def save_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write tables/<name>.parquet and .json and enter them in the manifest."""
        from analysis import tables

        written = tables.save(table, self._table(name))
        self._enter("tables", name)
        return written

    def load_table(self, name: str) -> pd.DataFrame:
        """A table of this run; RunError where it has none of that name."""
        from analysis import tables

        if name not in self.manifest["tables"]:
            known = ", ".join(self.manifest["tables"]) or "none"
            raise RunError(f"{self.path} has no table {name!r}; its tables are: {known}")
        return tables.load(self._table(name))

    def add_figure(
        self,
        name: str,
        figure: Any,
        interactive: Any = None,
        formats: Sequence[str] = ("pdf", "svg", "png"),
    ) -> list[Path]:
        """Write a matplotlib figure as figures/<name>.{pdf,svg,png}, its plotly twin as .html."""
        from analysis import figures, paper

        place = self.path / "figures" / name
        written = paper.save(figure, place, formats)
        if interactive is not None:
            written.append(figures.save_html(interactive, place))
        self._enter("figures", name)
        return written

    def add_model(self, label: str, where: str) -> None:
        """Enter a model: a shipped name, a hub id, or a folder.

        A folder is entered by its way from the run folder, so that it is found from wherever the
        run is opened later.
        """
        folder = Path(where).expanduser()
        if where not in SHIPPED and not (self.path / where).is_dir() and folder.is_dir():
            where = os.path.relpath(folder.resolve(), self.path.resolve())
        self.manifest["models"][label] = where
        self._write()

    def model_path(self, label: str) -> str:
        """What `midus_model.load` takes to open the model of that label."""
        where = self.manifest["models"].get(label)
        if where is None:
            known = ", ".join(self.manifest["models"]) or "none"
            raise RunError(f"{self.path} has no model {label!r}; its models are: {known}")
        inside = self.path / where
        return str(inside) if inside.is_dir() else str(where)

    def write_json(self, name: str, content: Any) -> Path:
        """A JSON file beside the manifest, whole or not at all."""
        return _write_json(self.path / name, content)

    # ------------------------------------------------------------ how it goes

    def log(self, event: str, **values: Any) -> None:
        """Append a line to log.jsonl: time, event, values."""
        line = json.dumps({"time": _now(), "event": event, **values}, ensure_ascii=False)
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def resume(self) -> None:
        """Mark a run that is gone on with as running."""
        self.manifest["status"] = "running"
        self.manifest.pop("message", None)
        self._write()

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run done, with the numbers that a reader wants first."""
        shutil.rmtree(self.path / "partial", ignore_errors=True)
        self.manifest["summary"] = dict(summary or {})
        self.manifest["status"] = "done"
        self.manifest["finished"] = _now()
        self._write()

    def fail(self, message: str) -> None:
        """Mark the run failed, saying why."""
        self.manifest["status"] = "failed"
        self.manifest["message"] = message
        self._write()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if {entry.name for entry in self.path.iterdir()} <= {MANIFEST, LOG}:
            shutil.rmtree(self.path)
        else:
            self.fail(str(error) or type(error).__name__)

    # ------------------------------------------------------------ files

    def _table(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.parquet"

    def _enter(self, section: str, name: str) -> None:
        if name not in self.manifest[section]:
            self.manifest[section].append(name)
        self._write()

    def _write(self) -> None:
        _write_json(self.path / MANIFEST, self.manifest)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises RunError where no folder can be made at `path`. Makes nothing."""
    place = Path(path).expanduser()
    if not str(place.absolute()).isprintable():
        raise RunError(f"cannot write to {place}: the name holds what no text does; give another")
    for parent in (place, *place.absolute().parents):
        if parent.is_dir():
            if os.access(parent, os.W_OK | os.X_OK):
                return
            raise RunError(f"cannot write to {place}: {parent} is read-only; give another folder")
        if parent.exists() or parent.is_symlink():
            raise RunError(f"cannot write to {place}: {parent} is a file; give another folder")


def free_place(root: str | os.PathLike[str], stem: str) -> Path:
    """`root/stem`, or the first of `root/stem-2`, `root/stem-3`, ... that is not there yet.

    Of a long stem the beginning: a folder's name may have 255 bytes, and drafts beside it a little
    more than its own.
    """
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem)
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore")
    place, number = Path(root) / stem, 2
    while place.exists():
        place, number = Path(root) / f"{stem}-{number}", number + 1
    return place


def _new_manifest(
    kind: str, command: Sequence[str] | None, parameters: Mapping[str, Any] | None
) -> dict[str, Any]:
    versions = _versions()
    return {
        "schema": SCHEMA,
        "midus": versions["midus"],
        "kind": kind,
        "status": "running",
        "created": _now(),
        "command": list(sys.argv if command is None else command),
        "parameters": dict(parameters or {}),
        "versions": versions,
        "models": {},
        "tables": [],
        "figures": [],
        "summary": {},
    }


def _read_manifest(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    if not path.is_file():
        raise RunError(f"{place} is no run folder: it has no {MANIFEST}; give a run's own folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise RunError(f"{path} is damaged ({line}); restore it or make the run again") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise RunError(f"{path} is damaged (it names no schema); restore it or make the run again")
    if manifest["schema"] != SCHEMA:
        raise RunError(
            f"{place} was made by midus {manifest.get('midus', 'of another version')} (run schema "
            f"{manifest['schema']}, this one reads {SCHEMA}); open it with that version"
        )
    missing = [field for field in FIELDS if field not in manifest]
    if missing:
        raise RunError(
            f"{path} is damaged (it lacks {', '.join(missing)}); restore it or make the run again"
        )
    return manifest


def _clear(place: Path, overwrite: bool) -> None:
    """Make way for a new run. Only what a run folder holds is removed."""
    if not overwrite and _read_manifest(place)["status"] == "done":
        raise RunError(
            f"{place} holds a finished run; give another folder, or --overwrite to replace it"
        )
    for name in ("tables", "figures", "models", "training", "partial"):
        shutil.rmtree(place / name, ignore_errors=True)
    for name in (MANIFEST, LOG, "ranking.json"):
        (place / name).unlink(missing_ok=True)


def _write_json(path: Path, content: Any) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        # A file's name may hold bytes that are no UTF-8; so written, they are read as they were.
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))
        draft.replace(path)
    except OSError as error:
        raise RunError(_unwritable(path, error)) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _unwritable(path: Path, error: OSError) -> str:
    return f"cannot write to {path}: {error.strerror or error}; give another folder"


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    try:
        found["midus"] = metadata.version("midus-workbench")
    except metadata.PackageNotFoundError:
        found["midus"] = "checkout"
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


__all__ = ["MidusError", "RunError", "RunFolder", "check_place", "free_place"]
