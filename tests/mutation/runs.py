"""Trials of a module's mutants, several side by side, every verdict kept as it comes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation import trials
from tests.mutation.faults import planted
from tests.mutation.mutants import Mutant, read, sample, statement_lines

UNSEEN = "no test runs it"
SCHEMA = 1  # of what is kept; another one when trials change


@dataclass
class Module:
    """Verdicts on a module's mutants: "caught" or "survived" and by what."""

    file: str
    sites: int = 0
    sampled: list[tuple[Mutant, str, str]] = field(default_factory=list)
    by_hand: list[tuple[Mutant, str, str]] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """Tries mutants in forks of this process; `work` keeps the verdicts.

    A verdict holds as long as the module and what gave it are the same: the file of the test that
    caught the mutant, or all the tests that let it live.
    """

    def __init__(self, root: Path, work: Path, jobs: int = 1) -> None:
        self.root, self.kept, self.jobs = root, work / "verdicts.jsonl", jobs
        work.mkdir(parents=True, exist_ok=True)
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        if self.kept.exists():
            for text in self.kept.read_text(encoding="utf-8").splitlines():
                if text.endswith("}"):  # a line may have been cut
                    entry = json.loads(text)
                    self.known[entry["module"], entry["mutant"]] = entry

    def module(self, file: str, tests: Sequence[str], size: int) -> Module:
        """Verdicts on a sample of so many of a module's mutants, and on its faults by hand."""
        start = time.monotonic()
        source = read(self.root, file)
        drawn, sites = sample(file, source, size)
        by_hand = planted(self.root, file)
        todo = [one for one in [*drawn, *by_hand] if self._verdict(one, source, tests) is None]
        if todo:
            self._try(todo, file, source, tests)

        def judged(group: list[Mutant]) -> list[tuple[Mutant, str, str]]:
            verdicts = (self._verdict(one, source, tests) or ("", "") for one in group)
            return [(one, how, by) for one, (how, by) in zip(group, verdicts, strict=True)]

        seconds = time.monotonic() - start
        return Module(file, sites, judged(drawn), judged(by_hand), seconds)

    def _verdict(self, mutant: Mutant, source: str, tests: Sequence[str]) -> tuple[str, str] | None:
        entry = self.known.get((_hash(source), mutant.key))
        if entry is None or entry["tests"] != self._tests(entry["by"], tests):
            return None
        return entry["verdict"], entry["by"]

    def _tests(self, by: str, tests: Sequence[str]) -> str:
        """Hash of what a verdict rests on."""
        files = [by.split("::")[0]] if "::" in by else tests
        if not set(files) <= set(tests):
            return ""
        return _hash(json.dumps([SCHEMA, [(name, read(self.root, name)) for name in files]]))

    def _try(self, todo: list[Mutant], file: str, source: str, tests: Sequence[str]) -> None:
        base = trials.baseline(self.root, file, tests)
        trials.load_libraries(base.libraries)
        waiting, running = list(reversed(todo)), []
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    one = waiting.pop()
                    chosen = base.tests_of(statement_lines(source, one.line))
                    if chosen:
                        child = trials.trial(self.root, file, one.source, chosen, base)
                        running.append((one, child))
                    else:
                        self._keep(source, tests, one, "survived", UNSEEN)
                for pair in list(running):
                    if (ended := pair[1].ended()) is not None:
                        running.remove(pair)
                        self._keep(source, tests, pair[0], *trials.verdict(*ended))
                time.sleep(0.1)
        finally:
            for _, child in running:
                child.stop()

    def _keep(self, source: str, tests: Sequence[str], mutant: Mutant, how: str, by: str) -> None:
        entry = {
            "module": _hash(source),
            "tests": self._tests(by, tests),
            "mutant": mutant.key,
            "verdict": how,
            "by": by,
        }
        self.known[entry["module"], mutant.key] = entry
        with self.kept.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
