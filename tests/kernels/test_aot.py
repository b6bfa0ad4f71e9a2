"""Every kernel compiles for NVIDIA and AMD hardware, on a machine without any.

The ordinary run compiles what is small; all sizes are compiled by `make verify`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.aot_shapes import Shape, shape_of

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
KERNELS = {
    "headwise_kernel",
    "select_kernel",
    "score_gradient_kernel",
    "key_gradient_kernel",
    "bag_kernel",
    "weight_gradient_kernel",
    "piece_kernel",
    "join_kernel",
    "atomic_kernel",
}
TARGETS = ("sm_80", "sm_90", "gfx942")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.aot", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False
    )


def test_the_interpreter_is_refused() -> None:
    done = run("--target", "sm_90", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Kernel, shape, target, bytes, shared, registers, spills; each compiled."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ", 0 failed," in lines[-1]
    found = [line.split() for line in lines[1:-1]]
    assert all(int(row[3]) > 0 and int(row[4]) >= 0 for row in found)
    if has_cuobjdump():
        assert all(0 < int(row[5]) <= 255 for row in found if row[2].startswith("sm_"))
    return found


def has_cuobjdump() -> bool:
    import triton

    return (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists()


def test_every_kernel_compiles_for_the_shipped_model() -> None:
    """pico-midus, whose halves are odd and whose k is small, under autocast."""
    shape = "head=24,n=64,k=8,r=64,dtype=bf16/fp32"
    found = rows(run("--shape", shape, "--target", "sm_90", "--target", "gfx942", "--jobs", "1"))
    assert {(row[0], row[2]) for row in found} == {
        (kernel, target) for kernel in KERNELS for target in ("sm_90", "gfx942")
    }


def test_small_k_compiles() -> None:
    shapes = [f"head={size},n=16,k={k},r=21,dtype=fp32" for k, size in ((2, 26), (5, 16))]
    asked = [part for shape in shapes for part in ("--shape", shape)]
    found = rows(run(*asked, "--target", "sm_80", "--kernel", "select_kernel", "--jobs", "1"))
    assert [row[1] for row in found] == shapes


@pytest.mark.verify
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(target: str) -> None:
    """Real models' sizes, and every k with odd halves, few and many sub-keys, mixed dtypes.

    Cut short, it goes on where it was: Triton keeps what it compiled.
    """
    found = rows(run("--target", target, "--matrix"))
    assert {(row[0], row[2]) for row in found} == {(kernel, target) for kernel in KERNELS}
    selecting = {row[1] for row in found if row[0] == "headwise_kernel"}
    for k in (1, 2, 3, 4, 5, 8, 10, 16, 32, 64):
        for dtype in ("fp32", "bf16", "bf16/fp32"):
            mine = [s for s in selecting if f",k={k}," in s and s.endswith(f"dtype={dtype}")]
            assert len(mine) >= 3, (k, dtype)
    if target == "sm_90" and has_cuobjdump():  # at the shape most used nothing is spilled
        used = [row for row in found if row[1] == "1B,bf16"]
        assert len(used) == len(KERNELS)
        assert all(int(row[6]) == 0 for row in used)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ("head=63", "head is 63; it must be even"),
        ("n=4,k=8", "k is 8; it must be at most n = 4"),
        ("k=65", "k is 65; the kernels take up to 64"),
        ("k=two", "k is 'two'; it must be a whole number"),
        ("r=0", "r is '0'; it must be a whole number of at least 1"),
        ("n=-3", "n is '-3'; it must be a whole number"),
        ("heads=3", "'heads=3' is none of head=, n=, k=, r= and dtype="),
        ("", "'' is none of"),
        ("n=50000", "50000 * 50000 slots do not fit 31 bits"),
        ("dtype=int8", "dtype is 'int8'; it must be bf16, fp16, fp32, or two"),
        ("dtype=bf16/", "dtype is 'bf16/'"),
    ],
)
def test_shapes_that_cannot_be(shape: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        shape_of(shape)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_shape_of_ones_own() -> None:
    shape = shape_of("dtype=bf16/fp32,k=5, n=40,head=26")
    assert (shape.size, shape.n, shape.k, shape.width) == (26, 40, 5, 128)
    assert (shape.query, shape.dtype) == (torch.bfloat16, torch.float32)
    assert shape.label == "head=26,n=40,k=5,r=128,dtype=bf16/fp32"
    assert shape_of("r=7").query == shape_of("r=7").dtype == torch.bfloat16


def test_errors_of_the_command_line() -> None:
    done = run("--shape", "k=two")
    assert done.returncode == 2 and "--shape: k is 'two'" in done.stderr.splitlines()[-1]


def test_processes_side_by_side_and_one_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler does that ends its process: the rest is done all the same."""
    from kernels import aot

    monkeypatch.setattr(aot, "_compiled", dies_for_the_bag)
    shape = shape_of("k=4")
    tasks = [(shape, kernel, "sm_90") for kernel in ("join_kernel", "bag_kernel", "piece_kernel")]
    found = [str(row) for row in aot.compile_all(tasks, 2)]
    assert sorted(row for row in found if row in ("join_kernel", "piece_kernel")) == [
        "join_kernel",
        "piece_kernel",
    ]
    assert sum(row.startswith("bag_kernel (head=64,") for row in found) == 1 and len(found) == 3


def dies_for_the_bag(shape: Shape, kernel: str, target: str) -> str:
    if kernel == "bag_kernel":
        os._exit(1)
    return kernel
