"""Amplification as a cause: the loss by gain, and which roles and heads were amplified."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.arms import ARMS, ArmStyle, arms_of
from analysis.figure_data.checks import require
from analysis.figure_data.lanes import (
    SURE_NOTE,
    IntervalAxis,
    Lanes,
    interval_axis,
    lanes,
    sure,
)
from analysis.figure_data.roles import ROLES
from analysis.figure_data.words import caption, metric, unit
from analysis.ties import best_first
from kernels.errors import MidusError

DOSE_COLUMNS = ("arm", "gain", "change", "ci_low", "ci_high")
SLOPE_COLUMNS = ("role", "slope", "ci_low", "ci_high")
CONTRAST_COLUMNS = ("measure", "chosen", "difference", "ci_low", "ci_high")
GAIN_MARKS = {0.0: "ablated", 1.0: "clean"}
# Names of the measures of an amplification table -> what a figure calls them
_MEASURES = {"score": "nats", "nats": "nats", "share_score": "shares", "shares": "shares"}


# --- dose and response ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """One arm: change of the loss by gain, with its interval, all [gains]."""

    arm: str
    style: ArmStyle
    gain: np.ndarray
    change: np.ndarray
    low: np.ndarray
    high: np.ndarray


def responses_of(table: Any, figure: str) -> list[Response]:
    """A curve an arm, by gain; MidusError where an arm is unknown or has a gain twice."""
    maker = "analysis.dose_response()"
    table = require(table, DOSE_COLUMNS, figure, maker)
    found = []
    for arm in arms_of([str(name) for name in table["arm"]], figure, maker):
        part = table[table["arm"] == arm].sort_values("gain", kind="stable")
        if part["gain"].duplicated().any():
            raise MidusError(f"{figure}: arm {arm!r} has a gain more than once; give one row each")
        columns = (part[name].to_numpy(float) for name in ("gain", "change", "ci_low", "ci_high"))
        found.append(Response(arm, ARMS[arm], *columns))
    return found


def dose_label(table: pd.DataFrame) -> str:
    """The axis' label: change of the metric, and its unit."""
    return f"change of {metric_word(table)} ({unit(table)})"


def metric_word(table: pd.DataFrame) -> str:
    """The metric's name, by default the loss."""
    return metric(table) if table.attrs.get("metric") else "loss"


def dose_caption(table: pd.DataFrame) -> str:
    """What the gain is."""
    arms = set(table["arm"])
    heads = table.attrs.get("heads") or []
    draws = int(table.loc[table["arm"] == "random", "draws"].max()) if _drawn(table) else 0
    notes = [
        "gain: of the heads' outputs about the baseline, 1 clean, 0 ablated",
        f"{len(heads)} chosen heads" if heads else "",
        f"random heads: of the same layers, mean over {draws} draws" if draws else "",
        "same norm: the stream changed by as much, in a random direction of the head outputs"
        if "matched_norm" in arms
        else "",
    ]
    return caption(table, title="Dose and response", method=False, notes=notes)


def _drawn(table: pd.DataFrame) -> bool:
    return "draws" in table.columns and "random" in set(table["arm"])


# --- roles and contrast ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SlopePanel:
    """One measure's slopes by role: `rows` has y, name, score (the slope) and sure."""

    measure: str
    unit: str
    rows: pd.DataFrame
    axis: IntervalAxis

    @property
    def label(self) -> str:
        return f"slope ({self.unit} per SD)"


@dataclass(frozen=True)
class Contrast:
    """One measure of chosen heads against controls.

    `rows`: chosen, controls and their difference, with y, name, score and, of the difference, its
    interval.
    """

    measure: str
    unit: str
    rows: pd.DataFrame
    axis: IntervalAxis
    p: float
    p_least: float = math.nan

    @property
    def label(self) -> str:
        return f"amplification ({self.unit})"

    @property
    def p_words(self) -> str:
        if not np.isfinite(self.p):
            return ""
        found = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        return found if not self.p_least > 0.001 else f"{found}, at least {self.p_least:.2g}"


def slopes_of(slopes: Any, figure: str) -> tuple[list[SlopePanel], Lanes]:
    """Slopes by role, largest first by the first measure, a panel a measure on shared rows."""
    maker = "analysis.amplification_by_role()"
    slopes = require(slopes, SLOPE_COLUMNS, figure, maker)
    slopes = slopes if "measure" in slopes.columns else slopes.assign(measure="score")
    if _all_together(slopes):  # roles are picked out here, so these are the intervals to show
        slopes = slopes.assign(ci_low=slopes["ci_low_all"], ci_high=slopes["ci_high_all"])
    slopes = slopes.dropna(subset=["slope"])
    if slopes.empty:
        raise MidusError(f"{figure} was given a table whose slopes are all missing (NaN)")
    if slopes.duplicated(["measure", "role"]).any():
        raise MidusError(f"{figure}: a role has more than one slope; make the table with {maker}")
    measures = [str(name) for name in slopes["measure"].unique()]
    first = slopes[slopes["measure"] == measures[0]]
    first = first.iloc[best_first(first["slope"])]
    roles = list(dict.fromkeys([*first["role"], *slopes["role"]]))
    stand = lanes([role_name(role) for role in roles])
    panels = []
    for measure in measures:
        part = slopes[slopes["measure"] == measure]
        rows = part.assign(
            y=[stand.y[roles.index(role)] for role in part["role"]],
            name=[role_name(role) for role in part["role"]],
            score=part["slope"],
            sure=sure(part),
        ).sort_values("y", ignore_index=True)
        panels.append(SlopePanel(_named(measure), _unit(part, measure), rows, interval_axis(rows)))
    return panels, stand


def _all_together(slopes: pd.DataFrame) -> bool:
    return {"ci_low_all", "ci_high_all"} <= set(slopes.columns)


def contrasts_of(contrast: Any, figure: str) -> list[Contrast]:
    """Chosen, controls and their difference, a panel a measure."""
    if contrast is None:
        return []
    maker = "analysis.amplification_contrast()"
    columns = getattr(contrast, "columns", ())
    control = "control" if "control" in columns else "controls"
    contrast = require(contrast, (*CONTRAST_COLUMNS, control), figure, maker)
    found = []
    for index in range(len(contrast)):
        part = contrast.iloc[[index]]
        row = part.iloc[0]
        rows = pd.DataFrame(
            {
                "name": ["chosen heads", "controls", "difference"],
                "y": [0.0, 1.0, 2.0],
                "score": [row["chosen"], row[control], row["difference"]],
                "ci_low": [np.nan, np.nan, row["ci_low"]],
                "ci_high": [np.nan, np.nan, row["ci_high"]],
            }
        ).astype({"score": float, "ci_low": float, "ci_high": float})
        rows = rows.assign(sure=sure(rows))
        measure = str(row["measure"])
        p = float(row["p"]) if "p" in part.columns else np.nan
        least = float(row["p_least"]) if "p_least" in part.columns else np.nan
        axis = interval_axis(rows, 1.0)
        found.append(Contrast(_named(measure), _unit(part, measure), rows, axis, p, least))
    return found


def _named(measure: str) -> str:
    return _MEASURES.get(measure, measure.replace("_", " "))


def _unit(part: pd.DataFrame, measure: str) -> str:
    """A measure's unit: the row's, or the table's, or what its name says."""
    known = part["unit"].iloc[0] if "unit" in part.columns else None
    if known is not None and not pd.isna(known):
        return str(known)
    return "share" if _named(measure) == "shares" else unit(part)


def role_name(role: str) -> str:
    """A role as a figure calls it."""
    return ROLES[role].name if role in ROLES else str(role).replace("_", " ")


def slopes_caption(
    slopes: pd.DataFrame, contrast: pd.DataFrame | None, panels: list[SlopePanel]
) -> str:
    """What a slope is, and, where it is shown, what chosen heads are set against."""
    attrs = slopes.attrs
    heads = f" over {attrs['heads']} heads in {attrs['layers']} layers" if "layers" in attrs else ""
    whole = _all_together(slopes)
    notes = [
        f"slope: what a standard deviation of a role's score adds to a head's amplification{heads}",
        "intervals: 95% "
        + ("for all roles of a panel together (max-t)" if whole else "by Student's t"),
        SURE_NOTE,
        f"left out for a variance inflation above {attrs.get('most_vif', 10):g}: {names}"
        if (names := _collinear(slopes))
        else "",
        next((panel.axis.note for panel in panels if panel.axis.beyond), ""),
    ]
    if contrast is not None:
        notes.append(_contrast_note(contrast))
    return caption(
        slopes, title="Amplification by role", method=False, intervals=False, notes=notes
    )


def _collinear(slopes: pd.DataFrame) -> str:
    """Roles that cannot be told from the others."""
    if not {"vif", "left_out"} <= set(slopes.columns):
        return ""
    out = slopes[(slopes["left_out"] != "") & slopes["vif"].notna()]
    return ", ".join(dict.fromkeys(role_name(role) for role in out["role"]))


def _contrast_note(contrast: pd.DataFrame) -> str:
    """Whom chosen heads are set against, and by what the difference is judged.

    Tables of earlier versions set them against whoever was nearest, and permuted within layers.
    """
    if "p_least" not in contrast.columns:
        how = {"matched": ", the nearest in importance before", "layer": ", all of the same layers"}
        kind, apart = how.get(str(contrast.attrs.get("controls")), ""), ""
        test = "p by permutation within layers, which does not hold where these differ before"
    else:
        row = contrast.iloc[0]
        kind = (
            f" matched in importance before within {contrast.attrs['caliper']:g} SD "
            f"({row['before_chosen']:.3g} and {row['before_controls']:.3g}, "
            f"standardised difference {row['smd']:.2f})"
        )
        apart = ", adjusted for the rest,"
        test = "p by relabelling within matched sets, and the smallest p that these can give"
    return (
        f"below: mean amplification of the chosen heads and of controls{kind}, and the "
        f"difference{apart} with its 95% interval over documents; {test}"
    )
