"""The run folder: what a job was asked, what it found, and where everything lies.

    <run>/manifest.json  tables/<table>.parquet  figures/<figure>.{pdf,svg,png,html}
          models/<name>/  log.jsonl

The manifest is replaced whole at every change, so a killed job leaves a readable folder. Whoever
writes a folder holds it (`kernels.locks`): another process that would is refused in one line.

A run that is to replace another is made beside it, in `.NAME.overwrite`, and takes its place when
it is finished: until then the old one stands, and a killed command goes on with the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from kernels import files, locks
from kernels.errors import MidusError, RunError
from workbench import manifests, model_files
from workbench.inputs import differences
from workbench.manifests import MANIFEST

LOG = "log.jsonl"
LONGEST_NAME = 160  # bytes
SHIPPED = ("pico", "pico-midus", "smollm2")  # models by a name, whatever folder is called so


class RunFolder:
    """One run on disc; as a context manager it records a failure, and removes itself if empty.

    with RunFolder.create("runs/mine", "importance") as run:
        run.save_table("importance_before", table)
        run.finish({"heads": 48})

    Attributes:
        path: where it lies now, to be asked anew after `finish`.
        place: where it lies once it is finished.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], place: Path | None = None) -> None:
        self.path = path
        self.place = path if place is None else place
        self.manifest = manifest
        self.shared = path  # the folder that all processes of a job see
        self._hold: locks.Hold | None = None

    # ------------------------------------------------------------ opening

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        kind: str,
        command: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> RunFolder:
        """A new run folder; beside a run that lies there, to replace it by `finish`.

        Raises RunError where nothing can be written, where a finished run lies (unless
        `overwrite`), where a folder with other things in it lies, or where another process writes.
        """
        place = Path(path).expanduser()
        check_place(place)
        with _held(place) as held:
            _tidy(place)
            beside = _beside(place)
            where = place
            if (place / MANIFEST).exists():
                if not overwrite and manifests.read(place)["status"] == "done":
                    raise RunError(
                        f"{place} holds a finished run; give another folder, or --overwrite to "
                        "replace it"
                    )
                where = beside
            elif holds_files(place):
                raise RunError(f"{place} holds files and is no run folder; give another folder")
            _remove(beside)
            manifest = manifests.new(kind, command, parameters, inputs)
            run = cls(where, manifest | {"overwrites": overwrite}, place)
            with files.writing(where):
                where.mkdir(parents=True, exist_ok=True)
            run._write()
            return run._holding(held)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writing: bool = False) -> RunFolder:
        """A run folder that exists; RunError where its manifest is missing, damaged or foreign.

        With `writing` it is held as a new one is.
        """
        place = Path(path).expanduser()
        files.recover(place)
        if not writing:
            return cls(place, manifests.read(place))
        with _held(place) as held:
            run = cls(place, manifests.read(place))
            _tidy(place)
            return run._holding(held)

    @classmethod
    def begin(
        cls,
        path: str | os.PathLike[str],
        kind: str,
        command: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> RunFolder:
        """The run that lies at `path` if it was asked the same, to be gone on with; else a new one.

        With `overwrite` a new one, or that which the same call with `overwrite` had begun.

        inputs: what it is made of, by hash, as `workbench.inputs.inputs_of` has it.

        Raises RunError where a run of another kind, with other parameters or of other inputs lies
        there, unless `overwrite`, or where another process writes.
        """
        place = Path(path).expanduser()
        check_place(place)
        with _held(place) as held:
            _tidy(place)
            run = None
            if overwrite:
                run = cls._begun(place, kind, parameters, inputs)
            elif (place / MANIFEST).exists():
                run = cls(place, manifests.read(place))
                run._check_asked(kind, parameters)
                run.check_inputs(inputs or {})
            if run is None:
                return cls.create(
                    place, kind, command, parameters, inputs=inputs, overwrite=overwrite
                )
            return run._holding(held)

    @classmethod
    def _begun(cls, place: Path, kind: str, parameters: Any, inputs: Any) -> RunFolder | None:
        """What the same command with --overwrite had begun, if there is such a run."""
        for where in (_beside(place), place):
            with suppress(RunError):
                run = cls(where, manifests.read(where), place)
                run._check_asked(kind, parameters)
                run.check_inputs(inputs or {})
                if run.manifest.get("overwrites") and not run.done:
                    if where == place:
                        _remove(_beside(place))
                    return run
        return None

    def _check_asked(self, kind: str, parameters: Mapping[str, Any] | None) -> None:
        asked = json.loads(json.dumps(dict(parameters or {})))
        was = self.manifest["parameters"]
        differing = sorted(k for k in asked | was if asked.get(k) != was.get(k))
        if self.kind != kind or differing:
            what = f"other {', '.join(differing)}" if self.kind == kind else f"kind {self.kind!r}"
            raise RunError(
                f"{self.place} holds a run with {what}; give another folder, or --overwrite"
            )

    # ------------------------------------------------------------ what it holds

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def done(self) -> bool:
        """Whether it is finished, and lies where it was to lie."""
        return self.manifest["status"] == "done" and self.path == self.place

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.manifest["summary"])

    @property
    def tables(self) -> list[str]:
        return list(self.manifest["tables"])

    def has_table(self, name: str) -> bool:
        return name in self.manifest["tables"] and self._table(name).is_file()

    def save_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write tables/<name>.parquet and enter it in the manifest."""
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

    def add_model(self, label: str, where: str, *, made: bool = False) -> None:
        """Enter a model: a shipped name, a hub id, or a folder.

        A folder is entered by its way from the run folder, so that it is found from wherever the
        run is opened later; of one within the run folder, or `made` by the run, the files' hashes
        too.
        """
        folder = Path(where).expanduser()
        inside = where not in SHIPPED and (self.path / where).is_dir()
        if where not in SHIPPED and not inside and folder.is_dir():
            where = os.path.relpath(folder.resolve(), self.path.resolve())
        self.manifest["models"][label] = where
        known = self.manifest.setdefault("made", {})
        known.pop(label, None)
        if made or (inside and not where.startswith("..") and not os.path.isabs(where)):
            known[label] = model_files.fingerprints(self.path / where)
        self._write()

    def model_path(self, label: str) -> str:
        """What `midus_model.load` takes to open the model of that label.

        Raises RunError where the run has none, or where its folder is not what the run made.
        """
        where = self.manifest["models"].get(label)
        if where is None:
            known = ", ".join(self.manifest["models"]) or "none"
            raise RunError(f"{self.path} has no model {label!r}; its models are: {known}")
        inside = self.path / where
        made = self.manifest.get("made", {}).get(label)
        if made is not None:
            files.recover(inside)
            problem = model_files.changed(inside, made)
            if problem is not None:
                raise RunError(
                    f"{inside} is not the model that this run made ({problem}); restore it or make "
                    "the run again"
                )
        return str(inside) if inside.is_dir() else str(where)

    def write_json(self, name: str, content: Any) -> Path:
        """A JSON file beside the manifest, whole or not at all."""
        return files.write_json(self.path / name, content)

    # ------------------------------------------------------------ how it goes

    def log(self, event: str, **values: Any) -> None:
        """Append a line to log.jsonl: time, event, values."""
        line = json.dumps({"time": manifests.now(), "event": event, **values}, ensure_ascii=False)
        path = self.path / LOG
        with files.writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """Raises RunError, saying which, where these are not what the run was begun with."""
        differing = differences(self.manifest.get("inputs", {}), inputs)
        if differing:
            raise RunError(
                f"{self.path} was begun with other inputs ({differing}); restore them, give "
                "another folder, or --overwrite to start again"
            )

    def resume(self) -> None:
        """Mark a run that is gone on with as running."""
        self.manifest["status"] = "running"
        self.manifest.pop("message", None)
        self._write()

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run done, with the numbers that a reader wants first; it takes its place."""
        _remove(self.path / "partial")
        self.manifest["summary"] = dict(summary or {})
        self.manifest["status"] = "done"
        self.manifest["finished"] = manifests.now()
        self._write()
        if self.path != self.place:
            files.move(self.path, self.place)
            self.path = self.shared = self.place

    def fail(self, message: str) -> None:
        """Mark the run failed, saying why."""
        self.manifest["status"] = "failed"
        self.manifest["message"] = message
        self._write()

    def release(self) -> None:
        """Let others write the folder; `with` does so at its end, and the end of the object too."""
        if self._hold is not None:
            self._hold.release()

    def _holding(self, held: locks.Hold | None) -> RunFolder:
        self._hold = held
        return self

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                return
            if {entry.name for entry in self.path.iterdir()} <= {MANIFEST, LOG, locks.INSIDE}:
                _remove(self.path)
            else:
                with suppress(RunError):  # on a full disk: the error itself is what is told
                    self.fail(str(error) or type(error).__name__)
        finally:
            self.release()

    # ------------------------------------------------------------ files

    def _table(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.parquet"

    def _enter(self, section: str, name: str) -> None:
        if name not in self.manifest[section]:
            self.manifest[section].append(name)
        self._write()

    def _write(self) -> None:
        manifests.write(self.path, self.manifest)


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


def holds_files(place: Path) -> bool:
    """Whether `place` is a folder in which anything lies."""
    return place.is_dir() and any(path.name != locks.INSIDE for path in place.iterdir())


@contextmanager
def _held(place: Path) -> Iterator[locks.Hold | None]:
    """The folder's lock, let go where the block raises."""
    with ExitStack() as stack:
        yield stack.enter_context(locks.hold_for_all(place))
        stack.pop_all()


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


def written_at(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Where the run is that another process of the job has begun for `path`."""
    beside = _beside(Path(path).expanduser())
    return beside if overwrite and (beside / MANIFEST).is_file() else Path(path).expanduser()


def _beside(place: Path) -> Path:
    """Where a run is made that is to replace the one at `place`."""
    name = place.name.encode(errors="surrogateescape")[: files.LONGEST].decode(errors="ignore")
    return place.with_name(f".{name}.overwrite")


def _tidy(place: Path) -> None:
    """Remove what killed writers left; a run that one had moved aside is put back."""
    files.sweep(place.parent, place.name)
    for folder in (place, _beside(place)):
        files.sweep(folder, deep=True)


def _remove(folder: Path) -> None:
    """Remove a folder of ours; of a symbolic link, the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["MidusError", "RunError", "RunFolder", "check_place", "free_place", "written_at"]
