"""A command, all that can happen to it, and what is found afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.crash import children, judge
from tests.crash.cases import Case, make_inputs

HELD = ("finished run", "exists already", "holds a run already", "finished", "is there already")


@dataclass
class Tally:
    """Points tried, disc states that differed, and what was wrong, a line each."""

    points: int = 0
    states: int = 0
    faults: list[str] = field(default_factory=list)


class Trial:
    """One case in a folder of its own: `prepared` before it, `finished` after it."""

    def __init__(self, name: str, case: Case, place: Path) -> None:
        self.name, self.case = name, case
        self.root = place / "root"  # where the command runs, every time
        self.prepared, self.finished = place / "prepared", place / "finished"
        self._ends: dict[str, list[str]] = {}

    def prepare(self) -> None:
        """Inputs, what ran before, and the undisturbed run, whose points are counted."""
        self.root.mkdir(parents=True)
        make_inputs(self.root)
        for command in self.case.before:
            ended = children.run(command, self.root)
            assert ended.code == 0, (command, ended.said)
        judge.copy(self.root, self.prepared)
        ended = children.run(self.case.command, self.root)
        assert ended.code == 0, (self.case.command, ended.said)
        self.points, self.seconds = ended.points, ended.seconds
        judge.copy(self.root, self.finished)

    @cached_property
    def wanted(self) -> dict[str, Any]:
        return judge.state(self.finished)

    @cached_property
    def before(self) -> dict[str, Any]:
        return judge.state(self.prepared)

    def wrong_alone(self) -> list[str]:
        """What differs where nothing happens at all: a second undisturbed run."""
        judge.copy(self.prepared, self.root)
        ended = children.run(self.case.command, self.root)
        if ended.code:
            return [f"exit {ended.code}: {ended.said}"]
        return judge.differences(judge.state(self.root), self.wanted)

    def kills(self, points: Iterable[int]) -> Tally:
        """Killed at each of these points (1 is the first), then run again."""
        tally = Tally()
        for at in points:
            judge.copy(self.prepared, self.root)
            children.run(self.case.command, self.root, at=at, finished=self.finished)
            where = self.points[at - 1] if at <= len(self.points) else "the end"
            tally.points += 1
            self._afterwards(f"{self.name}, killed at {at}, {where}", tally)
        return tally

    def signals(self, number: int, fractions: Iterable[float]) -> Tally:
        """A signal after such parts of the time that the command takes, then run again."""
        tally = Tally()
        for fraction in fractions:
            judge.copy(self.prepared, self.root)
            after = number, fraction * self.seconds
            children.run(self.case.command, self.root, after=after)
            tally.points += 1
            self._afterwards(f"{self.name}, signal {number} at {fraction:.2f}", tally)
        return tally

    def _afterwards(self, what: str, tally: Tally) -> None:
        """What is wrong with the disc as it is, and after the same command once more."""
        digest = judge.digest(self.root)
        if digest not in self._ends:
            tally.states += 1
            self._ends[digest] = [*self._between(), *self._once_more()]
        tally.faults += [f"{what}: {line}" for line in self._ends[digest]]

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
        ended = children.run(self.case.command, self.root)
        lines = [f"after it {line}" for line in
                 judge.differences(judge.state(self.root), self.wanted)]  # fmt: skip
        refused = any(word in ended.said for word in HELD) and "Traceback" not in ended.said
        if ended.code and (lines or not refused):
            lines.insert(0, f"the same command ends with {ended.code}: {ended.said[-600:].strip()}")
        return lines


def _status(manifest: Any) -> str:
    return str(manifest.get("status")) if isinstance(manifest, dict) else ""
