"""Every kernel compiles for NVIDIA and AMD hardware, on a machine without any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    """Kernel, shape in two words, target, bytes, shared, registers, spills; each compiled."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ", 0 failed," in lines[-1]
    found = [line.split() for line in lines[1:-1]]
    assert all(int(row[4]) > 0 and int(row[5]) >= 0 for row in found)
    if has_cuobjdump():
        assert all(0 < int(row[6]) <= 255 for row in found if row[3].startswith("sm_"))
    return found


def has_cuobjdump() -> bool:
    import triton

    return (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(target: str) -> None:
    found = rows(run("--target", target))
    assert {(row[0], row[3]) for row in found} == {(kernel, target) for kernel in KERNELS}
    if target == "sm_90" and has_cuobjdump():  # at the shape most used nothing is spilled
        used = [row for row in found if row[1:3] == ["1B", "bf16"]]
        assert len(used) == len(KERNELS)
        assert all(int(row[7]) == 0 for row in used)
