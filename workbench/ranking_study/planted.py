"""`python -m workbench.ranking_study.planted`: how often races of planted tables are right.

Of every setting so many tables are drawn, each is raced once, and what the race said, cut short and
at its end, is held against the whole table: whether a top set that it called settled is the true
one, whether all of its intervals hold the true scores, what it cost, how `p_top` did when it was
cut short, and how often two heads that are equal in text of a kind were called untied.

Every race is a line of a file in the folder of the work, by its setting and number: interrupted, or
asked for more races, the command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kernels.errors import MidusError, RunError
from kernels.files import write_json
from midus_model.bench.report import check_page, fill_page
from workbench.ranking_study import report
from workbench.ranking_study.outcomes import (
    CONFIDENCE,
    WARNED,
    Record,
    neighbours,
    outcome,
    pooled,
    together,
    untied,
)
from workbench.ranking_study.settings import DOCUMENTS, FIRST_ORDER, SETTINGS

EVERY = [*SETTINGS, *FIRST_ORDER]
TIED = "equal neighbours"


class Kept:
    """Races made before, a line of JSON each; a last line that was cut off is made anew."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.seed = place, seed
        self.records: dict[tuple[str, int], Record] = {}
        place.parent.mkdir(parents=True, exist_ok=True)
        text = place.read_bytes() if place.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            place.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                name, at, record = json.loads(line)
                self.records[name, int(at)] = dict(record)
            except (ValueError, TypeError) as problem:
                raise RunError(
                    f"{place}, line {number}, is no race; remove the file to begin anew"
                ) from problem

    def race(self, name: str, number: int) -> Record:
        """The race of a setting, made where it is not kept."""
        key = f"{name}, seed {self.seed}", number
        if key not in self.records:
            record = _made(name, number, self.seed)
            with self.place.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, record]) + "\n")
            self.records[key] = record
        return self.records[key]


def _made(name: str, number: int, seed: int) -> Record:
    if name.startswith(TIED):
        return neighbours(int(name.removeprefix(TIED)), number, seed)
    return outcome(name, number, seed)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.ranking_study.planted",
        description=(__doc__ or "").split(": ", 1)[1].splitlines()[0],
    )
    parser.add_argument("--work", type=Path, default=Path("runs/ranking-planted"))
    parser.add_argument("--races", type=int, default=200, help="of each setting")
    parser.add_argument("--settings", nargs="*", choices=EVERY, help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="folder whose ranking.md is filled in")
    given = parser.parse_args(arguments)
    try:
        if given.races < 1:
            raise MidusError(f"--races is {given.races}; it must be at least 1")
        if given.docs is not None:
            if given.settings:
                raise MidusError("--docs takes all settings; leave --settings out")
            check_page(given.docs / "ranking.md", report.PLANTED)
        kept = Kept(given.work / "races.jsonl", given.seed)
        found = study(kept, given.settings or EVERY, given.races, ties=not given.settings)
        write_json(given.work / "planted.json", found)
        if given.docs is not None:
            write_json(given.docs / "ranking-planted.json", found)
            fill_page(given.docs / "ranking.md", report.PLANTED, found)
    except (MidusError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def study(kept: Kept, settings: list[str], races: int, ties: bool) -> dict[str, Any]:
    """Everything that ranking-planted.json holds."""
    rows = []
    for name in settings:
        rows.append(together(name, [kept.race(name, number) for number in range(races)]))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    found: dict[str, Any] = {"confidence": CONFIDENCE, "seed": kept.seed, "settings": rows}
    found |= {key: pooled([row[key] for row in rows]) for key in WARNED}
    if ties:
        found["ties"] = [
            untied(n, [kept.race(f"{TIED} {n}", number) for number in range(races)])
            for n in DOCUMENTS
        ]
    return found


def line(row: dict[str, Any]) -> str:
    """A setting in a line."""
    return (
        f"{row['setting']}: wrong though settled {row['wrong']}/{row['races']} (upper bound "
        f"{row['wrong_upper']:.1%}), all intervals right {row['covered']:.1%} at the end, "
        f"{row['cut_covered']:.1%} cut short, cost {row['cost']:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
