"""Roles and importance side by side: what the heads of each role are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.intervals import by_document, t_interval
from analysis.roles.labels import NONE, ROLES
from analysis.tables import SCHEMA, json_attrs, weights_of
from analysis.ties import ranks
from kernels.errors import IncomparableTables, MidusError

MEASURES = ("total", "mean", "correlation")


def by_role(roles: pd.DataFrame, importance: pd.DataFrame) -> pd.DataFrame:
    """What the heads of each role are worth, from a table of roles and one of importance.

    Args:
        roles: a table of `head_roles`.
        importance: a table of `head_importance` of the same model; the documents need not be the
            same.

    Returns:
        A row a kind of head and role, "none" last: `kind`, `role`, `heads` (how many have it);
        their importance together and a head, `total` and `mean`, in the importance's unit; and
        `correlation`, Spearman's between the role's score and importance over all heads of the
        kind. Each of the three has a 95% interval over documents, `<name>_stderr`,
        `<name>_ci_low`, `<name>_ci_high`, the roles being held. NaN: the mean of no heads, the
        correlation of "none", of a score that is unknown or the same for all heads.

    Raises:
        IncomparableTables: where the tables are not of the same heads of one model.
        MidusError: where one of them is no such table.

    >>> table = by_role(head_roles(), head_importance(limit=20))  # doctest: +SKIP
    """
    merged = _joined(roles, importance)
    weights = weights_of(importance)
    parts = [_of_kind(heads, weights) for _, heads in merged.groupby("kind", sort=False)]
    table = pd.concat(parts, ignore_index=True)
    measured = (
        "method", "baseline", "metric", "stage", "unit", "data", "data_hash", "documents",
        "bootstrap_unit", "context",
    )  # fmt: skip
    attrs = {key: importance.attrs[key] for key in measured if key in importance.attrs}
    attrs |= {key: roles.attrs[key] for key in ("model", "model_hash", "thresholds", "versions")}
    attrs |= {"table": "by_role", "roles_data": roles.attrs["data"]}
    table.attrs = dict(json_attrs({"schema": SCHEMA, **attrs}).items())
    return table


def _joined(roles: pd.DataFrame, importance: pd.DataFrame) -> pd.DataFrame:
    """The roles' rows with each head's importance by document."""
    if roles.attrs.get("table") != "head_roles":
        raise MidusError(
            f"the first table is {roles.attrs.get('table')!r}; give one of analysis.head_roles"
        )
    if not {"layer", "head", "by_document"} <= set(importance.columns):
        raise MidusError(
            "the second table has no importance by document; give one of analysis.head_importance"
        )
    if np.isnan(np.array(importance["by_document"].tolist(), dtype=float)).any():
        raise MidusError(
            "the importance was not measured on every document, as when heads are raced; "
            "give a table of analysis.head_importance"
        )
    models = [table.attrs.get("model_hash") for table in (roles, importance)]
    if models[0] != models[1]:
        raise IncomparableTables(
            f"the roles are of {roles.attrs.get('model')} and the importance of "
            f"{importance.attrs.get('model')}, whose weights differ; measure one model"
        )
    places = [
        list(zip(table["layer"], table["head"], strict=True)) for table in (roles, importance)
    ]
    if sorted(places[0]) != sorted(places[1]):
        raise IncomparableTables(
            f"the roles are of {len(places[0])} heads and the importance of {len(places[1])}, "
            "not the same ones; give importance of every query head"
        )
    found = dict(zip(places[1], importance["by_document"], strict=True))
    merged = pd.DataFrame(roles)
    merged.attrs = {}
    return merged.assign(by_document=[found[place] for place in places[0]])


def _of_kind(heads: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """The rows of one kind of heads."""
    names = (*ROLES, NONE)
    member = np.array([heads["role"] == name for name in names], dtype=float)  # [roles, heads]
    scored = np.full(member.shape, np.nan)
    scored[: len(ROLES)] = heads[list(ROLES)].to_numpy().T
    scored = ranks(scored)

    def measures(importance: np.ndarray) -> np.ndarray:
        """[times, heads] -> [times, roles, 3], in the order of MEASURES."""
        total = importance @ member.T
        with np.errstate(invalid="ignore"):
            mean = total / member.sum(1)
        return np.stack([total, mean, ranks(importance) @ scored.T], -1)

    values = np.array(heads["by_document"].tolist(), dtype=float)
    found = t_interval(by_document(measures, [values], weights), weights, finite=False)
    columns: dict[str, Any] = {
        "kind": heads["kind"].iloc[0],
        "role": names,
        "heads": member.sum(1).astype(int),
    }
    for index, name in enumerate(MEASURES):
        parts = {name: found.estimate, **found.columns(f"{name}_")}
        columns |= {column: part[:, index] for column, part in parts.items()}
    return pd.DataFrame(columns)
