"""What the run found, put where people read it: a summary, docs/benchmarks.md, benchmark.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kernels
from kernels import files
from midus_model.bench import report
from midus_model.bench.device import lines, tables
from midus_model.bench.device.plan import NAMES
from midus_model.bench.device.stage import Run
from midus_model.bench.device.tables import REHEARSAL

PAGE = Path(kernels.__file__).parents[1] / "docs" / "benchmarks.md"
SUMMARY, FILLED = "summary.md", "benchmarks.md"


def run(run: Run) -> None:
    """Writes DIR/summary.md; of a GPU's run also the page, filled in, and benchmark.json."""
    write(run.out, run.name, run.tiny, None)


def write(out: Path, device: str, tiny: bool, page: Path | None) -> list[Path]:
    """The files of one device's run; `page` is filled in where it lies, else a copy in `out`.

    Raises:
        ValueError: where `page` cannot be read or lacks the markers of a table.
    """
    counted = lines.counted(lines.read(out / lines.NAME), device, tiny)
    found = {name: lines.of_stage(counted, name, "row") for name in NAMES}
    machines = [x["machine"] for x in counted if x["kind"] == "machine"]
    machine = machines[-1] if machines else {}
    written = [out / SUMMARY]
    _put(written[0], _summary(counted, found, machine, tiny))
    if tiny or machine.get("kind") != "cuda":
        return written  # nothing of a CPU stands in the GPU's tables
    target = page
    if target is None and PAGE.exists():
        target = out / FILLED
        shutil.copyfile(PAGE, target)
    if target is not None:
        for name, text in _sections(counted, found, machine).items():
            report.fill_in(target, name, text)
        written.append(target)
    rows = found["rows"] + found["block"]
    if rows:
        written += report.write(out, _as_benchmark(machine, found, rows))
    return written


def _summary(
    counted: list[lines.Line], found: dict[str, list[lines.Line]], machine: dict[str, Any],
    tiny: bool,
) -> str:  # fmt: skip
    said = [f"# {'Rehearsal' if tiny else 'Device run'}: {machine.get('device')}"]
    if machine.get("kind") != "cuda" or tiny:
        said.append(REHEARSAL)
    if machine:
        said.append(tables.machine_line(machine, found["ceilings"]))
    said.append(tables.stage_table(counted, NAMES[:-1]))
    headline = [x for x in found["rows"] if x["op"] == "headwise_memory"] + found["block"]
    for title, text in (
        ("Layer and block", tables.op_table(headline) if headline else ""),
        ("Models", tables.model_tables(found["train"], found["decode"])),
        ("Tuning", tables.tuning_table(found["tune"]) if found["tune"] else ""),
        ("Kernels", tables.kernel_table(found["profile"]) if found["profile"] else ""),
    ):
        if text:
            said += [f"## {title}", text]
    return "\n\n".join(said) + "\n"


def _sections(
    counted: list[lines.Line], found: dict[str, list[lines.Line]], machine: dict[str, Any]
) -> dict[str, str]:
    """The page's tables by the name of their markers; what was not measured says so."""
    nothing = "Not measured in this run.\n"
    rows = found["rows"] + found["block"]
    made = {"device": tables.machine_line(machine, found["ceilings"]) + "\n"}
    for name, dtype in (("cuda-bf16", "bfloat16"), ("cuda-fp32", "float32")):
        chosen = [row for row in rows if row["dtype"] == dtype]
        made[name] = tables.op_table(chosen) if chosen else nothing
    made["device-models"] = tables.model_tables(found["train"], found["decode"]) or nothing
    made["device-tuning"] = tables.tuning_table(found["tune"]) if found["tune"] else nothing
    made["device-kernels"] = tables.kernel_table(found["profile"]) if found["profile"] else nothing
    made["device-stages"] = tables.stage_table(counted, NAMES[:-1])
    return made


def _as_benchmark(
    machine: dict[str, Any], found: dict[str, list[lines.Line]], rows: list[lines.Line]
) -> dict[str, Any]:
    """In the form of `python -m midus_model.bench`, which its figure reads."""
    ceilings = {line["key"]: line for line in found["ceilings"]}
    verified = {line["key"]: line["errors"] for line in found["verify"]}
    flat = [
        {name: value for name, value in row.items() if not isinstance(value, dict | list)}
        | {f"x_{x}_{end}": row[f"x_{x}"] for x in row["ratios"] for end in ("min", "max")}
        for row in rows
    ]
    copy, half = ceilings.get("copy", {}), ceilings.get("product bfloat16", {})
    return {
        "complete": True,
        "machine": machine,
        "copy_gb_per_s": copy.get("gb_per_s"),
        "gflops": {"bf16": 1e3 * half["tflops"]} if half else {},
        "verified": verified,
        "rows": flat,
        "skipped": [],
    }


def _put(path: Path, text: str) -> None:
    files.write_file(path, text)
