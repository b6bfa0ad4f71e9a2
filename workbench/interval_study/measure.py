"""What is counted of many drawn tables, a dict a setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from analysis.intervals import (
    FDR,
    by_document,
    false_discovery,
    shares_by_document,
    skewness_note,
    t_interval,
)
from analysis.shrinkage import shrunk
from analysis.statistics import gini, shares
from analysis.ties import ranks
from workbench.interval_study.draws import SETTINGS, effects_of, scores_of

Row = dict[str, Any]
DOCUMENTS = (2, 3, 5, 10, 20, 40)
FEW = (5, 10, 20, 40)
HEADS = 48
TOP = 5
ROWS = 100  # independent heads of a drawn set of documents, for intervals of each for itself


def bounds(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's one-sided lower and upper bounds on a share seen `count` in `of`."""
    low = 0.0 if count == 0 else float(stats.beta.ppf(1 - confidence, count, of - count + 1))
    high = 1.0 if count == of else float(stats.beta.ppf(confidence, count + 1, of - count))
    return low, high


def _share(name: str, count: int, of: int) -> Row:
    low, high = bounds(count, of)
    return {name: count / of, f"{name}_lower": low, f"{name}_upper": high, "of": of}


def coverage(setting: str, documents: int, tables: int) -> Row:
    """Intervals of heads each for itself; heads are independent, so that counts are binomial."""
    held = warned = 0
    for rng in _seeds("coverage", setting, documents, tables):
        scores, weights, truth = scores_of(setting, ROWS, documents, rng, shared=0.0)
        found = t_interval(scores, weights, together=False)
        held += int(((found.low <= truth) & (truth <= found.high)).sum())
        warned += bool(skewness_note(scores[:HEADS]))
    row = {"kind": "coverage", "setting": setting, "documents": documents}
    return row | _share("held", held, tables * ROWS) | {"warned": warned / tables}


def joint(setting: str, documents: int, heads: int, tables: int) -> Row:
    """Tables of which all heads' simultaneous intervals hold."""
    held, own, reach = 0, 0, []
    for rng in _seeds("joint", setting, documents, tables):
        scores, weights, truth = scores_of(setting, heads, documents, rng)
        found = t_interval(scores, weights)
        assert found.low_all is not None and found.high_all is not None
        held += bool(((found.low_all <= truth) & (truth <= found.high_all)).all())
        own += bool(((found.low <= truth) & (truth <= found.high)).all())
        widths = (found.high_all - found.low_all).mean() / (found.high - found.low).mean()
        reach.append(float(widths))
    row = {"kind": "joint", "setting": setting, "documents": documents, "heads": heads}
    more = {"own": own / tables, "wider": float(np.median(reach))}
    return row | _share("held", held, tables) | more


def flags(setting: str, effects: str, documents: int, tables: int) -> Row:
    """Changes flagged by false discovery rate, and by 95% intervals each for itself."""
    wrong, any_wrong, single, missed = [], 0, [], []
    for rng in _seeds("flags", f"{setting} {effects}", documents, tables):
        noise, weights, truth = scores_of(setting, HEADS, documents, rng)
        if truth:  # a change is a difference of two measurements
            noise = noise - scores_of(setting, HEADS, documents, rng)[0]
        true = effects_of(effects, HEADS, rng)
        found = t_interval(true[:, None] + noise, weights, together=False)
        flagged = false_discovery(found.p) <= FDR
        false = flagged & (np.sign(found.estimate) != np.sign(true))
        wrong.append(float(false.sum() / max(flagged.sum(), 1)))
        any_wrong += bool(false.any())
        single.append(int(((found.p <= 0.05) & (true == 0)).sum()))
        missed.append((~flagged & (true != 0)).sum() / max((true != 0).sum(), 1))
    error = float(np.std(wrong)) / np.sqrt(tables)
    return {
        "kind": "flags", "setting": setting, "effects": effects, "documents": documents,
        "fdr": float(np.mean(wrong)), "fdr_upper": float(np.mean(wrong) + 1.645 * error),
        **_share("any", any_wrong, tables), "unadjusted": float(np.mean(single)),
        "found": 1 - float(np.mean(missed)),
    }  # fmt: skip


def lists(effects: str, documents: int, tables: int) -> Row:
    """The TOP most amplified heads: what is reported of them, over what is true of them."""
    totals = np.zeros(4)
    for rng in _seeds("lists", effects, documents, tables):
        noise, weights, _ = scores_of("clustered", HEADS, documents, rng)
        true = effects_of(effects, HEADS, rng)
        found = t_interval(true[:, None] + 2 * noise, weights, together=False)
        drawn = shrunk(found.estimate, found.stderr, found.df)
        for at, seen in ((0, found.estimate), (2, drawn)):
            top = np.argsort(-seen, kind="stable")[:TOP]
            totals[at : at + 2] += seen[top].mean(), true[top].mean()
    plain, plain_true, small, small_true = (totals / tables).tolist()
    return {
        "kind": "lists", "effects": effects, "documents": documents, "of": tables,
        "plain": plain, "plain_true": plain_true, "shrunk": small, "shrunk_true": small_true,
    }  # fmt: skip


def functions(name: str, documents: int, tables: int) -> Row:
    """Intervals of functions of many heads' means: shares, their change, Gini's rise, Spearman."""
    held = of = 0
    for rng in _seeds("functions", name, documents, tables):
        noise, weights, _ = scores_of("clustered", 2 * HEADS, documents, rng)
        late = np.exp(1.3 * rng.standard_normal(HEADS))
        early = late * np.exp(0.3 * rng.standard_normal(HEADS))
        parts = [
            true[:, None] * (1 + 0.5 * part) + 0.2 * part
            for true, part in ((early, noise[:HEADS]), (late, noise[HEADS:]))
        ]
        values, truth = FUNCTIONS[name](parts, [early, late], weights, rng)
        found = t_interval(values, weights, finite=False, together=False)
        inside = (found.low <= truth) & (truth <= found.high)
        held, of = held + int(inside.sum()), of + inside.size
    row = {"kind": "functions", "function": name, "documents": documents, "tables": tables}
    return row | {"held": held / of}


def _shares(parts: Any, true: Any, weights: Any, _: Any) -> tuple[np.ndarray, Any]:
    return shares_by_document(parts[1], weights), shares(true[1])[0]


def _share_change(parts: Any, true: Any, weights: Any, _: Any) -> tuple[np.ndarray, Any]:
    early, late = (shares_by_document(part, weights) for part in parts)
    return late - early, shares(true[1])[0] - shares(true[0])[0]


def _gini(parts: Any, true: Any, weights: Any, _: Any) -> tuple[np.ndarray, Any]:
    values = by_document(lambda a, b: gini(b) - gini(a), parts, weights)
    return values, np.array(gini(true[1]) - gini(true[0]))


def _spearman(
    parts: Any, true: Any, weights: Any, rng: np.random.Generator
) -> tuple[np.ndarray, Any]:
    role = ranks(np.log(true[1]) + rng.standard_normal(HEADS))
    values = by_document(lambda mean: ranks(mean) @ role, parts[1:], weights)
    return values, ranks(true[1]) @ role


FUNCTIONS: dict[str, Callable[..., tuple[np.ndarray, Any]]] = {
    "share": _shares,
    "change of share": _share_change,
    "rise of Gini": _gini,
    "Spearman over heads": _spearman,
}


def _seeds(kind: str, setting: str, documents: int, tables: int) -> Any:
    name = int.from_bytes(f"{kind} {setting}".encode(), "big") % 2**63
    return (np.random.default_rng([name, documents, number]) for number in range(tables))


def plan(tables: int) -> dict[str, Callable[[], Row]]:
    """Every setting by name, and what measures it."""
    work: dict[str, Callable[[], Row]] = {}

    def add(measure: Callable[..., Row], *given: Any) -> None:
        work[" ".join(map(str, (measure.__name__, *given)))] = lambda: measure(*given)

    for setting in SETTINGS:
        for documents in DOCUMENTS:
            add(coverage, setting, documents, max(tables // 5, 1))
    for setting in SETTINGS:
        for documents in FEW:
            add(joint, setting, documents, HEADS, max(tables // 2, 1))
    for documents in FEW:
        add(joint, "clustered", documents, 512, max(tables // 10, 1))
    for setting in ("normal", "clustered", "heavy", "skewed"):
        for effects in ("none", "few", "all"):
            for documents in FEW:
                add(flags, setting, effects, documents, tables)
    for effects in ("few", "all"):
        for documents in FEW:
            add(lists, effects, documents, max(tables // 4, 1))
    for name in FUNCTIONS:
        for documents in FEW:
            add(functions, name, documents, max(tables // 5, 1))
    return work
