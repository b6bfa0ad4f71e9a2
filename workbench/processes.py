"""Processes, known by what no clock changes: their numbers are given anew."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
STARTED = 19  # field of /proc/PID/stat behind the name: clock ticks from boot to start


def identity(pid: int) -> str | None:
    """What only this process has; None where there is none of that number.

    On Linux the boot and the ticks from it to the start: `psutil` counts from a wall time of the
    boot, which moves when the clock is set. Elsewhere the start as the system noted it then.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[STARTED]
        return f"{BOOT.read_text().strip()} {ticks}"
    except (OSError, IndexError):
        with suppress(psutil.Error, ValueError, OverflowError):
            return repr(psutil.Process(pid).create_time())
    return None


def with_variable(name: str, value: str) -> list[int]:
    """Numbers of the processes that were started with an environment variable of that value."""
    return [process.pid for process in psutil.process_iter() if has_variable(process, name, value)]


def has_variable(process: psutil.Process, name: str, value: str) -> bool:
    """Whether a process, ours and not ended, was started with that environment variable."""
    with suppress(psutil.Error, OSError):
        return process.environ().get(name) == value and is_running(process)
    return False


def is_running(process: psutil.Process) -> bool:
    """Whether it is no zombie, or one whose other threads still end and hold files and locks."""
    return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)


def group_has_ended(group: int, wait: float) -> bool:
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
            if os.getpgid(process.pid) == group and is_running(process):
                return True
    return False
