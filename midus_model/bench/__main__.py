"""`python -m midus_model.bench`: verify every op, time it against its peers, write a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kernels import locks
from kernels.errors import RunError
from midus_model.bench import report
from midus_model.bench.parser import Parser
from midus_model.bench.rows import (
    Case,
    Machine,
    block_cases,
    large_bank_cases,
    measured,
    op_cases,
)
from midus_model.bench.shapes import SHAPES, Shape
from midus_model.bench.timing import SECONDS, copy_bandwidth, product_rate
from midus_model.bench.verify import WrongResult, verify

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPS = ("product_key_select", "latent_bag", "headwise_memory", "block")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="midus bench",
        description="Verify every memory op, time it against its peers, and write a table.",
        epilog="Example: midus bench --quick",
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--shape", choices=list(SHAPES), default="llama-3.2-1b")
    made.add_argument("--dtype", choices=list(DTYPES), action="append", help="default: both")
    made.add_argument("--tokens", type=int, action="append", help="prefill sizes; repeatable")
    made.add_argument("--only", action="append", help="part of an op's name; repeatable")
    made.add_argument("--full", action="store_true", help="longer prefills, and decoding")
    made.add_argument(
        "--quick", action="store_true", help="few rounds; 1 and 16 tokens, unless others are given"
    )
    made.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
    made.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of the results")
    made.add_argument("--markdown", type=Path, help="page whose tables are filled in")
    made.add_argument("--registers", action="store_true", help="compile the Triton kernels too")
    return made


def checked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; one line on stderr and exit code 2 where they cannot be used."""
    made = parser()
    given = made.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        made.error("--device is cuda, and torch sees no GPU; use --device cpu")
    for name, values in (
        ("--tokens", given.tokens or []),
        ("--threads", [1 if given.threads is None else given.threads]),
    ):
        if any(value < 1 for value in values):
            made.error(f"{name} is {min(values)}; it must be at least 1")
    given.ops = [op for op in OPS if any(part in op for part in given.only or [""])]
    if not given.ops:
        made.error(f"--only is {', '.join(given.only)}; it must be part of one of {', '.join(OPS)}")
    try:  # now, not after a long run
        given.out.mkdir(parents=True, exist_ok=True)
        if given.markdown:
            for name in given.dtype or list(DTYPES):
                report.around(given.markdown, f"{given.device}-{name}")
    except (OSError, ValueError) as error:
        made.error(f"{'--markdown' if isinstance(error, ValueError) else '--out'}: {error}")
    try:
        given.held = locks.hold(given.out)  # as long as the options live
    except RunError as error:
        made.error(f"--out: {error}")
    if given.tokens is None:
        longest = 8192 if given.device == "cpu" else 32768
        all_sizes = [size for size in (1, 16, 128, 512, 2048, 8192, 32768) if size <= longest]
        few = [1, 16] if given.quick else [1, 16, 512]
        given.tokens = all_sizes if given.full else few
    return given


def cases(given: argparse.Namespace, shape: Shape) -> Iterator[Case]:
    """Everything that was asked for, made one at a time."""
    wanted = given.ops
    for name in given.dtype or list(DTYPES):
        dtype = DTYPES[name]
        for tokens in given.tokens:
            if set(wanted) - {"block"}:
                yield from (
                    case
                    for case in op_cases(shape, tokens, dtype, given.device)
                    if case.labels["op"] in wanted
                )
        if "block" in wanted:
            sizes = [(1, tokens, 0) for tokens in given.tokens]
            if given.full:
                sizes += [(b, 1, c) for b in (1, 16, 128) for c in (1024, 8192) if b * c <= 2**18]
            yield from block_cases(shape, dtype, given.device, sizes)
    if given.full and given.device == "cuda" and "latent_bag" in wanted:
        yield from large_bank_cases(given.device)


def _machine(given: argparse.Namespace) -> Machine:
    device, large = given.device, given.device == "cuda"
    size, megabytes = (8192, 1024) if large else (1024, 256)
    seconds, a_row = (0.05, 0.1) if given.quick else (1.0, SECONDS)
    rates = {dtype: product_rate(device, size, dtype, seconds) for dtype in DTYPES.values()}
    return Machine(device, copy_bandwidth(device, megabytes, seconds), rates, a_row)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything was right and timed, 1 where a result was wrong."""
    given = checked(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    shape = SHAPES[given.shape]
    errors = {}
    try:
        for name in given.dtype or list(DTYPES):
            errors[name] = verify(shape, DTYPES[name], given.device)
    except WrongResult as error:
        print(f"midus bench: wrong result, nothing was timed: {error}", file=sys.stderr)
        return 1
    print(f"verified against float64; largest relative errors: {_worst(errors)}", flush=True)
    result = _timed(given, shape, errors)
    written = report.write(given.out, result)
    for name in given.dtype or list(DTYPES) if given.markdown else ():
        text = report.markdown(result, str(DTYPES[name]).removeprefix("torch."))
        report.fill_in(given.markdown, f"{given.device}-{name}", text)
    print("written: " + ", ".join(map(str, written)))
    return 0


def _timed(
    given: argparse.Namespace, shape: Shape, errors: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """All rows, stored as they come: a run that is cut short leaves what it had."""
    machine = _machine(given)
    result: dict[str, Any] = {
        "complete": False,
        "machine": report.machine_of(given.device),
        "copy_gb_per_s": machine.bandwidth / 1e9,
        "gflops": {name: machine.rates[dtype] / 1e9 for name, dtype in DTYPES.items()},
        "verified": errors,
        "rows": [],
        "skipped": [],
    }
    print("  ".join(report.HEADER), flush=True)
    for case in cases(given, shape):
        try:
            result["rows"].append(measured(case, machine))
        except torch.OutOfMemoryError:
            result["skipped"].append(case.labels)
            print(f"skipped, the GPU's memory does not hold it: {case.labels}", flush=True)
            continue
        print("  ".join(report.line(result["rows"][-1])), flush=True)
        report.write(given.out, result)
    if given.registers:
        result["registers"] = _registers()
    return result | {"complete": True}


def _worst(errors: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {max(found.values()):.1e}" for name, found in errors.items())


def _registers() -> list[dict[str, Any]]:
    """Registers and spills of every Triton kernel, where its tools are there."""
    try:
        from kernels import aot
    except ImportError as error:
        print(f"no registers: the Triton kernels cannot be compiled here ({error})")
        return []
    found = []
    names = ("kernel", "shape", "target", "shared", "registers", "spills")
    print("  ".join(names))
    for case in aot.cases():
        for target in aot.TARGETS:
            try:
                found.append(aot.compile_case(case, target))
            except RuntimeError as error:
                print(f"not compiled: {error}", flush=True)
                continue
            print("  ".join(str(found[-1].get(name)) for name in names), flush=True)
    spilled = sum(bool(row.get("spills")) for row in found)
    print(f"{len(found)} kernels compiled, {spilled} with register spills")
    return found


if __name__ == "__main__":
    sys.exit(main())
