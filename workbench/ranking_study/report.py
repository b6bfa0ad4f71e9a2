"""What the experiment found, as the tables of docs/ranking.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.ranking_study.outcomes import WARNED
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
        ["budget", "windows first", "same set", "tied swaps", "success (95% interval)",
         "ties by windows", "settled", "cost (most)", "forwards", "all intervals right",
         "an interval right", "worst head"],
        [[_budget(row, found), str(row["first"]), _share(row["same_set"]),
          _share(row["tied_swaps"]), _success(row), _share(row["success_ties_by_window"]),
          _share(row["settled"]), _cost(row), _share(row["forwards"], 1),
          _share(row["covered_together"]), _share(row["covered_head"], 2),
          _share(row["covered_worst"])] for row in rows],
    )  # fmt: skip


def parts(found: dict[str, Any]) -> str:
    """What each part is worth: races without it."""
    budgets = {row["budget"] for row in found["races"] if row["race"] == CONTROLLED}
    rows = [row for row in found["races"] if row["budget"] in budgets]
    rows.sort(key=lambda row: row["budget"] is None)
    return _table(
        ["race", "budget", "races", "same set", "success", "settled", "wrong though settled",
         "cost (most)", "forwards", "all intervals right"],
        [[row["race"], _budget(row, found), str(row["seeds"]), _share(row["same_set"]),
          _success(row), _share(row["settled"]), str(row["settled_wrong"]), _cost(row),
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
    return _bins(found["races"][0]["p_top"]["bins"])


def planted(found: dict[str, Any]) -> str:
    """Races of planted tables: cut short, and at their end."""
    return _table(
        ["planted effects", "heads x windows, top", "races", "wrong though settled (95% bound)",
         "all intervals right at the end", "cut short (95% bound of wrong)", "cost (most)",
         "few windows carry a head", "guarantee"],
        [[row["setting"], f"{row['heads']} x {row['windows']}, {row['top']}", str(row["races"]),
          f"{row['wrong_share']:.1%} ({row['wrong_upper']:.1%})",
          _share(row["covered"], 1), _cut_short(row),
          f"{row['cost']:.0%} ({row['cost_most']:.0%})", _share(row["cut_few_windows_carry"]),
          row["guarantee"]] for row in found["settings"]],
    )  # fmt: skip


def _cut_short(row: dict[str, Any]) -> str:
    if not row["cut_races"]:
        return "no error stated"
    of = "" if row["cut_races"] == row["races"] else f" of {row['cut_races']}"
    return f"{row['cut_covered']:.1%}{of} ({row['cut_uncovered_upper']:.1%})"


def planted_chances(found: dict[str, Any]) -> str:
    """p_top against the truth, of planted races cut short: without the warning, and with it."""
    plain, warned = ({cell["from"]: _bin(cell) for cell in found[key]} for key in WARNED)
    none = ["", "0", "", ""]  # of few races
    return _table(
        ["p_top", "heads", "mean p_top", "share truly in the top set",
         "warned of: heads", "mean p_top", "share truly in the top set"],
        [[(plain.get(low) or warned[low])[0], *plain.get(low, none)[1:], *warned.get(low, none)[1:]]
         for low in sorted(plain.keys() | warned.keys())],
    )  # fmt: skip


def planted_ties(found: dict[str, Any]) -> str:
    """Neighbours that are equal in text of a kind, and were called untied."""
    return _table(
        ["documents", "pairs", "untied (95% bound)"],
        [[str(row["documents"]), f"{row['pairs']:,}",
          f"{row['untied'] / row['pairs']:.1%} ({row['untied_upper']:.1%})"]
         for row in found["ties"]],
    )  # fmt: skip


def _bins(bins: Sequence[dict[str, Any]]) -> str:
    return _table(
        ["p_top", "heads (all seeds)", "mean p_top", "share truly in the top set"],
        [_bin(cell) for cell in bins],
    )


def _bin(cell: dict[str, Any]) -> list[str]:
    chance = f"{cell['from']:g} to {cell['to']:g}"
    return [chance, f"{cell['heads']:,}", f"{cell['said']:.3f}", f"{cell['true']:.3f}"]


PLANTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "planted": planted,
    "planted-p-top": planted_chances,
    "planted-ties": planted_ties,
}
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
