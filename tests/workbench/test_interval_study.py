"""Intervals hold as often as they say; the short form of `python -m workbench.interval_study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench
from workbench.interval_study import __main__ as command
from workbench.interval_study import measure
from workbench.interval_study.measure import bounds, coverage, flags, functions, joint, lists
from workbench.interval_study.report import TABLES

DOCS = Path(workbench.__file__).parents[1] / "docs"
CALM = ("normal", "uneven", "clustered")


@pytest.mark.parametrize("documents", [5, 10, 20, 40])
def test_own_intervals_cover_what_they_say(documents: int) -> None:
    """Of 2,500 in each setting; the bootstrap covered 84 to 93% of normal documents."""
    for setting in CALM:
        found = coverage(setting, documents, 25)
        assert found["held_lower"] < 0.97 and found["held_upper"] > 0.93, found
        assert 0.93 <= found["held"] <= 0.98, found
    found = coverage("skewed", documents, 25)
    assert found["held_upper"] > 0.88 and found["warned"] >= 0.95, found


@pytest.mark.parametrize("setting", CALM)
def test_all_intervals_hold_together(setting: str) -> None:
    """At 93% fewer than 65 of 75 come once in 75 times; own intervals: half of them."""
    for documents in (5, 20):
        found = joint(setting, documents, 48, 75)
        assert found["held"] >= 65 / 75 and found["own"] < 0.8, found


def test_what_did_not_change_is_seldom_flagged() -> None:
    for setting in ("clustered", "heavy"):
        found = flags(setting, "none", 10, 150)
        assert found["any"] <= 0.09 and found["unadjusted"] > 0.8, found
        some = flags(setting, "few", 20, 100)
        assert some["fdr"] <= 0.07 and some["found"] > 0.2, some


def test_the_most_amplified_are_as_amplified_as_said() -> None:
    found = lists("all", 10, 80)
    assert found["plain"] > 1.25 * found["plain_true"]
    assert abs(found["shrunk"] / found["shrunk_true"] - 1) < 0.15


def test_functions_of_many_means_are_covered() -> None:
    for name in ("share", "change of share", "rise of Gini"):
        found = functions(name, 10, 60)
        assert found["held"] >= 0.88, found


def test_a_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    calls: list[str] = []

    def counted(kind: str) -> Any:
        calls.append(kind)
        return {"kind": "functions", "function": kind, "documents": 5, "held": 0.5}

    monkeypatch.setattr(
        command, "plan", lambda _: {kind: (lambda k=kind: counted(k)) for kind in ("a", "b")}
    )
    markers = [f"<!-- results:{name} -->\n<!-- /results -->" for name in TABLES]
    (tmp_path / "statistics.md").write_text("\n".join(markers))
    assert command.main(["--tables", "3", "--docs", str(tmp_path)]) == 0
    assert command.main(["--tables", "3", "--docs", str(tmp_path)]) == 0
    assert calls == ["a", "b"]
    assert "| a | 50.0% |" in (tmp_path / "statistics.md").read_text()
    assert command.main(["--tables", "4", "--docs", str(tmp_path)]) == 0
    assert calls == ["a", "b", "a", "b"]
    (tmp_path / "statistics.json").write_text("{}")
    assert command.main(["--tables", "4", "--docs", str(tmp_path)]) == 2
    assert command.main(["--tables", "0"]) == 2
    assert "no file of this study" in capsys.readouterr().err


def test_bounds_are_clopper_and_pearsons() -> None:
    assert bounds(0, 59)[1] == pytest.approx(0.05, abs=1e-3)  # the rule of three
    assert bounds(59, 59)[0] == pytest.approx(0.95, abs=1e-3)
    assert bounds(0, 9)[0] == 0 and bounds(9, 9)[1] == 1


def kept() -> list[dict[str, Any]]:
    return list(json.loads((DOCS / "statistics.json").read_text())["settings"].values())


def test_the_docs_tables_are_those_of_the_numbers_kept() -> None:
    page, rows = (DOCS / "statistics.md").read_text(encoding="utf-8"), kept()
    for name, table in TABLES.items():
        assert table([row for row in rows if row["kind"] == name]) in page
    assert len(measure.plan(1)) == len(rows)


def test_the_numbers_kept_hold_what_is_promised() -> None:
    few = [row for row in kept() if row["documents"] >= 5]
    for row in few:
        if row["kind"] == "coverage" and row["setting"] in CALM:
            assert 0.93 <= row["held"] <= 0.97, row
        if row["kind"] == "coverage" and row["setting"] in ("skewed", "skewed, uneven"):
            assert row["held"] >= 0.88 and row["warned"] >= 0.95, row
        if row["kind"] == "joint" and row["setting"] in CALM:
            assert row["held"] >= 0.93, row
        if row["kind"] == "flags":
            assert row["fdr"] <= 0.05 or row["fdr_upper"] <= 0.06, row


@pytest.mark.verify
@pytest.mark.parametrize("documents", [5, 10, 20, 40])
@pytest.mark.parametrize("setting", CALM)
def test_coverage_and_joint_coverage_at_length(setting: str, documents: int) -> None:
    found = coverage(setting, documents, 100)
    assert found["held_lower"] >= 0.93 and found["held_upper"] <= 0.975, found
    together = joint(setting, documents, 48, 400)
    assert together["held"] >= 0.93 and together["held_upper"] >= 0.95, together
