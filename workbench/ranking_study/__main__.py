"""`python -m workbench.ranking_study`: measure, replay, and fill in docs/ranking.md.

Every head of pico is ablated on every held-out window once and the table kept in a run folder
(interrupted, it goes on from where it was). The race is then replayed from that table, seed after
seed; docs/ranking.json and the tables of docs/ranking.md are written from what it found.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from analysis.subject import loaded_with
from kernels.errors import MidusError
from kernels.files import write_json
from midus_model.bench.report import check_page, fill_page
from workbench.inputs import inputs_of
from workbench.ranking_study import report
from workbench.ranking_study.exhaustive import exhaustive
from workbench.ranking_study.replays import study
from workbench.runs import RunFolder

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.ranking_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/ranking-study"))
    parser.add_argument("--seeds", type=int, default=60, help="races of each kind")
    parser.add_argument("--parts", type=int, help="races of each kind that lacks a part, if fewer")
    parser.add_argument("--top", type=int, default=16)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--limit", type=int, help="documents at most, for a quick look")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of ranking.json and .md")
    given = parser.parse_args(arguments)
    page = given.docs / "ranking.md"
    try:
        if given.seeds < 1:
            raise MidusError(f"--seeds is {given.seeds}; it must be at least 1")
        check_page(page, report.TABLES)
        model, docs = loaded_with("pico", None, given.limit)
        run = RunFolder.begin(
            given.work, "ranking-study", ["python", "-m", "workbench.ranking_study"],
            {"model": "pico", "limit": given.limit},
            inputs=inputs_of({"pico": model}, {docs.name: docs}),
        )  # fmt: skip
        run.resume()
        with run:
            table = exhaustive(run.path / "exhaustive.safetensors", model, docs, progress=_say)
            names = ("seeds", "parts", "top", "confidence")
            asked = {name: getattr(given, name) for name in names}
            found = study(
                table,
                **asked,
                progress=_say,
                rows=_kept(run.path / "rows.json", asked),
                keep=lambda rows: run.write_json("rows.json", asked | {"rows": rows}),
            )
            run.write_json("ranking.json", found)
            run.finish({"success_at_a_quarter": report.at_a_quarter(found)["success"]})
        write_json(given.docs / "ranking.json", found)
        fill_page(page, report.TABLES, found)
    except (MidusError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.races(found))
    return 0


def _kept(place: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of races that were replayed before as they are asked for now."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return found["rows"] if {key: found[key] for key in asked} == asked else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _say(done: int, total: int, text: str) -> None:
    if total == 0 or done in (total, 1) or done % max(1, total // 20) == 0:
        print(f"{text} {done}/{total}" if total else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
