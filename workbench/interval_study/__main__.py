"""`python -m workbench.interval_study`: how often intervals hold, alone, together and as flags.

Scores by document are drawn with known truths; docs/statistics.json holds what the product's own
functions made of them, and the tables of docs/statistics.md are written from it. What the file
holds already, made with as many tables, is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kernels.errors import MidusError
from kernels.files import write_file
from midus_model.bench.report import fill_in
from workbench.interval_study.measure import plan
from workbench.interval_study.report import TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def kept(path: Path, tables: int) -> dict[str, Any]:
    """What a file holds of a study with that many tables."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["settings"]) if found["tables"] == tables else {}
    except (ValueError, KeyError, TypeError) as error:
        raise MidusError(f"{path} is no file of this study ({error}); remove it") from None


def study(path: Path, tables: int) -> dict[str, Any]:
    """Every setting that the file lacks, written as soon as it is known."""
    found, work = kept(path, tables), plan(tables)
    found = {name: row for name, row in found.items() if name in work}
    for name, measure in work.items():
        if name in found:
            continue
        found[name] = measure()
        print(json.dumps(found[name]), file=sys.stderr, flush=True)
        _write(path, {"tables": tables, "settings": found})
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    rows = [f"  {json.dumps(name)}: {json.dumps(_rounded(row))}"
            for name, row in found["settings"].items()]  # fmt: skip
    text = f'{{"tables": {found["tables"]}, "settings": {{\n' + ",\n".join(rows) + "\n}}\n"
    write_file(path, text)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value
            for key, value in row.items()}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.interval_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tables", type=int, default=1000, help="drawn tables of a setting")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of statistics.md")
    given = parser.parse_args(arguments)
    try:
        if given.tables < 1:
            raise MidusError("--tables must be at least 1")
        study(given.docs / "statistics.json", given.tables)
        rows = kept(given.docs / "statistics.json", given.tables).values()
        for name, table in TABLES.items():
            part = [row for row in rows if row["kind"] == name]
            fill_in(given.docs / "statistics.md", name, table(part))
    except (MidusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
