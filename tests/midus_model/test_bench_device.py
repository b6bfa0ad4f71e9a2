"""The device run: whatever a stage does, lines stay whole, the rest goes on, the time is kept."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import tuning
from midus_model.bench.device import __main__ as command
from midus_model.bench.device import lines, pool, tables
from midus_model.bench.device.clocks import Clock, compared
from midus_model.bench.device.plan import NAMES, STAGES
from midus_model.bench.device.runner import Runner, budget
from midus_model.bench.device.stage import Run, Stage
from midus_model.bench.device.stages import profile, report, tune
from midus_model.bench.device.stages import tests as tests_stage

ROOT = Path(__file__).parents[2]
HERE = "tests.midus_model.device_stages"
AFTER = Stage("after", f"{HERE}:good", seconds=2, least=1)


def stage(name: str, **options: Any) -> Stage:
    return Stage(name, f"{HERE}:{name}", **({"seconds": 4, "least": 1} | options))


def ran(
    out: Path, *stages: Stage, deadline: float = 30, context: str = "fork", id: str = "1"
) -> dict[str, str]:
    ends = time.monotonic() + deadline
    run = Run("run", out, "cpu", "test", True, ends, id=id, context=context)
    return Runner(run, stages, tell=lambda text: None).all()


def kept(out: Path, name: str, kind: str | None = None) -> list[lines.Line]:
    counted = lines.counted(lines.read(out / lines.NAME), "test", True)
    return lines.of_stage(counted, name, kind)


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("raises", "failed", "ValueError: not to be"),
        ("is_killed", "failed", "killed by SIGKILL"),
        ("hangs", "timeout", "its time ended"),
        ("always_breaks", "failed", "the device is lost"),
    ],
)
def test_a_stage_that_fails_ends_nothing_else(
    tmp_path: Path, name: str, status: str, error: str
) -> None:
    begun = time.monotonic()
    found = ran(tmp_path, stage(name), AFTER, deadline=9)
    assert time.monotonic() - begun < 9
    assert found == {name: status, "after": "done"}
    (end,) = kept(tmp_path, name, "end")
    assert end["status"] == status and error in end["error"] and "\n" not in end["error"]
    assert [line["value"] for line in kept(tmp_path, "after", "row")] == [1, 2]
    if name != "always_breaks":  # what it had found stays
        assert [line["key"] for line in kept(tmp_path, name, "row")] == ["before"]
    if name == "hangs":  # what it began is ended with it
        with pytest.raises(ProcessLookupError):
            _until_gone(int((tmp_path / "worker").read_text()))


def _until_gone(process: int) -> None:
    for _ in range(100):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            raise ProcessLookupError
        time.sleep(0.02)


def test_a_case_that_takes_its_process_along_is_left_out(tmp_path: Path) -> None:
    found = ran(tmp_path, stage("takes_itself_along", seconds=15, case=1.0), AFTER)
    assert found == {"takes_itself_along": "done", "after": "done"}
    rows = kept(tmp_path, "takes_itself_along", "row")
    assert [line["key"] for line in rows] == ["a", "b", "c"]
    failures = {x["key"]: x["error"] for x in kept(tmp_path, "takes_itself_along", "failure")}
    assert failures == {
        "killed": "killed by SIGKILL in killed",
        "raises": "RuntimeError: wrong",
        "hangs": "took more than 1 s",
    }


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    slow = stage("slow", seconds=3, least=0.5)
    # Its time ends after a few cases: the next run does the others.
    first = ran(tmp_path, slow, stage("raises", seconds=1), deadline=4.5)
    assert first["slow"] == "shortened" and first["raises"] == "failed"
    (left_out,) = kept(tmp_path, "slow", "left out")
    before = kept(tmp_path, "slow", "row")
    assert 0 < len(before) == 8 - left_out["count"]
    second = ran(tmp_path, stage("slow", seconds=20), stage("raises"), AFTER, id="2")
    assert second == {"slow": "done", "raises": "failed", "after": "done"}
    rows = kept(tmp_path, "slow", "row")
    assert sorted(line["key"] for line in rows) == list("01234567")
    assert rows[: len(before)] == before
    assert len({line["process"] for line in rows}) == 2
    count = len(lines.read(tmp_path / lines.NAME))
    assert ran(tmp_path, slow, AFTER, id="3") == {"slow": "done", "after": "done"}
    assert len(lines.read(tmp_path / lines.NAME)) == count  # nothing was run


def test_what_failed_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    taken = stage("takes_itself_along", seconds=15, case=0.5)
    ran(tmp_path, taken)
    run = Run("takes_itself_along", tmp_path, "cpu", "test", True, time.monotonic() + 9, id="2")
    run.each([("a", lambda: 1 / 0), ("raises", lambda: {"value": 3})])  # type: ignore[list-item]
    assert [x["value"] for x in kept(tmp_path, run.stage, "row")] == [1, 1, 1, 3]
    assert {x["key"] for x in kept(tmp_path, run.stage, "failure")} == {"killed", "hangs"}


def test_afresh_and_other_devices_do_not_count(tmp_path: Path) -> None:
    ran(tmp_path, AFTER)
    common = {"stage": "after", "kind": "end", "status": "done"}
    lines.append(tmp_path / lines.NAME, common | {"device": "another", "tiny": False})
    read = lines.read(tmp_path / lines.NAME)
    assert lines.status(lines.counted(read, "test", True), "after") == "done"
    assert lines.status(lines.counted(read, "test", False), "after") is None
    assert lines.status(lines.counted(read, "another", False), "after") == "done"
    fresh = {"stage": "run", "kind": "afresh", "stages": ["after"], "device": "test", "tiny": True}
    lines.append(tmp_path / lines.NAME, fresh)
    assert kept(tmp_path, "after") == []


def test_the_deadline_of_the_whole_is_kept(tmp_path: Path) -> None:
    begun = time.monotonic()
    closing = Stage("closing", f"{HERE}:good", seconds=1, least=3, last=True)
    more = Stage("more", f"{HERE}:hangs", seconds=5, least=3)
    found = ran(tmp_path, stage("hangs", seconds=5), more, AFTER, closing, deadline=8)
    assert time.monotonic() - begun < 8
    assert found["hangs"] == "timeout" and found["more"] == "skipped"
    assert found["closing"] == "done"  # its time was kept
    (end,) = kept(tmp_path, "more", "end")
    assert "s left, and it needs 3" in end["error"]


def test_budgets() -> None:
    first, second = stage("good", seconds=10, least=2), stage("slow", seconds=30, least=2)
    last = Stage("raises", "", seconds=4, least=3, last=True)
    assert budget([first, second, last], 43) == 10  # all have what they ask for
    assert budget([first, second, last], 83) == pytest.approx(20)  # and more, by their shares
    assert budget([first, second, last], 20) == 10  # the first is served first
    assert budget([second, last], 10) == 7  # but for the last's
    assert budget([last], 2) == 2
    asked = sum(stage.seconds for stage in STAGES)
    assert asked + 20 <= command.DEADLINE  # imports, and the processes' beginnings


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    context, path = multiprocessing.get_context("fork"), tmp_path / lines.NAME
    started = context.Process(target=ran, args=(tmp_path, stage("slow", seconds=20)))
    started.start()
    waiting = time.monotonic() + 60
    while time.monotonic() < waiting and len(lines.read(path)) < 2:
        time.sleep(0.05)
    started.kill()
    started.join()
    whole = path.read_text().splitlines()
    assert len(whole) >= 2 and all(json.loads(line)["stage"] == "slow" for line in whole)
    process = lines.read(path)[0]["process"]
    if sys.platform == "linux":
        with pytest.raises(ProcessLookupError):
            _until_gone(process)  # its stage does not outlive it
    with open(path, "a") as file:
        file.write('{"stage": "slow", "kind": "row", "key"')  # as a write that was cut
    assert ran(tmp_path, stage("slow", seconds=20), id="2") == {"slow": "done"}
    assert sorted(line["key"] for line in kept(tmp_path, "slow", "row")) == list("01234567")
    assert path.read_text().splitlines()[len(whole)] == '{"stage": "slow", "kind": "row", "key"'


@pytest.mark.verify
def test_stages_in_fresh_processes(tmp_path: Path) -> None:
    """Where a GPU's driver does not stand a fork."""
    assert ran(tmp_path, stage("good", seconds=60), deadline=90, context="spawn") == {
        "good": "done"
    }
    assert len(kept(tmp_path, "good", "row")) == 2


def test_lines_are_json_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    value = {"inf": math.inf, "nan": [math.nan], "dtype": torch.float32, "text": "a\nb"}
    lines.append(path, {"stage": "s", "value": value})
    (text,) = path.read_text().splitlines()
    want = {"inf": None, "nan": [None], "dtype": "torch.float32", "text": "a\nb"}
    assert json.loads(text)["value"] == want


def test_jobs_that_fail_die_or_hang_take_no_other_along() -> None:
    from tests.midus_model.device_stages import triple

    jobs = [(str(value), (value,)) for value in range(8)]
    found = {x.key: x for x in pool.results(triple, jobs, longest=0.7)}
    assert {key: x.value for key, x in found.items() if x.error is None} == {
        str(value): 3 * value for value in (0, 1, 2, 6, 7)
    }
    assert found["3"].error == "ValueError: three"
    assert found["4"].error == "its process ended with exit code -9"
    assert found["5"].error == "took more than 1 s"
    assert list(pool.results(triple, jobs, left=lambda: 0.0)) == []


def test_times_of_a_call_and_its_peer() -> None:
    small, large = torch.ones(200, 200), torch.ones(800, 800)
    given = {"ours": lambda: small @ small, "peer": lambda: large @ large}
    found = compared(given, Clock("cpu", 0.005))
    assert set(found["ms"]) == {"ours", "peer"} and not found["not_captured"]
    assert all(ms > 0 for of in found["ms"].values() for ms in of.values())
    assert 0 < found["ratios"]["peer"]["hot"] < 1  # a sixty-fourth of the work


@pytest.mark.parametrize("group", list(tune.groups(False)), ids=str)
def test_what_is_tried_is_what_may_be_chosen(group: tune.Group) -> None:
    listed = tune.choices(group)
    assert listed[0] == {} and len(listed) >= 4
    key = (*([1] * len(tuning.KERNELS[group.kernel][0])), "many")
    for choice in listed:
        tuning.parsed(tuning.as_json({"device": {group.kernel: {key: choice}}}))


def test_counters_as_ncu_prints_them() -> None:
    text = (
        "==PROF== Connected\n==PROF== Disconnected\n"
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","7","_select_kernel","dram__bytes.sum","Mbyte","1,234.5"\n'
        '"0","7","_select_kernel","smsp__inst_executed.sum","inst","9"\n'
        '"1","7","_bag_kernel","dram__bytes.sum","Mbyte","n/a"\n'
    )
    assert profile.parsed(text) == [
        {
            "kernel": "_select_kernel",
            "dram__bytes.sum Mbyte": 1234.5,
            "smsp__inst_executed.sum inst": 9.0,
        },
        {"kernel": "_bag_kernel", "dram__bytes.sum Mbyte": "n/a"},
    ]
    with pytest.raises(ValueError, match="no table"):
        profile.parsed("==ERROR== LibraryNotLoaded\n")


def test_outcomes_as_pytest_prints_them() -> None:
    file = tests_stage.FILE
    alone = f"{file}::test_a[odd-fp32] PASSED   [  1%]\n{file}::test_b FAILED  [  2%]\n"
    spread = (
        f"{file}::test_a[odd-fp32] \n{file}::test_b \n"
        f"[gw1] [ 50%] PASSED {file}::test_a[odd-fp32] \n[gw0] [100%] FAILED {file}::test_b \n"
    )
    for text in (alone, spread):
        want = {f"{file}::test_a[odd-fp32]": "PASSED", f"{file}::test_b": "FAILED"}
        assert tests_stage.outcomes(text) == want


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--deadline", "1"], "--deadline is 1"),
        (["--deadline", "nan"], "--deadline is nan"),
        (["--stage", "rowss"], "--stage"),
        (["--device", "tpu"], "--device"),
        (["--out", __file__], "--out"),
        (["--markdown", "docs/benchmarks.md"], "holds no run of a GPU"),
        pytest.param(
            ["--device", "cuda"],
            "--device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_end_with_code_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on the CPU, as the command makes it."""
    out = tmp_path_factory.mktemp("device") / "out"
    arguments = ["-m", "midus_model.bench.device", "--device", "cpu", "--tiny", "--out", str(out)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    assert report.REHEARSAL in done.stdout
    return out


def rows_of(out: Path, stage: str) -> dict[str, lines.Line]:
    read = lines.read(out / lines.NAME)
    return {line["key"]: line for line in lines.of_stage(read, stage, "row")}


def test_every_stage_runs_on_a_cpu(rehearsed: Path) -> None:
    read = lines.read(rehearsed / lines.NAME)
    assert not [line for line in read if line["kind"] == "failure"]
    assert {name: lines.status(read, name) for name in NAMES} == dict.fromkeys(NAMES, "done")
    rows = list(rows_of(rehearsed, "rows").values()) + list(rows_of(rehearsed, "block").values())
    peers = {peer for row in rows for peer in row["ratios"]}
    assert peers == {"ffn", "embedding_bag", "gather", "naive", "copied_layer"}
    for row in rows:
        assert all(row["times"]["ours"][way] > 0 for way in ("hot", "cold"))
        assert row["bytes"] > 0 and row["floor_ms"] > 0 and row["tuned"] and row["verified"]
    assert {row["direction"] for row in rows} == {"forward", "forward+backward", "decode"}
    models = {"base", "llama-pro", "midus"}
    assert {x["model"] for x in rows_of(rehearsed, "train").values()} == models
    assert {x["model"] for x in rows_of(rehearsed, "decode").values()} == models
    for line in rows_of(rehearsed, "train").values():
        new = line["trained"] < line["parameters"]
        assert new == (line["model"] != "base") and all(map(math.isfinite, line["losses"]))
    assert not any("graph_error" in line for line in rows_of(rehearsed, "decode").values())
    (counted,) = rows_of(rehearsed, "tests").values()
    assert counted["passed"] == 1 and counted["code"] == 0
    assert len(list(rehearsed.iterdir())) <= 8  # as many as some places give back


def test_the_search_leaves_a_file_that_the_kernels_read(rehearsed: Path) -> None:
    table = tuning.read(rehearsed / "tuning.json")
    assert table["interpreter"] == {"read": {(16, 4, "few"): {"RB": 16, "num_warps": 2}}}
    assert [x["kind"] for x in lines.read(rehearsed / lines.NAME)].count("verified") == 1


def test_what_is_not_verified_is_said(rehearsed: Path) -> None:
    row = next(iter(rows_of(rehearsed, "block").values()))
    assert "| block, NOT VERIFIED |" in tables.op_table([row | {"verified": False}])


def test_a_cpus_figures_fill_no_table_of_a_gpu(rehearsed: Path, tmp_path: Path) -> None:
    read = lines.read(rehearsed / lines.NAME)
    assert all(line["tiny"] for line in read)
    assert not (rehearsed / report.FILLED).exists()
    assert report.REHEARSAL in (rehearsed / report.SUMMARY).read_text()
    page = tmp_path / "page.md"
    page.write_text(report.PAGE.read_text())
    name = read[0]["device"]
    report.write(rehearsed, name, True, page)
    assert page.read_text() == report.PAGE.read_text()


def test_a_gpus_run_fills_in_the_page(rehearsed: Path, tmp_path: Path) -> None:
    """The rehearsal's own lines, told as a GPU would."""
    for line in lines.read(rehearsed / lines.NAME):
        line |= {"device": "NVIDIA Test", "tiny": False}
        if line["kind"] == "machine":
            line["machine"] |= {"kind": "cuda", "device": "NVIDIA Test"}
        if "times" in line:
            for of in line["times"].values():
                of |= {"graph_hot": 0.5, "graph_cold": 0.75}
            for of in line["ratios"].values():
                of |= {"graph_hot": 0.125, "graph_cold": 0.25}
        lines.append(tmp_path / lines.NAME, line)
    page = tmp_path / "page.md"
    page.write_text(report.PAGE.read_text())
    assert command.main(["--out", str(tmp_path), "--markdown", str(page)]) == 0
    filled = page.read_text()
    assert filled.count("NVIDIA Test") == 1 and "0.125x; 0.25x ffn" in filled
    assert "Not measured" not in filled and "NOT VERIFIED" not in filled
    for line in filled.splitlines():
        if line.startswith("| headwise_memory") and "tiny" in line:
            assert line.count("|") == 17
    before, after = report.PAGE.read_text().split("## Results, GPU")[0], filled
    assert after.startswith(before)  # nothing else of the page is touched
    from analysis.benchmark_figure import benchmark_ratios

    assert benchmark_ratios(tmp_path / "benchmark.json") is not None
