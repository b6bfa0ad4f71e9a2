"""What the study found, as the tables of docs/first-order.md."""

from __future__ import annotations

from typing import Any

NAMES = {
    "taylor": "`taylor`", "relp": "`relp`", "relp, patterns held": "RelP with patterns held",
    "atp_star": "`atp_star`",
}  # fmt: skip


def setting(found: dict[str, Any]) -> str:
    """What was measured, a line a model."""
    lines = []
    for name, one in found.items():
        about = one["about"]
        lines.append(
            f"- {name}: {one['heads']} heads, {about['windows']} windows of {about['context']} "
            f"tokens at most from {about['documents']} documents ({about['data']}, "
            f"{about['data_hash'][:12]}), {one['evaluations']:,} evaluations in "
            f"{one['seconds_exact'] / 60:.0f} minutes; top {one['top']}: "
            + ", ".join(f"{layer}.{head} {score:+.4f}" for layer, head, score in one["best"][:5])
            + ", …"
        )
    return "\n".join(lines) + "\n"


def methods(found: dict[str, Any]) -> str:
    """Every cheap method beside exact ablation."""
    rows = []
    for model, one in found.items():
        for name, row in one["methods"].items():
            signed = name != "atp_star"
            rows.append([
                model, NAMES[name], f"{row['spearman']:.2f}", f"{row['spearman_size']:.2f}",
                f"{row['sign']:.0%}" if signed else "",
                *(f"{row['found_score'][times]:.0%}" for times in "124"),
                *(f"{row['found_size'][times]:.0%}" if signed else "" for times in "124"),
                f"{row['passes']:.1%}",
            ])  # fmt: skip
        shares = [f"{one['nominated'][times]:.0%}" for times in "124"]
        rows.append([model, "nominations in turn", "", "", "", *shares, "", "", "", ""])
    return _table(
        ["model", "method", "Spearman", "of sizes", "same sign", "top set in the first K by score",
         "2 K", "4 K", "by size, K", "2 K", "4 K", "passes of the sweep's"], rows,
    )  # fmt: skip


def screens(found: dict[str, Any]) -> str:
    """The screens by their budget."""
    rows = [
        [model, f"{100 * row['share']:g}%", f"{row['evaluations']:,.0f}",
         f"{one['screen_passes']:.1%}",
         f"{row['recall']:.1%} ({row['recall_low_95']:.1%} to {row['recall_high_95']:.1%})",
         f"{row['recall_least']:.0%}", f"{row['mass']:.1%}", f"{row['tried']:.0%}",
         f"{row['raced']:.0%}", f"{row['missed']:.1f}", f"{row['told']:.1f}",
         f"{row['told_high']:.1f}", f"{row['bound_holds']:.0%}"]
        for model, one in found.items() for row in one["replays"]
    ]  # fmt: skip
    return _table(
        ["model", "budget", "evaluations", "first order, passes of the sweep's",
         "recall of the top set (95% over seeds)", "least", "share of its score", "tried",
         "raced", "not ablated that belong", "told: about", "at most", "bound holds"], rows,
    )  # fmt: skip


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


TABLES = {"setting": setting, "methods": methods, "screens": screens}
