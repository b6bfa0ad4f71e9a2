"""`midus bench` passes its options on and draws the figure."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from workbench.cli import app


def test_bench_writes_results_and_figure(tmp_path: Path) -> None:
    out = tmp_path / "found"
    arguments = ["bench", "--quick", "--shape", "tiny", "--tokens", "4", "--dtype", "fp32"]
    done = CliRunner().invoke(app, [*arguments, "--only", "headwise", "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = {path.name for path in out.iterdir()}
    assert names == {f"benchmark.{kind}" for kind in ("json", "csv", "pdf", "svg", "png")}


def test_a_bad_option_ends_with_code_2() -> None:
    done = CliRunner().invoke(app, ["bench", "--tokens", "none"])
    assert done.exit_code == 2


def test_the_head_sweep_has_a_benchmark_of_its_own() -> None:
    done = CliRunner().invoke(app, ["bench", "importance", "--help"])
    assert done.exit_code == 0
    assert "midus bench importance" in done.output and "TransformerLens" in done.output
    assert "--shape" not in done.output  # an option of the kernels' alone


def test_the_device_run_is_passed_on(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "device", "--help"])
    assert done.exit_code == 0
    assert "midus bench device" in done.output and "--deadline" in done.output
    wrong = ["bench", "device", "--deadline", "1", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, wrong).exit_code == 2
