"""Stages that end in every way a stage can, for test_bench_device.py; they import little."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any


def good(run: Any) -> None:
    run.each([("a", lambda: {"value": 1}), ("b", lambda: {"value": 2})])


def raises(run: Any) -> None:
    run.line("row", key="before", value=1)
    raise ValueError("not\nto be")


def hangs(run: Any) -> None:
    run.line("row", key="before", value=1)
    worker = subprocess.Popen(["sleep", "60"])
    (run.out / "worker").write_text(str(worker.pid))
    time.sleep(60)


def is_killed(run: Any) -> None:
    run.line("row", key="before", value=1)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _sleep() -> dict[str, Any]:
    time.sleep(60)
    return {}


def _wrong() -> dict[str, Any]:
    raise RuntimeError("wrong")


def takes_itself_along(run: Any) -> None:
    fine = [(name, lambda: {"value": 1}) for name in "abc"]
    run.each([fine[0], ("killed", _kill), fine[1], ("raises", _wrong), ("hangs", _sleep), fine[2]])


def always_breaks(run: Any) -> None:
    from midus_model.bench.device.stage import Broken

    raise Broken("the device is lost")


def slow(run: Any) -> None:
    """Eight cases of a quarter of a second."""

    def case() -> dict[str, Any]:
        time.sleep(0.25)
        return {"process": os.getpid()}

    run.each([(str(index), case) for index in range(8)])


def triple(value: int) -> int:
    """A job of the pool's: 3 fails, 4 dies, 5 hangs."""
    if value == 3:
        raise ValueError("three")
    if value == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if value == 5:
        time.sleep(60)
    return 3 * value
