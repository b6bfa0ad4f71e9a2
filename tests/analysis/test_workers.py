"""Threads side by side: the numbers of one thread, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis import ablation, head_importance, head_interactions
from analysis.memory_plan import CACHE_BYTES, plan_for
from analysis.workers import MOST, side_by_side, worker_count
from kernels.backend import use_backend
from midus_model import blocks
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny
from workbench.importance_bench import cases

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
LENGTHS = [12, 20, 7, 33, 9, 15]


@pytest.fixture
def four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks could run at once, call by call."""
    found: list[int] = []

    def watched(function: Any, tasks: Any, count: int) -> Any:
        found.append(count)
        return side_by_side(function, tasks, count)

    monkeypatch.setattr(ablation, "side_by_side", watched)
    return found


# ---------------------------------------------------------------- the pool


def test_results_come_as_they_are_done(four_threads: None) -> None:
    """The first task ends when the second's result is here, so both run at once."""
    seen = threading.Event()

    def task(number: int) -> int:
        assert number == 1 or seen.wait(30)
        return number

    with side_by_side(task, [(0,), (1,)], 2) as found:
        assert next(found) == 1
        seen.set()
        assert list(found) == [0]


@pytest.mark.parametrize(
    ("threads", "asked", "at_once", "each"),
    [(4, 4, 4, 1), (4, 3, 2, 2), (12, 8, 6, 2), (15, 8, 5, 3), (2, 8, 2, 1), (7, 8, 7, 1)],
)
def test_no_core_stands_idle(threads: int, asked: int, at_once: int, each: int) -> None:
    torch.set_num_threads(threads)
    together = threading.Barrier(at_once)

    def task() -> int:
        together.wait(30)
        return torch.get_num_threads()

    with side_by_side(task, [()] * (2 * at_once * asked), asked) as found:
        assert set(found) == {each}
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)


def test_each_thread_has_its_share(four_threads: None) -> None:
    both = threading.Barrier(2)

    def task() -> tuple[int, bool, str]:
        both.wait(30)
        return torch.get_num_threads(), torch.is_grad_enabled(), threading.current_thread().name

    with side_by_side(task, [(), ()], 2) as found:
        one, two = found
    assert one[:2] == two[:2] == (2, False) and one[2] != two[2]
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4], "threads that start afterwards have what the caller has"


def test_one_task_or_one_worker_stays_in_the_caller(four_threads: None) -> None:
    for tasks, count in (([()], 4), ([(), ()], 1)):
        with side_by_side(threading.get_ident, tasks, count) as found:
            assert set(found) == {threading.get_ident()}


def test_an_error_is_raised_and_the_rest_dropped(four_threads: None) -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        time.sleep(0.01)
        done.append(number)

    with (
        pytest.raises(ValueError, match="the first"),
        side_by_side(task, [(i,) for i in range(200)], 2) as found,
    ):
        list(found)
    count = len(done)
    assert count < 150 and torch.get_num_threads() == 4
    time.sleep(0.05)
    assert len(done) == count, "nothing runs on"


def test_an_error_of_the_callers_ends_it_too(four_threads: None) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        side_by_side(time.sleep, [(0.01,)] * 200, 2) as found,
    ):
        next(found)
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name.startswith("midus")]


def test_what_holds_for_the_calling_thread_alone_keeps_the_work_there(four_threads: None) -> None:
    with torch.no_grad():
        assert worker_count() == 4
        with use_backend("triton"):
            assert worker_count() == 1
        with torch.autocast("cpu"):
            assert worker_count() == 1
        with torch.device("meta"):
            assert worker_count() == 1
        with FlopCounterMode(display=False):
            assert worker_count() == 1
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert worker_count() == 1
        torch.set_num_threads(MOST + 3)
        assert worker_count() == MOST
    with torch.inference_mode():
        assert worker_count() == 1
    assert worker_count() == 1, "gradients"


# ---------------------------------------------------------------- the sweep


def small_memory(family: str) -> Any:
    return memory_model(family, double=False)


@pytest.mark.parametrize("make", [tiny, small_memory, memory_model])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "given",
    [
        {"baseline": "zero"}, {"metric": "kl"}, {"group": "kv"}, {"stage": "query"},
        {"baseline": "resample"},
    ],
    ids=str,
)  # fmt: skip
def test_the_numbers_of_one_thread(
    make: Any, family: str, given: dict[str, Any], counts: list[int], four_threads: None
) -> None:
    """Bit by bit: the batches are the same, and none is split."""
    model, data = make(family), random_texts(LENGTHS)
    if make is tiny and "stage" in given:
        pytest.skip("nothing is asked of memory")
    side = head_importance(model, data, **given)
    assert set(counts) == {4}
    torch.set_num_threads(1)
    alone = head_importance(model, data, **given)
    assert counts[-1] == 1
    assert np.array_equal(side["score"], alone["score"])
    assert side["by_document"].tolist() == alone["by_document"].tolist()
    assert not any(vars(block).get("forward") for block in blocks(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_whoever_watches_the_model_is_not_met_by_two_threads(
    counts: list[int], four_threads: None
) -> None:
    model, data = tiny("llama"), random_texts([12, 20])
    seen: list[int] = []
    for module in (blocks(model)[-1].mlp, model.model.norm, model.lm_head):
        hook = module.register_forward_hook(lambda *_: seen.append(threading.get_ident()))
        head_importance(model, data)
        hook.remove()
        assert set(counts) == {1} and set(seen) == {threading.get_ident()}
        counts.clear()
        seen.clear()

    def own(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert threading.current_thread() is threading.main_thread()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    head_importance(model, data, metric=own)
    head_interactions(model, [(0, 0), (1, 1)], data)
    assert set(counts) == {1}


def test_progress_is_told_in_the_callers_thread(four_threads: None) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, text: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        if total and "ablation" in text:
            told.append((done, total))

    head_importance(tiny("llama"), random_texts(LENGTHS), progress=progress)
    assert told == sorted(told) and told[-1][0] == told[-1][1]


@pytest.mark.parametrize("fits", ["one fold", "one thread"])
def test_memory_that_runs_out_is_asked_for_less(
    fits: str, monkeypatch: pytest.MonkeyPatch, four_threads: None
) -> None:
    """Fewer folds first; where one is too much, one thread."""
    model, data = tiny("llama"), random_texts([12, 20])
    whole = head_importance(model, data)
    resume, main = ablation.Resumed.resume, threading.main_thread()

    def scarce(*args: Any) -> torch.Tensor:
        if len(args[3]) > 1 or fits == "one thread" and threading.current_thread() is not main:
            raise MemoryError
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", scarce)
    told: list[int] = []
    table = head_importance(model, data, progress=lambda done, total, _: told.append(done))
    assert np.abs(table["score"] - whole["score"]).max() < 1e-6
    assert told[-1] == 2 * len(whole), "nothing is counted twice"


@pytest.mark.parametrize("context", [256, 4096])
def test_the_workers_fit_the_budget(context: int) -> None:
    """Also where one window takes more than the cache that a batch is made to fit."""
    model, budget = cases.random_model(512, 1408, 2048, layers=2), 2**30
    ample, tight = (plan_for(model, context, budget=b) for b in (budget, budget // 4))
    assert ample.windows * context * ample.token_bytes > CACHE_BYTES or context == 256
    one = max(ample.fold_bytes, ample.windows * context * ample.token_bytes)
    logits = 3 * 4 * 2048 * ample.rows
    assert ample.workers > 1 and ample.workers * (one + logits) <= budget
    assert (ample.workers + 2) * (one + logits) > budget * 0.7, "nor is much left unused"
    assert tight.workers < ample.workers
