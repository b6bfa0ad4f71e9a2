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
    assert "No contrast with matched heads can be had" in text and "heads 5.0, 5.1, 5.4, so" in text
    slopes = run.load_table("role_slopes").query("measure == 'score'").set_index("role")
    row = slopes.loc["previous_token"]
    low, high = row["ci_low_all"], row["ci_high_all"]
    assert f"{row['slope']:+.4f} ({low:+.4f} to {high:+.4f})" in text
    assert f"{row['p_adjusted']:.3f}" in text and "left out: its VIF is above 10" in text


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "study")
    assert page(run) == "\n"
