"""Few tokens on one thread, many on several of our own, and PyTorch's number as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import headwise_memory, product_key_select, threads
from kernels.product_key_select.eager import chunks

needs_openmp = pytest.mark.skipif(threads._setters() is None, reason="no OpenMP to hold back")


@pytest.fixture
def four() -> Iterator[None]:
    """PyTorch has four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


# Prints how many threads a process has more once a call is done: PyTorch makes its own when first
# an op is split, and keeps them.
COUNTED = """
import os, sys, numpy, torch
torch.set_num_threads(4)
from kernels import headwise_memory
tokens, dtype, held = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "held"
rng = numpy.random.default_rng(0)
def draw(*shape):
    drawn = rng.standard_normal(shape, dtype="float32")
    if dtype is torch.float32:
        return torch.from_numpy(drawn)
    return torch.from_numpy((drawn.view("uint32") >> 16).astype("uint16")).view(dtype)
given = *(draw(*s) for s in ((tokens, 32, 64), (32, 256, 32), (32, 256, 32), (65536, 128))),
given = *given, draw(32, 128, 64)
if not held:
    from kernels import threads
    threads._setters = lambda: None
def count():
    return len(os.listdir("/proc/self/task"))
before = count()
with torch.no_grad():
    headwise_memory(*given, 32)
print(count() - before, torch.get_num_threads())
"""


def counted(tokens: int, dtype: str, held: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tokens), dtype, held],
        cwd=Path(__file__).parents[2],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@needs_openmp
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("tokens", "dtype"), [(1, "float32"), (8, "bfloat16")])
def test_few_tokens_start_no_thread(tokens: int, dtype: str) -> None:
    assert counted(tokens, dtype, "held") == [0, 4]


@needs_openmp
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_which_they_would_do() -> None:
    """The count sees what the layer did before its ops were held on one thread."""
    assert counted(1, "float32", "free") == [3, 4]


@needs_openmp
def test_the_number_of_threads_is_put_back(four: None) -> None:
    inside: list[int] = []
    with pytest.raises(KeyError), threads.one_thread():
        inside.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: inside.append(torch.get_num_threads()))
        other.start()
        other.join()
        raise KeyError
    assert inside == [1, 4]  # another thread is not touched
    assert torch.get_num_threads() == 4


@needs_openmp
def test_every_part_is_done_once_on_threads_of_one(four: None) -> None:
    done, seen, all_there = [], set(), threading.Barrier(4, timeout=60)

    def work(part: int) -> None:
        if part < 4:  # all four are here at once
            all_there.wait()
        seen.add((threading.get_ident(), torch.get_num_threads()))
        done.append(part)

    threads.share(work, range(20))
    assert sorted(done) == list(range(20))
    assert len(seen) == 4 and {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 4


@needs_openmp
def test_an_error_is_raised_and_ends_the_rest(four: None) -> None:
    done: list[int] = []

    def work(part: int) -> None:
        if part == 3:
            raise ZeroDivisionError("part 3")
        done.append(part)

    with pytest.raises(ZeroDivisionError, match="part 3"):
        threads.share(work, range(4))
    threads.share(done.append, range(10, 14))  # the threads stay, and go on
    assert {10, 11, 12, 13} <= set(done)
    assert torch.get_num_threads() == 4


@needs_openmp
def test_callers_at_once_all_get_their_work_done(four: None) -> None:
    """More callers than the pool has threads."""
    done: list[int] = []
    callers = [
        threading.Thread(target=threads.share, args=(done.append, range(4), 4)) for _ in range(40)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert sorted(done) == sorted(list(range(4)) * 40)


FORKED = """
import os, torch
from kernels import threads
from kernels.product_key_select.eager import chunks
torch.set_num_threads(2)
done = []
threads.share(done.append, range(4))
child = os.fork()
threads.share(done.append, range(4))
if child == 0:
    os._exit(sorted(done) != sorted(2 * list(range(4))))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", FORKED], env=env, check=True, timeout=120)


def test_one_part_or_none() -> None:
    done: list[int] = []
    threads.share(done.append, [])
    threads.share(done.append, [7])
    threads.share(done.append, [8, 9], 1)
    assert done == [7, 8, 9]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_work_gives_the_same_bits(four: None, mode: type, dtype: torch.dtype) -> None:
    shapes = (90, 8, 16), (8, 16, 8), (8, 16, 8), (256, 8), (8, 8, 16)
    inputs = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    with mode():
        several = headwise_memory(*inputs, 4), *product_key_select(*inputs[:3], 4)
        torch.set_num_threads(1)
        alone = headwise_memory(*inputs, 4), *product_key_select(*inputs[:3], 4)
    assert all(map(torch.equal, several, alone))


def test_the_profiler_sees_every_op(four: None) -> None:
    shapes = (90, 8, 16), (8, 16, 8), (8, 16, 8), (256, 8), (8, 8, 16)
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.profiler.profile() as profile:
        headwise_memory(*inputs, 4)
    names = [event.name for event in profile.events()]
    parts, _ = chunks(inputs[0])
    assert names.count("aten::embedding_bag") == len(parts) > 1
