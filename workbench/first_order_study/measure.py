"""Cheap scores beside exact ablation, and screens replayed from the table of all heads.

Shape letters: H heads, N windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.array_files import load_arrays, save_arrays
from analysis.documents import Documents
from analysis.engine import batches
from analysis.first_order import registered
from analysis.first_order.relp import effects as relevance
from analysis.gates import gate_gradients
from analysis.methods import ablation_passes, method_passes
from analysis.race import MINIMUM, Race
from analysis.screen import NOMINATING, Known, chosen, found_by, in_turn, planned
from analysis.subject import Subject, prepared
from analysis.ties import best_first, spearman
from kernels.errors import RunError
from workbench.ranking_study.exhaustive import Exhaustive, exhaustive

Progress = Callable[[int, int, str], None]
BATCH = 2  # windows at once: what a killed study loses
HELD = "relp, patterns held"


def _taylor(view: Any, batch: Any, replacement: Any, clean: Any) -> tuple[Any, Any]:
    gradients, values = gate_gradients(view, batch, replacement, clean=clean)
    return -gradients, values


CHEAP: dict[str, Callable[..., tuple[Any, Any]]] = {
    "taylor": _taylor,
    "relp": registered("relp").effects,
    HELD: partial(relevance, held=True),
    "atp_star": registered("atp_star").effects,
}


def cheap_effects(
    place: Path, subject: Subject, table: Exhaustive, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Every cheap method's effects [H, N], kept at `place`."""
    identity = f"{table.about['model_hash']} {table.about['data_hash']}"
    arrays: dict[str, np.ndarray] = {}
    if place.exists():
        arrays, known = load_arrays(place, RunError)
        if known.get("identity") != identity:
            raise RunError(f"{place} is of another model or data; give another folder")
    for name, method in CHEAP.items():
        if name in arrays:
            continue
        found = np.zeros(table.effects.shape)
        groups = batches(subject.docs.windows, min(BATCH, subject.plan.windows))
        for number, group in enumerate(groups, 1):
            batch = subject.batch(group)
            effects, _ = method(subject.view, batch, subject.baseline(group, batch), None)
            found[:, group] = effects.numpy()
            if progress:
                progress(number, len(groups), name)
        arrays[name] = found
        save_arrays(place, arrays, {"identity": identity}, RunError)
    return {name: arrays[name] for name in CHEAP}


def agreement(table: Exhaustive, effects: np.ndarray, top: int) -> dict[str, Any]:
    """How far scores [H, N] agree with ablation: ranks, signs, and the top set within the first.

    By the score, and by the size: the mean over windows of the effect's size.
    """
    exact, weights = table.scores, table.weights.sum()
    ways = {"score": effects.sum(1) / weights, "size": np.abs(effects).sum(1) / weights}
    best, heads = table.top_set(top), len(exact)
    found: dict[str, Any] = {
        "spearman": spearman(ways["score"], exact),
        "spearman_size": spearman(ways["size"], np.abs(exact)),
        "sign": float((np.sign(ways["score"]) == np.sign(exact)).mean()),
    }
    for way, scores in ways.items():
        order = best_first(scores)
        found[f"found_{way}"] = {
            str(times): len(best & set(order[: min(times * top, heads)].tolist())) / top
            for times in (1, 2, 4)
        }
    return found


def nominations(cheap: Mapping[str, np.ndarray]) -> np.ndarray:
    """Heads in the order in which `analysis.screen` nominates them."""
    return in_turn([best_first(np.abs(cheap[name]).sum(1)) for name in NOMINATING])


def replay(
    table: Exhaustive, order: np.ndarray, top: int, share: float, seed: int
) -> dict[str, Any]:
    """One ranking by screen with values from the table, against the truth."""
    heads, windows = table.effects.shape
    minimum, budget = min(MINIMUM, windows), int(share * table.evaluations)
    plan = planned(heads, windows, top, budget, minimum)
    race_order = Race(heads, table.weights, table.clusters, top, 0.95, seed).order
    known = Known(heads, windows, lambda some, at: table.effects[np.ix_(some, at)])
    who = chosen(plan, order, race_order, known, np.random.default_rng(seed))
    race = Race(len(who.raced), table.weights, table.clusters, top, 0.95, seed)
    race.run(lambda some, at: known(who.raced[some], at), plan.race)
    found, best = set(who.raced[race.ranking()[:top]].tolist()), table.top_set(top)
    told = found_by(plan, len(found & set(who.drawn.tolist())), len(who.out), top)
    unseen = set(who.out.tolist()) - set(who.drawn.tolist())
    tried = set(who.candidates.tolist()) | set(who.drawn.tolist())
    return {
        "recall": len(found & best) / top,
        "tried": len(tried & best) / top,
        "raced": len(set(who.raced.tolist()) & best) / top,
        "evaluations": known.evaluations,
        "stopped": race.stopped,
        "missed": len(unseen & best),
        "told": told["missed"],
        "told_high": told["missed_high"],
        "recall_low": told["recall_low"],
        "mass": float(table.scores[sorted(found)].sum() / table.scores[sorted(best)].sum()),
    }


def replays(
    table: Exhaustive, order: np.ndarray, top: int, share: float, seeds: int
) -> dict[str, Any]:
    """Many of them: the mean recall with its 95% t interval over seeds, and what is told of it."""
    rows = [replay(table, order, top, share, seed) for seed in range(seeds)]
    recall = np.array([row["recall"] for row in rows])
    reach = float(stats.t.ppf(0.975, max(seeds - 1, 1)) * recall.std(ddof=1) / np.sqrt(seeds))
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]
            if name != "stopped"}  # fmt: skip
    return mean | {
        "share": share,
        "seeds": seeds,
        "recall_low_95": float(recall.mean() - reach),
        "recall_high_95": float(min(recall.mean() + reach, 1.0)),
        "recall_least": float(recall.min()),
        "bound_holds": float(np.mean([row["missed"] <= row["told_high"] for row in rows])),
        "settled": float(np.mean([row["stopped"] != "budget" for row in rows])),
    }


def study(
    work: Path,
    model: Any,
    docs: Documents,
    *,
    top: int,
    shares: tuple[float, ...],
    seeds: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All of one model: the exhaustive table, the cheap ones, and the replays."""
    table = exhaustive(work / "exhaustive.safetensors", model, docs, batch=BATCH, progress=progress)
    subject = prepared(model, docs, gradients=True, progress=progress)
    cheap = cheap_effects(work / "cheap.safetensors", subject, table, progress)
    order = nominations(cheap)
    best, exact = table.top_set(top), table.scores
    sweep = 1.0 + sum(ablation_passes(model, subject.units))

    def passes(name: str) -> float:
        return method_passes("relp" if name == HELD else name, model, [])

    return {
        "about": table.about, "heads": len(exact), "top": top, "evaluations": table.evaluations,
        "seconds_exact": table.seconds[1],
        "methods": {name: agreement(table, part, top) | {"passes": passes(name) / sweep}
                    for name, part in cheap.items()},
        "nominated": {str(times): len(best & set(order[: times * top].tolist())) / top
                      for times in (1, 2, 3, 4)},
        "screen_passes": sum(map(passes, NOMINATING)) / sweep,
        "best": [[*map(int, table.heads[head]), float(exact[head])]
                 for head in best_first(exact)[:top]],
        "replays": [replays(table, order, top, share, seeds) for share in shares],
    }  # fmt: skip
