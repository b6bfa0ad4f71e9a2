"""The tables of docs/statistics.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.interval_study.draws import SETTINGS

Rows = Sequence[Mapping[str, Any]]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def _crossed(rows: Rows, key: str, cell: Callable[[Mapping[str, Any]], str], head: str) -> str:
    """A line a value of `key`, a column a number of documents."""
    documents = sorted({row["documents"] for row in rows})
    names = list(dict.fromkeys(row[key] for row in rows))
    found = {(row[key], row["documents"]): cell(row) for row in rows}
    lines = [[name, *(found.get((name, count), "") for count in documents)] for name in names]
    return _table([head, *(f"{count} documents" for count in documents)], lines)


def coverage(rows: Rows) -> str:
    """Own intervals: coverage, its lower bound, and how often the note on skewness stands."""
    shown = [row | {"setting": SETTINGS[row["setting"]]} for row in map(dict, rows)]
    return _crossed(
        shown, "setting",
        lambda row: f"{row['held']:.1%} (≥ {row['held_lower']:.1%}), note {row['warned']:.0%}",
        "documents are",
    )  # fmt: skip


def joint(rows: Rows) -> str:
    """Simultaneous intervals: tables in which all hold; those of own intervals; how much wider."""
    shown = [row | {"name": f"{row['setting']}, {row['heads']} heads"} for row in map(dict, rows)]
    return _crossed(
        shown, "name",
        lambda row: f"{row['held']:.1%} (≥ {row['held_lower']:.1%}), own {row['own']:.0%}, "
        f"{row['wider']:.1f} times as wide",
        "heads",
    )  # fmt: skip


def flags(rows: Rows) -> str:
    """Share of flags that are wrong; changes found; wrong flags of 95% intervals by themselves."""

    def cell(row: Mapping[str, Any]) -> str:
        found = "" if row["effects"] == "none" else f"{row['found']:.0%} found; "
        return (
            f"{row['fdr']:.1%} (≤ {row['fdr_upper']:.1%}); {found}each for itself "
            f"{row['unadjusted']:.1f}"
        )

    shown = [row | {"name": f"{row['setting']}, {row['effects']}"} for row in map(dict, rows)]
    return _crossed(shown, "name", cell, "errors, effects")


def lists(rows: Rows) -> str:
    """What is reported of the five most amplified, over what is true of them."""
    return _crossed(
        rows, "effects",
        lambda row: f"plain {row['plain'] / row['plain_true'] - 1:+.0%}, "
        f"shrunk {row['shrunk'] / row['shrunk_true'] - 1:+.0%}",
        "effects",
    )  # fmt: skip


def functions(rows: Rows) -> str:
    """Coverage of functions of many heads' means."""
    return _crossed(rows, "function", lambda row: f"{row['held']:.1%}", "function")


TABLES = {f.__name__: f for f in (coverage, joint, flags, lists, functions)}
