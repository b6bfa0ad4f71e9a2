"""The rows as tables, printed or in markdown, and a whole run that stores them as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from midus_model.bench import report
from midus_model.bench.timing import product_rate
from workbench.importance_bench.cases import MIB, Case
from workbench.importance_bench.measure import Row, measured

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices that FLOPs are measured on
_BOUND = {"compute-bound": "computing", "overhead-bound": "overhead", "between": "neither"}
PEERS = {
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "plain_hooks": "plain hooks",
}


def run(
    cases: Sequence[Case],
    out: Path,
    *,
    device: str = "cpu",
    seconds: float = 60.0,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all cases, a line a row; `benchmark.json` and `.csv` in `out` hold what there is.

    Args:
        seconds: about how long one comparison may take; at least three rounds are run.

    Raises WrongResult where scores disagree; nothing of that case is timed.
    """
    rate = product_rate(device, PRODUCT[device], torch.float32, min(1.0, seconds))
    result: dict[str, Any] = {
        "complete": False,
        "benchmark": "importance",
        "machine": report.machine_of(device),
        "gflops": rate / 1e9,
        "rows": [],
    }
    for number, case in enumerate(cases, 1):
        shape = f"{case.windows} x {case.tokens} tokens"
        tell(f"{number}/{len(cases)} {case.kind}: {case.model.name}, {shape}")
        result["rows"].append(measured(case, device, rate, seconds))
        report.write(out, result)
        tell("    " + _line(result["rows"][-1]))
    result["complete"] = True
    report.write(out, result)
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The rows by kind; a kind without rows has no table."""
    makers = {"sweep": _sweeps, "gradient": _gradients, "memory": _memories}
    found = [
        (make, [row for row in result["rows"] if row["kind"] == kind])
        for kind, make in makers.items()
    ]
    return [make(rows) for make, rows in found if rows]


def summary(result: dict[str, Any]) -> str:
    """Machine, rate, load, and how well the scores agreed, in a sentence or two."""
    machine, rows = result["machine"], result["rows"]
    loads = [row[f"load_{when}"] for row in rows for when in ("before", "after")]
    text = (
        f"{machine['device']}, {machine['threads']} threads; torch {machine['torch']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}. In the same run a "
        f"large matrix product: {result['gflops']:.0f} GFLOP/s; load average "
        f"{min(loads):.1f} to {max(loads):.1f}."
    )
    sweeps = [row for row in rows if row["kind"] == "sweep"]
    if sweeps:
        worst = max(row["largest_difference"] for row in sweeps)
        text += f" Scores of all heads by all tools agree to {worst:.0e} nats a token."
    return text


def markdown(result: dict[str, Any]) -> str:
    """Machine and tables for docs/importance-bench.md."""
    lines = [summary(result)]
    for title, columns, rows in tables(result):
        lines += ["", f"**{title}**", "", "| " + " | ".join(columns) + " |"]
        lines += ["|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _sweeps(rows: list[Row]) -> Table:
    columns = [
        "model", "batch", "bound by (FLOPs)", "FLOPs saved", "ours, s", *PEERS.values(), "required",
        "heads timed", "largest difference, of score",
    ]  # fmt: skip
    return (
        "Exact sweep over all heads: how many times as long the others take",
        columns,
        [
            [
                row["model"],
                _batch(row),
                f"{_BOUND[row['regime']]} ({100 * row['flop_share']:.0f}%)",
                f"{row['flop_ratio']:.2f}x",
                f"{row['ms'] / 1e3:.3g} (once {row['once_ms'] / 1e3:.2g})",
                *(_times(row, f"x_{name}") for name in PEERS),
                _verdict(row),
                f"{row['timed_heads']} of {row['verified_heads']}",
                f"{row['largest_difference']:.0e} of {row['largest_score']:.2g}",
            ]
            for row in rows
        ],
    )


def _gradients(rows: list[Row]) -> Table:
    columns = [
        "model", "batch", "forward, ms", "gradient, ms", "in forwards", "further windows",
        "required",
    ]  # fmt: skip
    return (
        "Gradient importance of all heads: its time in clean forward passes",
        columns,
        [
            [
                row["model"],
                _batch(row),
                f"{row['forward_ms']:.0f}",
                f"{row['ms']:.0f}",
                _times(row, "x_forward"),
                _times(row, "x_further"),
                _verdict(row),
            ]
            for row in rows
        ],
    )


def _memories(rows: list[Row]) -> Table:
    columns = [
        "model", "batch", "budget, MiB", "side by side", "arrays, MiB", "process grows, MiB",
        "holds",
    ]  # fmt: skip
    return (
        "Peak memory of a sweep, over the weights",
        columns,
        [
            [
                row["model"],
                _batch(row),
                f"{row['budget'] / MIB:.0f}",
                str(row["workers"]),
                f"{row['peak'] / MIB:.1f}",
                "-" if row["resident"] is None else f"{row['resident'] / MIB:.1f}",
                "yes" if row["holds"] else "no",
            ]
            for row in rows
        ],
    )


def _line(row: Row) -> str:
    """One row in words."""
    if row["kind"] == "sweep":
        peers = ", ".join(f"{label} {_times(row, f'x_{name}')}" for name, label in PEERS.items())
        return f"{row['regime']}: ours {row['ms'] / 1e3:.3g} s; {peers}; required {_verdict(row)}"
    if row["kind"] == "gradient":
        return f"{_times(row, 'x_forward')} a clean forward pass; required {_verdict(row)}"
    held = "within" if row["holds"] else "beyond"
    return f"peak {row['peak'] / MIB:.1f} MiB, {held} the budget of {row['budget'] / MIB:.0f} MiB"


def _batch(row: Row) -> str:
    return f"{row['windows']} x {row['tokens']}"


def _times(row: Row, name: str) -> str:
    return f"{row[name]:.2f}x ({row[f'{name}_min']:.2f}-{row[f'{name}_max']:.2f})"


def _verdict(row: Row) -> str:
    if "required" not in row:
        return "none"
    sign = ">=" if row["kind"] == "sweep" else "<="
    return f"{sign} {row['required']:g}x: {'yes' if row['holds'] else 'no'}"
