"""The page on amplification says what the shipped study's tables say."""

from __future__ import annotations

from pathlib import Path

from workbench.make_study import PAGE, STUDY_DIR
from workbench.runs import RunFolder
from workbench.study_page import page


def test_the_page_is_that_of_the_shipped_study() -> None:
    run = RunFolder.open(STUDY_DIR)
    text = page(run)
    assert text.strip() in PAGE.read_text(encoding="utf-8")
    row = run.load_table("contrast").iloc[0]
    assert f"{row['difference']:+.4f} ({row['ci_low']:+.4f} to {row['ci_high']:+.4f})" in text


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "study")
    assert page(run) == "\n"
