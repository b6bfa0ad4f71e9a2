"""The benchmark's figure says what its rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.benchmark_figure import benchmark_ratios
from kernels.errors import DataError


def test_lines_are_the_rows(tmp_path: Path) -> None:
    rows = [
        {
            "op": "headwise_memory", "direction": "forward", "dtype": dtype, "tokens": tokens,
            "shape": "tiny", "x_ffn": ratio, "x_ffn_min": ratio / 2, "x_ffn_max": ratio * 2,
        }
        for dtype, tokens, ratio in (
            ("float32", 1, 0.1), ("float32", 16, 0.2), ("bfloat16", 1, 0.3),
        )
    ]  # fmt: skip
    machine = {"device": "a machine", "threads": 2, "torch": "2.13"}
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({"rows": rows, "machine": machine}))
    figure = benchmark_ratios(path)
    assert figure is not None and "a machine" in figure.caption
    drawn = [
        line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"
    ]
    assert drawn == [[[1, 0.1], [16, 0.2]], [[1, 0.3]]]
    path.write_text(json.dumps({"rows": [], "machine": machine}))
    assert benchmark_ratios(path) is None


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="is no benchmark.json"):
        benchmark_ratios(path)
