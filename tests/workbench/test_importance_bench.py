"""The benchmark of the head sweep: peers that do what they say, rows that add up, clear errors."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kernels.errors import MidusError
from midus_model.bench.timing import Times
from midus_model.bench.verify import WrongResult
from workbench.cli import app
from workbench.importance_bench import cases, measure, peers, report
from workbench.importance_bench.cases import Case, Model

TINY = Model("tiny", partial(cases.random_model, 32, 48, 64, layers=2, heads=4, kv_heads=2))
SWEEP = Case("sweep", TINY, 2, 12, sample=3)
GRADIENT = Case("gradient", TINY, 2, 12)
MEMORY = Case("memory", TINY, 2, 12, budget=2**20)
RATE = 1e9


def planted(ms: dict[str, list[float]]) -> Callable[..., dict[str, Times]]:
    """Runs everything once, as `interleaved` does many times, and tells times known beforehand."""

    def interleaved(functions: dict[str, Callable[[], object]], *_: Any) -> dict[str, Times]:
        for function in functions.values():
            function()
        return {name: Times(ms[name]) for name in functions}

    return interleaved


@pytest.mark.parametrize("name", list(peers.LOOPS))
def test_a_peer_zeroes_one_head(name: str) -> None:
    """Against transformers' own loss, the columns of `o_proj` that read the head set to zero."""
    model = TINY.make()
    ids = cases.windows_of(SWEEP, model)
    heads = [(1, 2), (0, 0), (1, 3)]
    found = peers.LOOPS[name](model)(ids, heads)
    assert found.shape == (3, 2)
    for row, (layer, head) in zip(found, heads, strict=True):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0
            losses = [float(changed(input_ids=part[None], labels=part[None]).loss) for part in ids]
        assert row.tolist() == pytest.approx([11 * loss for loss in losses], abs=1e-4)


def test_a_peer_leaves_the_model_as_it_was() -> None:
    model = TINY.make()
    ids = cases.windows_of(SWEEP, model)
    before = peers.clean_losses(model, ids)
    for make in peers.LOOPS.values():
        make(model)(ids, [(0, 1)])
    assert torch.equal(peers.clean_losses(model, ids), before)


def test_a_sweep_is_verified_and_its_ratios_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of eight heads timed: a peer's time counts 8/3 times; ratios go round by round."""
    ms = {"ours": [10.0, 20.0, 40.0], "forward": [1.0, 2.0, 3.0], "plain_hooks": [6.0, 6.0, 6.0]}
    ms |= {"transformer_lens": [30.0, 45.0, 60.0], "nnsight": [3.0, 30.0, 45.0]}
    monkeypatch.setattr(measure, "interleaved", planted(ms))
    row = measure.measured(SWEEP, "cpu", RATE, 0.01)
    assert (row["verified_heads"], row["timed_heads"], row["rounds"]) == (8, 3, 3)
    assert row["ms"] == 20 and row["nnsight_ms"] == pytest.approx(80)
    found = [row[f"x_transformer_lens{part}"] for part in ("", "_min", "_max")]
    assert found == pytest.approx([6, 4, 8])
    assert [row[f"x_nnsight{part}"] for part in ("", "_min", "_max")] == pytest.approx([3, 0.8, 4])
    assert 0 < row["largest_difference"] <= measure.TOLERANCE < row["largest_score"] / 100
    assert row["forward_ms"] == 2 and row["gflop"] > 0 and row["once_ms"] > 0


@pytest.mark.parametrize(
    ("rate", "regime", "required", "holds"),
    [
        (1e6, "compute-bound", 2, True),
        (1e12, "overhead-bound", 5, False),
        (None, "between", None, None),
    ],
)
def test_what_a_forward_is_bound_by_sets_what_is_required(
    monkeypatch: pytest.MonkeyPatch, rate: float | None, regime: str, required: Any, holds: Any
) -> None:
    ms = {"ours": 8.0, "transformer_lens": 9.0, "nnsight": 6.1, "plain_hooks": 1.0, "forward": 1.0}
    monkeypatch.setattr(measure, "interleaved", planted({name: [t] for name, t in ms.items()}))
    if rate is None:  # 40% of a millisecond
        model = TINY.make()
        ids = cases.windows_of(SWEEP, model)
        rate = measure._flops(lambda: peers.clean_losses(model, ids)) / 0.4e-3
    row = measure.measured(SWEEP, "cpu", rate, 0.01)
    assert (row["regime"], row.get("required"), row.get("holds")) == (regime, required, holds)


def test_flops_are_those_of_the_shapes() -> None:
    model, windows, tokens = TINY.make(), 2, 12
    ids = cases.windows_of(SWEEP, model)
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n
    )
    attention = 2 * 2 * windows * tokens * tokens * 32 * 2  # two products a layer, two layers
    expected = 2 * windows * tokens * matrices + attention
    assert measure._flops(lambda: peers.clean_losses(model, ids)) == expected


def test_scores_that_disagree_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(model: Any) -> peers.Loop:
        right = peers.plain_hooks(model)
        return lambda ids, heads: right(ids, [(layer, (head + 1) % 4) for layer, head in heads])

    monkeypatch.setitem(peers.LOOPS, "nnsight", wrong)
    monkeypatch.setattr(measure, "interleaved", planted({}))  # would fail on any name
    with pytest.raises(WrongResult, match="scores by nnsight and ours differ by .* 1e-05 allowed"):
        report.run([SWEEP], tmp_path, seconds=0.01, tell=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_gradients_cost_is_told_whole_and_for_further_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ms = {"whole": [50.0, 44.0], "half": [30.0, 24.0], "forward": [10.0, 11.0]}
    monkeypatch.setattr(measure, "interleaved", planted(ms | {"half forward": [5.0, 6.0]}))
    row = measure.measured(GRADIENT, "cpu", RATE, 0.01)
    assert (row["x_forward"], row["x_further"]) == pytest.approx((4.5, 4.0))
    assert row["holds"] is False and row["required"] == 3.5


def test_peak_memory_is_measured_against_the_budget() -> None:
    row = measure.measured(MEMORY, "cpu", RATE, 0.01)
    # At least the kept inputs and head outputs: 2 layers of 24 tokens of 32 + 32 numbers.
    assert 2 * 24 * 64 * 4 < row["peak"] <= row["budget"] == 2**20 and row["holds"]
    assert row["workers"] == 1
    if sys.platform == "linux":
        assert 0 <= row["resident"] < 2**26
    with pytest.raises(MidusError, match="memory_budget is 1000 bytes"):
        measure.measured(replace(MEMORY, budget=1000), "cpu", RATE, 0.01)


def test_arrays_of_threads_side_by_side_count_each(monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure.measured(replace(MEMORY, budget=2**30), "cpu", RATE, 0.01)
    torch.set_num_threads(2)
    two = measure.measured(replace(MEMORY, budget=2**30), "cpu", RATE, 0.01)
    torch.set_num_threads(1)
    assert (one["workers"], two["workers"]) == (1, 2) and two["peak"] == 2 * one["peak"]
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: 2**21)
    assert measure.measured(MEMORY, "cpu", RATE, 0.01)["holds"] is False


def test_rows_are_stored_as_they_come(tmp_path: Path) -> None:
    broken = replace(MEMORY, budget=1000)
    with pytest.raises(MidusError):
        report.run([MEMORY, broken], tmp_path, seconds=0.01, tell=lambda _: None)
    stored = json.loads((tmp_path / "benchmark.json").read_text())
    assert not stored["complete"] and [row["kind"] for row in stored["rows"]] == ["memory"]
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.csv"}


def test_the_command_prints_tables_and_fills_in_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cases, "QUICK", (SWEEP, GRADIENT, MEMORY))
    page, out = tmp_path / "page.md", tmp_path / "found"
    page.write_text("before\n<!-- results:cpu -->\noutdated\n<!-- /results -->\nafter\n")
    arguments = ["bench", "importance", "--quick", "--out", str(out), "--markdown", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    stored = json.loads((out / "benchmark.json").read_text())
    assert stored["complete"] and stored["gflops"] > 0 and stored["machine"]["threads"] == 1
    assert [row["kind"] for row in stored["rows"]] == ["sweep", "gradient", "memory"]
    assert all({"load_before", "load_after"} <= set(row) for row in stored["rows"])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "outdated" not in text
    ratio = f"{stored['rows'][0]['x_transformer_lens']:.2f}x ("
    assert ratio in text and ratio in done.output
    assert text.count("| tiny | 2 x 12 |") == 3


def test_a_wrong_score_ends_the_command_with_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cases, "QUICK", (SWEEP,))
    monkeypatch.setattr(measure, "TOLERANCE", 0.0)
    done = CliRunner().invoke(app, ["bench", "importance", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1 and "wrong result" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--threads", "few"], "invalid int value: 'few'"),
        (["--device", "tpu"], "device is 'tpu'; this machine has"),
        (["--rounds", "3"], "unrecognized arguments: --rounds 3"),
        (["--markdown", "README.md"], "has no markers <!-- results:cpu -->"),
        (["--markdown", "nowhere.md"], "nowhere.md cannot be read"),
        (["--out", "README.md"], "--out: "),
        pytest.param(
            ["--device", "cuda"],
            "device is 'cuda'; this machine has cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_bad_option_is_one_line_and_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a page\n")
    done = CliRunner().invoke(app, ["bench", "importance", *arguments])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1 and says in done.stderr


def test_pico_is_measured_on_its_text_and_a_large_model_has_the_shape() -> None:
    model = cases.PICO.make()
    ids = cases.windows_of(Case("sweep", cases.PICO, 3, 64), model)
    assert ids.shape == (3, 64) and len({tuple(row) for row in ids.tolist()}) == 3
    config = cases.NARROW.make().config
    assert (config.num_hidden_layers, config.num_attention_heads) == (16, 16)
    assert config.num_key_value_heads == 4


def test_counting_flops_leaves_the_sweep_its_cheap_end() -> None:
    """A block somebody watches is finished in full; counting must not be such a watch."""
    model = TINY.make()
    docs = measure._documents(model, torch.arange(60)[None] % model.config.vocab_size)
    found = measure._flops(lambda: measure._importance(model, docs))
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda *_: None)
    assert found < 0.95 * measure._flops(lambda: measure._importance(model, docs))
