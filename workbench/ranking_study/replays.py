"""Races fed from the exhaustive table, and how what they found compares with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.estimates import FIRST_ORDER
from analysis.intervals import t_interval
from analysis.race import FOCUS, Race, enough
from analysis.race_found import design_effect, p_top
from analysis.ranking import PER_HEAD, SIZING
from analysis.tails import heavy_windows
from analysis.ties import best_first
from workbench.ranking_study.exhaustive import Exhaustive
from workbench.ranking_study.races import ALL_DRAWN, CONTROLLED, NONE_FIRST, VARIANTS

Progress = Callable[[int, int, str], None]
ALL = 10**12  # a budget that never ends a race


def ties(table: Exhaustive) -> dict[str, np.ndarray]:
    """Pairs [H, H] whose paired 95% interval on the exhaustive table contains 0.

    Two intervals: by t over documents (`analysis.intervals`), and, narrower, by the
    normal approximation over windows taken for independent.
    """
    count = int(table.clusters.max()) + 1
    tokens = np.bincount(table.clusters, table.weights, count)
    sums = np.stack([np.bincount(table.clusters, row, count) for row in table.effects])
    means = sums / tokens  # [heads, documents]
    found = t_interval(means[:, None] - means, tokens, together=False)
    y = table.effects / table.weights.mean()
    covariance = np.cov(y)
    variance = np.diag(covariance)[:, None] + np.diag(covariance) - 2 * covariance
    gap = y.mean(1)[:, None] - y.mean(1)
    by_window = np.abs(gap) <= 1.96 * np.sqrt(np.maximum(variance, 0) / y.shape[1])
    return {"documents": (found.low <= 0) & (found.high >= 0), "windows": by_window}


def judged(found: set[int], truth: set[int], tied: np.ndarray) -> str:
    """ "same", "tie" (at most two swaps, each of a tied pair) or "wrong"."""
    missing, extra = sorted(truth - found), sorted(found - truth)
    if not missing:
        return "same"
    swaps = (zip(missing, turn, strict=True) for turn in itertools.permutations(extra))
    fits = len(missing) <= 2 and any(all(tied[i, j] for i, j in pairs) for pairs in swaps)
    return "tie" if fits else "wrong"


@dataclass
class Work:
    """What a race would have cost on the model, in forward passes of one window.

    Measuring heads on a window takes a clean run, which they share, and for each head the blocks
    from its own on.
    """

    table: Exhaustive
    clean: int = 0
    resumed: float = 0.0

    def add(self, heads: np.ndarray, windows: int) -> None:
        blocks = int(self.table.heads[:, 0].max()) + 1
        self.clean += windows
        self.resumed += windows * float((1 - self.table.heads[heads, 0] / blocks).sum())

    @property
    def forwards(self) -> float:
        return self.clean + self.resumed


def heavy_first(table: Exhaustive, budget: int, confidence: float) -> list[int]:
    """The windows that `rank_heads` would measure first, as `analysis.ranking` decides it."""
    heads, windows = table.effects.shape
    allowed = min(budget, table.evaluations)
    blocks = int(table.heads[:, 0].max()) + 1
    passes = float((1 - table.heads[:, 0] / blocks).mean()) + 1 / FOCUS  # of an evaluation
    room = allowed // heads - enough(heads, confidence)
    if room < 1 or FIRST_ORDER * windows > SIZING * allowed * passes:
        return []
    return heavy_windows(np.abs(table.first_order), room // 2)


def replay(
    table: Exhaustive, name: str, budget: int, seed: int, top: int, confidence: float
) -> tuple[Race, Work]:
    """A race fed from the table, and its work."""
    values = table.effects
    if name == CONTROLLED:
        values = values - table.first_order + table.first_order.mean(1, keepdims=True)
    first = [] if name in NONE_FIRST else heavy_first(table, budget, confidence)
    race = VARIANTS[name](
        len(values), table.weights, table.clusters, top, confidence, seed, first=first
    )
    work = Work(table)

    def measure(heads: np.ndarray, windows: np.ndarray) -> np.ndarray:
        work.add(heads, len(windows))
        return values[np.ix_(heads, windows)]

    race.run(measure, budget)
    return race, work


def summary(
    table: Exhaustive,
    name: str,
    budget: int,
    *,
    seeds: int,
    top: int = 16,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What `seeds` races of one kind found, against the exhaustive table."""
    truth, scores, tied = table.top_set(top), table.scores, ties(table)
    verdicts: dict[str, list[str]] = {"documents": [], "windows": []}
    covered, chances, stops, costs, forwards, effects = [], [], [], [], [], []
    whole = Work(table)
    whole.add(np.arange(len(scores)), table.effects.shape[1])
    for seed in range(seeds):
        race, work = replay(table, name, budget, seed, top, confidence)
        chosen = set(race.ranking()[:top].tolist())
        for kind, pairs in tied.items():
            verdicts[kind].append(judged(chosen, truth, pairs))
        found = race.intervals()
        slack = 1e-9 * np.abs(scores).max()  # sums in another order
        covered.append((found["ci_low"] - slack <= scores) & (scores <= found["ci_high"] + slack))
        chances.append(p_top(race))
        stops.append(race.stopped)
        costs.append(race.spent / table.evaluations)
        forwards.append(work.forwards / whole.forwards)
        effects.append(design_effect(race))
    # First-order scores of every window take a pass.
    used = name == CONTROLLED or race.known > 0
    before = table.seconds[0] / table.seconds[1] if used else 0.0
    same = np.array([verdict == "same" for verdict in verdicts["documents"]])
    right = np.array([verdict != "wrong" for verdict in verdicts["documents"]])
    settled = np.array([stop != "budget" for stop in stops])
    low, high = stats.binomtest(int(right.sum()), seeds).proportion_ci(method="wilson")
    heads = np.array(covered)
    inside = np.isin(np.arange(len(scores)), list(truth))
    return {
        "race": name,
        "budget": None if budget >= table.evaluations else budget / table.evaluations,
        "seeds": seeds,
        "same_set": float(same.mean()),
        "tied_swaps": float((right & ~same).mean()),
        "success": float(right.mean()),
        "success_low": float(low),
        "success_high": float(high),
        "success_ties_by_window": float(np.mean([v != "wrong" for v in verdicts["windows"]])),
        "settled": float(settled.mean()),
        "settled_wrong": int((settled & ~same).sum()),
        "stopped": {stop: stops.count(stop) for stop in ("settled", "budget", "documents")},
        "first": race.known,
        "cost": float(np.mean(costs)),
        "cost_max": float(np.max(costs)),
        "covered_together": float(heads.all(1).mean()),
        "covered_head": float(heads.mean()),
        "covered_worst": float(heads.mean(0).min()),
        "forwards": before + float(np.mean(forwards)),
        "design_effect": float(np.mean(effects)),
        "p_top": calibration(np.array(chances), inside),
    }


def calibration(chances: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """How `p_top` [seeds, H] agrees with the truth [H]: Brier score, and by bins of the chance."""
    truth = np.broadcast_to(inside, chances.shape)
    edges = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    cell = np.clip(np.digitize(chances, edges[1:-1]), 0, len(edges) - 2)
    bins = [
        {
            "from": edges[i],
            "to": edges[i + 1],
            "heads": int((cell == i).sum()),
            "said": float(chances[cell == i].mean()),
            "true": float(truth[cell == i].mean()),
        }
        for i in range(len(edges) - 1)
        if (cell == i).any()
    ]
    return {"brier": float(((chances - truth) ** 2).mean()), "bins": bins}


def near_the_boundary(table: Exhaustive, top: int, reach: int = 3) -> list[dict[str, Any]]:
    """The heads around the last place of the top set, and what sets each apart from the next."""
    order = best_first(table.scores)
    y = table.effects / table.weights.mean()
    found = []
    for rank in range(top - reach, top + reach):
        here, below = order[rank], order[rank + 1]
        gap = y[here] - y[below]
        sums = np.bincount(table.clusters, gap - gap.mean())
        found.append(
            {
                "rank": rank + 1,
                "layer": int(table.heads[here, 0]),
                "head": int(table.heads[here, 1]),
                "score": float(table.scores[here]),
                "deviation": float(y[here].std(ddof=1)),
                "lead": float(gap.mean()),
                "stderr_windows": float(gap.std(ddof=1) / np.sqrt(len(gap))),
                "stderr_documents": float(np.sqrt((sums**2).sum()) / len(gap)),
                "first_order_correlation": float(
                    np.corrcoef(y[here], table.first_order[here])[0, 1]
                ),
            }
        )
    return found


def design_effects(table: Exhaustive) -> dict[str, float]:
    """Over heads: variance of the score as of documents drawn over that as of windows drawn."""
    y = table.effects / table.weights.mean()
    centred = y - y.mean(1, keepdims=True)
    sums = np.stack([np.bincount(table.clusters, row) for row in centred])
    ratio = (sums**2).sum(1) / (centred**2).sum(1)
    return {
        "median": float(np.median(ratio)),
        "least": float(ratio.min()),
        "most": float(ratio.max()),
    }


def study(
    table: Exhaustive,
    *,
    seeds: int,
    top: int,
    confidence: float,
    parts: int | None = None,
    progress: Progress | None = None,
    rows: list[dict[str, Any]] | None = None,
    keep: Callable[[list[dict[str, Any]]], object] | None = None,
) -> dict[str, Any]:
    """Everything that docs/ranking.json holds.

    parts: seeds of races that lack a part, by default all.
    rows: of races that were replayed before, with the same arguments; keep: is given all rows
    after each.
    """
    heads, full = len(table.effects), table.evaluations
    budgets = [PER_HEAD * heads, full // 16, full // 8, full // 4, ALL]
    plans = [("as shipped", budget) for budget in budgets]
    plans += [(name, budget) for name in VARIANTS for budget in (full // 16, ALL)][2:]
    plans.append((ALL_DRAWN, full // 4))
    rows = list(rows or [])
    for number, (name, budget) in enumerate(plans[len(rows) :], len(rows) + 1):
        count = seeds if name == "as shipped" else parts or seeds
        rows.append(summary(table, name, budget, seeds=count, top=top, confidence=confidence))
        if keep:
            keep(rows)
        if progress:
            progress(number, len(plans), f"{count} races: {name}")
    return {
        "about": table.about,
        "heads": heads,
        "top": top,
        "confidence": confidence,
        "seeds": seeds,
        "enough": enough(heads, confidence),
        "evaluations": full,
        "first_order_cost": table.seconds[0] / table.seconds[1],
        "boundary": near_the_boundary(table, top),
        "design_effect": design_effects(table),
        "races": rows,
    }
