"""`python -m workbench.first_order_study`: measure, replay, and fill in docs/first-order.md.

Every head of SmolLM2 is ablated on 24 windows of 128 tokens, and every head of pico on 96 of its
own; cheap methods and screens are judged by these tables. They are kept in the work folder as they
grow: interrupted, the same command goes on from where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from analysis.subject import loaded
from kernels.errors import MidusError
from kernels.files import write_json
from kernels.reading import read_json
from midus_model.bench.report import check_page, fill_page
from workbench.first_order_study import report
from workbench.first_order_study.measure import study
from workbench.first_order_study.texts import evenly

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Case(NamedTuple):
    """A model and its documents: so many, of so many tokens, in windows of `context`."""

    source: str
    documents: int
    tokens: int
    context: int
    top: int
    shares: tuple[float, ...]


CASES = {
    "smollm2": Case("topics", 24, 128, 128, 16, (0.05, 0.075, 0.1, 0.2)),
    "pico": Case("heldout", 24, 1021, 256, 8, (0.05, 0.1, 0.2)),
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.first_order_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/first-order-study"))
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--documents", type=int, help="other than 24, for a quick look")
    parser.add_argument("--seeds", type=int, default=60, help="screens of each budget")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="folder of first-order.json and .md"
    )
    given = parser.parse_args(arguments)
    page, kept = given.docs / "first-order.md", given.docs / "first-order.json"
    try:
        if given.seeds < 2:
            raise MidusError(f"--seeds is {given.seeds}; it must be at least 2")
        check_page(page, report.TABLES)
        found: dict[str, Any] = read_json(kept) if kept.exists() else {}
        for name in given.models:
            found[name] = _one(name, given)
            write_json(kept, found)
        fill_page(page, report.TABLES, found)
    except (MidusError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.methods(found))
    print(report.screens(found))
    return 0


def _one(name: str, given: argparse.Namespace) -> dict[str, Any]:
    case, model = CASES[name], loaded(name)
    docs = evenly(model, case.source, given.documents or case.documents, case.tokens, case.context)
    place = given.work / name
    place.mkdir(parents=True, exist_ok=True)
    return study(
        place, model, docs, top=case.top, shares=case.shares, seeds=given.seeds, progress=_say
    )


def _say(done: int, total: int, text: str) -> None:
    print(f"{text} {done}/{total}" if total else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
