"""A command's progress as a file that others read while it runs (`workbench.jobs`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kernels.errors import MidusError
from kernels.files import write_json

Report = Callable[[int, int, str], None]
PLACE = "MIDUS_PROGRESS"  # environment variable: the file's path
EVERY = 0.25  # seconds


def written(report: Report) -> Report:
    """`report`, and where MIDUS_PROGRESS names a file, also that file, replaced whole.

    It holds done, total, text, first (what was done when the stage began) and spent (seconds since
    then, whatever the clock was set to meanwhile). At most one report in 0.25 s is written, and
    always a stage's first and last. A file that cannot be written does not stop the work.
    """
    place = os.environ.get(PLACE)
    return _writer(report, Path(place)) if place else report


def _writer(report: Report, target: Path) -> Report:
    last: dict[str, int] = {}
    began = written = 0.0

    def write(done: int, total: int, text: str) -> None:
        nonlocal began, written
        report(done, total, text)
        now = time.monotonic()
        first = not last or total != last["total"] or done < last["done"]
        if first:
            last.update(total=total, first=done)
            began = now
        last["done"] = done
        if not first and now - written < EVERY and done < total:
            return
        written = now
        if not target.parent.is_dir():  # a job that was removed is not made again
            return
        with suppress(MidusError):
            told = {**last, "spent": round(now - began, 3), "text": text}
            write_json(target, told, sync=False)

    return write
