"""A clock that is set while a job runs: a process whose wall clock is really another one."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kernels import locks
from kernels.errors import RunError
from workbench import jobs, processes
from workbench.progress import PLACE

HOUR = 3600
# Adds the number of seconds in the file STEP to the wall clock, and to no other.
LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int64_t step(void) {
    int64_t found = 0;
    int file = open(getenv("STEP"), O_RDONLY);
    if (file >= 0) { if (pread(file, &found, 8, 0) != 8) found = 0; close(file); }
    return found;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += step();
    return code;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    int code = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000;
    return code;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""
JOB = """
import sys, time
from kernels import locks
from workbench.progress import written
report = written(lambda *_: None)
with locks.hold(sys.argv[1]):
    for done in range(1, 1000):
        report(done, 1000, "ablation")
        print(time.time(), flush=True)
        if not sys.stdin.readline():
            break
        time.sleep(0.3)
"""
compiler = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or compiler is None, reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(LIBRARY)
    line = [str(compiler), "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"]
    subprocess.run(line, cwd=folder, check=True)
    return folder / "clock.so"


def set_clock(file: Path, seconds: int) -> None:
    file.write_bytes(struct.pack("=q", seconds))


def test_the_jobs_clock_is_set_and_the_watchers_not(library: Path, tmp_path: Path) -> None:
    """Its progress goes on, what is left stays sane, it is running, and nobody else may begin."""
    step, told = tmp_path / "step", tmp_path / ".jobs" / "mine" / "progress.json"
    told.parent.mkdir(parents=True)
    set_clock(step, 0)
    known = {"LD_PRELOAD": str(library), "STEP": str(step), PLACE: str(told)}
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path / "mine")], stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, env=os.environ | known, start_new_session=True,
    )  # fmt: skip
    try:
        assert job.stdin is not None and job.stdout is not None
        about = {"arguments": ["costs", "pico"], "started": time.time(), "pid": job.pid}
        about["process"] = processes.identity(job.pid)
        (told.parent / "job.json").write_text(json.dumps(about))
        first = float(job.stdout.readline())
        for done, hours in enumerate((0, -1, 1, 0, 0, 0, 0), 2):
            set_clock(step, hours * HOUR)
            job.stdin.write("\n")
            job.stdin.flush()
            shown = float(job.stdout.readline())
            assert abs(shown - first - hours * HOUR) < 600  # the library does what it says
            seen = jobs.one(tmp_path, "mine")
            share, text, left = seen.progress
            assert (share, text, seen.status) == (done / 1000, "ablation", "running")
            assert left is None or 0 < left < HOUR * 24
            for action in (seen.again, seen.remove):
                with pytest.raises(RunError, match="is running"):
                    action()
            with pytest.raises(RunError, match=f"being written by process {job.pid}"):
                locks.hold(tmp_path / "mine")
        assert left is not None
    finally:
        psutil.Process(job.pid).kill()
        job.communicate()
    assert jobs.one(tmp_path, "mine").status == "interrupted"
