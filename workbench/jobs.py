"""Long work in a process of its own: the `midus` command, with progress, that can be cancelled.

    <root>/<name>/                the run folder that the command writes
    <root>/.jobs/<name>/job.json  progress.json  output.txt  code

Whoever looks reads these files, so jobs outlive a page, a reload and the server that started them.
"""

from __future__ import annotations

import json
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
from kernels import files
from kernels.errors import RunError
from workbench.progress import PLACE
from workbench.runs import MANIFEST, check_place, free_place

FOLDER = ".jobs"
_starting = threading.Lock()


def start(arguments: Sequence[str], root: str | os.PathLike[str], name: str) -> Job:
    """Start `midus <arguments> --output <root>/<name>`, or a free name like it.

    Raises RunError where nothing can be written, and for a name that begins with a dot.
    """
    if not name or name.startswith("."):
        raise RunError(f"a job cannot be called {name!r}; give a name that begins with no dot")
    job = Job(_claimed(Path(root), name), {"arguments": list(arguments)})
    job.again()
    return job


def jobs(root: str | os.PathLike[str]) -> list[Job]:
    """The jobs of a folder, the newest first; what is damaged is left out."""
    found = []
    for path in Path(root).glob(f"{FOLDER}/*/job.json"):
        with suppress(RunError):
            found.append(Job(path.parent, _about(path.parent)))
    return sorted(found, key=lambda job: -float(job.about["started"]))


def one(root: str | os.PathLike[str], name: str) -> Job:
    """The job of that name; RunError where there is none."""
    known = {job.name: job for job in jobs(root)}
    if name not in known:
        raise RunError(f"no job {name!r} in {root}; there are {', '.join(known) or 'none'}")
    return known[name]


class Job:
    """One command, running or ended."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self.about = folder, about

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._folder.parents[1] / self.name

    @property
    def command(self) -> str:
        """The line that does the same in a shell."""
        return shlex.join(["midus", *self.about["arguments"], "--output", str(self.folder)])

    @property
    def status(self) -> str:
        """ "running", "done", "failed", "cancelled", or "interrupted": gone without a word."""
        if self._process() is not None:
            return "running"
        found, code = self._manifest().get("status"), self._code()
        if found == "done" or (code == 0 and not found):  # not every command leaves a run folder
            return "done"
        if self.about.get("cancelled"):
            return "cancelled"
        return "failed" if found == "failed" or code or self._complaint() else "interrupted"

    @property
    def progress(self) -> tuple[float | None, str, float | None]:
        """Share done, what is being done, and about how many seconds are left; None: not known."""
        found = _json(self._folder / "progress.json")
        try:
            done, total, first = int(found["done"]), int(found["total"]), int(found["first"])
            text, spent = str(found["text"]), float(found["time"]) - float(found["began"])
        except (KeyError, TypeError, ValueError):
            return None, "", None
        if not total:
            return None, text, None
        # What an earlier start had measured (`first`) took none of this time.
        left = spent / (done - first) * (total - done) if done > first and spent > 1 else None
        return done / total, text, left

    @property
    def message(self) -> str:
        """Why it failed, in the command's own words."""
        if self.status != "failed":
            return ""
        return (
            self._complaint()
            or self._manifest().get("message")
            or f"it ended with exit code {self._code()}: see {self._log}"
        )

    def again(self) -> None:
        """Start the command; an unfinished run in its folder is gone on with."""
        with _starting:  # one of two tabs that ask at once
            self._stop_if_running()
            for name in ("progress.json", "code"):
                (self._folder / name).unlink(missing_ok=True)
            process = self._run()
            self.about |= {"pid": process.pid, "created": _created(process.pid)}
            self.about |= {"started": time.time(), "cancelled": False}
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
            if _has_ended(process.pid, wait):
                return

    def remove(self) -> None:
        """Delete its files and its run folder; RunError while it runs."""
        self._stop_if_running()
        if self.folder.resolve().parent == self._folder.parents[1].resolve():  # no link elsewhere
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------ the process

    def _run(self) -> subprocess.Popen[bytes]:
        # -P: nothing is imported from the folder that the server was started in.
        line = [sys.executable, "-P", "-m", "workbench.cli", *self.about["arguments"]]
        packages = str(Path(workbench.__file__).resolve().parents[1])  # a checkout, not installed
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")]))
        told = str((self._folder / "progress.json").resolve())
        environment = os.environ | {PLACE: told, "PYTHONPATH": path}
        with self._log.open("wb") as output:
            return subprocess.Popen(
                [*line, "--output", str(self.folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with suppress(OSError):  # its folder may be removed by now
            (self._folder / "code").write_text(f"{process.pid} {code}", encoding="utf-8")

    def _process(self) -> psutil.Process | None:
        """The command's process while it runs. A number given to another process is not taken."""
        with suppress(RunError):
            self.about = _about(self._folder)  # another tab may have started or cancelled it
        try:
            process = psutil.Process(int(self.about["pid"]))
            # Seconds apart, because the times are counted from a boot time that clocks correct.
            same = abs(process.create_time() - float(self.about["created"])) < 5
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except (psutil.Error, KeyError, TypeError, ValueError):
            pass
        return None

    def _stop_if_running(self) -> None:
        if self._process() is not None:
            raise RunError(f"the job {self.name} is running; cancel it first")

    # ------------------------------------------------------------ the files

    @property
    def _log(self) -> Path:
        return self._folder / "output.txt"

    def _write(self) -> None:
        files.write_json(self._folder / "job.json", self.about)

    def _code(self) -> int | None:
        """The exit code, where a server was there to see it; that of an earlier start is none."""
        with suppress(OSError, ValueError):
            pid, code = (self._folder / "code").read_text(encoding="utf-8").split()
            return int(code) if int(pid) == self.about.get("pid") else None
        return None

    def _manifest(self) -> dict[str, Any]:
        return _json(self.folder / MANIFEST)

    def _complaint(self) -> str:
        """The last line that the command said in its own name, notes left out."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        own = [line for line in lines if line.startswith("midus: ")]
        said = [line.removeprefix("midus: ") for line in own if not line.startswith("midus: note:")]
        return said[-1] if said else ""


def _claimed(root: Path, name: str) -> Path:
    """A new folder for a job's files; neither a job nor a run of its name is there yet."""
    number = 1
    while True:
        place = free_place(root, name if number == 1 else f"{name}-{number}")
        check_place(place)
        folder = root / FOLDER / place.name
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # that job's run folder is still to come, or will never be
            number += 1
        except OSError as error:
            raise RunError(
                f"cannot write to {folder}: {error.strerror}; give another folder"
            ) from error


def _created(pid: int) -> float:
    with suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def _has_ended(group: int, wait: float) -> bool:
    """Whether every process of the group ends within `wait` seconds."""
    end = time.monotonic() + wait
    while _is_alive(group):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_alive(group: int) -> bool:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _about(folder: Path) -> dict[str, Any]:
    """What job.json says; RunError where it is damaged."""
    about = _json(folder / "job.json")
    arguments, started = about.get("arguments"), about.get("started")
    if (
        not isinstance(arguments, list)
        or not all(isinstance(word, str) for word in arguments)
        or not isinstance(started, int | float)
    ):
        raise RunError(f"the job {folder} is damaged; remove the folder")
    return about


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
