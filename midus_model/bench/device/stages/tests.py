"""The GPU tests of the checkout, where pytest and the tests are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import kernels
from midus_model.bench.device import pool
from midus_model.bench.device.stage import Run

ROOT = Path(kernels.__file__).parents[1]
FILE = "tests/kernels/test_gpu.py"
# "FILE::test PASSED", and as several processes print it, "PASSED FILE::test".
LINE = re.compile(
    rf"(?:(PASSED|FAILED|ERROR|SKIPPED)\s+({FILE}::.+)|({FILE}::.+?)\s+(PASSED|FAILED|ERROR|SKIPPED))"
)


def run(run: Run) -> None:
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing or not (ROOT / FILE).exists():
        why = f"no {', '.join(missing)}" if missing else f"{FILE} is not here"
        run.line("left out", count=1, keys=[FILE], error=why)
        return
    command = [sys.executable, "-m", "pytest", FILE, "-v", "-p", "no:cacheprovider", "--color=no"]
    if run.tiny:  # one that asks for no compiling
        command += ["-k", "pair_table"]
    elif find_spec("xdist"):
        command += ["-n", str(min(12, pool.workers_for(64)))]
    with tempfile.TemporaryFile("w+") as text:
        code = _run(command, text, run)
        text.seek(0)
        printed = text.read()
    print(printed[-20000:])
    found = outcomes(printed)
    failed = sorted(name for name, outcome in found.items() if outcome in ("FAILED", "ERROR"))
    counts = {x: list(found.values()).count(x) for x in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    named = {name.lower(): count for name, count in counts.items()}
    run.line("row", key=f"{FILE}, ended {code}", **named, failing=failed[:40], code=code)
    if code is None:
        run.left_out += 1
        run.line("left out", count=1, keys=[f"{FILE} after {len(found)} tests"])
    elif code:
        raise AssertionError(f"pytest ended with {code}; failing: {', '.join(failed[:5])}")


def _run(command: list[str], text: IO[str], run: Run) -> int | None:
    """Exit code, or None where the time ended first. In the stage's group, and killed with it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=text, stderr=subprocess.STDOUT, env=environment
    )
    while run.left() > 0:
        if started.poll() is not None:
            return started.returncode
        time.sleep(0.1)
    started.terminate()
    try:
        started.wait(1)
    except subprocess.TimeoutExpired:
        started.kill()
    return None


def outcomes(text: str) -> dict[str, str]:
    """Test -> PASSED, FAILED, ERROR or SKIPPED, as far as pytest got."""
    found = {}
    for one, name, other_name, other in LINE.findall(text):
        found[(name or other_name).strip()] = one or other
    return found
