"""`python -m midus_model.bench.device --out DIR --deadline 540`: all that a GPU is wanted for."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernels import locks
from midus_model.bench.device import lines
from midus_model.bench.device.plan import NAMES, STAGES
from midus_model.bench.device.runner import Runner
from midus_model.bench.device.stage import Run, one_line
from midus_model.bench.parser import Parser

PROBE = 90.0  # seconds in which a GPU must answer
REHEARSAL = 240.0  # seconds of a run on a CPU, unless others are given
DEADLINE = 540.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="midus bench device",
        description=__doc__,
        epilog="Example: midus bench device --out benchmark-device",
    )
    made.add_argument("--out", type=Path, required=True, help="folder of the results")
    made.add_argument("--deadline", type=float, help="seconds for the whole run; default: 540")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    made.add_argument(
        "--stage", action="append", choices=NAMES, help="only this one; may be repeated"
    )
    made.add_argument("--fresh", action="store_true", help="run again what is done already")
    made.add_argument(
        "--markdown", type=Path, help="page whose tables a GPU's run fills in; nothing is run"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every stage ended well or was shortened, 1 where one failed."""
    begun = time.monotonic() - age()
    made = parser()
    given = made.parse_args(arguments)
    if given.deadline is not None and not 5 <= given.deadline < 1e6:
        made.error(f"--deadline is {given.deadline:g}; it must be a number of seconds, 5 or more")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        held = locks.hold(given.out)
        lines.read(given.out / lines.NAME)
    except (OSError, ValueError) as error:
        made.error(f"--out: {error}")
    if given.markdown:
        return _fill(made, given)
    context, machine = _machine(made, given.device)
    tiny = given.tiny or machine["kind"] != "cuda"
    deadline = given.deadline or (REHEARSAL if machine["kind"] != "cuda" else DEADLINE)
    run = Run(
        stage="run",
        out=given.out.resolve(),
        device=machine["kind"],
        name=machine["device"],
        tiny=tiny,
        ends=begun + deadline,
        id=datetime.now(UTC).isoformat(timespec="seconds"),
        context=context,
    )
    chosen = [s for s in STAGES if not given.stage or s.name in given.stage or s.last]
    if given.fresh:
        run.line("afresh", stages=[stage.name for stage in chosen])
    run.line("machine", machine=machine, deadline=deadline)
    print(f"{machine['device']} ({machine['kind']}){', tiny: a rehearsal' if tiny else ''}; "
          f"{deadline:.0f} s; results in {run.path}", flush=True)  # fmt: skip
    ended = Runner(run, chosen, tell=lambda text: print(text, flush=True)).all()
    summary = run.out / "summary.md"
    if summary.exists():
        print("\n" + summary.read_text(encoding="utf-8"), flush=True)
    bad = [name for name, status in ended.items() if status in ("failed", "timeout")]
    print(f"{time.monotonic() - begun:.0f} s of {deadline:.0f}"
          + (f"; failed: {', '.join(bad)}" if bad else ""), flush=True)  # fmt: skip
    held.release()
    return 1 if bad else 0


def age() -> float:
    """Seconds since this process began, imports included, where Linux says so; else 0."""
    try:
        started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        found = up - started / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    return found if 0 <= found <= PROBE else 0.0


def _machine(made: argparse.ArgumentParser, wanted: str) -> tuple[str, dict[str, Any]]:
    """How processes are begun, and the machine as a process of its own sees it.

    Forked ones share what is imported here, which saves every stage ten seconds; where the GPU's
    driver does not stand that, fresh ones are begun.
    """
    import torch

    on_cpu = wanted == "cpu" or not (torch.version.cuda or torch.version.hip)
    if wanted == "cuda" and on_cpu:
        made.error("--device is cuda, and torch is built without; use --device cpu")
    errors = []
    for context in () if on_cpu else ("fork", "spawn"):
        machine, error = probed(context, "cuda")
        if machine:
            return context, machine
        errors.append(f"{context}: {error}")
    if wanted == "cuda" or any(Path("/dev").glob("nvidia[0-9]*")):
        made.error(f"the GPU does not answer ({'; '.join(errors)}); use --device cpu to rehearse")
    machine, error = probed("fork", "cpu")
    if machine is None:
        made.error(f"the machine cannot be read: {error}")
    return "fork", machine or {}


def probed(context: str, device: str, seconds: float = PROBE) -> tuple[dict | None, str | None]:
    """What a process says of the machine, or why it does not."""
    made: Any = multiprocessing.get_context(context)
    ours, theirs = made.Pipe(duplex=False)
    process = made.Process(target=_probe, args=(device, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return None, f"no answer in {seconds:.0f} s"
        return ours.recv()
    except (EOFError, OSError):
        process.join(5)
        return None, f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join(5)


def _probe(device: str, pipe: Any) -> None:
    try:
        import torch

        from midus_model.bench.report import commit, machine_of

        if device == "cuda":
            torch.randn(64, 64, device="cuda").square().sum().item()
        machine = machine_of(device) | {
            "kind": device,
            "commit": commit(),
            "day": datetime.now(UTC).date().isoformat(),
            "cores": os.cpu_count(),
        }
        if device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            machine |= {
                "capability": list(torch.cuda.get_device_capability()),
                "multiprocessors": properties.multi_processor_count,
                "cache_mb": getattr(properties, "L2_cache_size", 0) / 2**20,
            }
        pipe.send((machine, None))
    except Exception as error:
        pipe.send((None, one_line(error)))


def _fill(made: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Fills a page from the lines of a GPU's run, on any machine."""
    from midus_model.bench.device.stages import report

    found = [x for x in lines.read(given.out / lines.NAME) if x.get("kind") == "machine"]
    runs = [x for x in found if x["machine"].get("kind") == "cuda" and not x["tiny"]]
    if not runs:
        made.error(f"--out: {given.out} holds no run of a GPU")
    try:
        written = report.write(given.out, runs[-1]["device"], False, given.markdown)
    except ValueError as error:
        made.error(f"--markdown: {error}")
    print("written: " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
