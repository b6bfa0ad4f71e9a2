"""The harness on a small module, whose tests notice one fault and miss another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.mutation import report
from tests.mutation.faults import FAULTS, planted
from tests.mutation.modules import MODULES
from tests.mutation.mutants import Mutant, mutants, sample, sites, statement_lines
from tests.mutation.runs import Module

ROOT = Path(__file__).resolve().parents[2]
SMALL = '''"""One place is tested, one is not, one never runs, one hangs."""


def total(a: int | None, b: int) -> int:
    return a + b


def larger(a: int, b: int) -> int:
    while a < 0:
        a += 1
    return a if a > b else b


def never(a: int) -> int:
    return a - 1
'''
TESTS = """import small


def test_total():
    assert small.total(2, 3) == 5


def test_larger():
    assert small.larger(2, 1) == 2
"""
SCRIPT = """
import json, sys
from pathlib import Path
from tests.mutation import report, trials
from tests.mutation.runs import Run

trials.SLACK_SECONDS = 2
module = Run(Path.cwd(), Path("work")).module("small.py", ["test_small.py"], 99)
print(json.dumps([[one.text, one.changed, how, by] for one, how, by in module.sampled]))
"""


def of(source: str) -> set[tuple[str, str]]:
    every = [mutants("small.py", source, site) for site in sites("small.py", source)]
    return {(one.text, one.changed) for found in every for one in found}


def test_mutants_change_what_a_file_does() -> None:
    found = of(SMALL)
    assert ("return a + b", "return a - b") in found
    assert ("return a if a > b else b", "return a if a >= b else b") in found
    assert not [pair for pair in found if "def " in pair[0]], "an annotation does nothing"
    assert not [pair for pair in found if "return a | b" in pair], "raises on every float"


def test_a_sample_stays_when_other_lines_change() -> None:
    before, count = sample("small.py", SMALL, 4)
    after, more = sample(
        "small.py", SMALL.replace("One place", "This place") + "\n\nLEAST = -SMALL\n", 99
    )
    assert len(before) == 4 < count < more
    assert {one.key for one in before} < {one.key for one in after}


def test_the_lines_of_a_statement() -> None:
    source = "@one\ndef f(\n    a,\n):\n    if a:\n        g(\n            a\n        )\n"
    assert [statement_lines(source, line) for line in (2, 5, 7)] == [
        {1, 2, 3, 4}, {5}, {6, 7, 8}
    ]  # fmt: skip


def test_what_the_tests_of_a_small_module_notice(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    (tmp_path / "test_small.py").write_text(TESTS, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}

    def run() -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.splitlines()[-1])

    found = {(text, changed): (how, by) for text, changed, how, by in run()}
    by_text = {text: verdict for (text, _), verdict in found.items()}
    assert by_text["return a + b"] == ("caught", "test_small.py::test_total")
    assert by_text["return a - 1"] == ("survived", "no test runs it")
    assert found["while a < 0:", "while not a < 0:"] == ("caught", "signal 24"), "it hangs"
    kept = (tmp_path / "work" / "verdicts.jsonl").read_text(encoding="utf-8")
    assert len(kept.splitlines()) == len(found)
    (tmp_path / "work" / "verdicts.jsonl").write_text(kept + '{"mut', encoding="utf-8")
    assert {(a, b): (how, by) for a, b, how, by in run()} == found
    assert (tmp_path / "small.py").read_text(encoding="utf-8") == SMALL


def verdicts(caught: int, survived: int) -> Module:
    file = "analysis/race.py"
    how = ["caught"] * caught + ["survived"] * survived
    tried = [Mutant(file, n, "Add", f"a + {n}", f"a - {n}", "") for n in range(len(how))]
    return Module(file, 99, [(one, said, "") for one, said in zip(tried, how, strict=True)])


def test_the_report_explains_survivors_and_says_what_fits_none() -> None:
    entry = {"file": "analysis/race.py", "operator": "Add", "text": "a + 18", "changed": "a - 18"}
    other = entry | {"text": "gone", "why": "no more"}
    found = report.result([verdicts(18, 2)], [entry | {"why": "the same"}, other])
    row = found["modules"]["analysis/race.py"]
    assert (row["tried"], row["caught"], row["score"]) == (20, 18, 0.9)
    assert (row["low"], row["high"]) == (0.683, 0.988)  # Clopper and Pearson, from tables
    assert [one["why"] for one in row["survivors"]] == ["the same", None]
    assert found["explanations_without_survivor"] == [report.key_of(other)]
    assert not report.failures(found)
    assert "less than 85%" in report.failures(report.result([verdicts(16, 4)], []))[0]


def test_every_module_and_fault_is_there() -> None:
    for file, tests in MODULES.items():
        assert (ROOT / file).is_file() and all((ROOT / test).is_file() for test in tests)
        planted(ROOT, file)
    assert {fault[0] for fault in FAULTS} <= set(MODULES)
    for entry in report.explanations():
        assert entry["file"] in MODULES and entry["why"]
