"""A command, all that can happen to it, and what is found afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.crash import children, judge
from tests.crash.cases import Case, make_inputs
from tests.crash.children import Ended

HELD = ("finished run", "exists already", "holds a run already", "finished", "is there already")


@dataclass
class Tally:
    """Points tried, those at which it died, disc states that differed, and what was wrong."""

    points: int = 0
    killed: int = 0
    states: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        return [f"{what}: {'; '.join(lines)}" for what, lines in self.found.items()]

    def add(self, what: str, lines: list[str]) -> None:
        if lines:
            self.found.setdefault(what, []).extend(lines)


class Trial:
    """One case in a folder of its own: `prepared` before it, `finished` after it."""

    def __init__(self, name: str, case: Case, place: Path) -> None:
        self.name, self.case, self.place = name, case, place
        self.disk = place / "disk"
        self.root = self.disk / "root"  # where the command runs, every time
        self.prepared, self.finished = place / "prepared", place / "finished"
        self._ends: dict[str, list[str]] = {}

    def prepare(self) -> None:
        """Inputs, what ran before, and the undisturbed run, whose points are counted."""
        self.root.mkdir(parents=True)
        make_inputs(self.root)
        for command in self.case.before:
            ended = self.run(command)
            assert ended.code == 0, (command, ended.said)
        judge.copy(self.root, self.prepared)
        ended = self.run()
        assert ended.code == 0, (self.case.command, ended.said)
        self.points, self.seconds = ended.points, ended.seconds
        judge.copy(self.root, self.finished)

    def run(self, command: list[str] | None = None, **fault: Any) -> Ended:
        """The command, or another one, in `root` as it is."""
        said = self.place / "said.txt"
        finished = self.finished if self.finished.exists() else None
        given = command or self.case.command
        return children.run(given, self.root, said, finished=finished, **fault)

    @cached_property
    def wanted(self) -> dict[str, Any]:
        return judge.state(self.finished)

    @cached_property
    def before(self) -> dict[str, Any]:
        return judge.state(self.prepared)

    def wrong_alone(self) -> list[str]:
        """What differs where nothing happens at all: a second undisturbed run."""
        judge.copy(self.prepared, self.root)
        ended = self.run()
        if ended.code:
            return [f"exit {ended.code}: {ended.said}"]
        return judge.differences(judge.state(self.root), self.wanted)

    def kills(self, points: Iterable[int]) -> Tally:
        """Killed at each of these points (1 is the first), then run again."""
        tally = Tally()
        for at in points:
            judge.copy(self.prepared, self.root)
            tally.killed += self.run(at=at).code == -signal.SIGKILL
            tally.points += 1
            self.afterwards(f"{self.name}, killed at {at}, {self._where(at)}", tally)
        return tally

    def signals(self, number: int, fractions: Iterable[float]) -> Tally:
        """A signal after such parts of the time that the command takes, then run again."""
        tally = Tally()
        for fraction in fractions:
            judge.copy(self.prepared, self.root)
            after = number, fraction * self.seconds
            self.run(after=after)
            tally.points += 1
            self.afterwards(f"{self.name}, signal {number} at {fraction:.2f}", tally)
        return tally

    def full(self, points: Iterable[int]) -> Tally:
        """The disk full from each of these points on, then run again with room."""
        tally = Tally()
        for at in points:
            judge.copy(self.prepared, self.root)
            ended = self.run(at=at, kind="full")
            tally.points += 1
            self.refused(f"{self.name}, full at {at}, {self._where(at)}", ended, tally)
            self.afterwards(f"{self.name}, full at {at}, {self._where(at)}", tally)
        return tally

    def _where(self, at: int) -> str:
        return self.points[at - 1] if at <= len(self.points) else "the end"

    def refused(self, what: str, ended: Ended, tally: Tally) -> None:
        """A full disk is one line and exit code 2, or it was not needed at all."""
        if ended.code == 0:
            lines = judge.differences(judge.state(self.root), self.wanted)
        else:
            once = len(ended.complaints) == 1 and "Traceback" not in ended.said
            right = once and ended.code in (1, 2)
            lines = [] if right else [f"exit {ended.code}: {ended.said[-900:].strip()}"]
            lines += [f"a draft is left: {name}" for name in judge.drafts(self.root)]
        tally.add(what, lines)

    def afterwards(self, what: str, tally: Tally) -> None:
        """What is wrong with the disc as it is, and after the same command once more."""
        digest = judge.digest(self.root)
        if digest not in self._ends:
            tally.states += 1
            self._ends[digest] = [*self._between(), *self._once_more()]
        tally.add(what, self._ends[digest])

    def _between(self) -> list[str]:
        """What was there before is there, the old or the new; a run that was done is a done one."""
        found = judge.state(self.root)
        kept = [name for name in self.before.keys() & self.wanted.keys() if name[-1] != "/"]
        lines = judge.unreadable(self.root)
        for name in sorted(kept):
            if Path(name).name == judge.MANIFEST:
                if "done" in _status(self.before[name]) and "done" not in _status(found.get(name)):
                    lines.append(f"lost meanwhile: the finished run {Path(name).parent}")
            elif found.get(name) not in (self.before[name], self.wanted[name]):
                lines.append(f"lost meanwhile: {name}")
        return lines

    def _once_more(self) -> list[str]:
        ended = self.run()
        lines = [f"after it {line}" for line in
                 judge.differences(judge.state(self.root), self.wanted)]  # fmt: skip
        refused = any(word in ended.said for word in HELD) and "Traceback" not in ended.said
        if ended.code and (lines or not refused):
            lines.insert(0, f"the same command ends with {ended.code}: {ended.said[-600:].strip()}")
        return lines


def _status(manifest: Any) -> str:
    return str(manifest.get("status")) if isinstance(manifest, dict) else ""
