"""What heads' roles explain of their amplification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from analysis.contrasts import MEASURES, heads_of, require_columns
from analysis.mixed_model import Fit, random_intercept
from analysis.roles.labels import DESCRIPTIONS, ROLES
from analysis.tables import SCHEMA, json_attrs
from kernels.errors import IncomparableTables, MidusError

MOST_VIF = 10.0  # beyond it a role's slope has over three times the error it would have alone
MAX_T_DRAWS = 20_000
COLUMNS = (*ROLES, *DESCRIPTIONS)
UNKNOWN, COLLINEAR = "its score is unknown or the same for all heads", "its VIF is above 10"


def amplification_by_role(
    table: pd.DataFrame, roles: pd.DataFrame, *, columns: Sequence[str] = COLUMNS
) -> pd.DataFrame:
    """Whether heads of some roles were amplified more: a regression over heads, layers random.

    A head's amplification on its role scores, all together, each standardised over the heads, with
    a random intercept for its source layer; fitted by REML.

    Args:
        table: of `analysis.amplification`.
        roles: of `analysis.head_roles` of the model before.
        columns: the role scores to regress on; by default those of all roles and descriptions.

    Returns:
        A row a measure ("score" and "share_score") and role: measure, unit, role; `slope`, what a
        standard deviation of the role's score adds to amplification, with stderr, ci_low, ci_high
        (95%) and `p`, by Student's t, each for a role that was asked about alone; `p_adjusted`,
        ci_low_all and ci_high_all for whoever picks roles out of the table: with 95% all these
        intervals hold together, and no role without a slope has p_adjusted <= 0.05 (the largest t
        of all roles of a measure, single step; Hothorn, Bretz and Westfall 2008, Biom. J. 50(3));
        `vif`, the role's variance inflation among the roles that stayed (1: its score is unrelated
        to the others'); `left_out`, why a role has no slope (NaN), else "": its score is unknown or
        the same for all heads, or its VIF was above 10, the largest first, until none was, and
        then `vif` is what it was; `icc`, the share of what roles leave unexplained that heads of a
        layer have in common.

        Degrees of freedom are heads - layers - roles, `.attrs["df"]`: those of layers taken as
        fixed, fewer than the Satterthwaite approximation gives, so the intervals err on the wide
        side. The heads are the sample here; documents are not resampled.

    Raises:
        IncomparableTables: where the roles are not of the model before, or lack a head.
        MidusError: where there are too few heads or layers, or no role score that differs.
    """
    require_columns(table, ("source_layer", "head", "score", "share_score"))
    scores = _role_scores(table, roles, columns)  # [heads, roles]
    spread = scores.std(0)
    known = spread > 1e-9 * np.abs(scores).max(0)  # not of rounding alone; NaN is unknown
    standard = (scores[:, known] - scores[:, known].mean(0)) / spread[known]
    names = np.array(columns)[known]
    layers = table["source_layer"].to_numpy()
    kept, vif = _untangled(standard)
    design = np.column_stack([np.ones(len(table)), standard[:, kept]])  # [heads, 1 + roles]
    df = len(table) - len(np.unique(layers)) - len(kept)
    _check_design(design, layers, df)
    why = {str(name): UNKNOWN for name in columns} | {str(name): COLLINEAR for name in names}
    why |= {str(name): "" for name in names[kept]}
    parts, iccs = [], {}
    for measure in MEASURES:
        values = table[measure].to_numpy(dtype=float)
        if not np.isfinite(values).all():
            continue  # shares of nothing
        fit = random_intercept(values, design, layers)
        part = _slopes(fit, df).assign(role=names[kept]).set_index("role").reindex(list(columns))
        part["vif"] = pd.Series(vif, index=names).reindex(list(columns))
        part["left_out"] = [why[str(name)] for name in columns]
        part = part.reset_index().assign(icc=fit.icc)
        part.insert(0, "measure", measure)
        part.insert(1, "unit", "share" if measure == "share_score" else table.attrs.get("unit"))
        parts.append(part)
        iccs[measure] = fit.icc
    result = pd.concat(parts, ignore_index=True)
    more = {
        "table": "amplification_by_role",
        "df": df,
        "heads": len(table),
        "layers": len(np.unique(layers)),
        "icc": iccs,
        "left_out": [name for name in columns if why[str(name)]],
        "most_vif": MOST_VIF,
        "adjusted": "max-t",
        "roles_data": roles.attrs.get("data"),
    }
    result.attrs = json_attrs({"schema": SCHEMA, **table.attrs, **more})
    return result


def _untangled(standard: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Roles of standardised scores [heads, roles] whose VIF is at most MOST_VIF once those above it
    are left out, the largest first (of equals the last); the VIF of all, where each stands last."""
    kept, vif = list(range(standard.shape[1])), np.ones(standard.shape[1])
    while kept:
        vif[kept] = _inflation(standard[:, kept])
        worst = max(kept, key=lambda role: (round(float(vif[role]), 6), role))
        if vif[worst] <= MOST_VIF:
            break
        kept.remove(worst)
    return kept, vif


def _inflation(standard: np.ndarray) -> np.ndarray:
    """Variance inflation [roles]: 1 / (1 - R squared) of each role's scores on the others'."""
    found = np.ones(standard.shape[1])
    for role in range(standard.shape[1]):
        others, mine = np.delete(standard, role, 1), standard[:, role]
        rest = mine - others @ np.linalg.lstsq(others, mine, rcond=None)[0]
        left = float(rest @ rest) / float(mine @ mine)
        found[role] = 1 / left if left > 1e-12 else np.inf
    return found


class _Reach(NamedTuple):
    """Adjusted p values [roles], and how many standard errors all intervals must reach."""

    p: np.ndarray
    reach: float


def _slopes(fit: Fit, df: int) -> pd.DataFrame:
    """Slopes but for the intercept, with intervals and p values, each alone and all together."""
    slope, stderr = fit.slopes[1:], fit.stderr[1:]
    alone, together = float(stats.t.ppf(0.975, df)), max_t(fit, df)
    return pd.DataFrame(
        {
            "slope": slope,
            "stderr": stderr,
            "ci_low": slope - alone * stderr,
            "ci_high": slope + alone * stderr,
            "p": 2 * stats.t.sf(np.abs(slope / stderr), df),
            "p_adjusted": together.p,
            "ci_low_all": slope - together.reach * stderr,
            "ci_high_all": slope + together.reach * stderr,
        }
    )


def max_t(fit: Fit, df: int, confidence: float = 0.95) -> _Reach:
    """Of the largest of the slopes' t statistics, which are as correlated as the slopes.

    By drawing from the multivariate t, with a fixed seed.
    """
    error = fit.stderr[1:]
    t = np.abs(fit.slopes[1:] / error)
    correlation = fit.covariance[1:, 1:] / np.outer(error, error)
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(correlation + 1e-12 * np.eye(len(error)))
    normal = rng.standard_normal((MAX_T_DRAWS, len(error))) @ root.T
    chi = np.sqrt(rng.chisquare(df, MAX_T_DRAWS) / df)
    largest = np.sort(np.abs(normal).max(1) / chi)
    beyond = MAX_T_DRAWS - np.searchsorted(largest, t)
    alone = 2 * stats.t.sf(t, df)  # no draw may make many roles surer than one
    p = np.maximum((1 + beyond) / (1 + MAX_T_DRAWS), alone)
    reach = max(np.quantile(largest, confidence), stats.t.ppf((1 + confidence) / 2, df))
    return _Reach(p, float(reach))


def _role_scores(table: pd.DataFrame, roles: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Role scores of the heads of an amplification table, [heads, roles]."""
    missing = sorted({"layer", "head", *columns} - set(roles.columns))
    if missing or not len(columns):
        raise MidusError(
            f"the second table has no {', '.join(missing) or 'role'}; give one of "
            "analysis.head_roles, and columns that it has"
        )
    hashes = table.attrs.get("before_model_hash"), roles.attrs.get("model_hash")
    if None not in hashes and hashes[0] != hashes[1]:
        raise IncomparableTables(
            f"the roles are of {roles.attrs.get('model')} and the amplification starts from "
            f"{table.attrs.get('before_model')}, whose weights differ; give roles of that model"
        )
    scores = roles[list(columns)].to_numpy(dtype=float)
    known = dict(zip(heads_of(roles), scores, strict=True))
    lacking = [pair for pair in heads_of(table) if pair not in known]
    if lacking:
        raise IncomparableTables(
            f"the roles lack head {lacking[0]} of the amplification table; give roles of the model "
            "that amplification starts from"
        )
    return np.array([known[pair] for pair in heads_of(table)])


def _check_design(design: np.ndarray, layers: np.ndarray, df: int) -> None:
    roles = design.shape[1] - 1
    if not roles:
        raise MidusError("no role score differs between heads; there is nothing to regress on")
    if len(np.unique(layers)) < 2 or df < 1:
        raise MidusError(
            f"{len(layers)} heads in {len(np.unique(layers))} layers are too few for {roles} role "
            "scores and a layer's share; give a larger model, or fewer roles as columns="
        )
