"""What a ranking says, in a line that can be quoted, and what it warns of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

CARRIED = 0.05  # of a head's windows: where so few hold half of its size, the tail rules the mean
SURE = 0.95
NAMED = 3  # heads that a warning names


def tail_warning(table: pd.DataFrame) -> str:
    """Which of the heads around the top have a score that few windows carry; "" where none has.

    table: a raced ranking, best first.
    """
    near = table.iloc[: 2 * int(table.attrs["top"])]
    ruled = near[(near["carried_by"] > 0) & (near["carried_by"] <= CARRIED * near["exact"])]
    if not len(ruled):
        return ""
    names = [
        f"{row.layer}.{row.head} ({row.carried_by} of {row.exact})"
        for row in ruled.head(NAMED).itertuples()
    ]
    more = f" and {len(ruled) - NAMED} more" if len(ruled) > NAMED else ""
    return (
        f"few windows carry half of the effect of head {', '.join(names)}{more} (windows that "
        "carry it, of those measured): another such window, not seen, would move the score, and "
        "chances (p_top) between 0 and 1 are too sure"
    )


def summary(table: pd.DataFrame) -> str:
    """What was settled, over which population, at which error, at what cost: one line.

    table: what `rank_heads` returns.
    """
    attrs = table.attrs
    parts = [_settled(table), _population(attrs), _error(attrs), _cost(attrs)]
    if attrs.get("conditional"):
        parts.append(f"conditional {attrs['conditional']}")
    if attrs.get("tails"):
        parts.append(attrs["tails"])
    return "; ".join(parts) + "."


def _settled(table: pd.DataFrame) -> str:
    attrs = table.attrs
    top, method = int(attrs["top"]), str(attrs.get("method") or "ablation")
    what = f"the {top} best of {len(table)} heads by {method.replace('_', ' ')}"
    if attrs["stopped"] == "budget":
        sure = int((table["p_top"] >= SURE).sum())
        return f"{what} are not settled (chance of {SURE:.0%} and more: {sure} heads)"
    tied = table["tied_with_next"].iloc[top - 1]
    turned = ", though other documents may turn the last place" if tied else ""
    return f"{what} are {'settled' if _raced(attrs) else 'known'}{turned}"


def _raced(attrs: Mapping[Any, Any]) -> bool:
    return "minimum" in attrs


def counted(attrs: Mapping[Any, Any]) -> str:
    """How many documents a table is over; of a single one, which was cut up, how many windows."""
    number = len(attrs.get("documents") or [])
    what = "window" if attrs.get("bootstrap_unit") == "window" else "document"
    return f"{number} {what}{'s' * (number != 1)}"


def _population(attrs: Mapping[Any, Any]) -> str:
    return (
        f"for the mean {attrs.get('metric', 'loss')} over these {counted(attrs)} of "
        f"{attrs.get('data', 'the data')}, not over others"
    )


def _error(attrs: Mapping[Any, Any]) -> str:
    if not _raced(attrs):
        exact = attrs.get("evaluations")
        return "every window measured" if exact else "no head was ablated: these scores stand in"
    if attrs.get("guarantee") == "few windows":
        return f"at no stated error: some heads have fewer than {attrs['enough']} windows"
    level = f"{100 * (1 - attrs['confidence']):.3g}%"
    what = "all intervals" if attrs["stopped"] == "budget" else "the set and all intervals"
    how = {
        "exact": ", in every sample size",
        "asymptotic": ", asymptotically: no value not seen is taken to reach beyond those seen",
    }.get(str(attrs.get("guarantee")), ", if values are near normal")
    return f"{what} together wrong in at most {level} of races{how}"


def _cost(attrs: Mapping[Any, Any]) -> str:
    spent, every = attrs["evaluations"], attrs.get("exhaustive")
    if not spent:
        return "without an exact evaluation"
    if not every or spent == every:
        return f"{spent:,} exact evaluations, all there are"
    first = (
        f" and a first-order pass ({attrs['first']} windows first)" if attrs.get("first") else ""
    )
    return f"{spent:,} of {every:,} exact evaluations ({spent / every:.1%}){first}"
