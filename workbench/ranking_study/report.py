"""What the experiment found, as the tables of docs/ranking.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.ranking_study.races import CONTROLLED


def at_a_quarter(found: dict[str, Any]) -> dict[str, Any]:
    """The races that the requirement is about: as shipped, at most a quarter of all evaluations."""
    rows = [row for row in found["races"] if row["race"] == "as shipped"]
    return max(rows, key=lambda row: row["budget"] if (row["budget"] or 1) <= 0.25 else 0)


def setting(found: dict[str, Any]) -> str:
    """What was measured."""
    about, effect = found["about"], found["design_effect"]
    lines = [
        f"{about['model']} ({about['model_hash'][:12]}), {found['heads']} heads, {about['dtype']}, "
        f"baseline {about['baseline']};",
        f"{about['data']} ({about['data_hash'][:12]}), {about['documents']} documents in "
        f"{about['windows']:,} windows,",
        f"{about['full_windows']:,} of them of {about['context']} tokens, with "
        f"{about['tokens']:,} scored tokens.",
        f"Exhaustive: {found['evaluations']:,} evaluations. Top {found['top']} at confidence "
        f"{found['confidence']:g}, {found['seeds']} seeds.",
        f"First-order scores of every window: {found['first_order_cost']:.0%} of the exhaustive "
        "sweep's time.",
        f"Design effect of a score over all windows: median {effect['median']:.2f}, from "
        f"{effect['least']:.2f} to {effect['most']:.2f} over heads.",
    ]
    return "\n".join(lines) + "\n"


def races(found: dict[str, Any]) -> str:
    """The race as shipped, by budget."""
    rows = [row for row in found["races"] if row["race"] == "as shipped"]
    return _table(
        ["budget", "same set", "tied swaps", "success (95% interval)", "ties by windows",
         "settled", "cost (most)", "forwards", "all intervals right", "an interval right",
         "worst head"],
        [[_budget(row, found), _share(row["same_set"]), _share(row["tied_swaps"]), _success(row),
          _share(row["success_ties_by_window"]), _share(row["settled"]), _cost(row),
          _share(row["forwards"], 1),
          _share(row["covered_together"]), _share(row["covered_head"], 2),
          _share(row["covered_worst"])] for row in rows],
    )  # fmt: skip


def parts(found: dict[str, Any]) -> str:
    """What each part is worth: races without it."""
    budgets = {row["budget"] for row in found["races"] if row["race"] == CONTROLLED}
    rows = [row for row in found["races"] if row["budget"] in budgets]
    rows.sort(key=lambda row: row["budget"] is None)
    return _table(
        ["race", "budget", "same set", "success", "settled", "wrong though settled", "cost (most)",
         "forwards", "all intervals right"],
        [[row["race"], _budget(row, found), _share(row["same_set"]), _success(row),
          _share(row["settled"]), str(row["settled_wrong"]), _cost(row),
          _share(row["forwards"], 1), _share(row["covered_together"])] for row in rows],
    )  # fmt: skip


def boundary(found: dict[str, Any]) -> str:
    """The heads around the last place."""
    return _table(
        ["rank", "head", "score", "deviation on a window", "lead over the next",
         "its standard error by windows", "by documents", "correlation with first order"],
        [[str(row["rank"]), f"({row['layer']}, {row['head']})", f"{row['score']:.5f}",
          f"{row['deviation']:.4f}", f"{row['lead']:.5f}", f"{row['stderr_windows']:.5f}",
          f"{row['stderr_documents']:.5f}", f"{row['first_order_correlation']:.2f}"]
         for row in found["boundary"]],
    )  # fmt: skip


def chances(found: dict[str, Any]) -> str:
    """p_top against the truth, at the default budget."""
    row = found["races"][0]
    return _table(
        ["p_top", "heads (all seeds)", "mean p_top", "share truly in the top set"],
        [[f"{cell['from']:g} to {cell['to']:g}", f"{cell['heads']:,}", f"{cell['said']:.3f}",
          f"{cell['true']:.3f}"] for cell in row["p_top"]["bins"]],
    )  # fmt: skip


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "setting": setting,
    "races": races,
    "parts": parts,
    "boundary": boundary,
    "p-top": chances,
}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _budget(row: dict[str, Any], found: dict[str, Any]) -> str:
    if row["budget"] is None:
        return "none"
    count = round(row["budget"] * found["evaluations"])
    return f"{count:,} ({row['budget']:.1%})"


def _share(value: float, digits: int = 0) -> str:
    return f"{value:.{digits}%}"


def _success(row: dict[str, Any]) -> str:
    low, high = row["success_low"], row["success_high"]
    return f"{_share(row['success'])} ({_share(low)} to {_share(high)})"


def _cost(row: dict[str, Any]) -> str:
    return f"{row['cost']:.1%} ({row['cost_max']:.1%})"
