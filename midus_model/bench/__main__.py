"""`python -m midus_model.bench`: verify every op, time it against its peers, write a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from midus_model.bench import report
from midus_model.bench.rows import (
    Case,
    Machine,
    block_cases,
    large_bank_cases,
    measured,
    op_cases,
)
from midus_model.bench.shapes import SHAPES, Shape
from midus_model.bench.timing import copy_bandwidth, product_rate
from midus_model.bench.verify import WrongResult, verify

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPS = ("product_key_select", "latent_bag", "headwise_memory", "block")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="midus bench", description=__doc__)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--shape", choices=list(SHAPES), default="llama-3.2-1b")
    made.add_argument("--dtype", choices=list(DTYPES), action="append", help="default: both")
    made.add_argument("--tokens", type=int, action="append", help="prefill sizes; repeatable")
    made.add_argument("--only", choices=OPS, action="append", help="repeatable")
    made.add_argument("--full", action="store_true", help="longer prefills, and decoding")
    made.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
    made.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of the results")
    made.add_argument("--markdown", type=Path, help="page whose table is filled in")
    made.add_argument("--registers", action="store_true", help="compile the Triton kernels too")
    return made


def checked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; one line on stderr and exit code 2 where they cannot be used."""
    made = parser()
    given = made.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        made.error("--device is cuda, and torch sees no GPU; use --device cpu")
    for name, values in (("--tokens", given.tokens or []), ("--threads", [given.threads or 1])):
        if any(value < 1 for value in values):
            made.error(f"{name} is {min(values)}; it must be at least 1")
    if given.tokens is None:
        long = [2048, 8192] if given.device == "cpu" else [2048, 8192, 32768]
        given.tokens = [1, 16, 512] + (long if given.full else [])
    return given


def cases(given: argparse.Namespace, shape: Shape) -> Iterator[Case]:
    """Everything that was asked for, made one at a time."""
    wanted = given.only or OPS
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


def _machine(device: str) -> Machine:
    large = device == "cuda"
    size = 8192 if large else 1024
    rates = {dtype: product_rate(device, size, dtype) for dtype in DTYPES.values()}
    return Machine(device, copy_bandwidth(device, 1024 if large else 256), rates)


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
    machine = _machine(given.device)
    result: dict[str, Any] = {
        "machine": report.machine_of(given.device),
        "copy_gb_per_s": machine.bandwidth / 1e9,
        "gflops": {name: machine.rates[dtype] / 1e9 for name, dtype in DTYPES.items()},
        "verified": errors,
        "rows": [],
    }
    print("  ".join(report.HEADER), flush=True)
    for case in cases(given, shape):
        result["rows"].append(measured(case, machine))
        print("  ".join(report.line(result["rows"][-1])), flush=True)
    if given.registers:
        result["registers"] = _registers()
    written = report.write(given.out, result)
    if given.markdown:
        report.fill_in(given.markdown, given.device, report.markdown(result))
    print("written: " + ", ".join(map(str, written)))
    return 0


def _worst(errors: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {max(found.values()):.1e}" for name, found in errors.items())


def _registers() -> list[dict[str, Any]]:
    """Registers and spills of every Triton kernel, where its tools are there."""
    from kernels import aot

    cases = aot.cases()
    found = [aot.compile_case(case, target) for target in aot.TARGETS for case in cases]
    spilled = [row for row in found if row.get("spills")]
    print(f"{len(found)} kernels compiled, {len(spilled)} with register spills")
    return found


if __name__ == "__main__":
    sys.exit(main())
