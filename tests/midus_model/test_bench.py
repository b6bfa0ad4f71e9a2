"""The benchmark: right before fast, runs bare, and its floors and peaks are what they say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from midus_model.bench import __main__ as command
from midus_model.bench import floors, report, verify
from midus_model.bench.shapes import SHAPES, Inputs, Shape, slots_of
from midus_model.bench.timing import Times, peak_bytes, ratios

ROOT = Path(__file__).parents[2]
BARE = """
import sys
for name in ("typer", "rich", "pandas", "plotly", "streamlit", "transformer_lens", "nnsight"):
    sys.modules[name] = None
from midus_model.bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_runs_without_the_workbenchs_other_packages(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--tokens", "5", "--full", "--out", str(tmp_path / "found")]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "verified against float64" in done.stdout
    result = json.loads((tmp_path / "found" / "benchmark.json").read_text())
    rows = result["rows"]
    assert {row["op"] for row in rows} == set(command.OPS)
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {row["direction"] for row in rows} == {"forward", "forward+backward", "decode"}
    for row in rows:
        assert row["ms"] > 0 and row["floor_ms"] > 0 and row["peak_mb"] >= 0
        peers = [
            name for name in row if name.startswith("x_") and not name.endswith(("min", "max"))
        ]
        assert peers
        for peer in peers:
            assert row[f"{peer}_min"] <= row[peer] <= row[f"{peer}_max"]
    assert result["copy_gb_per_s"] > 0 and result["machine"]["torch"] is not None
    with open(tmp_path / "found" / "benchmark.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_wrong_op_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = verify.headwise_memory
    monkeypatch.setattr(verify, "headwise_memory", lambda *given: 1.001 * right(*given))
    assert command.main(["--shape", "tiny", "--out", str(tmp_path)]) == 1
    assert "nothing was timed: values" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_selection_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.product_key_select

    def worse(*given: Any) -> Any:
        weights, slots = right(*given)
        return weights, slots.flip(-1) * 0 + slots[..., -1:]

    monkeypatch.setattr(verify, "product_key_select", worse)
    with pytest.raises(verify.WrongResult, match="misses the best scores"):
        verify.verify(SHAPES["tiny"], torch.float32, "cpu")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "tpu"], "--device"),
        (["--shape", "gpt-2"], "--shape"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--threads", "0"], "--threads"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_bad_arguments_end_with_code_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if named == "--threads":
        arguments = ["--threads", "-1"]
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "torch sees no GPU; use --device cpu" in capsys.readouterr().err


SMALL = Shape(
    "small", hidden=6, heads=2, kv_heads=1, head_dim=4, ffn=10, num_keys=3, top_k=2, latent=5
)


def test_floors_by_hand() -> None:
    """3 tokens in fp32: numbers counted on paper."""
    queries, keys, reads = 3 * 2 * 4 * 4, 2 * 3 * 4 * 4, 3 * 2 * 2
    select = floors.select(SMALL, 3, 4)
    assert select == floors.Floor(queries + keys + 12 * reads, 2 * 3 * 2 * 3 * 4)
    assert floors.bag(SMALL, 3, 4, distinct=7, slots=9) == floors.Floor(
        7 * 5 * 4 + 12 * reads + 3 * 2 * 5 * 4, 2 * reads * 5
    )
    backward = floors.bag(SMALL, 3, 4, 7, 9, True).bytes - floors.bag(SMALL, 3, 4, 7, 9).bytes
    assert backward == 3 * 2 * 5 * 4 + 7 * 5 * 4 + 16 * reads + 9 * 5 * 4
    memory = floors.memory(SMALL, 3, 4, distinct=7)
    assert memory.bytes == 2 * queries + keys + 2 * 5 * 4 * 4 + 7 * 5 * 4
    assert memory.flops == 2 * 3 * 2 * (3 * 4 + 2 * 5 + 5 * 4)
    assert floors.feed_forward(SMALL, 3, 4) == floors.Floor(
        3 * 6 * 10 * 4 + 2 * 3 * 6 * 4, 6 * 3 * 6 * 10
    )


def test_layer_flops_equal_what_costs_counts() -> None:
    from analysis.costs import memory_flops
    from midus_model.bench.shapes import blocks_of

    shape = SHAPES["tiny"]
    _, block, _ = blocks_of(shape, torch.float32, "cpu")
    pairs = shape.heads * shape.top_k**2  # which costs counts besides
    assert floors.memory(shape, 1, 4, 1).flops == memory_flops(block.memory) - pairs


def test_break_even_is_where_bytes_cross() -> None:
    shape = SHAPES["llama-3.2-1b"]
    for batch in (1, 16, 128):
        context = floors.break_even(shape, batch)
        distinct = min(shape.slots, batch * shape.heads * shape.top_k)
        ffn = floors.feed_forward(shape, batch, 2).bytes
        at = [floors.block(shape, batch, 1, c, 2, distinct).bytes for c in (context - 1, context)]
        assert at[0] < ffn <= at[1]


def test_peak_counts_what_is_alive_at_once() -> None:
    def three_of_four_megabytes() -> None:
        first = torch.ones(2**20)
        second = first + 1
        third = first + second
        del first, second
        fourth = third + 1
        del fourth

    peak = peak_bytes(three_of_four_megabytes, "cpu")
    assert 3 * 2**22 <= peak < 3 * 2**22 + 2**16


def test_the_layer_takes_less_memory_than_the_ffn() -> None:
    given = Inputs(SHAPES["llama-3.2-1b"], 256, torch.float32, "cpu")
    from kernels import headwise_memory

    with torch.no_grad():
        layer = peak_bytes(lambda: headwise_memory(*given.memory, 32), "cpu")
        ffn = peak_bytes(given.feed_forward, "cpu")
    assert 0 < layer < ffn


def test_ratios_are_made_round_by_round() -> None:
    assert ratios(Times([1, 4, 9]), Times([1, 2, 3])) == (2, 1, 3)


def test_skewed_slots_are_skewed_and_in_range() -> None:
    shape = SHAPES["llama-3.2-1b"]
    uniform, zipf = (slots_of(kind, shape, 64, "cpu") for kind in ("uniform", "zipf"))
    for slots in (uniform, zipf):
        assert slots.min() >= 0 and slots.max() < shape.slots
    assert len(zipf.unique()) < 0.5 * len(uniform.unique())
    share = (zipf == 0).float().mean()
    assert share == pytest.approx(0.0625, abs=0.01)  # log(2) / log(65537)


def test_the_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results:cpu -->\nold\n<!-- /results -->\nb\n")
    report.fill_in(page, "cpu", "| new |")
    text = page.read_text()
    assert "| new |" in text and "old" not in text and text.endswith("<!-- /results -->\nb\n")
    with pytest.raises(ValueError, match="no markers.*results:cuda"):
        report.fill_in(page, "cuda", "x")
