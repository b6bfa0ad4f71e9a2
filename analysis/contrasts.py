"""Whose amplification it is: chosen heads against others of their layers that match them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.draws import Head
from analysis.intervals import t_interval
from analysis.matching import (
    CALIPER,
    Matches,
    level,
    matched,
    null_differences,
    p_value,
    relabelled,
    sides,
    trend,
    without_trend,
)
from analysis.subject import check_choice
from analysis.tables import SCHEMA, json_attrs, weights_of
from analysis.ties import combination, evened
from kernels.errors import HeadError, MidusError, NoOverlap
from midus_model import chosen_heads

UNMATCHED = ("refuse", "drop")
# Columns of an amplification table that are contrasted, and what holds them by document.
MEASURES = {"score": "by_document", "share_score": "share_by_document"}


def amplification_contrast(
    table: pd.DataFrame,
    chosen: Any = None,
    *,
    caliper: float = CALIPER,
    unmatched: str = "refuse",
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether chosen heads were amplified more than heads of their layers as important before.

    Args:
        table: of `analysis.amplification`.
        chosen: (layer, head) pairs, a ranking (its top set), or its JSON; by default the heads in
            the table's `.attrs["chosen"]`.
        caliper: how far a control may be from its chosen head in importance before, in standard
            deviations of `analysis.matching.level` over all heads of the table.
        unmatched: what to do with a chosen head that has no such control in its layer: "refuse",
            or "drop": leave it out of both sides, the question then being about the others alone.
        draws: relabellings at most; where there are no more, all of them.
        seed: of the relabellings.

    Returns:
        A row a measure, "score" (in the importance's unit, nats a token) and "share_score":
        measure, unit; heads, how many chosen ones were matched; `chosen` and `controls`, their mean
        amplification; `difference` of the two, less the slope of amplification on importance before
        (over heads that were not chosen) times the gap that matching left, with stderr, ci_low and
        ci_high (95%, over documents; heads, their matches and importance before held);
        `unadjusted`, the plain difference; `p`, two-sided, of the difference where in every set of
        a chosen head and its controls any one may be the chosen one; `p_least`, the smallest p that
        these sets can give, and `relabellings`, how many there were; by_document, the differences.
        The balance: before_chosen and before_controls, mean importance before, and `smd`, their
        gap on the scale that was matched on, in its standard deviations; `smd_all`, that of all
        chosen heads and all others of their layers, before matching.

        `.attrs`: `pairs`, a dict a matched head: head, control (the nearest), controls;
        `unmatched`, heads left out; `caliper`, and `caliper_level`, the same in units of the scale;
        `exact`, whether the relabellings are all that there are.

        p and the difference take it that, of two heads of a layer equally important before, it was
        left to chance which was chosen. Where heads were chosen by another measurement than
        `before`, which noise in `before` leaves less than equal, they are not
        (docs/amplification.md says how far off p can be).

        Shares are not means over documents: theirs are linearised around the whole (delta method),
        which is rough for heads so near 0 that other documents turn their sign. Of a table without
        `share_by_document` the share's interval is NaN.

    Raises:
        NoOverlap: where a chosen head has no control within the caliper, or with "drop" none has.
        HeadError: where a chosen head is not in the table, or every head is chosen.
        MidusError: where the table is none of amplification, or an argument is unknown.
    """
    check_choice("unmatched", unmatched, UNMATCHED)
    if draws < 1:
        raise MidusError(f"draws is {draws}; it must be at least 1")
    if not 0 < caliper < np.inf:
        raise MidusError(
            f"caliper is {caliper}; it must be a number above 0, for example {CALIPER}"
        )
    require_columns(table, ("layer", "head", "before", "score", "share_score", "by_document"))
    places = {pair: row for row, pair in enumerate(heads_of(table))}
    picked = _picked(table, chosen, places)
    names, rows = list(places), np.array([places[pair] for pair in picked])
    layers, before = table["layer"].to_numpy(), table["before"].to_numpy(dtype=float)
    if not np.isfinite(before).all():
        layer, head = names[int(np.argmin(np.isfinite(before)))]
        raise MidusError(
            f"importance before of head {layer}.{head} is {before[~np.isfinite(before)][0]}; "
            "heads are matched on it, so give a table in which all have one"
        )
    levels = evened(level(before))
    found = matched(levels, layers, rows, caliper)
    _check_overlap(found, names, caliper, unmatched)
    slope = trend(levels, layers, rows)
    mine, theirs = sides(found, len(table))
    labels = relabelled(found, draws, np.random.default_rng(seed))
    contrasts = []
    for measure, column in MEASURES.items():
        values = table[measure].to_numpy(dtype=float)
        weights = without_trend(mine - theirs, levels, slope)
        by_document = _by_document(table, column, weights)
        difference = float(combination(weights, values))
        null = null_differences(values - combination(slope, values) * levels, found, labels.picks)
        contrasts.append(
            {
                "measure": measure,
                "unit": "share" if measure == "share_score" else table.attrs.get("unit"),
                "heads": len(found.sets),
                "chosen": values @ mine,
                "controls": values @ theirs,
                "difference": difference,
                **_interval(by_document, table),
                "unadjusted": float(combination(mine - theirs, values)),
                "p": p_value(difference, null, labels.exact),
                "p_least": labels.least,
                "relabellings": len(labels.picks),
                **_balance(table, levels, rows, mine, theirs),
                "by_document": by_document,
            }
        )
    result = pd.DataFrame(contrasts)
    more = {
        "table": "amplification_contrast",
        "chosen": [list(pair) for pair in picked],
        "controls": "matched",
        "pairs": [_pair(names, members) for members in found.sets],
        "unmatched": [list(names[row]) for row in found.alone],
        "caliper": caliper,
        "caliper_level": found.caliper,
        "draws": len(labels.picks),
        "exact": labels.exact,
        "seed": seed,
    }
    result.attrs = json_attrs({"schema": SCHEMA, **table.attrs, **more})
    return result


def _check_overlap(found: Matches, names: Sequence[Head], caliper: float, unmatched: str) -> None:
    if found.sets and (unmatched == "drop" or not found.alone):
        return
    alone = [f"{layer}.{head}" for layer, head in (names[row] for row in found.alone)]
    listed = ", ".join(alone[:8]) + (f" and {len(alone) - 8} more" if len(alone) > 8 else "")
    way = "choose heads that leave some as important beside them in their layers"
    if found.sets:
        way = 'unmatched="drop" leaves them out'
    raise NoOverlap(
        f"no other head of its layer was as important before (within {caliper:g} SD) as each of "
        f"the chosen heads {listed}, so nothing says what these would have gained; {way}"
    )


def _balance(
    table: pd.DataFrame, levels: np.ndarray, rows: np.ndarray, mine: np.ndarray, theirs: np.ndarray
) -> dict[str, float]:
    before, spread = table["before"].to_numpy(dtype=float), float(levels.std(ddof=1))
    layers, chosen = table["layer"].to_numpy(), np.zeros(len(table), dtype=bool)
    chosen[rows] = True
    others = ~chosen & np.isin(layers, layers[rows])
    gaps = (mine - theirs) @ levels, levels[chosen].mean() - levels[others].mean()
    smd, smd_all = (float(gap) / spread if spread > 0 else 0.0 for gap in gaps)
    return {
        "before_chosen": float(before @ mine),
        "before_controls": float(before @ theirs),
        "smd": smd,
        "smd_all": smd_all,
    }


def _pair(names: Sequence[Head], members: np.ndarray) -> dict[str, Any]:
    head, *controls = (list(names[row]) for row in members)
    return {"head": head, "control": controls[0], "controls": controls}


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


def _by_document(table: pd.DataFrame, column: str, weights: np.ndarray) -> list[float] | None:
    """A contrast of heads on every document, where the table holds it."""
    if column not in table.columns:
        return None
    values = combination(weights, np.array(table[column].tolist(), dtype=float))
    return values.tolist() if np.isfinite(values).all() else None


def _interval(by_document: list[float] | None, table: pd.DataFrame) -> dict[str, float]:
    if by_document is None:
        return dict.fromkeys(("stderr", "ci_low", "ci_high"), np.nan)
    found = t_interval([by_document], weights_of(table), together=False)
    return {name: float(part[0]) for name, part in found.columns().items()}


def heads_of(table: pd.DataFrame) -> list[Head]:
    return [(int(a), int(b)) for a, b in zip(table["layer"], table["head"], strict=True)]


def require_columns(table: Any, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in getattr(table, "columns", ())]
    if missing:
        raise MidusError(
            f"the table has no {', '.join(missing)}; give one that analysis.amplification made"
        )
