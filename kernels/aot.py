"""Compiles every Triton kernel for real hardware, on any machine: `python -m kernels.aot`.

No GPU is needed and nothing is run, so what the interpreter lets pass is seen here: operations a
target lacks, shared memory beyond its limit, registers spilled. What was compiled once is kept in
Triton's own cache, so that a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from kernels.aot_shapes import MATRIX, SHAPES, Shape, shape_of
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
KERNELS = {
    function.__name__.strip("_"): function
    for function in (
        headwise._headwise_kernel,
        product_key._select_kernel,
        product_key._score_gradient_kernel,
        product_key._key_gradient_kernel,
        latent._bag_kernel,
        latent._weight_gradient_kernel,
        latent._piece_kernel,
        latent._join_kernel,
        latent._atomic_kernel,
    )
}
COLUMNS = ("kernel", "shape", "target", "bytes", "shared", "registers", "spills")
FORM = "{:<24} {:<42} {:<7} {:>8} {:>8} {:>10} {:>7}"


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: the types of its arguments, its constants, its options by target."""

    kernel: str
    shape: str
    function: Any
    types: dict[str, str]
    config: dict[str, Any]
    amd: dict[str, Any]  # the same on AMD, whose warps have 64 lanes

    def key(self) -> tuple[Any, ...]:
        return self.kernel, tuple(self.types.items()), tuple(self.config.items())

    def config_of(self, target: str) -> dict[str, Any]:
        return self.amd if TARGETS[target].backend == "hip" else self.config


def _case(
    shape: Shape, kernel: str, types: str, config: dict[str, Any], amd: dict[str, Any] | None = None
) -> Case:
    """`types` one letter an argument: q like the query, x like the parameters, w fp32 numbers,
    l int64, t int32 numbers, i an int32."""
    query, parameters = NAMES[shape.query or shape.dtype], NAMES[shape.dtype]
    known = {"q": query, "x": parameters, "w": "*fp32", "l": "*i64", "t": "*i32", "i": "i32"}
    function = KERNELS[kernel]
    names = [name for name in function.arg_names if name not in config]
    if len(names) != len(types):
        raise ValueError(f"{function.__name__} takes {names}, not {len(types)} arguments")
    signature = {name: known[letter] for name, letter in zip(names, types, strict=True)}
    return Case(kernel, shape.label, function, signature, config, amd or config)


def shape_cases(shape: Shape) -> Iterator[Case]:
    """Every kernel at one shape."""
    n, k, width, dtype, half = shape.n, shape.k, shape.width, shape.dtype, shape.size // 2
    query = shape.query or dtype
    dtypes = query, dtype, dtype, dtype
    whole = [headwise.headwise_config(n, shape.size, k, width, dtypes, True, x) for x in (32, 64)]
    select = [product_key.select_config(n, half, k, query, dtype, lanes) for lanes in (32, 64)]
    score = product_key.score_gradient_config(n, half, k)
    keys = product_key.key_gradient_config(n, half, k)
    read = latent.read_config(width, k)
    yield _case(shape, "headwise_kernel", "qxxtxxqqiiiii", *whole)
    yield _case(shape, "select_kernel", "qxxtwliiii", *select)
    yield _case(shape, "score_gradient_kernel", "wwlxxwqii", score)
    yield _case(shape, "key_gradient_kernel", "wlqwiiiii", keys)
    yield _case(shape, "bag_kernel", "xlwxii", read)
    yield _case(shape, "weight_gradient_kernel", "xxlwii", read)
    yield _case(shape, "piece_kernel", "xwllllllwwi", latent.piece_config(width, k))
    yield _case(shape, "join_kernel", "wlllwi", latent.join_config(width))
    yield _case(shape, "atomic_kernel", "xlww", latent.atomic_config(width, k))


def cases(shapes: Iterable[Shape] = SHAPES) -> list[Case]:
    """Every kernel at these shapes; one that two shapes share is listed once."""
    found: dict[tuple[Any, ...], Case] = {}
    for shape in shapes:
        for case in shape_cases(shape):
            if not (shape.seen_elsewhere and case.kernel in shape.seen_elsewhere):
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
    config = case.config_of(target)
    options = {name: value for name, value in config.items() if name in OPTIONS}
    constants = {name: value for name, value in config.items() if name not in OPTIONS}
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


def _compiled(shape: Shape, kernel: str, target: str) -> dict[str, Any] | str:
    """What `compile_case` gives, or the error's first line and last; runs in a process of its own.

    A kernel does not pass from process to process, so that it is named and looked up again.
    """
    case = next(case for case in shape_cases(shape) if case.kernel == kernel)
    try:
        return compile_case(case, target)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def compile_all(tasks: list[tuple[Shape, str, str]], jobs: int) -> Iterator[dict[str, Any] | str]:
    """Rows, or errors in words, of every (shape, kernel, target), as they are done.

    A compiler that takes its process down with it is one more error: what then had not been done
    is done again, each in a process of its own.
    """
    if jobs == 1:
        yield from (_compiled(*task) for task in tasks)
        return

    def pool(processes: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    broken = []
    with pool(jobs) as many:
        waiting: dict[Future[dict[str, Any] | str], tuple[Shape, str, str]] = {
            many.submit(_compiled, *task): task for task in tasks
        }
        for done in as_completed(waiting):
            if done.exception() is None:
                yield done.result()
            else:
                broken.append(waiting[done])
    for shape, kernel, target in broken:
        with pool(1) as alone:
            done = alone.submit(_compiled, shape, kernel, target)
            error = done.exception()
        yield f"{kernel} ({shape.label}) for {target}: {error}" if error else done.result()


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__)
    made.add_argument("--target", action="append", choices=TARGETS, help="may be repeated")
    made.add_argument("--kernel", action="append", choices=KERNELS, help="may be repeated")
    made.add_argument(
        "--shape",
        action="append",
        metavar="NAME=NUMBER,...",
        help="a layer's sizes, in place of the shipped ones: head=64,n=256,k=32,r=128,dtype=bf16 "
        "(those are the defaults; dtype: bf16, fp16, fp32, or bf16/fp32 for bf16 queries with fp32 "
        "parameters); may be repeated",
    )
    made.add_argument("--matrix", action="store_true", help="small, odd and large sizes too")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return made


def main(arguments: list[str] | None = None) -> int:
    """0 where everything compiled."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error(f"--jobs is {chosen.jobs}; it must be at least 1")
    try:
        own = [shape_of(text) for text in chosen.shape or []]
    except ValueError as error:
        parser.error(f"--shape: {error}")
    if interpreted():
        parser.error("TRITON_INTERPRET is set; unset it, as the interpreter compiles nothing")
    shapes = own or (*SHAPES, *(MATRIX if chosen.matrix else ()))
    by_label = {shape.label: shape for shape in shapes}
    tasks = [
        (by_label[case.shape], case.kernel, target)
        for case in cases(shapes)
        if case.kernel in (chosen.kernel or KERNELS)
        for target in chosen.target or TARGETS
    ]
    print(FORM.format(*COLUMNS), flush=True)
    began, failures = time.perf_counter(), 0
    for row in compile_all(tasks, min(chosen.jobs, len(tasks) or 1)):
        if isinstance(row, str):
            failures += 1
            print(row, flush=True)
            continue
        shown = ("-" if row[name] is None else row[name] for name in COLUMNS)
        print(FORM.format(*shown), flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(tasks) - failures} compiled, {failures} failed, {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
