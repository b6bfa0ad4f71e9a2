"""How far a cheap table's scores agree with exact ablation, measured on a sample of heads.

The sample holds the heads at the top and at the bottom of the table, and heads drawn from between
them: what becomes of the extremes is asked of each, and the drawn ones stand for all others. Every
head counts as the number of heads that it stands for. Heads are compared on the same windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.distributed import is_main
from analysis.engine import Progress
from analysis.estimates import current, did
from analysis.methods import CHEAP, PER_DOCUMENT, Method, ablation_passes, is_signed, per_document
from analysis.subject import AGREEMENT, Subject
from analysis.ties import best_first

ENDS, DRAWN = 6, 20  # heads of each end, and of those between
LEAST, MOST = 4, 8  # windows
CONFIDENCE = 0.95


def with_agreement(
    table: pd.DataFrame, subject: Subject, progress: Progress | None = None, **options: Any
) -> pd.DataFrame:
    """A cheap method's table with `.attrs["agreement"]`; another's as it is.

    Windows are so many that the sample costs about as much as the table did, from 4 to 8. Left out
    where a time budget does not hold it. The entry has:

    heads, heads_of; windows, windows_of: how many were measured, of how many; top, bottom, drawn:
    the heads' parts; signed: whether the method's scores have a sign (else they are set against
    the size of exact effects); spearman: rank correlation over all heads, spearman_low and
    spearman_high its 95% interval (None where fewer than five heads stand behind it); sign,
    sign_low, sign_high: the same of the share of heads whose sign agrees (None without a sign);
    sample: of every head measured layer, kind, head, part, score and exact, in the metric's unit a
    token, on those windows.

    `options`: of `Method`.
    """
    if options["name"] not in CHEAP or options.get("convention") or len(table) < 2:
        return table
    method = Method(subject=subject, **options)
    heads, parts = _chosen(table, subject.how["seed"])
    windows = _windows(subject, method.forwards, heads)
    work, passes = current(), _passes(subject, method.forwards, heads, windows)
    if work is not None and work.limited and not work.holds(AGREEMENT, method.text, passes):
        work.leave_out("how far these scores agree with exact ablation")
        return table
    first, exact = _compared(method, subject, heads, windows, progress)
    did(AGREEMENT, passes)
    stands_for = np.ones(len(heads))
    drawn = parts == "drawn"
    if drawn.any():
        stands_for[drawn] = (len(table) - (~drawn).sum()) / drawn.sum()
    found = agreement_of(first, exact, stands_for, is_signed(method.name)) | {
        "heads": len(heads), "heads_of": len(table),
        "windows": len(windows), "windows_of": len(subject.docs.windows),
        **{part: int((parts == part).sum()) for part in ("top", "bottom", "drawn")},
        "sample": [
            {"layer": unit.layer, "kind": unit.kind, "head": unit.head, "part": str(part),
             "score": float(one), "exact": float(two)}
            for unit, part, one, two in zip(
                [subject.units[head] for head in heads], parts, first, exact, strict=True
            )
        ],
    }  # fmt: skip
    table.attrs = table.attrs | {"agreement": found}
    return table


def agreement_of(
    first: np.ndarray, exact: np.ndarray, stands_for: np.ndarray, signed: bool = True
) -> dict[str, Any]:
    """Rank correlation and shared sign of scores [heads], each head counting `stands_for` [heads].

    Intervals are approximate: of the correlation by Fisher's z with the standard error for ranks
    (Bonett and Wright 2000) and t quantiles, of the share as Clopper and Pearson, both with the
    effective number of heads, (sum w)^2 / sum w^2 (Korn and Graubard 1998).
    """
    count = float(stands_for.sum() ** 2 / (stands_for**2).sum())
    whole = exact if signed else np.abs(exact)
    correlation = weighted_spearman(first, whole, stands_for)
    found: dict[str, Any] = {"signed": signed, "spearman": None, "sign": None}
    found |= {f"{name}_{end}": None for name in ("spearman", "sign") for end in ("low", "high")}
    if np.isfinite(correlation):
        found["spearman"] = correlation
        if count > 4:
            reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 2)
            reach *= np.sqrt((1 + correlation**2 / 2) / (count - 3))
            centre = np.arctanh(np.clip(correlation, -1 + 1e-9, 1 - 1e-9))
            ends = np.tanh([centre - reach, centre + reach])
            found |= dict(zip(("spearman_low", "spearman_high"), ends.tolist(), strict=True))
    if signed:
        same = np.sign(first) == np.sign(exact)
        share = float(stands_for @ same / stands_for.sum())
        low, high = share_interval(share * count, count)
        found |= {"sign": share, "sign_low": low, "sign_high": high}
    return found


def weighted_spearman(one: np.ndarray, two: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's correlation where each pair counts `weights` times; NaN of equal values."""
    ranks = [_weighted_ranks(values, weights) for values in (one, two)]
    a, b = (rank - weights @ rank / weights.sum() for rank in ranks)
    size = np.sqrt((weights @ a**2) * (weights @ b**2))
    return float(np.clip(weights @ (a * b) / size, -1, 1)) if size > 0 else float("nan")


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    below = (values[None, :] < values[:, None]) @ weights
    return below + (values[None, :] == values[:, None]) @ weights / 2


def share_interval(
    hits: float, count: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of Clopper and Pearson, of counts that need not be whole."""
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, hits, count - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


# ---------------------------------------------------------------- measuring


def _chosen(table: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the sample, in model order, and the part of the table that each is from."""
    order = best_first(table["score"])
    ends = min(ENDS, len(order) // 3)
    between = order[ends : len(order) - ends]
    rng = np.random.default_rng(seed)
    drawn = rng.choice(between, min(DRAWN, len(between)), replace=False)
    heads = np.concatenate([order[:ends], order[len(order) - ends :], drawn])
    parts = np.repeat(["top", "bottom", "drawn"], [ends, ends, len(drawn)])
    turn = np.argsort(heads)
    return heads[turn], parts[turn]


def _each(subject: Subject, forwards: float, heads: np.ndarray) -> float:
    """What a window of the sample costs, in forward passes."""
    exact = ablation_passes(subject.model, [subject.units[head] for head in heads])
    return forwards + 1.0 + sum(exact)


def _windows(subject: Subject, forwards: float, heads: np.ndarray) -> list[int]:
    """The sample's windows: the cost of the table's own is what they may take."""
    count = len(subject.docs.windows)
    affordable = int(forwards * count / _each(subject, forwards, heads))
    most = min(max(LEAST, min(affordable, MOST)), count)
    rng = np.random.default_rng(subject.how["seed"])
    return sorted(rng.choice(count, most, replace=False).tolist())


def _passes(subject: Subject, forwards: float, heads: np.ndarray, windows: list[int]) -> float:
    tokens = sum(len(subject.docs.windows[index].ids) for index in windows)
    return tokens * _each(subject, forwards, heads)


def _compared(
    method: Method,
    subject: Subject,
    heads: np.ndarray,
    windows: list[int],
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cheap and exact score of each head on the windows, [heads] each."""
    first, exact = [], []
    for start in range(0, len(windows), subject.plan.windows):
        part = windows[start : start + subject.plan.windows]
        first.append(method(part, lambda _: None)["effects"][heads])
        exact.append(subject.ablated(part, heads.tolist())[0])
        if progress and is_main():
            progress(min(start + len(part), len(windows)), len(windows), AGREEMENT)
    weights = subject.window_weights[windows]
    effects = np.concatenate(first, axis=1)
    if method.name in PER_DOCUMENT:
        scores = per_document(method.name, effects / weights).mean(1)
    else:
        scores = effects.sum(1) / weights.sum()
    return scores, np.concatenate(exact, axis=1).sum(1) / weights.sum()


def sample_passes(forwards: float, model: Any, units: Any, windows: int) -> dict[str, float]:
    """The stage in an estimate, in passes over all documents; of about the sample's heads."""
    some = min(2 * ENDS + DRAWN, len(units))
    each = forwards + 1.0 + sum(ablation_passes(model, units)) * some / len(units)
    count = min(max(LEAST, min(int(forwards * windows / each), MOST)), windows)
    return {AGREEMENT: each * count / windows}
