"""Reads damaged copies of the samples as a user would, and says what came of each.

    python -m tests.damage.judge SAMPLES KIND:FIRST:COUNT ...

prints a line of JSON for each mutation: kind, seed, damage, verdict ("equal", "refused", "other",
or "wrong") and why. FIRST is the seed of the first; a mutation is repeated by kind and seed. The
process that reads has little memory and time; a mutation at which it ends is wrong, and another
process goes on behind it (`run`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SECONDS = 60  # of the processor for one mutation; the slowest kind takes two
ASLEEP = 1800  # by the clock, for what waits and computes nothing; a machine may be held up
MEMORY = 3 << 30  # bytes of address space beyond those of the libraries
GROWTH = 600 << 20  # bytes that one reading may hold at its peak
LONGEST = 1000  # characters of a message
WORDS = ("alloc", "out of memory", "Traceback")  # of no message that a user should meet


class Hang(BaseException):
    """A reading that took too long; no handler of `Exception` takes it."""


# ---------------------------------------------------------------- in the reading process


def main(arguments: list[str]) -> int:
    samples = Path(arguments[0]).resolve()
    from tests.damage.kinds import KINDS

    _limit()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="midus-damage-") as work:
        os.chdir(work)
        for asked in arguments[1:]:
            name, first, count = asked.rsplit(":", 2)
            kind = KINDS[name]
            shutil.rmtree(Path(work) / "whole", ignore_errors=True)
            expected = kind.read(_copied(samples, kind, Path(work) / "whole"))
            for seed in range(int(first), int(first) + int(count)):
                print(json.dumps({"kind": name, "seed": seed, "verdict": "begun"}), flush=True)
                print(json.dumps(_one(kind, seed, samples, Path(work), expected)), flush=True)
    return 0


def _limit() -> None:
    """Bound the address space, and be told of what is opened to be written."""
    status = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    signal.signal(signal.SIGPROF, _hang)


def _watch() -> None:
    """Begin to count a reading's time: first an exception, then the process is ended."""
    used = int(time.process_time())
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + 2 * SECONDS, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, ASLEEP)


def _hang(*_: Any) -> None:
    raise Hang


def _copied(samples: Path, kind: Any, place: Path) -> Path:
    shutil.copytree(samples / kind.folder, place)
    return place


def _one(kind: Any, seed: int, samples: Path, work: Path, expected: Any) -> dict[str, Any]:
    """The verdict on one mutation."""
    from tests.damage.mutations import damaged

    read, asked = (work / name / "copy" for name in ("read", "asked"))
    for place in (read, asked):
        shutil.rmtree(place.parent, ignore_errors=True)
        _copied(samples, kind, place)
        (path,) = place.glob(kind.file)
        damage = damaged(kind.name, seed, path.read_bytes(), kind.form)
        damage.put(path)
    before = _listing(read.parent)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    held = _memory("VmRSS")
    _watch()
    try:
        verdict, why = _read(kind, read, expected)
    except Hang:
        verdict, why = "wrong", f"it took more than {SECONDS} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if verdict != "wrong" and _memory("VmHWM") - held > GROWTH:
        verdict, why = "wrong", f"it held {(_memory('VmHWM') - held) >> 20} MB"
    if verdict != "wrong" and not kind.writes and _listing(read.parent) != before:
        verdict, why = "wrong", f"it wrote {sorted(_listing(read.parent) ^ before)[0]}"
    if verdict in ("refused", "equal") and kind.command is not None and seed % 5 == 0:
        verdict, why = _command(kind, asked, verdict, why)
    return {"kind": kind.name, "seed": seed, "damage": damage.label, "verdict": verdict, "why": why}


def _read(kind: Any, place: Path, expected: Any) -> tuple[str, str]:
    from kernels.errors import MidusError

    try:
        found = kind.read(place)
    except MidusError as error:
        return _refusal(kind, str(error))
    except Exception as error:
        return "wrong", _where(error)
    except BaseException as error:  # Rust's panics are no Exception
        if isinstance(error, Hang | KeyboardInterrupt):
            raise
        return "wrong", _where(error)
    if found.result == expected.result:
        return "equal", ""
    if kind.rule == "foreign" and found.identity != expected.identity:
        return "other", ""
    return "wrong", "another result"


def _refusal(kind: Any, line: str) -> tuple[str, str]:
    if kind.rule == "apart":
        return "wrong", f"the others went with it: {line}"
    if not line.strip() or "\n" in line or len(line) > LONGEST:
        return "wrong", f"no single line ({len(line)} characters): {line[:200]!r}"
    bad = [word for word in WORDS if word in line]
    return ("wrong", f"{bad[0]}: {line[:300]}") if bad else ("refused", line[:300])


def _where(error: BaseException) -> str:
    """Kind and text of an exception, and the last place of ours that it came through."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if any(f"/{part}/" in file for part in ("kernels", "midus_model", "analysis", "workbench")):
            place = f"{Path(file).parent.name}/{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} through {place}: {str(error)[:200]}"


def _command(kind: Any, place: Path, verdict: str, why: str) -> tuple[str, str]:
    """The same file read by a command: exit code 2 and one line, or 0."""
    from typer.testing import CliRunner

    from workbench.cli import app

    done = CliRunner().invoke(app, kind.command(place))
    lines = [line for line in done.stderr.splitlines() if line and "midus: note:" not in line]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return "wrong", f"command: {_where(done.exception)}"
    refused = done.exit_code == 2 and len(lines) == 1 and lines[0].startswith("midus: ")
    if refused or done.exit_code == 0:  # what a command does not need it need not refuse
        return ("refused", why or lines[0]) if refused else (verdict, why)
    return "wrong", f"command: exit {done.exit_code}, {lines[:2]}"


def _memory(what: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(what))


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    """Every file below a folder, and when it was written."""
    found = set()
    for path in folder.rglob("*"):
        about = path.lstat()
        found.add((str(path.relative_to(folder)), about.st_size, about.st_mtime_ns))
    return found


# ---------------------------------------------------------------- who watches it


def run(samples: Path, asked: Mapping[str, range]) -> Iterator[dict[str, Any]]:
    """Verdicts on mutations by kind and seed; goes on behind one that hangs or dies."""
    todo = {name: range(seeds.start, seeds.stop) for name, seeds in asked.items() if seeds}
    while todo:
        begun: dict[str, Any] | None = None
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:  # a pipe could run full
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.damage.judge", str(samples), *_words(todo)],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            assert process.stdout is not None
            for line in (line for line in process.stdout if line.startswith("{")):
                found = json.loads(line)
                if found["verdict"] == "begun":
                    begun = found
                else:
                    begun = None
                    _done(todo, found)
                    yield found
            process.wait()
            log.seek(0)
            said = log.read()
        if todo and begun is None:
            raise AssertionError(f"the judge of {next(iter(todo))} stopped: {said[-2000:]}")
        if begun is not None:
            _done(todo, begun)
            why = f"the process died ({process.returncode}): {said.strip()[-300:]}"
            yield {**begun, "damage": "", "verdict": "wrong", "why": why}


def _words(todo: Mapping[str, range]) -> list[str]:
    return [f"{name}:{seeds.start}:{len(seeds)}" for name, seeds in todo.items()]


def _done(todo: dict[str, range], found: dict[str, Any]) -> None:
    """Take a mutation, and those before it, from what is to be done."""
    rest = range(found["seed"] + 1, todo[found["kind"]].stop)
    if rest:
        todo[found["kind"]] = rest
    else:
        del todo[found["kind"]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
