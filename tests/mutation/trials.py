"""Tests run on a mutant, in a fork of a process that has every library loaded but none of our code.

A child reads the mutated source in place of the file, which nobody writes to; what its tests start
as other processes sees the code as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLACK_SECONDS, TIMES = 20, 5  # of processor time that a mutant's tests may take, beside their own
WAIT = 15  # times that limit may pass on the clock


@dataclass
class Baseline:
    """How a module's tests run on the code as it is.

    seconds: by test, of processor time; lines: by line of the module, the tests that ran it ("" of
    what ran when the module was imported); libraries: modules loaded that are not ours.
    """

    seconds: dict[str, float]
    lines: dict[int, list[str]]
    libraries: list[str]

    def tests_of(self, lines: set[int]) -> list[str]:
        """Tests that ran one of these lines, the quickest first; all where the import did."""
        found = {test for line in lines for test in self.lines.get(line, [])}
        chosen = set(self.seconds) if "" in found else found & set(self.seconds)
        return sorted(chosen, key=lambda test: self.seconds[test])


class Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Gives one module another source."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self.path,
            loader=self,
            submodule_search_locations=(
                [os.path.dirname(self.path)] if self.path.endswith("__init__.py") else None
            ),
        )

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Chosen:
    """A plugin of pytest: only these tests, in this order, each one's processor time kept."""

    def __init__(self, tests: Sequence[str] | None = None, coverage: Any = None) -> None:
        self.place = None if tests is None else {test: i for i, test in enumerate(tests)}
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_configure(self) -> None:
        import hypothesis

        hypothesis.settings.register_profile(
            "mutation", hypothesis.settings.default, phases=list(hypothesis.Phase)[:3]
        )  # a failure is all that is asked, not the smallest
        hypothesis.settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if (place := self.place) is not None:
            items[:] = sorted(
                (item for item in items if item.nodeid in place), key=lambda x: place[x.nodeid]
            )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.started = time.process_time()
        if self.coverage:
            self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = 0.0
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self.seconds:
            self.seconds[nodeid] = time.process_time() - self.started
        if self.coverage:
            self.coverage.switch_context("after")


def pytest_in(root: Path, files: Sequence[str], plugin: Chosen) -> int:
    """Run the tests of these files in this process, until one fails."""
    import pytest

    os.chdir(root)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half a second a trial, and none is needed
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


@dataclass
class Child:
    """A fork that is at work; `folder` holds what it says and its temporary files."""

    pid: int
    folder: Path
    seconds: float  # it may yet take, as far as this process was awake to see them
    seen: float

    def ended(self) -> tuple[int, dict[str, Any]] | None:
        """Its exit code, negative where a signal ended it, and what it reported; None before."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        now = time.monotonic()
        self.seconds -= min(now - self.seen, 1.0)
        self.seen = now
        if not pid and self.seconds > 0:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started too
        if not pid:
            _, status = os.waitpid(self.pid, 0)
        report: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        report["said"] = ""
        with contextlib.suppress(OSError):
            report["said"] = (self.folder / "said.txt").read_text(errors="replace")[-3000:]
        shutil.rmtree(self.folder, ignore_errors=True)
        return os.waitstatus_to_exitcode(status), report

    def stop(self) -> None:
        """End it and what it started."""
        self.seconds = 0.0
        self.ended()


def forked(work: Any, seconds: float) -> Child:
    """`work()` in a fork, whose return value, a dict with the exit code as "code", is reported."""
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder, WAIT * seconds, time.monotonic())
    try:  # never leaves this block but by _exit
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        limit = max(1, round(seconds))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        report = work()
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        sys.stdout.flush()
        os._exit(report["code"])
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)


def waited(child: Child) -> tuple[int, dict[str, Any]]:
    """`Child.ended`, once it has."""
    try:
        while (found := child.ended()) is None:
            time.sleep(0.1)
    except BaseException:
        child.stop()
        raise
    return found


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def baseline(root: Path, file: str, tests: Sequence[str], seconds: float = 900) -> Baseline:
    """Run a module's tests on the code as it is. Raises RuntimeError where one fails."""

    def work() -> dict[str, Any]:
        import coverage

        path = str(root / file)
        cover = coverage.Coverage(data_file=None, include=[path], config_file=False)
        plugin = Chosen(coverage=cover)
        cover.start()
        code = pytest_in(root, tests, plugin)
        cover.stop()
        lines = cover.get_data().contexts_by_lineno(path)
        named = {"after": ""}
        return {
            "code": code,
            "seconds": plugin.seconds,
            "lines": {line: sorted({named.get(c, c) for c in by}) for line, by in lines.items()},
            "libraries": sorted(name for name in sys.modules if not _ours(root, name)),
        }

    code, report = waited(forked(work, seconds))
    if code or not report.get("seconds"):
        raise RuntimeError(f"the tests of {file} end with {code} as it is:\n{report['said']}")
    lines = {int(line): by for line, by in report["lines"].items()}
    return Baseline(report["seconds"], lines, report["libraries"])


def _ours(root: Path, name: str) -> bool:
    """Whether a module lies in the repository, or comes with Python."""
    top = name.split(".")[0]
    here = (root / top).exists() or (root / f"{top}.py").exists()
    return here or top == "conftest" or top in sys.stdlib_module_names


def load_libraries(names: Sequence[str]) -> None:
    """Import, before any fork, what tests import that is not ours."""
    for name in names:
        if name in sys.modules or name.split(".")[0].startswith("_"):
            continue
        with contextlib.suppress(Exception), _quiet():
            importlib.import_module(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trial(root: Path, file: str, source: str, tests: Sequence[str], base: Baseline) -> Child:
    """Start these tests on a mutant of `file`, whose source is given."""
    own = sum(base.seconds[test] for test in tests)

    def work() -> dict[str, Any]:
        sys.dont_write_bytecode = True
        sys.meta_path.insert(0, Mutated(module_name(file), str(root / file), source))
        plugin = Chosen(tests)
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        return {"code": pytest_in(root, files, plugin), "by": plugin.failed}

    return forked(work, SLACK_SECONDS + TIMES * own)


def verdict(code: int, report: dict[str, Any]) -> tuple[str, str]:
    """("survived" or "caught", by what). Raises RuntimeError where no test ran."""
    if code == 0:
        return "survived", ""
    if code in (4, 5, 70):
        raise RuntimeError(f"the tests could not be run (exit {code}):\n{report['said']}")
    return "caught", report.get("by") or (f"signal {-code}" if code < 0 else f"exit {code}")
