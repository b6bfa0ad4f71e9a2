"""A command's progress as a file that others read while it runs (`workbench.jobs`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kernels import files
from kernels.errors import RunError

Report = Callable[[int, int, str], None]
PLACE = "MIDUS_PROGRESS"  # environment variable: the file's path
EVERY = 0.25  # seconds


def written(report: Report) -> Report:
    """`report`, and where MIDUS_PROGRESS names a file, also that file, replaced whole.

    It holds done, total, text, time (of this report, Unix seconds), began (when the stage did) and
    first (what was done then). At most one report in 0.25 s is written, and always a stage's first
    and last. A file that cannot be written does not stop the work.
    """
    place = os.environ.get(PLACE)
    return _writer(report, Path(place)) if place else report


def _writer(report: Report, target: Path) -> Report:
    last: dict[str, float] = {}

    def write(done: int, total: int, text: str) -> None:
        report(done, total, text)
        now = time.time()
        if not last or total != last["total"] or done < last["done"]:
            last.update(total=total, began=now, first=done, time=0.0)
        last["done"] = done
        if now - last["time"] < EVERY and done < total:
            return
        last["time"] = now
        if target.parent.is_dir():  # a removed job's folder stays removed
            with suppress(RunError):
                files.write_json(target, {**last, "text": text}, sync=False)

    return write
