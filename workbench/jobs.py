"""Long work in a process of its own: the `midus` command, with progress, that can be cancelled.

    <root>/<name>/                the run folder that the command writes
    <root>/.jobs/<name>/job.json  progress.json  output.txt  code

Whoever looks reads these files, so jobs outlive a page, a reload and the server that started them.
Anybody may have written them: what is damaged is said, and what is started is checked first.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import workbench
from kernels import files, locks
from kernels.errors import MidusError, RunError
from kernels.files import write_file, write_json
from workbench import commands, processes
from workbench.progress import PLACE
from workbench.records import read_end, read_object
from workbench.runs import MANIFEST, check_place, free_place

FOLDER = ".jobs"
LONGEST_TEXT = 300  # characters of a message
MOST_STEPS = 10**15
_starting = threading.Lock()


def start(arguments: Sequence[str], root: str | os.PathLike[str], name: str) -> Job:
    """Start `midus <arguments> --output <root>/<name>`, or a free name like it.

    Raises RunError where nothing can be written, for a name that begins with a dot, and for
    arguments that `workbench.commands` refuses.
    """
    if not name or name.startswith("."):
        raise RunError(f"a job cannot be called {name!r}; give a name that begins with no dot")
    commands.checked(arguments)
    about = {"arguments": list(arguments), "started": time.time(), "cancelled": False}
    job = Job(_claimed(Path(root), name, about), about)
    job.again()
    return job


def jobs(root: str | os.PathLike[str]) -> list[Job]:
    """The jobs of a folder, the newest first; the damaged ones come last."""
    _tidy(Path(root) / FOLDER)
    found = [Job.read(path.parent) for path in Path(root).glob(f"{FOLDER}/*/job.json")]
    return sorted(found, key=lambda job: -float(job.about.get("started", 0)))


def one(root: str | os.PathLike[str], name: str) -> Job:
    """The job of that name; RunError where there is none."""
    known = {job.name: job for job in jobs(root)}
    if name not in known:
        raise RunError(f"no job {name!r} in {root}; there are {', '.join(known) or 'none'}")
    return known[name]


class Job:
    """One command, running or ended."""

    def __init__(self, folder: Path, about: dict[str, Any], damage: str = "") -> None:
        self._folder, self.about, self.damage = folder, about, damage

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What job.json says, or how it is damaged."""
        try:
            return cls(folder, _about(folder))
        except (RunError, OSError) as error:
            return cls(folder, {}, str(error))

    @property
    def name(self) -> str:
        return _shown(self._folder.name)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._folder.parents[1] / self._folder.name

    @property
    def command(self) -> str:
        """The line that does the same in a shell; "" where the job is damaged."""
        words = self.about.get("arguments")
        return shlex.join(["midus", *words, "--output", _shown(str(self.folder))]) if words else ""

    @property
    def status(self) -> str:
        """ "running", "done", "failed", "cancelled", "damaged", or "interrupted": gone without a
        word.
        """
        if self._process() is not None:
            return "running"
        if self.damage:
            return "damaged"
        found, code = self._manifest().get("status"), self._code()
        if found == "done" or (code == 0 and not found):  # not every command leaves a run folder
            return "done"
        if self.about.get("cancelled"):
            return "cancelled"
        return "failed" if found == "failed" or code or self._complaint() else "interrupted"

    @property
    def progress(self) -> tuple[float | None, str, float | None]:
        """Share done, what is being done, and about how many seconds are left; None: not known."""
        try:
            found = read_object(self._folder / "progress.json")
            done, total, first = (_count(found[name]) for name in ("done", "total", "first"))
            text, spent = str(found["text"])[:LONGEST_TEXT], _seconds(found["spent"])
        except (RunError, OSError, KeyError, TypeError):
            return None, "", None
        if not total:
            return None, text, None
        # What an earlier start had measured (`first`) took none of this time.
        left = spent / (done - first) * (total - done) if first < done <= total else None
        return min(done / total, 1.0), text, left if spent > 1 else None

    @property
    def message(self) -> str:
        """Why it failed, in the command's own words, or how it is damaged."""
        status = self.status
        if status == "damaged":
            return self.damage
        if status != "failed":
            return ""
        return (
            self._complaint()
            or str(self._manifest().get("message") or "")[:LONGEST_TEXT]
            or f"it ended with exit code {self._code()}: see {self._log}"
        )

    def again(self) -> None:
        """Start the command; an unfinished run in its folder is gone on with.

        Raises RunError while it runs, where another process writes its folder, where job.json is
        damaged, or holds what a job may not do, and where a link would lead out of the folder.
        """
        with _starting, locks.hold(self._folder, wait=True):  # one of two tabs that ask at once
            self._stop_if_running()
            if self.damage:
                raise RunError(f"{self.damage}; remove the job")
            line = commands.line(self.about["arguments"], self.folder)
            self._refuse_links()
            locks.hold(self.folder).release()
            for name in ("progress.json", "code"):
                (self._folder / name).unlink(missing_ok=True)
            self.about |= {"started": time.time(), "cancelled": False, "pid": None}
            self._write()  # before there is a process: no kill leaves one that is of no job
            process = self._run(line)
            self.about |= {"pid": process.pid, "process": processes.identity(process.pid)}
            self._write()
        threading.Thread(target=self._reap, args=(process,), daemon=True).start()

    def cancel(self, wait: float = 5.0) -> None:
        """End it: as Ctrl-C does, and by force where that does not help within `wait` seconds."""
        process = self._process()
        if process is None:
            return
        self.about["cancelled"] = True
        self._write()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            if processes.group_has_ended(process.pid, wait):
                return

    def remove(self) -> None:
        """Delete its files and its run folder; RunError while it runs or another writes there."""
        with _starting, locks.hold(self._folder, wait=True):
            self._stop_if_running()
            with locks.hold(self.folder):
                for folder in (self.folder, self._folder):
                    if folder.is_symlink():  # what it leads to is another's
                        folder.unlink()
                    else:
                        shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------ the process

    def _run(self, line: Sequence[str]) -> subprocess.Popen[bytes]:
        packages = str(Path(workbench.__file__).resolve().parents[1])  # a checkout, not installed
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {PLACE: self._told, "PYTHONPATH": path}
        with _fresh(self._log) as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "workbench.cli", *line],  # nothing from the cwd
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self._folder.is_dir():  # it may be removed by now
            with suppress(MidusError):
                write_file(self._folder / "code", f"{process.pid} {code}", sync=False)

    def _process(self) -> psutil.Process | None:
        """The command's process while it runs.

        A number given to another process is not taken, nor any process that was not started here.
        """
        read = Job.read(self._folder)  # another tab may have started or cancelled it
        if "started" in self.about or not read.damage:
            self.about, self.damage = read.about, read.damage
        pid, known = self.about.get("pid"), self.about.get("process")
        if pid is None:  # whoever started it ended before it could say which process it is
            found = processes.with_variable(PLACE, self._told)
        else:
            found = [pid] if known is not None and processes.identity(pid) == known else []
        for number in found:
            with suppress(psutil.Error, OSError):
                process = psutil.Process(number)
                leads = os.getpgid(number) == number
                if leads and processes.has_variable(process, PLACE, self._told):
                    return process
        return None

    def _stop_if_running(self) -> None:
        """Looks for the process itself, whatever job.json says of it."""
        if self._process() is not None or processes.with_variable(PLACE, self._told):
            raise RunError(f"the job {self.name} is running; cancel it first")

    # ------------------------------------------------------------ the files

    @property
    def _log(self) -> Path:
        return self._folder / "output.txt"

    @property
    def _told(self) -> str:
        """The file of its progress, as the process has it among its variables."""
        root = self._folder.parents[1].resolve()
        return str(root / FOLDER / self._folder.name / "progress.json")

    def _refuse_links(self) -> None:
        """Raises RunError where the job's files or its run folder lie elsewhere."""
        for path in (self._folder.parent, self._folder, self._log, self.folder):
            if path.is_symlink():
                raise RunError(f"{path} is a link, and a job writes its own folder; remove it")

    def _write(self) -> None:
        write_json(self._folder / "job.json", self.about, sync=False)

    def _code(self) -> int | None:
        """The exit code, where a server was there to see it; that of an earlier start is none."""
        with suppress(ValueError):
            pid, code = map(int, read_end(self._folder / "code", 100).split())
            return code if pid == self.about.get("pid") else None
        return None

    def _manifest(self) -> dict[str, Any]:
        try:
            return read_object(self.folder / MANIFEST)
        except RunError as error:
            return {"status": "failed", "message": str(error)}
        except OSError:
            return {}

    def _complaint(self) -> str:
        """The last line that the command said in its own name, notes left out."""
        own = [line for line in read_end(self._log).splitlines() if line.startswith("midus: ")]
        said = [line.removeprefix("midus: ") for line in own if not line.startswith("midus: note:")]
        return said[-1][:LONGEST_TEXT] if said else ""


def _claimed(root: Path, name: str, about: dict[str, Any]) -> Path:
    """A new folder for a job's files, job.json in it; there is neither a job nor a run so called.

    One without job.json is of nobody: who made it was killed.
    """
    number = 1
    while True:
        place = free_place(root, name if number == 1 else f"{name}-{number}")
        check_place(place)
        folder = root / FOLDER / place.name
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _starting, locks.hold(folder, wait=True):
                if not os.path.lexists(folder / "job.json"):
                    write_json(folder / "job.json", about, sync=False)
                    return folder
        except OSError as error:
            raise RunError(
                f"cannot write to {folder}: {error.strerror}; give another folder"
            ) from error
        number += 1  # that job's run folder is still to come, or will never be


def _tidy(place: Path) -> None:
    """Remove what killed servers left among the jobs: drafts, and folders that hold nothing."""
    files.sweep(place, deep=True)
    # A lock says nothing of other threads of this process, one of which may be making a job.
    with suppress(OSError), _starting:
        for folder in place.iterdir():
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                with suppress(RunError, OSError), locks.hold(folder):
                    folder.rmdir()


def _fresh(path: Path) -> Any:
    """A new file to write to, in the place of whatever lay there; a link is not followed."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb")


def _about(folder: Path) -> dict[str, Any]:
    """What job.json says; RunError where it is damaged."""
    path = folder / "job.json"
    about = read_object(path)
    kinds: dict[str, tuple[type, ...]] = {
        "arguments": (list,), "started": (int, float), "pid": (int, type(None)),
        "process": (str, type(None)), "cancelled": (bool, type(None)),
    }  # fmt: skip
    for name, allowed in kinds.items():
        value = about.get(name)
        if not isinstance(value, allowed) or (bool not in allowed and isinstance(value, bool)):
            raise RunError(f"{path} is damaged (its {name!r} is no {allowed[-1].__name__})")
    if not all(isinstance(word, str) for word in about["arguments"]):
        raise RunError(f"{path} is damaged (its 'arguments' are no texts)")
    if not abs(about["started"]) < MOST_STEPS or not 0 < (about.get("pid") or 1) < 2**31:
        raise RunError(f"{path} is damaged (a number in it is out of range)")
    return about


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_STEPS:
        raise TypeError
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MOST_STEPS or math.isnan(value):
        raise TypeError
    return float(value)


def _shown(name: str) -> str:
    """A file's name as a text, also where its bytes are none."""
    return name.encode("utf-8", "backslashreplace").decode()
