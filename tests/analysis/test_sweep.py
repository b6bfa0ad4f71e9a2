"""A killed sweep goes on, memory may run out, and two processes give the numbers of one."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import ablation, engine, head_importance, head_interactions, tables
from analysis.memory_plan import plan_for
from analysis.subject import prepared
from kernels.errors import DataError, HeadError, MidusError, ModelError
from midus_model import blocks, head_sites
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [12, 20, 7, 33, 9, 15, 11, 18, 6, 14, 25, 8] * 2


class Killed(BaseException):
    """As a signal would end it."""


def killer(after: int) -> Any:
    """Progress that ends the run once so many evaluations are done."""

    def progress(done: int, total: int, text: str) -> None:
        if total and "mean" not in text and done >= after:
            raise Killed

    return progress


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize(
    "method", ["ablation", "taylor", "integrated_gradients", "shapley", "gradient"]
)
def test_a_killed_sweep_ends_with_the_same_table(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.sweep.SAVE_SECONDS", 0)
    model, data, path = tiny("llama"), random_texts(LENGTHS), tmp_path / "kept"
    given: dict[str, Any] = {"method": method, "permutations": 4, "agreement": False}
    whole = head_importance(model, data, **given)
    half = len(data.windows) * len(head_sites(model)) // 2
    with pytest.raises(Killed):
        head_importance(model, data, checkpoint=path, progress=killer(half), **given)
    assert path.is_file() and [p.name for p in tmp_path.iterdir()] == ["kept"]
    calls: list[int] = []
    resume = ablation.Resumed.resume
    monkeypatch.setattr(
        ablation.Resumed,
        "resume",
        lambda *args: calls.append(1) or resume(*args),  # type: ignore[func-returns-value]
    )
    told: list[int] = []
    table = head_importance(
        model,
        data,
        checkpoint=path,
        progress=lambda d, t, _: told.append(d) if t else None,
        **given,
    )
    tables_equal(table, whole)
    calls_before = len(calls)
    tables_equal(head_importance(model, data, checkpoint=path, **given), whole)
    assert len(calls) == calls_before  # it stays until the table is saved
    if method == "ablation":
        again = len(calls)
        calls.clear()
        head_importance(model, data, **given)
        assert again < len(calls), "what was done is not done again"


def tables_equal(a: Any, b: Any) -> None:
    for column in ("score", "stderr", "ci_low", "ci_high"):
        assert a[column].equals(b[column])
    assert a["by_document"].tolist() == b["by_document"].tolist() and a.attrs == b.attrs


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """A real process, really killed."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch; torch.set_num_threads(1)
import analysis.sweep as sweep
sweep.SAVE_SECONDS = 0
from analysis import head_importance
from tests.analysis.samples import random_texts
from tests.models import tiny
def progress(done, total, text):
    if total and 'ablation' in text and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
head_importance(tiny('llama'), random_texts({LENGTHS}), checkpoint='kept', progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    assert (tmp_path / "kept").is_file()
    (tmp_path / ".kept.0123456789ab.tmp").mkdir(exist_ok=True)  # killed a moment earlier
    model, data = tiny("llama"), random_texts(LENGTHS)
    table = head_importance(model, data, checkpoint=tmp_path / "kept")
    assert not (tmp_path / ".kept.0123456789ab.tmp").exists()
    tables_equal(table, head_importance(model, data))


def test_a_checkpoint_of_another_measurement_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.sweep.SAVE_SECONDS", 0)
    model, data, path = tiny("llama"), random_texts(LENGTHS), tmp_path / "kept"
    with pytest.raises(Killed):
        head_importance(model, data, checkpoint=path, progress=killer(200))
    before = path.read_bytes()
    for other in (
        {"model": tiny("llama", seed=1)}, {"data": random_texts(LENGTHS[1:])},
        {"baseline": "zero"}, {"method": "taylor"}, {"metric": "kl"}, {"group": "kv"},
    ):  # fmt: skip
        asked = {"model": model, "data": data} | other
        with pytest.raises(DataError, match="belongs to another measurement.*remove it") as caught:
            head_importance(asked.pop("model"), asked.pop("data"), checkpoint=path, **asked)
        assert "\n" not in str(caught.value) and path.read_bytes() == before
    path.write_bytes(before[:40])
    with pytest.raises(DataError, match="damaged"):
        head_importance(model, data, checkpoint=path)


def test_what_the_weights_do_not_show_tells_checkpoints_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.sweep.SAVE_SECONDS", 0)
    model, data, path = tiny("llama"), random_texts(LENGTHS), tmp_path / "kept"
    with pytest.raises(Killed):
        head_importance(model, data, checkpoint=path, progress=killer(200))
    other = tiny("llama", rope_theta=77.0)
    assert tables.model_hash(other) == tables.model_hash(model)
    with pytest.raises(DataError, match="belongs to another measurement"):
        head_importance(other, data, checkpoint=path)
    with pytest.raises(DataError, match="functions called 'f' cannot be told apart"):

        def f(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return logits.new_zeros(targets.shape)

        head_importance(model, data, metric=f, checkpoint=tmp_path / "other")
    with pytest.raises(DataError, match="is a folder"):
        head_importance(model, data, checkpoint=tmp_path)


def test_a_failure_after_the_sweep_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr("analysis.importance.with_noise", fail)
    model, data, path = tiny("llama"), random_texts(LENGTHS), tmp_path / "kept"
    with pytest.raises(RuntimeError):
        head_importance(model, data, checkpoint=path)
    assert path.is_file()
    monkeypatch.undo()
    monkeypatch.setattr(ablation.Resumed, "resume", lambda *_: pytest.fail("measured again"))
    head_importance(model, data, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to .*kept: "):
        head_importance(tiny("llama"), random_texts([12]), checkpoint=tmp_path / "file" / "kept")


# ---------------------------------------------------------------- memory


def test_folds_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = float64_reference(tiny("llama")), random_texts([12, 20])
    whole = head_importance(model, data)
    resume, tried = ablation.Resumed.resume, []

    def scarce(*args: Any) -> torch.Tensor:
        tried.append(len(args[3]))
        if len(args[3]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", scarce)
    table = head_importance(model, data)
    assert np.abs(table["score"] - whole["score"]).max() < 1e-12
    assert tried[:3] == [4, 2, 1] and max(tried[3:]) == 1, "a size that failed is not tried again"


def test_memory_that_holds_nothing_and_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"

    def fail(*_: Any) -> torch.Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(ablation.Resumed, "resume", fail)
    with pytest.raises(ModelError, match="memory does not hold a batch"):
        head_importance(tiny("llama"), random_texts([12]))
    message = "shapes do not fit"
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        head_importance(tiny("llama"), random_texts([12]))


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "1GB", 1000])
def test_a_budget_that_cannot_be(budget: Any) -> None:
    with pytest.raises(MidusError, match="memory_budget is .*bytes"):
        head_importance(tiny("llama"), random_texts([12]), memory_budget=budget)


def test_a_larger_budget_does_more_at_once() -> None:
    model = tiny("llama")
    small, large = (plan_for(model, 20, budget=budget) for budget in (300_000, 30_000_000))
    batch = engine.batch_of(random_texts([20]).windows, torch.device("cpu"))
    assert small.folds(batch) < large.folds(batch) and small.windows < large.windows
    assert small.rows < large.rows
    scores = [
        head_importance(model, random_texts([20, 9, 30]), memory_budget=b)["score"]
        for b in (300_000, 30_000_000)
    ]
    assert np.abs(scores[0] - scores[1]).max() < 1e-6


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize("documents", [24, 2], ids=["many", "fewer batches than processes"])
def test_two_processes_give_the_numbers_of_one(documents: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import warnings; warnings.simplefilter("ignore")
import torch; torch.set_num_threads(1)
from analysis import head_importance, rank_heads, tables
from tests.analysis.samples import memory_model, random_texts
model, data = memory_model(), random_texts({LENGTHS[:documents]})
rank = os.environ["RANK"]
for method in ("ablation", "gradient", "shapley"):
    table = head_importance(model, data, method=method, permutations=4)
    tables.save(table, {str(tmp_path)!r} + f"/{{method}}{{rank}}")
if {documents} == 24:
    tables.save(rank_heads(model, data, top=4), {str(tmp_path)!r} + f"/rank{{rank}}")
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    model, data = memory_model(), random_texts(LENGTHS[:documents])
    for method in ("ablation", "gradient", "shapley"):
        one = head_importance(model, data, method=method, permutations=4)
        for rank in "01":
            other = tables.load(tmp_path / f"{method}{rank}")
            assert np.abs(one["score"] - other["score"]).max() < 1e-12
            assert np.abs(one["ci_low"] - other["ci_low"]).max() < 1e-12
            assert other.attrs["documents"] == one.attrs["documents"]
    if documents == 24:
        from analysis import rank_heads

        one = rank_heads(model, data, top=4)
        for rank in "01":
            other = tables.load(tmp_path / f"rank{rank}")
            assert other[["layer", "head", "exact"]].equals(one[["layer", "head", "exact"]])
            assert np.abs(one["score"] - other["score"]).max() < 1e-12


# ---------------------------------------------------------------- groups and pairs


def hooked_loss(model: Any, data: Any, sites: list[Any]) -> np.ndarray:
    """Loss of every window with these heads zero, by a hook each."""
    hooks = []
    for site in sites:

        def zero(_: Any, args: tuple, site: Any = site) -> tuple:
            outputs = args[0].clone()
            outputs[..., site.start : site.stop] = 0
            return (outputs, *args[1:])

        hooks.append(site.module.register_forward_pre_hook(zero))
    with torch.no_grad():
        found = []
        for window in data.windows:
            logits = model(window.ids[None]).logits[0, :-1]
            nats = torch.nn.functional.cross_entropy(logits, window.ids[1:], reduction="none")
            found.append(float(nats[window.scored].sum()))
    for hook in hooks:
        hook.remove()
    return np.array(found)


def replaced_loss(model: Any, data: Any, sites: Any, baseline: str) -> np.ndarray:
    """Loss of every window with these heads at their baseline, by a hook each."""
    fixed = prepared(model, data, baseline=baseline).baseline.fixed
    with ExitStack() as stack:
        for site in sites:

            def put(_: Any, args: tuple, site: Any = site) -> tuple:
                outputs, span = args[0].clone(), slice(site.start, site.stop)
                outputs[..., span] = fixed[site.layer][..., span]
                return (outputs, *args[1:])

            stack.callback(site.module.register_forward_pre_hook(put).remove)
        return hooked_loss(model, data, [])


@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])
def test_key_value_groups(family: str) -> None:
    model, data = memory_model(family), random_texts([12, 20, 7])
    table = head_importance(model, data, group="kv", baseline="zero")
    assert table.attrs["heads_are"] == "kv groups" and len(table) == 2 * len(blocks(model))
    tokens = np.array([unit["tokens"] for unit in data.units])
    clean = hooked_loss(model, data, [])
    for row in table.to_dict("records"):
        members = [
            site
            for site in head_sites(model)
            if site.layer == row["layer"] and site.head // 2 == row["head"]
        ]
        assert len(members) == 2 and members[0].kind == row["kind"]
        expected = (hooked_loss(model, data, members) - clean) / tokens
        assert np.abs(np.array(row["by_document"]) - expected).max() < 1e-9
    taylor = head_importance(model, data, group="kv", method="taylor")
    single = head_importance(model, data, method="taylor")
    summed = single.groupby(["layer", single["head"] // 2])["score"].sum()
    assert np.allclose(summed, taylor["score"])


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_pairs_of_heads(baseline: str) -> None:
    """In one block, across blocks, with a memory head; both against two hooks at once."""
    model, data = memory_model(), random_texts([12, 20, 7])
    pairs = [(0, 1), (0, 3), (2, 2), (4, 0)]
    table = head_interactions(model, pairs, data, baseline=baseline)
    assert len(table) == 6 and set(table["layer"]) == {0, 2}
    single = head_importance(model, data, baseline=baseline).set_index(["layer", "head"])["score"]
    clean, tokens = hooked_loss(model, data, []), np.array([u["tokens"] for u in data.units])
    sites = {(site.layer, site.head): site for site in head_sites(model)}
    assert sites[2, 2].kind == "memory"
    for row in table.to_dict("records"):
        one, two = (row["layer"], row["head"]), (row["other_layer"], row["other_head"])
        assert row["first"] == pytest.approx(single[one], abs=1e-12)
        assert row["second"] == pytest.approx(single[two], abs=1e-12)
        assert row["score"] == pytest.approx(row["both"] - row["first"] - row["second"])
        two_heads = {sites[one], sites[two]}
        both = replaced_loss(model, data, two_heads, baseline) - clean
        assert row["both"] == pytest.approx(both.sum() / tokens.sum(), abs=1e-9)
    assert table["score"].abs().max() > 1e-5


def test_pairs_need_two_heads_that_exist() -> None:
    for heads in (None, [(0, 1)]):
        with pytest.raises(HeadError, match="two heads|no heads"):
            head_interactions(tiny("llama"), heads, random_texts([12]))
    with pytest.raises(HeadError, match="does not exist"):
        head_interactions(tiny("llama"), [(0, 1), (9, 9)], random_texts([12]))


def test_the_query_stage_changes_what_is_read() -> None:
    model, data = memory_model(), random_texts([12, 20, 7])
    table = head_importance(model, data, stage="query", baseline="zero")
    plain = head_importance(model, data, baseline="zero")
    memory = (table["kind"] == "memory").to_numpy()
    assert np.array_equal(table["score"][~memory], plain["score"][~memory])
    assert not np.isclose(table["score"][memory], plain["score"][memory]).any()
    clean, tokens = hooked_loss(model, data, []), np.array([u["tokens"] for u in data.units])
    for site, row in zip(head_sites(model, "query"), table.to_dict("records"), strict=True):
        expected = (hooked_loss(model, data, [site]) - clean) / tokens
        assert np.abs(np.array(row["by_document"]) - expected).max() < 1e-9
    gradients = head_importance(model, data, stage="query", method="taylor", baseline="zero")
    assert np.isfinite(gradients["score"]).all()
    for wrong in ("dla", "integrated_gradients"):
        with pytest.raises(MidusError, match="query"):
            head_importance(model, data, stage="query", method=wrong)
    with pytest.raises(MidusError, match="stage is 'key'.*query"):
        head_importance(model, data, stage="key")


def test_a_subject_counts_what_it_measures() -> None:
    subject = prepared(tiny("llama"), random_texts([12, 30]))
    assert subject.weights.sum() == subject.window_weights.sum() == 11 + 29
