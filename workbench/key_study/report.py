"""What the experiment found, as the tables of docs/keys.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workbench.key_study.measure import STARTS, TRAININGS


def setting(found: dict[str, Any]) -> str:
    """What was measured."""
    about, machine = found["about"], found["about"]["machine"]
    context = about["tokens"] // about["windows"]
    lines = [
        f"{about['model']} ({about['model_hash'][:12]}) with {about['blocks']} memory blocks, "
        f"n = {about['num_keys']} sub-keys a half ({about['num_keys'] ** 2:,} slots), top-k "
        f"{about['top_k']}, r = {about['latent_dim']}.",
        f"Coverage on {about['tokens']:,} tokens of heldout ({about['heldout_hash'][:12]}): "
        f"{about['windows']} windows of {context}.",
        f"Calibration: {about['calibration_tokens']:,} tokens of {about['training']} "
        f"({about['training_hash'][:12]}).",
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def coverage(found: dict[str, Any]) -> str:
    """Untrained models: a row a way to start, mean over seeds."""
    lines = []
    for keys in STARTS:
        rows = [row for row in found["coverage"] if row["keys"] == keys]
        if rows:
            lines.append([keys, str(len(rows)), *_usage(rows), f"{_mean(rows, 'seconds'):.1f}"])
    return _table(["keys", "seeds", *USAGE, "seconds to make"], lines)


def training(found: dict[str, Any]) -> str:
    """Trained models: a row a way to start and to keep, mean and spread over seeds."""
    lines = []
    for keys, revived in TRAININGS:
        rows = [r for r in found["training"] if (r["keys"], r["revived"]) == (keys, revived)]
        if rows:
            lines.append(
                [keys, "yes" if revived else "no", str(len(rows)), _spread(rows, "loss"),
                 _spread(rows, "loss_heldout"), f"{_mean(rows, 'moved'):.0f}", *_usage(rows),
                 f"{_mean(rows, 'seconds'):.0f}"]
            )  # fmt: skip
    if not lines:
        return "Not measured yet.\n"
    return _table(
        ["keys", "revival", "seeds", "loss, new text", "loss, held-out", "keys moved", *USAGE,
         "seconds"],
        lines,
    )  # fmt: skip


def differences(found: dict[str, Any]) -> str:
    """Loss on new text less that of uniform keys without revival, seed by seed."""
    rows = {(r["keys"], r["revived"], r["seed"]): r["loss"] for r in found["training"]}
    plain = {seed: loss for (keys, on, seed), loss in rows.items() if (keys, on) == TRAININGS[0]}
    lines = []
    for keys, revived in TRAININGS[1:]:
        gaps = [rows[keys, revived, s] - plain[s] for s in plain if (keys, revived, s) in rows]
        if gaps:
            each = ", ".join(f"{gap:+.4f}" for gap in gaps)
            lines.append([keys, "yes" if revived else "no", f"{np.mean(gaps):+.4f}", each])
    if not lines:
        return "Not measured yet.\n"
    return _table(["keys", "revival", "mean difference", "by seed"], lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "setting": setting,
    "coverage": coverage,
    "training": training,
    "differences": differences,
}
USAGE = ("tokens", "coverage", "worst head", "effective slots", "effective k")


def _usage(rows: list[dict[str, Any]]) -> list[str]:
    worst = min(rows, key=lambda row: row["coverage_worst"])
    layer, head = worst["worst"]
    return [
        f"{rows[0]['tokens']:,}",
        f"{_mean(rows, 'coverage'):.1%}",
        f"{worst['coverage_worst']:.1%} ({layer}, {head})",
        f"{_mean(rows, 'effective_slots'):,.0f}",
        f"{_mean(rows, 'effective_k'):.2f}",
    ]


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _spread(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
