"""The benchmark as a figure: how much of an FFN's, or a copied layer's, time a memory takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.paper.canvas import COLUMN, Figure, canvas, style
from kernels.errors import DataError
from kernels.reading import read_json, said

# op, direction and peer of a line, its label, colour and marker (colours tell apart without red
# and green, markers without colour).
LINES = (
    ("headwise_memory", "forward", "ffn", "layer / FFN, forward", "#0072B2", "o"),
    ("headwise_memory", "forward+backward", "ffn", "layer / FFN, with backward", "#D55E00", "s"),
    ("block", "forward", "copied_layer", "block / copied layer, forward", "#009E73", "^"),
)
ENDS = ("", "_min", "_max")  # of the median, and of the least and greatest
DASHES = {"float32": "-", "bfloat16": "--"}


def benchmark_ratios(path: str | Path) -> Figure | None:
    """Ratio of times by prompt length, from a benchmark.json; None where it has no such rows.

    A point is the median over rounds, its bar the least and greatest. Raises DataError where the
    file is no benchmark.
    """
    try:
        rows, machine = _read(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no benchmark.json of `midus bench`: {said(error)}") from error
    lines = list(_lines(rows))
    if not lines:
        return None
    caption = (
        f"{rows[0]['shape']} on {machine['device']}, {machine['threads']} threads, torch "
        f"{machine['torch']}. Points: median over rounds in turn; bars: least and greatest. "
        "Solid fp32, dashed bf16. Below 1 the memory is the cheaper."
    )
    with style():
        figure = canvas(COLUMN, 2.6, caption)
        axes = figure.subplots()
        for label, colour, marker, dash, points in lines:
            x, y, low, high = zip(*points, strict=True)
            reach = [
                [b - a for a, b in zip(low, y, strict=True)],
                [b - a for a, b in zip(y, high, strict=True)],
            ]
            axes.errorbar(
                x, y, yerr=reach, label=label, color=colour, marker=marker, ls=dash, ms=3.5, lw=1
            )
        axes.axhline(1, color="#808080", lw=0.6, ls=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({point[0] for line in lines for point in line[-1]})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        levels = [level for level in (0.05, 0.1, 0.2, 0.5, 1, 2) if _within(level, lines)]
        axes.set_yticks(levels, [f"{level:g}" for level in levels])
        axes.set_xlabel("tokens at once")
        axes.set_ylabel("time, as a ratio")
        axes.legend(loc="best")
    return figure


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and machine. Raises OSError, and ValueError where the file lacks what is drawn of it."""
    result = read_json(path)
    held = result if isinstance(result, dict) else {}
    rows, machine = held.get("rows"), held.get("machine")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it has no rows")
    if not isinstance(machine, dict) or not {"device", "threads", "torch"} <= set(machine):
        raise ValueError("it does not say on which machine")
    for number, row in enumerate(rows):
        peers = [peer for _, _, peer, *_ in LINES if f"x_{peer}" in row]
        numbers = [f"x_{peer}{end}" for peer in peers for end in ENDS] + ["tokens"] * bool(peers)
        lacks = [key for key in ("op", "direction", "dtype", "shape") if key not in row]
        lacks += [key for key in numbers if not _is_positive(row.get(key))]
        if lacks:
            raise ValueError(f"row {number} has no {lacks[0]}")
        for peer in peers:
            if not row[f"x_{peer}_min"] <= row[f"x_{peer}"] <= row[f"x_{peer}_max"]:
                raise ValueError(f"the median of row {number} is beyond its least or greatest")
    return rows, machine


def _is_positive(value: Any) -> bool:
    """Whether it is a number that a logarithmic axis has a place for."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < 2**53


def _within(level: float, lines: list[Any]) -> bool:
    values = [value for line in lines for point in line[-1] for value in point[1:]]
    return min(values) / 1.6 <= level <= max(values) * 1.6


def _lines(rows: list[dict[str, Any]]) -> Any:
    """(label or None, colour, marker, dash, points) of every line that has rows."""
    for op, direction, peer, label, colour, marker in LINES:
        named = False
        for dtype, dash in DASHES.items():
            points = sorted(
                (row["tokens"], row[f"x_{peer}"], row[f"x_{peer}_min"], row[f"x_{peer}_max"])
                for row in rows
                if (row["op"], row["direction"], row["dtype"]) == (op, direction, dtype)
                and f"x_{peer}" in row
            )
            if points:
                yield None if named else label, colour, marker, dash, points
                named = True
