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
from analysis.memory_plan import plan_for
from analysis.workers import MOST, side_by_side, worker_count
from kernels.backend import use_backend
from midus_model import blocks
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 20 documents")
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
    """The second task ends first: both run at once, or the first would wait for ever."""
    second = threading.Event()

    def task(number: int) -> int:
        if number == 0:
            assert second.wait(30)
        second.set()
        return number

    with side_by_side(task, [(0,), (1,)], 2) as found:
        assert list(found) == [1, 0]


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


@pytest.mark.parametrize("make", [tiny, memory_model], ids=["base", "memory"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_the_numbers_of_one_thread(
    make: Any, family: str, metric: str, counts: list[int], four_threads: None
) -> None:
    """Bit by bit: the batches are the same, and none is split."""
    model, data = make(family), random_texts(LENGTHS)
    given: dict[str, Any] = {"metric": metric, "baseline": "zero"}
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
    hook = blocks(model)[-1].mlp.register_forward_hook(
        lambda *_: seen.append(threading.get_ident())
    )
    head_importance(model, data)
    hook.remove()
    assert set(counts) == {1} and set(seen) == {threading.get_ident()}
    counts.clear()

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


def test_memory_that_runs_out_in_one_thread_is_asked_for_less(
    monkeypatch: pytest.MonkeyPatch, four_threads: None
) -> None:
    model, data = tiny("llama"), random_texts([12, 20])
    whole = head_importance(model, data)
    resume = ablation.Resumed.resume

    def scarce(*args: Any) -> torch.Tensor:
        if len(args[3]) > 1:
            raise MemoryError
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", scarce)
    assert np.abs(head_importance(model, data)["score"] - whole["score"]).max() < 1e-6


def test_a_budget_limits_the_workers_and_not_the_batches() -> None:
    model = tiny("llama")
    tight, some, ample = (plan_for(model, 20, budget=b) for b in (300_000, 60_000_000, 2**30))
    assert tight.workers == 1 < some.workers < ample.workers
    torch.set_num_threads(4)
    same = plan_for(model, 20, budget=60_000_000)
    torch.set_num_threads(1)
    assert same == some, "batches do not hang on the number of threads"
