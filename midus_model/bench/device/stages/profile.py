"""Where the device's time goes: kernels by name, and hardware counters where ncu reads them."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import kernels
from kernels import headwise_memory
from midus_model.bench.device.stage import Run, one_line
from midus_model.bench.rows import _directions
from midus_model.bench.shapes import SHAPES, Inputs

ROOT = Path(kernels.__file__).parents[1]
SHOWN = 12  # kernels of a profile
COUNTERS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "lts__t_bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor.sum",
    "smsp__inst_executed.sum",
)
NAMES = "headwise|select|score_gradient|key_gradient|bag|weight_gradient|piece|join|atomic"
MOST_LAUNCHES = 12  # each is replayed for every few counters


def run(run: Run) -> None:
    shapes = ("tiny",) if run.tiny else ("llama-3.2-1b", "llama-3.1-8b")
    tokens = (2,) if run.tiny else (1, 2048)
    listed: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (f"{way}, {shape}, {count} tokens", partial(traced, run, shape, count, way))
        for way in ("forward", "forward+backward")
        for shape in shapes
        for count in tokens
    ]
    if not run.tiny:
        listed.insert(2, ("counters, 2048 tokens", partial(counters, run, 2048)))
        listed.append(("counters, 1 token", partial(counters, run, 1)))
    run.each(listed)


def layer(shape: str, tokens: int, way: str, device: str) -> Callable[[], Any]:
    """The layer's call in bf16."""
    given, k = Inputs(SHAPES[shape], tokens, torch.bfloat16, device), SHAPES[shape].top_k
    return _directions(lambda: headwise_memory(*given.memory, k), list(given.memory))[way]


def traced(run: Run, shape: str, tokens: int, way: str) -> dict[str, Any]:
    """Kernels of one call by their time on the device, as PyTorch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    call, cuda = layer(shape, tokens, way, run.device), run.device == "cuda"
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(3):
            call()
        if cuda:
            torch.cuda.synchronize()
    events = [(_time(event, cuda), event) for event in found.key_averages()]
    events = sorted((pair for pair in events if pair[0] > 0), key=lambda pair: -pair[0])
    total = sum(time for time, _ in events)
    return {
        "device_us": total / 3,
        "kernels": [
            {
                "name": event.key[:100],
                "calls": event.count / 3,
                "us": time / 3,
                "share": time / total,
            }
            for time, event in events[:SHOWN]
        ],
    }


def _time(event: Any, cuda: bool) -> float:
    """Microseconds of its own, on the device where there is one."""
    if not cuda:
        return float(event.self_cpu_time_total)
    if "CUDA" not in str(getattr(event, "device_type", "CUDA")):
        return 0.0  # an op's line repeats what its kernels took
    for name in ("self_device_time_total", "self_cuda_time_total"):
        if hasattr(event, name):
            return float(getattr(event, name))
    return 0.0


def ncu() -> str | None:
    """The profiler's program, on the path or where its installer puts it."""
    found = shutil.which("ncu")
    places = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"))
    places += [Path("/usr/local/cuda/bin/ncu")]
    return found or next((str(place) for place in places if place.exists()), None)


def counters(run: Run, tokens: int) -> dict[str, Any]:
    """Hardware counters of our kernels in one call forward and backward, by ncu."""
    program = ncu()
    if program is None:
        return {"kind": "left out", "count": 1, "error": "ncu is not installed"}
    code = (
        "from midus_model.bench.device.stages.profile import layer\n"
        f"layer('llama-3.2-1b', {tokens}, 'forward', 'cuda')()\n"
        f"layer('llama-3.2-1b', {tokens}, 'forward+backward', 'cuda')()\n"
    )
    # The clocks are left as they are.
    options = ["--clock-control", "none", "--csv", "--metrics", ",".join(COUNTERS)]
    options += ["--kernel-name", f"regex:^_({NAMES})_kernel", "--launch-count", str(MOST_LAUNCHES)]
    with tempfile.TemporaryFile("w+") as text:
        done = subprocess.run(
            [program, *options, sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=text,
            stderr=subprocess.STDOUT,
            timeout=max(1.0, run.left()),
            check=False,
        )
        text.seek(0)
        printed = text.read()
    try:
        return {"launches": parsed(printed)}
    except ValueError as error:
        end = " ".join(printed.split())[-200:]
        raise RuntimeError(f"ncu ended with {done.returncode}: {one_line(error)}; {end}") from error


def parsed(text: str) -> list[dict[str, Any]]:
    """One entry a launch, kernel and counters, from what ncu prints with --csv.

    Raises ValueError where there is no such table.
    """
    listed = text.splitlines()
    start = next((i for i, line in enumerate(listed) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("no table of counters")
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in listed[start:] if line.startswith('"')):
        if not row.get("Metric Name"):
            continue
        entry = found.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        value = row["Metric Value"].replace(",", "")
        unit = row.get("Metric Unit") or ""
        entry[f"{row['Metric Name']} {unit}".strip()] = float(value) if _number(value) else value
    return list(found.values())


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
