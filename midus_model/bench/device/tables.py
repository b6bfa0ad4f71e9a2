"""A run's lines as Markdown: for docs/benchmarks.md, and a summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from midus_model.bench.device.lines import Line

REHEARSAL = (
    "Rehearsed on a CPU with tiny shapes, to see that every stage runs. None of these figures "
    "says anything about a GPU."
)
PEERS = ("ffn", "copied_layer", "embedding_bag", "gather", "naive")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    listed = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    listed += ["| " + " | ".join(_shown(cell) for cell in row) + " |" for row in rows]
    return "\n".join(listed) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def machine_line(machine: dict[str, Any], ceilings: list[Line]) -> str:
    """The device, its software and what it can do."""
    found = {line["key"]: line for line in ceilings}
    said = [
        f"{machine['device']}; torch {machine['torch']}, triton {machine['triton']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}; "
        f"commit {machine.get('commit')}, run of {machine.get('day')}."
    ]
    if "copy" in found:
        said.append(f"Copy {found['copy']['gb_per_s']:,.0f} GB/s.")
    for name in ("bfloat16", "float32"):
        if f"product {name}" in found:
            said.append(f"Product in {name} {found[f'product {name}']['tflops']:,.1f} TFLOP/s.")
    for where in ("L2", "HBM"):
        line = found.get(f"gather from {where}")
        if line:
            best = max(line["gb_per_s"], line["copied_gb_per_s"])
            said.append(f"Rows of {line['row_bytes']} B from {where} {best:,.0f} GB/s.")
    return " ".join(said)


def op_table(rows: Iterable[Line]) -> str:
    """Ops, layer or block: milliseconds in four ways, ratios to peers, floor, memory."""
    header = [
        "op", "direction", "shape", "tokens", "batch", "context", "slots", "bank_grad", "eager ms",
        "cold", "graph ms", "cold", "ratio to (graph in cache; cold)", "floor ms", "of floor",
        "peak MB",
    ]  # fmt: skip
    return table(header, map(_op_row, rows))


def _op_row(row: Line) -> list[Any]:
    ours = row["times"]["ours"]
    op = row["op"] if row.get("verified", True) else f"{row['op']}, NOT VERIFIED"
    return [
        op,
        *(row.get(name, "") for name in
          ("direction", "shape", "tokens", "batch", "context", "slots", "bank_grad")),
        *(ours.get(way) for way in ("hot", "cold", "graph_hot", "graph_cold")),
        _ratios(row),
        row["floor_ms"],
        f"{100 * row['floor_fraction']:.0f}%",
        row["peak_mb"],
    ]  # fmt: skip


def _ratios(row: Line) -> str:
    """Each peer by name: as graphs where both are, else eager and said to be."""
    said = []
    for peer in PEERS:
        found = row["ratios"].get(peer)
        if not found:
            continue
        graph = "graph_hot" in found
        hot, cold = (found[f"graph_{x}" if graph else x] for x in ("hot", "cold"))
        said.append(f"{hot:.3g}x; {cold:.3g}x {peer}" + ("" if graph else " (eager)"))
    return ", ".join(said)


def model_tables(trained: list[Line], decoded: list[Line]) -> str:
    """Training and decoding end to end, each model's time over its peers'."""
    parts = []
    if trained:
        base = {(x["precision"], x["model"]): x for x in trained}
        rows = [
            [x["model"], x["train"], x["precision"], f"{x['batch']} x {x['tokens']}", x["ms"],
             x["tokens_per_s"], x["peak_gb"], f"{x['trained'] / 1e6:.0f} of "
             f"{x['parameters'] / 1e6:.0f} M", _over(x, base.get((x["precision"], "llama-pro")))]
            for x in trained
        ]  # fmt: skip
        header = ["model", "trains", "precision", "batch", "step ms", "tokens/s", "peak GB",
                  "trained", "time to llama-pro's"]  # fmt: skip
        parts.append(table(header, rows))
    if decoded:
        known = {(x["batch"], x["prompt"], x["model"]): x for x in decoded}
        rows = [
            [x["model"], x["batch"], x["prompt"], x["prefill_ms"], x["ms"], x["tokens_per_s"],
             x.get("graph_ms"), x.get("graph_tokens_per_s"), x["peak_gb"],
             _over(x, known.get((x["batch"], x["prompt"], "llama-pro"))),
             _over(x, known.get((x["batch"], x["prompt"], "llama-pro")), "graph_ms")]
            for x in decoded
        ]  # fmt: skip
        header = ["model", "batch", "prompt", "prefill ms", "eager ms a token", "tokens/s",
                  "graph ms", "tokens/s", "peak GB", "eager to llama-pro's",
                  "graph to llama-pro's"]  # fmt: skip
        parts.append(table(header, rows))
    return "\n".join(parts)


def _over(line: Line, peer: Line | None, name: str = "ms") -> float | None:
    if peer is None or line.get(name) is None or peer.get(name) is None:
        return None
    return line[name] / peer[name]


def tuning_table(rows: list[Line]) -> str:
    header = ["kernel", "case", "as written, ms", "best, ms", "gain", "best choice", "kept"]
    listed = [
        [x["kernel"], x["key"].partition(", ")[2], x["written_ms"], x["ms"], x["gain"],
         x["best"], "yes" if x["choice"] else "no"]
        for x in rows
    ]  # fmt: skip
    return table(header, listed)


def kernel_table(rows: list[Line]) -> str:
    """The profiler's view: each call's three longest kernels."""
    listed = [
        [x["key"], x["device_us"],
         ", ".join(f"{k['name'][:50]} {100 * k['share']:.0f}%" for k in x["kernels"][:3])]
        for x in rows
        if "kernels" in x
    ]  # fmt: skip
    return table(["layer", "us a call", "longest kernels"], listed)


def stage_table(lines: list[Line], names: Sequence[str]) -> str:
    """How every stage ended, and what it left out or could not do."""
    rows = []
    for name in names:
        ends = [x for x in lines if x["stage"] == name and x["kind"] == "end"]
        failed = [x for x in lines if x["stage"] == name and x["kind"] == "failure"]
        measured = {x["key"] for x in lines if x["stage"] == name and x["kind"] == "row"}
        failed = list({x["key"]: x for x in failed if x["key"] not in measured}.values())
        end = ends[-1] if ends else {"status": "not run", "seconds": None, "error": None}
        why = [end["error"] or "", *(f"{x['key']}: {x['error']}" for x in failed[:4])]
        if len(failed) > 4:
            why.append(f"and {len(failed) - 4} more")
        rows.append([name, end["status"], end["seconds"], len(measured), len(failed),
                     "; ".join(x for x in why if x)])  # fmt: skip
    return table(["stage", "ended", "seconds", "measured", "failed", "why"], rows)
