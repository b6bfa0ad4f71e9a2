"""Machine, files, table: what a run of the benchmark leaves behind."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kernels import files, locks

SCHEMA = 1
SHOWN = ("op", "direction", "tokens", "batch", "context", "dtype", "slots", "bank_grad")


def machine_of(device: str) -> dict[str, Any]:
    """Hardware, threads and versions."""
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
        found["cuda"] = torch.version.cuda or torch.version.hip
    for name in ("torch", "transformers", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


@lru_cache
def commit() -> str | None:
    """Of the checkout this file lies in, or None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(folder: Path, result: dict[str, Any]) -> list[Path]:
    """benchmark.json and benchmark.csv, each whole or not at all."""
    stamp = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
    text = json.dumps({"schema": SCHEMA, **stamp, **result}, indent=1) + "\n"
    table = io.StringIO()
    names = list(dict.fromkeys(name for row in result["rows"] for name in row))
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    written = []
    for name, content in (("benchmark.json", text), ("benchmark.csv", table.getvalue())):
        written.append(files.write_file(folder / name, content))
    return written


def _peers(row: dict[str, Any]) -> str:
    found = [
        f"{row[f'x_{peer}']:.3g}x {peer}"
        for peer in ("ffn", "copied_layer", "embedding_bag", "gather", "naive")
        if f"x_{peer}" in row
    ]
    return ", ".join(found)


def line(row: dict[str, Any]) -> list[str]:
    """One row of the printed table."""
    what = [str(row.get(name, "")) for name in SHOWN]
    return [
        *what,
        f"{row['ms']:.3g}",
        _peers(row),
        f"{row['floor_ms']:.3g}",
        f"{100 * row['floor_fraction']:.0f}%",
        f"{row['gb_per_s']:.3g}",
        f"{row['peak_mb']:.0f}" + (f" (ffn {row['ffn_peak_mb']:.0f})" if "ffn_ms" in row else ""),
    ]


HEADER = [*SHOWN, "ms", "ratio to", "floor ms", "of floor", "GB/s", "peak MB"]


def markdown(result: dict[str, Any], dtype: str) -> str:
    """The table of one dtype for docs/benchmarks.md."""
    machine = result["machine"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["gflops"].items())
    lines = [
        f"{machine['device']}, {machine['threads']} threads; torch {machine['torch']}, "
        f"triton {machine['triton']}, Python {machine['python']}. Measured in the same run: copy "
        f"{result['copy_gb_per_s']:.1f} GB/s; matrix product, GFLOP/s: {rates}.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    lines += [
        "| " + " | ".join(line(row)) + " |" for row in result["rows"] if row["dtype"] == dtype
    ]
    return "\n".join(lines) + "\n"


def around(path: Path, name: str) -> tuple[str, str]:
    """The page up to the table of that name, its marker included, and from the end marker on.

    Raises ValueError where the page cannot be read or lacks the markers.
    """
    start, stop = f"<!-- results:{name} -->", "<!-- /results -->"
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if start not in page or stop not in page.split(start, 1)[1]:
        raise ValueError(f"{path} has no markers {start} ... {stop} to put the table between")
    before, rest = page.split(start, 1)
    return before + start, stop + rest.split(stop, 1)[1]


def fill_in(path: Path, name: str, text: str) -> None:
    """Put a table between the markers `<!-- results:NAME -->` and `<!-- /results -->`."""
    with locks.hold(path, wait=True):  # the other tables are another's to fill in
        before, after = around(path, name)
        files.write_file(path, f"{before}\n\n{text}\n{after}")


def check_page(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError where a page that is there lacks the markers of a table."""
    if path.exists():
        for name in names:
            around(path, name)


def fill_page(
    path: Path, tables: Mapping[str, Callable[[dict[str, Any]], str]], found: dict[str, Any]
) -> None:
    """Put all tables, made of what was found, between their markers, where the page is there."""
    if path.exists():
        for name, make in tables.items():
            fill_in(path, name, make(found))
