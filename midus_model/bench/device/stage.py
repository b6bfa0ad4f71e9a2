"""A stage, and its side of the run: what it may ask and where it writes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from midus_model.bench.device import lines

MARGIN = 2.0  # seconds that a stage keeps of its own budget to end in
TUNING = "tuning.json"
PDEATHSIG = 1
BROKEN, SHORTENED = 3, 4  # exit codes


@dataclass(frozen=True)
class Stage:
    """One piece of a run.

    Args:
        name: as lines and the command line have it.
        target: "module:function"; the function takes a `Run`.
        seconds: what it is given where time is short.
        least: below this many seconds it is not begun.
        case: the longest that one case may take; a case beyond is killed and noted, and the
            stage begun again without it.
        last: run with what is left even where little is, and its time kept free from the start.
    """

    name: str
    target: str
    seconds: float
    least: float = 5.0
    case: float = 45.0
    last: bool = False

    def function(self) -> Callable[[Run], None]:
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


class Broken(RuntimeError):
    """The process can do no more (a CUDA error that stays); another may go on with the rest."""


@dataclass
class Run:
    """What a stage is given. Nothing here touches the GPU: a stage may fork before it does."""

    stage: str
    out: Path
    device: str  # "cuda" or "cpu"
    name: str  # the device's name, in every line
    tiny: bool
    ends: float  # time.monotonic() at which the stage is killed
    id: str = ""  # of this run, as several may write to one file
    context: str = "fork"  # how processes are begun, "fork" or "spawn"
    left_out: int = 0  # cases for which there was no time
    tell: Callable[[Any], None] | None = None  # to the run: which case is begun

    @property
    def path(self) -> Path:
        return self.out / lines.NAME

    def left(self) -> float:
        """Seconds that work may still take."""
        return self.ends - MARGIN - time.monotonic()

    def line(self, kind: str, **fields: Any) -> None:
        mark = {"device": self.name, "tiny": self.tiny, "run": self.id}
        lines.append(self.path, {"stage": self.stage, "kind": kind, **mark, **fields})

    def found(self, stage: str | None = None, kind: str | None = None) -> list[lines.Line]:
        """What a stage (this one) has found so far, earlier runs included."""
        counted = lines.counted(lines.read(self.path), self.name, self.tiny)
        return lines.of_stage(counted, stage or self.stage, kind)

    def each(self, cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
        """Runs cases (key, function) in order and writes what each returns as a "row".

        A key that has a row is passed over, and one that failed in this run. A case that raises
        is a "failure" line and ends nothing else, unless the device is broken by it. Where time
        ends first, one line says how many were left out.

        Raises:
            Broken: where no other case can run in this process.
        """
        known = {
            line["key"]
            for line in self.found()
            if "key" in line and (line["kind"] != "failure" or line.get("run") == self.id)
        }
        listed = [(key, function) for key, function in cases if key not in known]
        slowest = 0.0
        for index, (key, function) in enumerate(listed):
            if self.left() < slowest:
                rest = [key for key, _ in listed[index:]]
                self.left_out += len(rest)
                self.line("left out", count=len(rest), keys=rest[:20])
                return
            self._tell(key)
            begun = time.monotonic()
            try:
                found = function()
            except Exception as error:
                self.line("failure", key=key, error=one_line(error))
                traceback.print_exc()
                self.check_device()
            else:
                self.line(**({"kind": "row", "key": key} | found))
                if found.get("spoilt"):  # a capture failed, after which random numbers may
                    self.check_device()
            self._tell(None)
            slowest = max(slowest, min(time.monotonic() - begun, 0.25 * max(self.left(), 0)))

    def _tell(self, case: str | None) -> None:
        if self.tell is not None:
            self.tell(("begin", case))

    def check_device(self) -> None:
        """Raises Broken where the GPU takes no more work from this process."""
        if self.device != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize()
            torch.randn(8, device="cuda").sum().item()  # random numbers break with a lost capture
            torch.cuda.empty_cache()
        except Exception as error:
            raise Broken(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Kind and message of an exception, at most 400 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def die_with_parent() -> None:
    """Linux ends this process when the one that began it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)


def child(stage: Stage, run: Run, pipe: Any, log: str) -> None:
    """Body of a stage's process; it ends with 0, BROKEN, SHORTENED or, where it failed, 1.

    What is printed goes to `log`.
    """
    os.setpgid(0, 0)  # killed as one, workers included; the session stays the run's
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    gc.freeze()  # what was imported is not looked through at every collection
    if run.device == "cuda" and find_spec(
        "triton"
    ):  # what does not run shows; "auto" would hide it
        os.environ.setdefault("MIDUS_KERNELS", "triton")
    if (run.out / TUNING).exists():  # as the search left it
        os.environ["MIDUS_TUNING"] = str(run.out / TUNING)
    run.tell = pipe.send
    try:
        print(f"--- {stage.name}", flush=True)
        stage.function()(run)
        code, said = 0, None
        if run.left_out:
            code, said = SHORTENED, f"{run.left_out} cases left out for want of time"
    except BaseException as error:
        traceback.print_exc()
        code, said = BROKEN if isinstance(error, Broken) else 1, one_line(error)
    with contextlib.suppress(OSError):
        pipe.send(("end", said))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no library's farewell may hang
