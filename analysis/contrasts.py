"""Whose amplification it is: chosen heads against controls, and what the heads' roles explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product
from math import comb, prod
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.roles.labels import ROLES
from analysis.statistics import Interval, bootstrap_mean
from analysis.subject import check_choice
from analysis.tables import SCHEMA, json_attrs, weights_of
from analysis.ties import ROUNDING, combination, evened
from kernels.errors import HeadError, IncomparableTables, MidusError
from midus_model import chosen_heads

Head = tuple[int, int]
CONTROLS = ("matched", "layer")
# Columns of an amplification table that are contrasted, and what holds them by document.
MEASURES = {"score": "by_document", "share_score": "share_by_document"}


# ---------------------------------------------------------------- chosen against controls


def amplification_contrast(
    table: pd.DataFrame,
    chosen: Any = None,
    *,
    controls: str = "matched",
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether chosen heads were amplified more than other heads of the same layers.

    Args:
        table: of `analysis.amplification`.
        chosen: (layer, head) pairs, a ranking (its top set), or its JSON; by default the heads in
            the table's `.attrs["chosen"]`.
        controls: "matched": for each chosen head the one in its layer nearest in importance before,
            no control serving two, the sum of the distances being least; "layer": all heads of its
            layer that were not chosen, alike.
        draws: permutations of which heads of a layer are the chosen ones.
        seed: of the bootstrap and the permutations.

    Returns:
        A row a measure, "score" (in the importance's unit, nats a token) and "share_score":
        measure, unit; heads, how many were chosen; `chosen` and `controls`, their mean
        amplification; `difference` of the two, with stderr, ci_low and ci_high (95%, documents
        resampled, which are the same for both); `p`, two-sided, of the difference where labels are
        permuted within layers and controls found anew each time; by_document, the differences.

        `.attrs`: `pairs`, a dict a chosen head: head, control (null with "layer") and `rule`:
        "own", or, where its layer has fewer other heads than chosen ones, "shared" (nearest,
        controls serving several), or, where it has none, "elsewhere" (nearest of any layer);
        `balance`, mean importance before on both sides; `exact`, whether the permutations are all
        that there are.

        Shares are not means over documents: theirs are linearised around the whole (delta method),
        which is rough for heads so near 0 that resampling turns their sign. Of a table without
        `share_by_document` the share's interval is NaN.

    Raises:
        HeadError: where a chosen head is not in the table, or every head is chosen.
        MidusError: where the table is none of amplification, or an argument is unknown.
    """
    check_choice("controls", controls, CONTROLS)
    if draws < 1:
        raise MidusError(f"draws is {draws}; it must be at least 1")
    _require(table, ("layer", "head", "before", "score", "share_score", "by_document"))
    places = {pair: row for row, pair in enumerate(_heads(table))}
    picked = _picked(table, chosen, places)
    layers, before = table["layer"].to_numpy(), table["before"].to_numpy(dtype=float)
    level = evened(before)

    def contrast(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        against, rules = _controls(layers, level, rows, controls)
        mine = np.bincount(rows, minlength=len(table)) / len(rows)
        return mine, against, rules

    rows = np.array([places[pair] for pair in picked])
    mine, against, rules = contrast(rows)
    theirs = against.mean(0)
    others, exact = _relabelled(places, picked, draws, np.random.default_rng(seed))
    relabelled = [contrast(np.array([places[pair] for pair in other])) for other in others]
    null = np.array([one - two.mean(0) for one, two, _ in relabelled])  # [draws, heads]
    found = []
    for measure, column in MEASURES.items():
        values = table[measure].to_numpy(dtype=float)
        by_document = _by_document(table, column, mine - theirs)
        difference = float(combination(mine - theirs, values))
        found.append(
            {
                "measure": measure,
                "unit": "share" if measure == "share_score" else table.attrs.get("unit"),
                "heads": len(rows),
                "chosen": values @ mine,
                "controls": values @ theirs,
                "difference": difference,
                **_interval(by_document, table, seed),
                "p": _p_value(difference, combination(null, values), exact),
                "by_document": by_document,
            }
        )
    result = pd.DataFrame(found)
    names = list(places)
    pairs = [
        {
            "head": list(pair),
            "control": list(names[weights.argmax()]) if weights.max() == 1 else None,
            "rule": rule,
        }
        for pair, weights, rule in zip(picked, against, rules, strict=True)
    ]
    more = {
        "table": "amplification_contrast",
        "chosen": [list(pair) for pair in picked],
        "controls": controls,
        "pairs": pairs,
        "balance": {"chosen": before @ mine, "controls": before @ theirs},
        "draws": len(others),
        "exact": exact,
        "seed": seed,
    }
    result.attrs = json_attrs({"schema": SCHEMA, **table.attrs, **more})
    return result


def _picked(table: pd.DataFrame, chosen: Any, places: Mapping[Head, int]) -> list[Head]:
    given = table.attrs.get("chosen") if chosen is None else chosen
    if given is None:
        raise HeadError("the table does not say which heads were chosen; give them as chosen=")
    picked = chosen_heads(given)
    for pair in picked:
        if pair not in places:
            raise HeadError(f"chosen head {pair} is not in the table, which has {len(places)}")
    if len(picked) == len(places):
        raise HeadError(f"all {len(places)} heads are chosen, so there are no controls; give fewer")
    return picked


def _controls(
    layers: np.ndarray, before: np.ndarray, chosen: np.ndarray, how: str
) -> tuple[np.ndarray, list[str]]:
    """What each chosen head is set against: weights [chosen, heads] that sum to 1, and the rule."""
    free = np.setdiff1d(np.arange(len(layers)), chosen)
    weights = np.zeros((len(chosen), len(layers)))
    rules = ["own"] * len(chosen)
    for layer in np.unique(layers[chosen]):
        rows = np.flatnonzero(layers[chosen] == layer)
        here = free[layers[free] == layer]
        if how == "layer" and len(here):
            weights[np.ix_(rows, here)] = 1 / len(here)
            continue
        pool = here if len(here) else free
        gaps = np.abs(before[chosen[rows], None] - before[pool])  # [chosen here, pool]
        if len(here) >= len(rows):
            mine, theirs = optimize.linear_sum_assignment(gaps)
        else:
            mine, theirs = np.arange(len(rows)), gaps.argmin(1)
            for row in rows:
                rules[row] = "shared" if len(here) else "elsewhere"
        weights[rows[mine], pool[theirs]] = 1
    return weights, rules


def _relabelled(
    heads: Mapping[Head, int], chosen: Sequence[Head], draws: int, rng: np.random.Generator
) -> tuple[list[tuple[Head, ...]], bool]:
    """Sets of heads with as many of each layer as were chosen there."""
    counts = layer_counts(chosen)
    pools = {layer: [pair for pair in heads if pair[0] == layer] for layer in counts}
    return drawn_heads(pools, counts, draws, rng)


def layer_counts(heads: Sequence[Head]) -> dict[int, int]:
    """How many of the heads lie in each layer."""
    layers = [layer for layer, _ in heads]
    return {layer: layers.count(layer) for layer in sorted(set(layers))}


def drawn_heads(
    pools: Mapping[int, Sequence[Head]],
    counts: Mapping[int, int],
    draws: int,
    rng: np.random.Generator,
) -> tuple[list[tuple[Head, ...]], bool]:
    """Different random sets of heads, `counts[layer]` from each layer's pool.

    Where there are no more than `draws` such sets, all of them, and True.
    """
    if prod(comb(len(pools[layer]), count) for layer, count in counts.items()) <= draws:
        parts = [combinations(pools[layer], count) for layer, count in counts.items()]
        return [tuple(chain(*picked)) for picked in product(*parts)], True
    found: dict[tuple[Head, ...], None] = {}  # in the order drawn
    while len(found) < draws:
        picked = []
        for layer, count in counts.items():
            places = rng.choice(len(pools[layer]), count, replace=False)
            picked += [pools[layer][place] for place in sorted(places)]
        found[tuple(picked)] = None
    return list(found), False


def _p_value(found: float, null: np.ndarray, exact: bool) -> float:
    """Share of labellings with a difference at least as large; the one found counts as one."""
    as_large = np.abs(null) >= np.abs(found) * (1 - 1e-9)
    return float(as_large.mean() if exact else (1 + as_large.sum()) / (1 + len(null)))


def _by_document(table: pd.DataFrame, column: str, weights: np.ndarray) -> list[float] | None:
    """A contrast of heads on every document, where the table holds it."""
    if column not in table.columns:
        return None
    values = combination(weights, np.array(table[column].tolist(), dtype=float))
    return values.tolist() if np.isfinite(values).all() else None


def _interval(by_document: list[float] | None, table: pd.DataFrame, seed: int) -> dict[str, float]:
    names = ("stderr", "ci_low", "ci_high")
    if by_document is None:
        return dict.fromkeys(names, np.nan)
    found: Interval = bootstrap_mean([by_document], weights_of(table), seed=seed)
    return {name: float(part[0]) for name, part in zip(names, found[1:], strict=True)}


# ---------------------------------------------------------------- amplification by role


def amplification_by_role(
    table: pd.DataFrame, roles: pd.DataFrame, *, columns: Sequence[str] = ROLES
) -> pd.DataFrame:
    """Whether heads of some roles were amplified more: a regression over heads, layers random.

    A head's amplification on its role scores, all together, each standardised over the heads, with
    a random intercept for its source layer; fitted by REML.

    Args:
        table: of `analysis.amplification`.
        roles: of `analysis.head_roles` of the model before.
        columns: the role scores to regress on.

    Returns:
        A row a measure ("score" and "share_score") and role: measure, unit, role; `slope`, what a
        standard deviation of the role's score adds to amplification, with stderr, ci_low, ci_high
        (95%) and `p`, by Student's t; `vif`, the role's variance inflation (1: its score is
        unrelated to the others'); `icc`, the share of what roles leave unexplained that heads of a
        layer have in common. NaN for a role whose score is unknown or the same for all heads.

        Degrees of freedom are heads - layers - roles, `.attrs["df"]`: those of layers taken as
        fixed, fewer than the Satterthwaite approximation gives, so the intervals err on the wide
        side. The heads are the sample here; documents are not resampled.

    Raises:
        IncomparableTables: where the roles are not of the model before, or lack a head.
        MidusError: where there are too few heads or layers, or roles that say the same.
    """
    _require(table, ("source_layer", "head", "score", "share_score"))
    scores = _role_scores(table, roles, columns)  # [heads, roles]
    spread = scores.std(0)
    known = spread > 1e-9 * np.abs(scores).max(0)  # not of rounding alone; NaN is unknown
    standard = (scores[:, known] - scores[:, known].mean(0)) / spread[known]
    layers = table["source_layer"].to_numpy()
    df = len(table) - len(np.unique(layers)) - int(known.sum())
    design = np.column_stack([np.ones(len(table)), standard])  # [heads, 1 + roles]
    _check_design(design, layers, df)
    correlation = np.atleast_2d(np.corrcoef(standard, rowvar=False))
    reach = float(stats.t.ppf(0.975, df))
    parts, iccs = [], {}
    for measure in MEASURES:
        values = table[measure].to_numpy(dtype=float)
        if not np.isfinite(values).all():
            continue  # shares of nothing
        fit = random_intercept(values, design, layers)
        slope, stderr = fit.slopes[1:], fit.stderr[1:]
        part = pd.DataFrame({"role": np.array(columns)[known], "slope": slope, "stderr": stderr})
        part["ci_low"], part["ci_high"] = slope - reach * stderr, slope + reach * stderr
        part["p"] = 2 * stats.t.sf(np.abs(slope / stderr), df)
        part["vif"] = np.diag(np.linalg.inv(correlation))
        part = part.set_index("role").reindex(list(columns)).reset_index()
        part.insert(0, "measure", measure)
        part.insert(1, "unit", "share" if measure == "share_score" else table.attrs.get("unit"))
        parts.append(part.assign(icc=fit.icc))
        iccs[measure] = fit.icc
    result = pd.concat(parts, ignore_index=True)
    more = {
        "table": "amplification_by_role",
        "df": df,
        "heads": len(table),
        "layers": len(np.unique(layers)),
        "icc": iccs,
        "left_out": [name for name, kept in zip(columns, known, strict=True) if not kept],
        "roles_data": roles.attrs.get("data"),
    }
    result.attrs = json_attrs({"schema": SCHEMA, **table.attrs, **more})
    return result


class Fit(NamedTuple):
    """Slopes [p] and their standard errors [p]; the residual variance; the intraclass correlation,
    the share of the variance around the slopes that lies between groups."""

    slopes: np.ndarray
    stderr: np.ndarray
    residual: float
    icc: float


def random_intercept(values: np.ndarray, design: np.ndarray, groups: np.ndarray) -> Fit:
    """Linear regression with a random intercept a group, by REML.

    values = design @ slopes + intercept of the group + residual, both normal. Their variances enter
    through the ratio theta = icc / (1 - icc) alone: given it, slopes are generalised least squares
    in closed form, and the residual variance too, so that what is searched is one number
    (Patterson and Thompson 1971, Biometrika 58(3); Lindstrom and Bates 1988, JASA 83, sec. 3).

    Args:
        values: [n]. design: [n, p], a column of ones among them. groups: [n], labels.
    """
    members = (groups[:, None] == np.unique(groups)).astype(float)  # [n, groups]
    rounding = (ROUNDING * np.abs(values).max()) ** 2
    sizes, free = members.sum(0), len(values) - design.shape[1]

    def given(icc: float) -> tuple[float, Fit]:
        """Minus twice the restricted log-likelihood, up to a constant, and the fit."""
        theta = icc / (1 - icc)
        shrink = theta / (1 + theta * sizes)  # V^-1 = 1 - Z shrink Z', V = 1 + theta Z Z'

        def inverse(array: np.ndarray) -> np.ndarray:
            return array - members @ (shrink * (members.T @ array).T).T

        information = design.T @ inverse(design)
        slopes = np.linalg.solve(information, design.T @ inverse(values))
        rest = values - design @ slopes
        residual = float(rest @ inverse(rest)) / free
        if not residual > rounding:
            raise MidusError("the values have no variance left to explain; nothing can be fitted")
        stderr = np.sqrt(residual * np.diag(np.linalg.inv(information)))
        deviance = free * np.log(residual) + np.log1p(theta * sizes).sum()
        deviance += np.linalg.slogdet(information)[1]
        return float(deviance), Fit(slopes, stderr, residual, float(icc))

    grid = np.append(np.linspace(0, 0.96, 25), [0.99, 0.999, 0.9999, 0.99999])
    best = int(np.argmin([given(icc)[0] for icc in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    search = optimize.minimize_scalar(
        lambda icc: given(icc)[0], bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    return min((given(search.x), given(grid[best])), key=lambda pair: pair[0])[1]


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
    known = dict(zip(_heads(roles), scores, strict=True))
    lacking = [pair for pair in _heads(table) if pair not in known]
    if lacking:
        raise IncomparableTables(
            f"the roles lack head {lacking[0]} of the amplification table; give roles of the model "
            "that amplification starts from"
        )
    return np.array([known[pair] for pair in _heads(table)])


def _check_design(design: np.ndarray, layers: np.ndarray, df: int) -> None:
    roles = design.shape[1] - 1
    if not roles:
        raise MidusError("no role score differs between heads; there is nothing to regress on")
    if len(np.unique(layers)) < 2 or df < 1:
        raise MidusError(
            f"{len(layers)} heads in {len(np.unique(layers))} layers are too few for {roles} role "
            "scores and a layer's share; give a larger model, or fewer roles as columns="
        )
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise MidusError("some role scores follow from the others; give fewer roles as columns=")


def _heads(table: pd.DataFrame) -> list[Head]:
    return [(int(a), int(b)) for a, b in zip(table["layer"], table["head"], strict=True)]


def _require(table: Any, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in getattr(table, "columns", ())]
    if missing:
        raise MidusError(
            f"the table has no {', '.join(missing)}; give one that analysis.amplification made"
        )
