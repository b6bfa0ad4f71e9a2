"""Runs stages one after the other, each in a process of its own, within one deadline."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any

from midus_model.bench.device import lines
from midus_model.bench.device.stage import BROKEN, SHORTENED, Run, Stage, child

LOG = "log.txt"
CLOSING = 1.0  # seconds kept for killing and writing
STATUS = {0: "done", SHORTENED: "shortened"}


@dataclass
class Outcome:
    """How one process of a stage ended."""

    status: str  # "done", "shortened", "failed", "timeout"; "broken": another process may go on
    error: str | None = None


def budget(stages: Sequence[Stage], left: float) -> float:
    """Seconds for the first of `stages`, those still to run, of the `left` that there are.

    What a stage asks for, and its share of what is left over where all can have more; the time of
    stages that are `last` is kept free.
    """
    first = stages[0]
    kept = sum(stage.least for stage in stages[1:] if stage.last)
    free = left - (0 if first.last else kept)
    asked = sum(stage.seconds for stage in stages if first.last or not stage.last)
    return min(free, max(first.seconds, free * first.seconds / asked))


class Runner:
    """A whole run.

    Args:
        run: what every stage is given; its `ends` is the deadline of the whole.
        stages: in the order of their worth.
        tell: gets one line of progress now and then.
    """

    def __init__(self, run: Run, stages: Sequence[Stage], tell: Callable[[str], None] = print):
        self.run, self.stages, self.tell = run, list(stages), tell
        self._child: Any = None

    def all(self) -> dict[str, str]:
        """Status by stage. Stages that are done, by an earlier run too, are not run again."""
        found = {}
        counted = lines.counted(lines.read(self.run.path), self.run.name, self.run.tiny)
        done = {s.name for s in self.stages if lines.status(counted, s.name) == "done"}
        waiting = [stage for stage in self.stages if stage.last or stage.name not in done]
        for name in done - {stage.name for stage in waiting}:
            found[name] = "done"
            self.tell(f"{name}: done before")
        before = signal.signal(signal.SIGTERM, _interrupted)
        try:
            while waiting:
                found[waiting[0].name] = self._stage(waiting)
                waiting.pop(0)
        finally:
            signal.signal(signal.SIGTERM, before)
            self._kill()
        return found

    def _stage(self, waiting: Sequence[Stage]) -> str:
        """Runs the first of `waiting` to its end, again where a process broke, and notes it."""
        stage, begun = waiting[0], time.monotonic()
        seconds = budget(waiting, self.run.ends - CLOSING - begun)
        run = replace(self.run, stage=stage.name, ends=begun + seconds)
        if seconds < (0.5 if stage.last else 1) * stage.least:
            outcome = Outcome(
                "skipped", f"{max(seconds, 0):.0f} s left, and it needs {stage.least:.0f}"
            )
        else:
            outcome = self._until_settled(stage, run)
        took = time.monotonic() - begun
        run.line("end", status=outcome.status, error=outcome.error, seconds=round(took, 2))
        why = f": {outcome.error}" if outcome.error else ""
        failed = len({x["key"] for x in run.found(kind="failure") if x.get("run") == run.id})
        why += f"; {failed} cases failed" if failed else ""
        self.tell(f"{stage.name}: {outcome.status} in {took:.1f} of {seconds:.0f} s{why}")
        return outcome.status

    def _until_settled(self, stage: Stage, run: Run) -> Outcome:
        """A stage whose process broke at one case goes on with the others, while it gets ahead."""
        tried = -1
        while True:
            outcome = self._process(stage, run)
            keys = len([line for line in run.found() if "key" in line])
            time_left = run.ends - time.monotonic() > stage.least
            if outcome.status != "broken" or keys <= tried or not time_left:
                status = "failed" if outcome.status == "broken" else outcome.status
                return Outcome(status, outcome.error)
            self.tell(f"{stage.name}: once more, as {outcome.error}")
            tried = keys

    def _process(self, stage: Stage, run: Run) -> Outcome:
        context: Any = multiprocessing.get_context(run.context)
        ours, theirs = context.Pipe(duplex=False)
        log = str(run.out / LOG)
        sys.stdout.flush()
        sys.stderr.flush()
        process = context.Process(target=child, args=(stage, run, theirs, log))
        process.start()
        self._child = process
        theirs.close()
        try:
            return self._watch(stage, run, process, ours)
        finally:
            self._kill()  # workers that it left, too
            process.join(5)
            ours.close()

    def _watch(self, stage: Stage, run: Run, process: Any, pipe: Any) -> Outcome:
        """Waits for the process, for its time to end, or for one case to take too long."""
        case, since, error, open_ = None, time.monotonic(), None, True
        while True:
            ends = min(run.ends, since + stage.case if case is not None else run.ends)
            sources = [process.sentinel, *([pipe] if open_ else [])]
            # Not for longer: workers that outlive a killed stage hold its sentinel open.
            ready = wait(sources, max(0.0, min(0.5, ends - time.monotonic())))
            if open_ and pipe in ready:
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    open_ = False
                    continue
                if kind == "begin":
                    case, since = value, time.monotonic()
                else:
                    error = value
                continue
            if process.exitcode is not None:
                return _ended(run, process.exitcode, case, error)
            if time.monotonic() >= run.ends:
                return Outcome("timeout", "its time ended" + (f" in {case}" if case else ""))
            if case is not None and time.monotonic() >= ends:
                problem = f"took more than {stage.case:.0f} s"
                run.line("failure", key=case, error=problem)
                return Outcome("broken", f"{case} {problem}")

    def _kill(self) -> None:
        """The stage's process and all that it began."""
        if self._child is None:
            return
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            if self._child.is_alive():  # it has no group of its own yet
                self._child.kill()
        self._child = None


def _ended(run: Run, code: int, case: str | None, error: str | None) -> Outcome:
    """What an exit code of a stage says, and a line for the case that took the process along."""
    if code in STATUS:
        return Outcome(STATUS[code], error)
    if code < 0 or (case is not None and error is None):
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        error = f"killed by {name}" + (f" in {case}" if case else "")
        if case is not None:
            run.line("failure", key=case, error=error)
            return Outcome("broken", error)
    return Outcome("broken" if code == BROKEN else "failed", error or f"exit code {code}")


def _interrupted(*_: Any) -> None:
    raise SystemExit(143)
