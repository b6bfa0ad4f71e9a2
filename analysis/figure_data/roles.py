"""Head roles over a model's heads, and the importance of the heads of each role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.figure_data.checks import HEAD_COLUMNS, require, require_importance
from analysis.figure_data.grids import Row, block_rows, usual_range
from analysis.figure_data.words import caption, data_words, head_word, interval_words, model_name
from kernels.errors import IncomparableTables, MidusError

ROLE_COLUMNS = (*HEAD_COLUMNS, "role", "role_score", "role_margin")
NO_ROLE = "none"


class RoleStyle(NamedTuple):
    """A role's letter in a cell, its name in a legend, its colour, and black or white on that."""

    letter: str
    name: str
    colour: str
    ink: str


_DARK, _LIGHT = "#202020", "#ffffff"
# Okabe and Ito's colours, with wine, slate and pale teal; the letters tell roles apart in grey.
ROLES = {
    "induction": RoleStyle("I", "induction", "#D55E00", _LIGHT),
    "duplicate_token": RoleStyle("D", "duplicate token", "#E69F00", _DARK),
    "previous_token": RoleStyle("P", "previous token", "#0072B2", _LIGHT),
    "positional_offset": RoleStyle("O", "positional offset", "#56B4E9", _DARK),
    "retrieval": RoleStyle("R", "retrieval", "#CC79A7", _DARK),
    "first_token_sink": RoleStyle("S", "first-token sink", "#7D8790", _LIGHT),
    "delimiter": RoleStyle("M", "delimiter", "#F0E442", _DARK),
    # No roles: descriptions, which tables of earlier versions have as labels.
    "local": RoleStyle("L", "local", "#009E73", _LIGHT),
    "broad": RoleStyle("B", "broad", "#9FD8CB", _DARK),
    "confident": RoleStyle("C", "confident", "#882255", _LIGHT),
    NO_ROLE: RoleStyle("", "no clear role", "#ECEEF0", _DARK),
}


@dataclass(frozen=True)
class RoleGrid:
    """Roles as a layer x head matrix: `places` [rows, heads] indexes `present`, NaN: no head.

    `present`: the roles that any head has, in the order of ROLES; `counts`: how many have each.
    """

    rows: list[Row]
    places: np.ndarray
    present: list[str]
    counts: dict[str, int]

    def legend(self, role: str) -> str:
        """A role's line in a legend: letter, name, and how many heads have it."""
        style = ROLES[role]
        return f"{style.letter}  {style.name} ({self.counts[role]})".strip()


def role_grid(roles: Any, figure: str) -> RoleGrid:
    """A table of roles as a matrix; MidusError where it is none or has a role without a colour."""
    roles = require(roles, ROLE_COLUMNS, figure, "analysis.head_roles()")
    unknown = [str(role) for role in roles["role"].unique() if role not in ROLES]
    if unknown:
        raise MidusError(
            f"{figure} knows the roles {', '.join(ROLES)}; the table has {', '.join(unknown)}. "
            "A table from analysis.head_roles() has the right ones"
        )
    rows = block_rows(roles)
    counts = {role: int((roles["role"] == role).sum()) for role in ROLES}
    present = [role for role in ROLES if counts[role]]
    place = {(row.layer, row.kind): i for i, row in enumerate(rows)}
    at = (
        [place[int(b), str(k)] for b, k in zip(roles["layer"], roles["kind"], strict=True)],
        roles["head"].to_numpy(int),
    )
    places = np.full((len(rows), int(roles["head"].max()) + 1), np.nan)
    places[at] = [present.index(role) for role in roles["role"]]
    return RoleGrid(rows, places, present, counts)


def role_points(roles: pd.DataFrame, importance: Any, figure: str) -> pd.DataFrame:
    """Every head's role and importance: the roles' rows with `score`, `ci_low`, `ci_high`, and
    `y`, the place of its role among those present, by layer and head from -0.34 to +0.34 of it.

    Raises IncomparableTables where the tables are of different models, MidusError where the second
    is no importance of these heads.
    """
    importance = require_importance(importance, figure)
    models = [table.attrs.get("model_hash") for table in (roles, importance)]
    if None not in models and models[0] != models[1]:
        raise IncomparableTables(
            f"{figure}: the roles are of {model_name(roles)}, the importance of "
            f"{model_name(importance)}, whose weights differ; measure both on one model"
        )
    kept = [*HEAD_COLUMNS, "score", "ci_low", "ci_high"]
    points = roles.merge(importance[kept], on=list(HEAD_COLUMNS), how="left")
    lost = int(points["score"].isna().sum())
    if lost:
        raise MidusError(
            f"{figure}: {lost} of {len(roles)} heads with a role have no importance; give "
            "analysis.head_importance() of every query head of the same model"
        )
    present = role_grid(roles, figure).present
    points = points.sort_values(["layer", "head"], kind="stable", ignore_index=True)
    points["y"] = [float(present.index(role)) for role in points["role"]]
    for _, part in points.groupby("role"):
        spread = np.linspace(-0.34, 0.34, len(part)) if len(part) > 1 else np.zeros(1)
        points.loc[part.index, "y"] += spread
    return points


@dataclass(frozen=True)
class RoleAxis:
    """Limits of the axis of importance, and the `medians` of roles that several heads have, by row.

    Heads that tower over the rest lie `beyond` the limits: [(row, text at the axis' end)].
    """

    limits: tuple[float, float]
    medians: dict[int, float]
    beyond: list[tuple[int, str]]


def role_axis(points: pd.DataFrame, grid: RoleGrid) -> RoleAxis:
    """The axis for `role_points`."""
    low, high = usual_range(points[["score", "ci_low", "ci_high"]].to_numpy(float), 0.97)
    medians, beyond = {}, []
    for row, role in enumerate(grid.present):
        part = points[points["role"] == role]
        middle = float(part["score"].median())
        if len(part) > 1 and low <= middle <= high:
            medians[row] = middle
        above, below = part[part["score"] > high], part[part["score"] < low]
        if len(above):
            beyond.append((row, f"{_named(grid, above, float(above['score'].max()))} ▸"))
        if len(below):
            beyond.append((row, f"◂ {_named(grid, below, float(below['score'].min()))}"))
    return RoleAxis((low, high), medians, beyond)


def _named(grid: RoleGrid, heads: pd.DataFrame, furthest: float) -> str:
    """The heads beyond an axis' end, by name where it is one."""
    size = f"{furthest:#.3g}".replace("-", "−")
    if len(heads) > 1:
        return f"{len(heads)} heads, to {size}"
    (head,) = heads[["layer", "kind", "head"]].itertuples(index=False, name=None)
    (row,) = (row for row in grid.rows if (row.layer, row.kind) == head[:2])
    return f"{row.label}, head {head[2]}: {size}"


def role_caption(
    roles: pd.DataFrame, importance: pd.DataFrame | None, axis: RoleAxis | None
) -> str:
    """What makes a role, on which data, and what the importance beside it is."""
    attrs = roles.attrs
    confidence = attrs.get("confidence")
    sure = f" at {100 * float(confidence):g}% confidence" if confidence else ""
    lead = f", {attrs['margin']:g} ahead of its rivals" if attrs.get("margin") else ""
    parts = [
        f"Head roles: a role where its scores are above their thresholds{sure}{lead}",
        f"roles on {data_words(attrs)}" + _sequences(attrs),
    ]
    if importance is None:
        return "; ".join([*parts, f"model {model_name(roles, 'not recorded')}"]) + "."
    notes = [
        f"right: a dot a {head_word(importance)}, by layer from the top, bars "
        f"{interval_words(importance)}, upright line the median",
        "numbers with an arrow: heads beyond the axis" if axis is not None and axis.beyond else "",
    ]
    right = caption(importance, title="importance", intervals=False, notes=notes)
    return f"{'; '.join(parts)}; {right}"


def _sequences(attrs: Mapping[Any, Any]) -> str:
    found = attrs.get("sequences") or {}
    if "each" not in found or "kinds" not in found:
        return ""
    return f" and {found['each'] * len(found['kinds'])} constructed sequences"


def role_hover(row: Mapping[Any, Any], label: str) -> str:
    """Hover text of one head: where it is, its role and how clear that is."""
    text = f"<b>{label}, head {int(row['head'])}</b> (block {int(row['layer'])}, {row['kind']})"
    text += f"<br>{ROLES[row['role']].name}"
    if np.isfinite(row["role_score"]):
        text += f": score {row['role_score']:.2f}, lead {row['role_margin']:.2f}"
    scores = {role: row[role] for role in ROLES if np.isfinite(row.get(role, np.nan))}
    if row["role"] == NO_ROLE and scores:
        best = max(scores, key=lambda role: scores[role])
        text += f"<br>highest score: {ROLES[best].name} {scores[best]:.2f}"
    return text
