"""Commands in processes of their own, forked from one that has everything imported already."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import MidusError
from tests.crash.faults import Faults

SECONDS = 240  # after which a command counts as stuck
WARM = ["tests.crash.warm"]
QUIET = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass
class Ended:
    """How a command ended: the exit code (minus a signal), its points, and what it said."""

    code: int
    points: list[str]
    said: str
    seconds: float

    @property
    def complaints(self) -> list[str]:
        """What it says is wrong, a line each, notes left out."""
        own = [line for line in self.said.splitlines() if line.startswith("midus: ")]
        return [line for line in own if not line.startswith("midus: note:")]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    return context


def run(
    command: list[str],
    root: Path,
    said: Path,
    *,
    at: int = 0,
    kind: str = "kill",
    finished: Path | None = None,
    after: tuple[int, float] | None = None,
) -> Ended:
    """Run a command in the folder `root`, with a fault at point `at` (0: none).

    What it says goes to the file `said`, which lies elsewhere.

    `command` is that of `midus`, or begins with `module:function`. With `after` a signal is sent
    once so many seconds have gone by.
    """
    said.write_text("", encoding="utf-8")
    said.with_suffix(".points").unlink(missing_ok=True)
    os.environ.update(QUIET)
    process = _context().Process(
        target=perform, args=(command, str(root), at, kind, finished and str(finished), str(said))
    )
    began = time.monotonic()
    process.start()
    if after is not None:
        process.join(after[1])
        with contextlib.suppress(ProcessLookupError):
            if process.is_alive():
                os.kill(process.pid, after[0])
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{' '.join(command)} did not end in {SECONDS} s")
    points: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        points = json.loads(said.with_suffix(".points").read_text(encoding="utf-8"))
    text = said.read_text(encoding="utf-8", errors="replace")
    ended = Ended(process.exitcode, points, text, time.monotonic() - began)
    process.close()
    return ended


def perform(
    command: list[str], root: str, at: int, kind: str, finished: str | None, out: str
) -> None:
    """The child's part: what it says goes to a file, and it never returns."""
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.update(QUIET)
    os.chdir(root)
    faults = Faults(Path(root).resolve(), at, kind, None if finished is None else Path(finished))
    faults.install()
    code: Any = 0
    try:
        _perform(command)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except MidusError as error:  # of an action, which has no command line around it
        print(f"midus: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    faults.busy = True
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    Path(out).with_suffix(".points").write_text(json.dumps(faults.seen), encoding="utf-8")
    os._exit(code or 0)


def _perform(command: list[str]) -> None:
    module, colon, function = command[0].partition(":")
    if colon:
        getattr(importlib.import_module(module), function)(*command[1:])
        return
    from workbench.cli import main

    sys.argv = ["midus", *command]
    main()
