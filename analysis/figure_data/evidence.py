"""Evidence for a ranking: prune curves, and how far methods and data sets agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.colours import AFTER, BEFORE, NEUTRAL
from analysis.figure_data.names import labels, whole_names
from analysis.figure_data.words import caption, head_word, metric, unit
from kernels.errors import MidusError

PRUNE_COLUMNS = ("order", "draw", "removed", "share", "score", "ci_low", "ci_high")
EVIDENCE_COLUMNS = ("kind", "first", "second", "spearman", "ci_low", "ci_high", "overlap")
# order -> colour, matplotlib's marker and plotly's
PRUNE_ORDERS = {
    "best first": (AFTER, "s", "square"),
    "random": (NEUTRAL, "^", "triangle-up"),
    "worst first": (BEFORE, "o", "circle"),
}
SHORT_METHODS = {
    "taylor": "Taylor",
    "integrated_gradients": "integrated grad.",
    "fisher": "Fisher",
    "dla": "direct logit",
    "shapley": "Shapley",
}
_MOST_TICKS = 9
_LONGEST = 15.5  # ems of a data set's name


# --- prune curves ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One order of removal: `score` [points] by heads `removed`, with its interval or its draws.

    A single curve has `low` and `high`; random orders have `draws` [draws, points], and `score` is
    their mean. `area`: mean rise along the curve, None where the table does not say.
    """

    order: str
    removed: np.ndarray
    share: np.ndarray
    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    draws: np.ndarray
    area: float | None
    label: str


def curves_of(table: Any, figure: str) -> list[Curve]:
    """The curves of a prune table, best first on top; MidusError where it is none."""
    table = require(table, PRUNE_COLUMNS, figure, "analysis.prune_curve()")
    unknown = [str(name) for name in table["order"].unique() if name not in PRUNE_ORDERS]
    if unknown:
        raise MidusError(
            f"{figure} knows the orders {', '.join(PRUNE_ORDERS)}; the table has "
            f"{', '.join(unknown)}. A table from analysis.prune_curve() has the right ones"
        )
    found = table.attrs.get("areas") or {}
    areas = {str(order): float(area) for order, area in found.items() if area is not None}
    largest = max(map(abs, areas.values()), default=0.0)
    digits = int(np.clip(2 - np.floor(np.log10(largest or 1.0)), 0, 6))
    curves = []
    for order in PRUNE_ORDERS:
        part = table[table["order"] == order].sort_values(["draw", "removed"])
        if part.empty:
            continue
        points = part["removed"].nunique()
        if len(part) != points * part["draw"].nunique():
            raise MidusError(
                f"{figure}: the draws of order {order!r} have different points; make the table "
                "with analysis.prune_curve()"
            )
        draws = part["score"].to_numpy(float).reshape(-1, points)
        first = part.iloc[:points]
        single = len(draws) == 1
        curves.append(
            Curve(
                order,
                first["removed"].to_numpy(int),
                first["share"].to_numpy(float),
                draws.mean(0),
                first["ci_low"].to_numpy(float) if single else np.full(points, np.nan),
                first["ci_high"].to_numpy(float) if single else np.full(points, np.nan),
                draws,
                areas.get(order),
                f"{order}, {areas[order]:.{digits}f}" if order in areas else order,
            )
        )
    return curves


def prune_ticks(curves: list[Curve]) -> tuple[list[int], list[str]]:
    """At most nine of the points, and for each 'heads removed, newline, share of all'."""
    longest = max(curves, key=lambda curve: len(curve.removed))
    step = -(-(len(longest.removed) - 1) // (_MOST_TICKS - 1)) or 1
    chosen = sorted({*range(0, len(longest.removed), step)})
    return (
        [int(longest.removed[i]) for i in chosen],
        [f"{longest.removed[i]}\n{100 * longest.share[i]:.0f}%" for i in chosen],
    )


def prune_label(table: pd.DataFrame) -> str:
    """The axis' label: the metric and its unit."""
    name = metric(table)
    return name if unit(table) == name else f"{name} ({unit(table)})"


def prune_caption(table: pd.DataFrame, curves: list[Curve]) -> str:
    """What was pruned by, what the areas are, and what stands for how sure a curve is."""
    draws = next((len(c.draws) for c in curves if len(c.draws) > 1), 0)
    notes = []
    if any(c.area is not None for c in curves):
        way = "fall below" if table.attrs.get("better") == "higher" else "rise above"
        notes.append(f"numbers: area, a curve's mean {way} its start, {unit(table)}")
    if draws:
        notes.append(f"random: mean of {draws} orders, thin lines the orders themselves")
    head = head_word(table)
    title = f"{head[0].upper()}{head[1:]}s ablated one after the other"
    return caption(table, title=title, method=False, notes=notes)


# --- agreement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between `methods`, in lower triangles [methods, methods], NaN: unknown.

    The diagonal holds the split-half reliability. `overlap`: share of the `top` heads in common.
    `other_data`: the rows of the table that set the first method against itself on other data.
    """

    methods: list[str]
    spearman: np.ndarray
    low: np.ndarray
    high: np.ndarray
    overlap: np.ndarray
    top: int | None
    other_data: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """The methods' names as axes show them."""
        return [SHORT_METHODS.get(m, m.replace("_", " ")) for m in self.methods]

    @property
    def data_labels(self) -> list[str]:
        """The other data sets' names, short in the middle where long, with the heads shared."""
        names = self.other_data["second"].astype(str)
        rows = zip(names, self.other_data["overlap"], strict=True)
        shown = labels(names, _LONGEST)
        return [", ".join(filter(None, (shown[name], self.shared(o)))) for name, o in rows]

    def shared(self, overlap: float) -> str:
        """An overlap as heads in common out of the top set, '' where it is unknown."""
        if not np.isfinite(overlap):
            return ""
        if self.top is None:
            return f"{100 * overlap:.0f}%"
        return f"{round(overlap * self.top, 1):g}/{self.top}"

    def cell(self, row: int, column: int) -> list[str]:
        """What a cell says, a line each: correlation and overlap; none where nothing is known."""
        value = self.spearman[row, column]
        if not np.isfinite(value):
            return []
        lines = [f"{value:.2f}".replace("-", "−"), self.shared(self.overlap[row, column])]
        return [line for line in lines if line]


def agreement_of(table: Any, figure: str) -> Agreement:
    """The comparisons of an evidence table as matrices; MidusError where it has none."""
    table = require(table, EVIDENCE_COLUMNS, figure, "analysis.evidence()")
    pairs = table[table["kind"] == "method"]
    if pairs.empty:
        raise MidusError(
            f"{figure} needs rows of kind 'method', two methods set against each other; "
            'analysis.evidence(methods=("ablation", "gradient")) makes them'
        )
    named = [*pairs["first"], *pairs["second"]]
    methods = [str(m) for m in table.attrs.get("methods") or dict.fromkeys(named)]
    place = {method: i for i, method in enumerate(methods)}
    shape = (len(methods), len(methods))
    found = {name: np.full(shape, np.nan) for name in ("spearman", "ci_low", "ci_high", "overlap")}
    for row in table[table["kind"].isin(["method", "split half"])].to_dict("records"):
        if row["first"] not in place or row["second"] not in place:
            raise MidusError(
                f"{figure}: the table compares {row['first']} and {row['second']}, but names the "
                f"methods {', '.join(methods)}; make it with analysis.evidence()"
            )
        low, high = sorted((place[row["first"]], place[row["second"]]))
        for name, matrix in found.items():
            matrix[high, low] = row[name]
    top = table.attrs.get("top")
    return Agreement(
        methods,
        found["spearman"],
        found["ci_low"],
        found["ci_high"],
        found["overlap"],
        None if top is None else int(top),
        table[table["kind"] == "data"].reset_index(drop=True),
    )


def agreement_caption(table: pd.DataFrame, agreement: Agreement) -> str:
    """What the two numbers of a cell are, and the evidence from pruning where the table has it."""
    top = "the top heads" if agreement.top is None else f"the top {agreement.top} heads"
    reliable = bool(np.isfinite(np.diag(agreement.spearman)).any())
    notes = [f"cells: Spearman's correlation over heads, and how many of {top} are shared"]
    if reliable:
        notes.append("diagonal: split-half reliability")
    if len(agreement.other_data):
        notes.append(
            f"below: {agreement.names[0]} on other data, shared heads by its name, intervals 95% "
            f"by Fisher's z{', dashed its split-half reliability' * reliable}"
        )
        notes.append(whole_names(labels(agreement.other_data["second"].astype(str), _LONGEST)))
    notes.append(_pruning_note(table))
    return caption(table, title="Agreement of methods", method=False, intervals=False, notes=notes)


def _pruning_note(table: pd.DataFrame) -> str:
    """The gap between best and worst first, from the table's row of kind 'pruning'."""
    rows: list[Mapping[Any, Any]] = table[table["kind"] == "pruning"].to_dict("records")
    if not rows or "area" not in rows[0] or not np.isfinite(rows[0]["area"]):
        return ""
    note = f"pruning best first less worst first: area {rows[0]['area']:.3g} {unit(table)}"
    at = rows[0].get("random_at", np.nan)
    return note + (f", random at {at:.2f} of it" if np.isfinite(at) else "")
