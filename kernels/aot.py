"""Compiles every Triton kernel for real hardware, on any machine: `python -m kernels.aot`.

No GPU is needed and nothing is run, so what the interpreter lets pass is seen here: operations a
target lacks, shared memory beyond its limit, registers spilled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from kernels.backend import interpreted
from kernels.headwise_memory import gpu as headwise
from kernels.latent_bag import gpu as latent
from kernels.product_key_select import gpu as product_key

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory one program may take.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "gfx942": 65536}
OPTIONS = ("num_warps", "num_stages")
NAMES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Shape:
    """One layer's sizes: head size, sub-keys a half, slots read, latent size, dtype."""

    label: str
    size: int
    n: int
    k: int
    width: int
    dtype: torch.dtype


SHAPES = (
    Shape("1B bf16", 64, 256, 32, 128, torch.bfloat16),
    Shape("1B fp32", 64, 256, 32, 128, torch.float32),
    Shape("r512 bf16", 64, 256, 32, 512, torch.bfloat16),
    Shape("8B bf16", 128, 256, 32, 128, torch.bfloat16),
)


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: the types of its arguments, its constants and its options."""

    kernel: str
    shape: str
    function: Any
    types: dict[str, str]
    config: dict[str, Any]

    def key(self) -> tuple[Any, ...]:
        return self.kernel, tuple(self.types.items()), tuple(self.config.items())


def _case(shape: Shape, function: Any, types: str, config: dict[str, Any]) -> Case:
    """`types` one letter an argument: x and w the shape's and fp32 numbers, l int64, i int32."""
    known = {"x": NAMES[shape.dtype], "w": "*fp32", "l": "*i64", "t": "*i32", "i": "i32"}
    names = [name for name in function.arg_names if name not in config]
    if len(names) != len(types):
        raise ValueError(f"{function.__name__} takes {names}, not {len(types)} arguments")
    signature = {name: known[letter] for name, letter in zip(names, types, strict=True)}
    return Case(function.__name__.strip("_"), shape.label, function, signature, config)


def _shape_cases(shape: Shape) -> Iterator[Case]:
    n, k, width, dtype, half = shape.n, shape.k, shape.width, shape.dtype, shape.size // 2
    whole = headwise.headwise_config(n, shape.size, k, width, (dtype,) * 4, True)
    read = latent.read_config(width, k)
    select = product_key.select_config(n, half, k, dtype, dtype)
    score = product_key.score_gradient_config(n, half, k)
    keys = product_key.key_gradient_config(n, half, k)
    if shape.width <= 128:  # a wider bank is the same code run over more columns
        yield _case(shape, headwise._headwise_kernel, "xxxtxxxxiiiii", whole)
    if shape.size <= 64:  # a larger head's selection is seen in the whole
        yield _case(shape, product_key._select_kernel, "xxxtwliiii", select)
    yield _case(shape, product_key._score_gradient_kernel, "wwlxxwxii", score)
    yield _case(shape, product_key._key_gradient_kernel, "wlxwiiiii", keys)
    yield _case(shape, latent._bag_kernel, "xlwxii", read)
    yield _case(shape, latent._weight_gradient_kernel, "xxlwii", read)
    yield _case(shape, latent._piece_kernel, "xwllllllwwi", latent.piece_config(width, k))
    yield _case(shape, latent._join_kernel, "wlllwi", latent.join_config(width))
    yield _case(shape, latent._atomic_kernel, "xlww", latent.atomic_config(width, k))


def cases() -> list[Case]:
    """Every kernel at the shapes above; one that two shapes share is listed once."""
    found: dict[tuple[Any, ...], Case] = {}
    for shape in SHAPES:
        for case in _shape_cases(shape):
            found.setdefault(case.key(), case)
    return list(found.values())


def _alignment(case: Case) -> dict[tuple[int], list[list[Any]]]:
    """What a launch tells the compiler of tensors and strides: multiples of 16."""
    names = case.function.arg_names
    aligned = [n for n, t in case.types.items() if t.startswith("*") or n.endswith("_stride")]
    return {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}


@lru_cache
def _cuobjdump() -> Path | None:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.exists() else None


def _cubin_usage(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers a thread and bytes of its stack, which hold what was spilled."""
    tool = _cuobjdump()
    if tool is None:
        return None, None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (None, None)


def _amd_usage(assembly: str) -> tuple[int | None, int | None]:
    """The same, of vector registers, as the assembler notes them."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    if not registers or not spills:
        return None, None
    return int(registers[1]), 4 * int(spills[1])


def compile_case(case: Case, target: str) -> dict[str, Any]:
    """Compiles one case; size in bytes, shared memory, registers and spilled bytes a thread.

    Raises:
        RuntimeError: where it does not compile or takes more shared memory than the target has.
    """
    options = {name: value for name, value in case.config.items() if name in OPTIONS}
    constants = {name: value for name, value in case.config.items() if name not in OPTIONS}
    types = {n: case.types.get(n, "constexpr") for n in case.function.arg_names}
    source = triton.compiler.ASTSource(case.function, types, constants, _alignment(case))
    try:
        compiled = triton.compile(source, target=TARGETS[target], options=options)
    except Exception as error:  # whatever a stage of the compiler raises
        raise RuntimeError(f"{case.kernel} ({case.shape}) for {target}: {error}") from error
    shared = compiled.metadata.shared
    if shared > SHARED_LIMIT[target]:
        raise RuntimeError(
            f"{case.kernel} ({case.shape}) for {target}: {shared} B of shared memory"
        )
    if "cubin" in compiled.asm:
        binary = compiled.asm["cubin"]
        registers, spills = _cubin_usage(binary)
    else:
        binary = compiled.asm["hsaco"]
        registers, spills = _amd_usage(compiled.asm["amdgcn"])
    return {
        "kernel": case.kernel,
        "shape": case.shape,
        "target": target,
        "bytes": len(binary),
        "shared": shared,
        "registers": registers,
        "spills": spills,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated")
    names = sorted({case.kernel for case in cases()})
    parser.add_argument("--kernel", action="append", choices=names, help="may be repeated")
    chosen = parser.parse_args(arguments)
    targets = chosen.target or list(TARGETS)
    if interpreted():
        parser.error("TRITON_INTERPRET is set; unset it, as the interpreter compiles nothing")
    columns = ("kernel", "shape", "target", "bytes", "shared", "registers", "spills")
    form = "{:<24} {:<10} {:<7} {:>8} {:>8} {:>10} {:>7}"
    print(form.format(*columns))
    began, failures = time.perf_counter(), 0
    listed = [case for case in cases() if case.kernel in (chosen.kernel or names)]
    for case in listed:
        for target in targets:
            try:
                row = compile_case(case, target)
            except RuntimeError as error:
                failures += 1
                print(error)
                continue
            shown = ("-" if row[name] is None else row[name] for name in columns)
            print(form.format(*shown), flush=True)
    seconds = time.perf_counter() - began
    done = len(listed) * len(targets) - failures
    print(f"{done} compiled, {failures} failed, {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
