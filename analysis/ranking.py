"""A ranking of heads that says how sure it is: exact ablation, raced window by window.

Windows are drawn at random without replacement and every head still in the race is ablated on
each. The intervals are asymptotic confidence sequences (Waudby-Smith et al. 2021, arXiv
2103.06476, theorem 2.2), valid whenever one stops, at level (1 - confidence) / heads each.
A head leaves the race once it is settled: surely among the top, or surely not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.documents import Documents
from analysis.engine import Progress
from analysis.importance import head_importance
from analysis.methods import METHODS
from analysis.subject import Subject, check_choice, prepared
from analysis.tables import head_table, weights_of
from midus_model.errors import MidusError, ModelError

ROUND = 4  # windows between two looks at the intervals
MINIMUM = 16  # exact windows every head gets
DRAWS = 4000  # draws behind p_top
ORDERING = 8  # windows of gradients that set the order


def rank_heads(
    model: Any = None,
    data: Any = None,
    *,
    method: str = "ablation",
    baseline: str = "mean",
    metric: str = "loss",
    top: int = 16,
    confidence: float = 0.95,
    budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Heads by importance, best first, with the chance that each belongs to the top set.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes; by default pico's held-out text.
        method: "ablation" (exact, raced), or another of `head_importance`, whose table is sorted.
        baseline: "mean" or "zero"; see `head_importance`.
        metric: "loss", next-token loss in nats a token.
        top: size of the top set, at least 1 and below the number of heads.
        confidence: that the whole top set is right, when the race ends by itself.
        budget: exact evaluations, a head on a window each; by default a sixteenth of all there are,
            and 64 windows a head where that is less.
        seed: of the order of windows.
        progress: called with (done, total, text).

    Returns:
        A row a head, columns of `head_importance` (`by_document` holds NaN where a document was not
        reached) and `p_top`, `exact` (windows measured), `tied_with_next` (the paired 95% interval
        of the difference to the next row contains 0). `.attrs["stopped"]` says why the race ended:
        "settled", "budget" or "documents"; `.attrs["evaluations"]` what it cost;
        `.attrs["design_effect"]` the variance of the mean by documents over that by windows.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.
    """
    check_choice("method", method, METHODS)
    subject = prepared(
        model, data, baseline=baseline, metric=metric, seed=seed, progress=progress
    )
    docs, sites = subject.docs, subject.units
    if not 1 <= top < len(sites):
        raise MidusError(
            f"top is {top}; it must be between 1 and {len(sites) - 1} (heads less one)"
        )
    if not 0 < confidence < 1:
        raise MidusError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does")
    if method != "ablation":
        table = head_importance(
            subject.model,
            docs,
            method=method,
            baseline=baseline,
            metric=metric,
            seed=seed,
            progress=progress,
        )
        return _sorted(table, top, confidence)
    race = _Race(len(sites), docs, top, confidence, seed)
    full = len(sites) * len(docs.windows)
    allowed = min(full, max(full // 16, 64 * len(sites))) if budget is None else budget
    if allowed < len(sites):
        raise MidusError(
            f"budget is {allowed}; it must pay a window for each of {len(sites)} heads"
        )
    _run(race, subject, allowed, progress)
    attrs = subject.describe(method=method) | race.attrs()
    table = head_table(
        sites, race.by_document(), race.tokens, attrs, intervals=race.intervals(), seed=seed
    )
    table["p_top"] = race.p_top()
    table["exact"] = race.counts
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    attrs = table.attrs
    table = table.iloc[order].reset_index(drop=True)
    table["tied_with_next"] = race.ties(order)
    table.attrs = attrs
    return table


@dataclass
class _Race:
    """What has been measured: y[h, i], head h on the i-th window drawn, NaN where it was not.

    y is the extra loss on a window over the mean tokens of a window, so that the mean of y over
    all windows is exactly the token-weighted score.
    """

    heads: int
    docs: Documents
    top: int
    confidence: float
    seed: int
    y: np.ndarray = field(init=False)
    stopped: str = "documents"

    def __post_init__(self) -> None:
        windows = self.docs.windows
        self.order = np.random.default_rng(self.seed).permutation(len(windows))
        self.tokens = np.array([unit["tokens"] for unit in self.docs.units], dtype=float)
        self.mean_tokens = self.tokens.sum() / len(windows)
        self.y = np.full((self.heads, len(windows)), np.nan)
        self.counts = np.zeros(self.heads, dtype=int)  # every head's windows are a prefix of order
        self.accepted = np.zeros(self.heads, dtype=bool)
        self.rejected = np.zeros(self.heads, dtype=bool)

    @property
    def active(self) -> np.ndarray:
        return ~(self.accepted | self.rejected)

    def record(self, chosen: np.ndarray, start: int, nats: np.ndarray) -> None:
        """Extra nats [len(chosen), windows] on the windows drawn from `start` on."""
        if not np.isfinite(nats).all():
            raise ModelError("the losses are not finite: the weights or the dtype are at fault")
        stop = start + nats.shape[1]
        self.y[chosen, start:stop] = nats / self.mean_tokens
        self.counts[chosen] = stop

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        return np.nanmean(self.y, axis=1), np.nanstd(self.y, axis=1, ddof=1)

    def radius(self) -> np.ndarray:
        """Half widths of the confidence sequences, [heads]; none are left where all was seen."""
        alpha = (1 - self.confidence) / self.heads
        _, deviation = self.moments()
        t = self.counts.astype(float)
        # rho makes the sequence tightest near 256 windows (their eq. 12, to first order).
        rho2 = (2 * np.log(1 / alpha) + np.log(1 + 2 * np.log(1 / alpha))) / 256
        width = np.sqrt((t * rho2 + 1) / (t**2 * rho2) * 2 * np.log(np.sqrt(t * rho2 + 1) / alpha))
        return np.where(t >= len(self.order), 0.0, deviation * width)

    def settle(self) -> bool:
        """Accept and reject what is certain; True when the top set is settled."""
        mean, _ = self.moments()
        radius = self.radius()
        low, high = mean - radius, mean + radius
        # In the top: fewer than `top` others can reach it. Out: `top` others surely exceed it.
        can_reach = (high[None, :] >= low[:, None]).sum(1) - 1
        exceed = (low[None, :] > high[:, None]).sum(1)
        self.accepted |= can_reach < self.top
        self.rejected |= exceed >= self.top
        return not self.active.any()

    def intervals(self) -> dict[str, np.ndarray]:
        mean, deviation = self.moments()
        radius, stderr = self.radius(), deviation / np.sqrt(self.counts)
        names = ("score", "stderr", "ci_low", "ci_high")
        return dict(zip(names, (mean, stderr, mean - radius, mean + radius), strict=True))

    def p_top(self) -> np.ndarray:
        """Chance of the top set: normal draws, correlated as on the windows all heads share."""
        mean, deviation = self.moments()
        stderr = deviation / np.sqrt(self.counts)
        shared = self.y[:, : self.counts.min()]
        correlation = np.nan_to_num(np.corrcoef(shared))
        np.fill_diagonal(correlation, 1.0)
        rng = np.random.default_rng(self.seed)
        covariance = correlation * stderr[:, None] * stderr[None, :]
        draws = rng.multivariate_normal(mean, covariance, DRAWS, method="eigh")
        best = np.argsort(-draws, axis=1)[:, : self.top]
        return np.bincount(best.ravel(), minlength=self.heads) / DRAWS

    def ties(self, order: np.ndarray) -> list[bool]:
        tied = []
        for above, below in zip(order, order[1:], strict=False):
            shared = min(self.counts[above], self.counts[below])
            gap = self.y[above, :shared] - self.y[below, :shared]
            tied.append(bool(gap.mean() <= 1.96 * gap.std(ddof=1) / np.sqrt(shared)))
        return [*tied, False]

    def by_document(self) -> np.ndarray:
        """Extra loss a token on each document's measured windows, [heads, units]."""
        windows = [self.docs.windows[i] for i in self.order]
        units = np.array([window.unit for window in windows])
        size = np.array([int(window.scored.sum()) for window in windows], dtype=float)
        seen = np.isfinite(self.y)
        nats, tokens = np.zeros((2, len(self.tokens), self.heads))
        np.add.at(nats, units, np.nan_to_num(self.y).T * self.mean_tokens)
        np.add.at(tokens, units, seen.T * size[:, None])
        return np.divide(nats, tokens, out=np.full_like(nats, np.nan), where=tokens > 0).T

    def design_effect(self) -> float:
        """Median over heads: variance of the mean clustered by document over that by windows."""
        count = self.counts.min()
        units = np.array([self.docs.windows[i].unit for i in self.order[:count]])
        centred = self.y[:, :count] - self.y[:, :count].mean(1, keepdims=True)
        sums = np.zeros((units.max() + 1, self.heads))
        np.add.at(sums, units, centred.T)
        return float(np.median((sums**2).sum(0) / (centred**2).sum(1)))

    def attrs(self) -> dict[str, Any]:
        return {
            "table": "ranking",
            "top": self.top,
            "confidence": self.confidence,
            "stopped": self.stopped,
            "evaluations": int(self.counts.sum()),
            "exhaustive": self.heads * len(self.order),
            "interval": "confidence sequence, corrected over heads",
            "design_effect": self.design_effect(),
        }


def _run(race: _Race, subject: Subject, budget: int, progress: Progress | None) -> None:
    order = _effort_order(subject, race.order)
    spent = start = 0
    while start < len(race.order):
        chosen = order[race.active[order]]
        size = min(ROUND, len(race.order) - start, (budget - spent) // len(chosen))
        if size < 1:
            race.stopped = "budget"
            return
        extra, _ = subject.ablated(race.order[start : start + size].tolist(), chosen.tolist())
        race.record(chosen, start, extra)
        start += size
        spent += size * len(chosen)
        if progress:
            progress(spent, budget, f"exact ablation, {len(chosen)} heads in the race")
        if start >= MINIMUM and race.settle():
            race.stopped = "settled"
            return


def _effort_order(subject: Subject, windows: np.ndarray) -> np.ndarray:
    """Heads by the size of their gradient on the first windows drawn."""
    if not subject.metric.smooth:
        return np.arange(len(subject.units))
    gradients = subject.gradients(windows[:ORDERING].tolist())
    return np.argsort(-np.abs(gradients).mean(1), kind="stable")


def _sorted(table: pd.DataFrame, top: int, confidence: float) -> pd.DataFrame:
    """A table of another method as a ranking: documents are resampled for `p_top` and ties."""
    attrs = table.attrs
    scores = np.array(table["by_document"].tolist())  # [heads, documents]
    count = scores.shape[1]
    weights = weights_of(table)
    rng = np.random.default_rng(attrs["seed"])
    drawn = rng.multinomial(count, [1 / count] * count, DRAWS) * weights
    means = drawn @ scores.T / drawn.sum(1, keepdims=True)  # [draws, heads]
    best = np.argsort(-means, axis=1)[:, :top]
    table["p_top"] = np.bincount(best.ravel(), minlength=len(table)) / DRAWS
    table["exact"] = 0
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    gaps = means[:, order[:-1]] - means[:, order[1:]]
    tied = np.quantile(gaps, 0.025, axis=0) <= 0
    table = table.iloc[order].reset_index(drop=True)
    table["tied_with_next"] = [*tied.tolist(), False]
    table.attrs = attrs | {
        "table": "ranking",
        "top": top,
        "confidence": confidence,
        "stopped": "documents",
        "evaluations": 0,
    }
    return table
