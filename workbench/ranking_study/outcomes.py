"""What single races of planted tables did, held against the whole table, and many of them together.

A race is stopped at a share of all evaluations, looked at, and goes on to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from analysis.race import Race
from analysis.race_found import p_top, tails, ties
from analysis.ranking_words import CARRIED
from analysis.tails import heavy_windows
from analysis.ties import best_first
from workbench.ranking_study.settings import (
    EQUAL,
    FIRST_ORDER,
    SETTINGS,
    Planted,
    equal_in_kind,
)

CONFIDENCE = 0.95
EDGES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of stated chances
CUT = (0.2, 0.4, 0.7)  # where races are stopped, in turn: shares of all evaluations
WARNED = {"p_top": False, "p_top_warned": True}  # whether few windows carry a head
HALF = 0.5  # where every other race of equal neighbours is

Record = dict[str, Any]


def outcome(name: str, number: int, seed: int = 0) -> Record:
    """What one race of a setting had said when it was cut short, and at its end."""
    planted = {**SETTINGS, **FIRST_ORDER}[name](np.random.default_rng([seed, number]))
    truth, best = true_scores(planted)
    share = CUT[number % len(CUT)]
    race = race_of(planted, number)
    run(race, planted, share)
    inside = np.isin(np.arange(len(truth)), list(best))
    cut = {
        "covered": holds(race, truth),
        "carried": carried(race),
        "guarantee": race.guarantee,
        "settled": race.stopped != "budget",
        "cost": race.spent / planted.effects.size,
        "p_top": reliability(p_top(race), inside),
    }
    run(race, planted)
    return {
        "heads": planted.effects.shape[0],
        "windows": planted.effects.shape[1],
        "top": planted.top,
        "guarantee": race.guarantee,
        "wrong": race.stopped != "budget" and chosen(race) != best,
        "covered": holds(race, truth),
        "carried": carried(race),
        "stopped": race.stopped,
        "cost": race.spent / planted.effects.size,
        "cut": cut,
    }


def together(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """The races of one setting: a row of the table."""
    count = len(records)
    cut = [record["cut"] for record in records]
    stated = [record for record in cut if record["guarantee"] != "few windows"]
    row: dict[str, Any] = {"setting": name, "races": count} | {
        key: records[0][key] for key in ("heads", "windows", "top", "guarantee")
    }
    wrong = sum(record["wrong"] for record in records)
    row |= {"wrong": wrong, "wrong_share": wrong / count, "wrong_upper": upper(wrong, count)}
    for prefix, of in (("", records), ("cut_", stated)):
        missed = sum(not record["covered"] for record in of)
        row[prefix + "races"] = len(of)
        row[prefix + "covered"] = 1 - missed / max(len(of), 1)
        row[prefix + "uncovered_upper"] = upper(missed, len(of))
        row[prefix + "few_windows_carry"] = _mean([record["carried"] for record in of])
        row[prefix + "cost"] = _mean([record["cost"] for record in of])
    row["cut_settled"] = _mean([record["settled"] for record in cut])
    row["silent"] = sum(not record["covered"] and not record["carried"] for record in stated)
    row["cost_most"] = max(record["cost"] for record in records)
    stops = [record["stopped"] for record in records]
    row["stopped"] = {word: stops.count(word) for word in ("settled", "documents", "budget")}
    for key, warned in WARNED.items():
        row[key] = pooled([one["p_top"] for one in cut if one["carried"] == warned])
    return row


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def neighbours(documents: int, number: int, seed: int = 0) -> Record:
    """Neighbours of one race that are equal in text of a kind, and how many it called untied."""
    planted = equal_in_kind(np.random.default_rng([seed, number, documents]), documents)
    race = race_of(planted, number)
    run(race, planted, None if number % 2 else HALF)
    order = race.ranking()
    same = np.isin(order, np.arange(len(order))[EQUAL])
    pairs = same[:-1] & same[1:]
    return {
        "pairs": int(pairs.sum()),
        "untied": int((pairs & ~np.array(ties(race, order)[:-1])).sum()),
    }


def untied(documents: int, records: Sequence[Record]) -> dict[str, Any]:
    """How often neighbours that are equal in text of a kind were called untied."""
    pairs, errors = (sum(record[key] for record in records) for key in ("pairs", "untied"))
    return {"documents": documents, "pairs": pairs, "untied": errors,
            "untied_upper": upper(errors, pairs)}  # fmt: skip


# ---------------------------------------------------------------- one race


def race_of(planted: Planted, seed: int) -> Race:
    """A race that has not begun."""
    sizes = planted.sizes
    return Race(
        len(planted.effects), planted.weights, planted.clusters, planted.top, CONFIDENCE, seed,
        bound=planted.bound, first=() if sizes is None else heavy_windows(sizes),
    )  # fmt: skip


def run(race: Race, planted: Planted, share: float | None = None) -> None:
    """Feed a race from its table, to its end or to a share of all evaluations."""
    effects = planted.effects
    budget = effects.size if share is None else int(share * effects.size)
    race.run(lambda rows, columns: effects[np.ix_(rows, columns)], budget)


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


def carried(race: Race) -> bool:
    """Whether a few windows carry the score of a head around the top, as a table would warn."""
    near, held = race.ranking()[: 2 * race.top], tails(race)["carried_by"]
    return bool(((held > 0) & (held <= CARRIED * race.counts))[near].any())


# ---------------------------------------------------------------- rates


def upper(errors: int, races: int) -> float:
    """Upper 95% bound of an error rate (Clopper and Pearson 1934)."""
    return 1.0 if errors >= races else float(stats.beta.ppf(0.95, errors + 1, races - errors))


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


def pooled(rows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Several of `reliability` together, every head of every race counting once."""
    found = []
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        cells = [cell for row in rows for cell in row if cell["from"] == low]
        count = sum(cell["heads"] for cell in cells)
        if count:
            mean = {
                key: sum(cell["heads"] * cell[key] for cell in cells) / count
                for key in ("said", "true")
            }
            found.append({"from": low, "to": high, "heads": count, **mean})
    return found
