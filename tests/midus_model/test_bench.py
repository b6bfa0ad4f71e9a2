"""The benchmark: right before fast, runs bare, and its floors and peaks are what they say."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from midus_model.bench import __main__ as command
from midus_model.bench import floors, report, rows, verify
from midus_model.bench.shapes import SHAPES, Inputs, Shape, slots_of
from midus_model.bench.timing import Resident, Times, peak_bytes, ratios

ROOT = Path(__file__).parents[2]
BARE = """
import sys
for name in ("typer", "rich", "pandas", "plotly", "streamlit", "transformer_lens", "nnsight"):
    sys.modules[name] = None
from midus_model.bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_runs_without_the_workbenchs_other_packages(tmp_path: Path) -> None:
    out = str(tmp_path / "found")
    arguments = ["--shape", "tiny", "--tokens", "5", "--full", "--quick", "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "verified against float64" in done.stdout
    result = json.loads((tmp_path / "found" / "benchmark.json").read_text())
    found = result["rows"]
    assert result["complete"] and not result["skipped"]
    assert {row["op"] for row in found} == set(command.OPS)
    assert {row["dtype"] for row in found} == {"float32", "bfloat16"}
    assert {row["direction"] for row in found} == {"forward", "forward+backward", "decode"}
    directions = {row["direction"] for row in found if row["op"] == "block"}
    assert directions == {"forward", "forward+backward", "decode"}
    for row in found:
        numbers = [value for value in row.values() if not isinstance(value, str)]
        assert all(math.isfinite(value) for value in numbers)
        assert row["ms"] > 0 and row["floor_ms"] > 0 and row["peak_mb"] >= 0
        peers = [
            name for name in row if name.startswith("x_") and not name.endswith(("min", "max"))
        ]
        assert peers
        for peer in peers:
            assert row[f"{peer}_min"] <= row[peer] <= row[f"{peer}_max"]
    assert result["copy_gb_per_s"] > 0 and result["machine"]["torch"] is not None
    with open(tmp_path / "found" / "benchmark.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found)


def test_a_wrong_op_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = verify.headwise_memory
    monkeypatch.setattr(
        verify, "headwise_memory", lambda *given, **more: 1.001 * right(*given, **more)
    )
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


def test_slots_are_checked() -> None:
    row, col = torch.zeros(1, 1, 3).double(), torch.tensor([[[3.0, 2.0, 1.0]]]).double()
    verify._check_slots(row, col, torch.tensor([[[0, 3]]]))  # a tie, any of its slots will do
    with pytest.raises(verify.WrongResult, match="twice"):
        verify._check_slots(row, col, torch.tensor([[[0, 0]]]))
    with pytest.raises(verify.WrongResult, match="do not exist"):
        verify._check_slots(row, col, torch.tensor([[[0, 9]]]))
    with pytest.raises(verify.WrongResult, match="nan"):
        verify._check_slots(row * torch.nan, col, torch.tensor([[[0, 3]]]))


@pytest.mark.parametrize("mode", ["sorted", "atomic"])
def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    right = verify.latent_bag

    def worse(bank: torch.Tensor, *given: Any, bank_grad: str = "sorted") -> torch.Tensor:
        if bank_grad == mode:
            bank = 2 * bank - bank.detach()  # the same values, twice the gradient
        return right(bank, *given, bank_grad=bank_grad)

    monkeypatch.setattr(verify, "latent_bag", worse)
    with pytest.raises(verify.WrongResult, match=f"{mode}: gradient of bank"):
        verify.verify(SHAPES["tiny"], torch.float32, "cpu")


def test_a_run_cut_short_leaves_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = [None, torch.OutOfMemoryError("full"), KeyboardInterrupt()]

    def once(*given: Any) -> dict[str, Any]:
        error = left.pop(0)
        if error is not None:
            raise error
        return rows.measured(*given)

    monkeypatch.setattr(command, "measured", once)
    arguments = ["--shape", "tiny", "--quick", "--only", "select", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert not result["complete"] and len(result["rows"]) == 1
    assert {row["op"] for row in result["rows"]} == {"product_key_select"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "tpu"], "--device"),
        (["--shape", "gpt-2"], "--shape"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--dtype", "int8"], "--dtype"),
        (["--only", "ffn"], "--only is ffn"),
        (["--markdown", "no such page.md"], "--markdown: no such page.md"),
        (["--markdown", __file__], "has no markers"),
        (["--out", __file__], "--out"),
    ],
)
def test_bad_arguments_end_with_code_2(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
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


def test_backward_floors_by_hand() -> None:
    """A block of 3 tokens: what its attention moves once more, and the layer's own."""
    weights, stream = 6 * (2 + 2) * 4 * 4, 3 * (6 + 8) * 4
    forward, both = (floors.attention(SMALL, 1, 3, 0, 4, back) for back in (False, True))
    assert forward.bytes == weights + 2 * 3 * 4 * 4 + stream
    assert forward.flops == 2 * 3 * 6 * 16 + 4 * 6 * 8  # 6 pairs of a causal window of 3
    assert both.bytes - forward.bytes == 2 * weights + stream + 3 * 6 * 4
    assert both.flops == 3 * forward.flops
    layer = floors.memory(SMALL, 3, 4, 7, True)
    assert floors.block(SMALL, 1, 3, 0, 4, 7, True) == both + layer


def test_break_even_in_flops_is_where_they_cross() -> None:
    shape = SHAPES["llama-3.1-8b"]
    context = floors.break_even_flops(shape)
    ffn = floors.feed_forward(shape, 1, 2).flops
    at = [floors.block(shape, 1, 1, c - 1, 2, 1).flops for c in (context, context + 1)]
    assert at[0] < ffn <= at[1]


def test_a_large_bank_counts_every_read() -> None:
    (forward, *backward) = rows.large_bank_cases("cpu", num_keys=32, sizes=(2,))
    machine = rows.Machine("cpu", 1e9, {torch.bfloat16: 1e9}, seconds=0.02)
    row = rows.measured(forward, machine)
    assert row["slots"] == "uniform of 1,024, r = 512" and row["dtype"] == "bfloat16"
    assert row["gathered_bytes"] == 2 * 32 * 32 * 512 * 2
    assert row["gathered_gb_per_s"] == pytest.approx(row["gathered_bytes"] / (1e6 * row["ms"]))
    assert row["x_gather"] > 0 and row["x_embedding_bag"] > 0
    assert [case.labels["bank_grad"] for case in backward] == ["sorted", "atomic"]


def test_gradients_of_an_earlier_run_do_not_lower_the_peak() -> None:
    leaf = torch.ones(2**20)
    both = rows._directions(lambda: 2 * leaf, [leaf])["forward+backward"]
    both()
    assert leaf.grad is None
    assert peak_bytes(both, "cpu") >= 2 * 2**22  # the output and the gradient


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters")
def test_what_another_thread_held_counts() -> None:
    grown = Resident()
    thread = threading.Thread(target=lambda: torch.ones(2**24).sum())
    thread.start()
    thread.join()
    most = grown.most()
    assert most is not None and abs(most - 2**26) < 2**24
    later = Resident().most()
    assert later is not None and later < 2**24, "what was given back does not count"


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
