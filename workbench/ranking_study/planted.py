"""`python -m workbench.ranking_study.planted`: how often races of planted tables are right.

Of every setting so many tables are drawn, each is raced once, and what the race said is held
against the whole table: whether a top set that it called settled is the true one, whether all of
its intervals hold the true scores, what it cost, how `p_top` did when a race was cut short, and how
often two heads that are equal in text of a kind were called untied.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.race import Race
from analysis.race_found import p_top, tails, ties
from analysis.ranking_words import CARRIED
from analysis.tails import heavy_windows
from analysis.ties import best_first
from midus_model.bench.report import fill_in
from workbench.ranking_study import report
from workbench.ranking_study.settings import (
    DOCUMENTS,
    EQUAL,
    FIRST_ORDER,
    SETTINGS,
    Planted,
    equal_in_kind,
)

CONFIDENCE = 0.95
EDGES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MISLED = [name for name in FIRST_ORDER if name.endswith("of other windows")]
CUT = (0.2, 0.4, 0.7)  # budgets of the races that are cut short, shares of all evaluations


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.ranking_study.planted",
        description=(__doc__ or "").split(": ", 1)[1].splitlines()[0],
    )
    every = {**SETTINGS, **FIRST_ORDER}
    parser.add_argument("--races", type=int, default=200, help="of each setting")
    parser.add_argument("--settings", nargs="*", default=list(every), choices=list(every))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file [default: standard output]")
    parser.add_argument("--page", type=Path, help="whose tables are filled in")
    parser.add_argument("--from", dest="kept", type=Path, help="JSON file of races made before")
    given = parser.parse_args(arguments)
    if given.races < 1:
        parser.error(f"--races is {given.races}; it must be at least 1")
    if given.page is not None and len(given.settings) < len(every):
        parser.error("--page takes all settings; leave --settings out")
    if given.kept is not None:
        if given.page is None:
            parser.error("--from makes the tables of a page; give --page too")
        _fill_in(given.page, json.loads(given.kept.read_text(encoding="utf-8")))
        return 0
    found: dict[str, Any] = {"confidence": CONFIDENCE, "settings": []}
    for name in given.settings:
        found["settings"].append(outcome(name, given.races, given.seed))
        print(line(found["settings"][-1]), file=sys.stderr, flush=True)
        _keep(found, given.out)
    if len(given.settings) == len(every):
        found["p_top"] = pooled([r for r in found["settings"] if r["setting"] not in MISLED])
        found["ties"] = [untied(count, given.races, given.seed) for count in DOCUMENTS]
        _keep(found, given.out)
        if given.page is not None:
            _fill_in(given.page, found)
    if given.out is None:
        print(json.dumps(found, indent=1))
    return 0


def _fill_in(page: Path, found: dict[str, Any]) -> None:
    for name, make in report.PLANTED.items():
        fill_in(page, name, make(found))


def _keep(found: dict[str, Any], place: Path | None) -> None:
    if place is not None:
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def outcome(name: str, races: int, seed: int = 0) -> dict[str, Any]:
    """What races of one setting did."""
    make = {**SETTINGS, **FIRST_ORDER}[name]
    wrong, covered, costs, stops, chances, inside, seconds, ruled = [], [], [], [], [], [], [], []
    for number in range(races):
        planted = make(np.random.default_rng([seed, number]))
        truth, best = true_scores(planted)
        begun = time.perf_counter()
        race = raced(planted, number)
        seconds.append(time.perf_counter() - begun)
        wrong.append(race.stopped != "budget" and chosen(race) != best)
        covered.append(holds(race, truth))
        costs.append(race.spent / planted.effects.size)
        stops.append(race.stopped)
        ruled.append(carried(race))
        short = raced(planted, number, CUT[number % len(CUT)])
        chances.append(p_top(short))
        inside.append(np.isin(np.arange(len(truth)), list(best)))
    return {
        "setting": name,
        "races": races,
        "heads": planted.effects.shape[0],
        "windows": planted.effects.shape[1],
        "top": planted.top,
        "wrong": int(np.sum(wrong)),
        "wrong_share": float(np.mean(wrong)),
        "wrong_upper": upper(int(np.sum(wrong)), races),
        "covered": float(np.mean(covered)),
        "cost": float(np.mean(costs)),
        "cost_most": float(np.max(costs)),
        "stopped": {word: stops.count(word) for word in ("settled", "documents", "budget")},
        "guarantee": "asymptotic" if race.range.bound is None else "exact",
        "few_windows_carry": float(np.mean(ruled)),
        "seconds": float(np.median(seconds)),
        "p_top": reliability(np.concatenate(chances), np.concatenate(inside)),
    }


def carried(race: Race) -> bool:
    """Whether a few windows carry the score of a head around the top, as a table would warn."""
    near, held = race.ranking()[: 2 * race.top], tails(race)["carried_by"]
    return bool(((held > 0) & (held <= CARRIED * race.counts))[near].any())


def untied(documents: int, races: int, seed: int = 0) -> dict[str, Any]:
    """How often neighbours that are equal in text of a kind are called untied.

    Every other race is stopped half way.
    """
    errors = pairs = 0
    for number in range(races):
        planted = equal_in_kind(np.random.default_rng([seed, number, documents]), documents)
        race = raced(planted, number, None if number % 2 else 0.5)
        order = race.ranking()
        same = np.isin(order, np.arange(len(order))[EQUAL])
        for place, tied in enumerate(ties(race, order)[:-1]):
            if same[place] and same[place + 1]:
                pairs, errors = pairs + 1, errors + (not tied)
    return {"documents": documents, "pairs": pairs, "untied": errors,
            "untied_upper": upper(errors, pairs)}  # fmt: skip


def raced(planted: Planted, seed: int, share: float | None = None) -> Race:
    """A race fed from a table, to its end or to a share of all evaluations."""
    effects = planted.effects
    heads = len(effects)
    sizes = planted.sizes
    race = Race(
        heads, planted.weights, planted.clusters, planted.top, CONFIDENCE, seed,
        bound=planted.bound, first=() if sizes is None else heavy_windows(sizes),
    )  # fmt: skip
    budget = effects.size if share is None else int(share * effects.size)
    race.run(lambda rows, columns: effects[np.ix_(rows, columns)], budget)
    return race


def true_scores(planted: Planted) -> tuple[np.ndarray, set[int]]:
    """Scores over all windows [H], and the true top set; ties in model order."""
    scores = planted.effects.sum(1) / planted.weights.sum()
    return scores, set(best_first(scores)[: planted.top].tolist())


def chosen(race: Race) -> set[int]:
    """The top set of a race as it stands."""
    return set(race.ranking()[: race.top].tolist())


def holds(race: Race, truth: np.ndarray) -> bool:
    """Whether all intervals hold the true scores."""
    found, slack = race.intervals(), 1e-9 * np.abs(truth).max()
    inside = (found["ci_low"] - slack <= truth) & (truth <= found["ci_high"] + slack)
    return bool(inside.all())


def upper(errors: int, races: int) -> float:
    """Upper 95% bound of an error rate (Clopper and Pearson 1934)."""
    return 1.0 if errors == races else float(stats.beta.ppf(0.95, errors + 1, races - errors))


def reliability(chances: np.ndarray, inside: np.ndarray) -> list[dict[str, Any]]:
    """Stated chances against the truth, by bins of the chance."""
    cell = np.clip(np.digitize(chances, EDGES[1:-1]), 0, len(EDGES) - 2)
    return [
        {
            "from": EDGES[i],
            "to": EDGES[i + 1],
            "heads": int((cell == i).sum()),
            "said": float(chances[cell == i].mean()),
            "true": float(inside[cell == i].mean()),
        }
        for i in range(len(EDGES) - 1)
        if (cell == i).any()
    ]


def pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reliability of all settings together, every head of every race counting once."""
    found = []
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        cells = [cell for row in rows for cell in row["p_top"] if cell["from"] == low]
        count = sum(cell["heads"] for cell in cells)
        if count:
            mean = {
                key: sum(cell["heads"] * cell[key] for cell in cells) / count
                for key in ("said", "true")
            }
            found.append({"from": low, "to": high, "heads": count, **mean})
    return found


def line(row: dict[str, Any]) -> str:
    """A setting in a line."""
    return (
        f"{row['setting']}: wrong though settled {row['wrong']}/{row['races']} (upper bound "
        f"{row['wrong_upper']:.1%}), all intervals right {row['covered']:.1%}, cost "
        f"{row['cost']:.0%}, {row['seconds']:.2f} s a race"
    )


if __name__ == "__main__":
    sys.exit(main())
