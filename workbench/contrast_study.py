"""`python -m workbench.contrast_study`: how often a contrast finds what is not there, and what is.

Tables of heads are drawn in which importance is skewed, measured with noise, and changes by a share
of itself, by layer and by chance, whoever was chosen; docs/contrasts.json holds what
`analysis.amplification_contrast` made of them, and a table of docs/amplification.md is written
from it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.contrasts import amplification_contrast
from analysis.matching import level
from kernels.errors import MidusError, NoOverlap
from kernels.files import write_file
from midus_model.bench.report import fill_in

DOCS = Path(__file__).resolve().parents[1] / "docs"
LAYERS = {48: 6, 192: 12, 512: 16}  # heads -> layers; every other layer has memory
CHOSEN = 16  # one head in so many is chosen, of those in layers with memory
NOISE = (0.1, 0.3, 1.0)
CHOICES = {
    "top": "the top by importance before",
    "chance": "the top by importance before and as much chance",
    "other": "the top by another measurement",
}
ALPHA = 0.05


def drawn_table(
    rng: np.random.Generator, heads: int, noise: float, choice: str, effect: float = 0.0
) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """An amplification table, and which heads are chosen.

    True importance is lognormal (sigma 1.3 over heads, 0.5 over layers: that of pico). Noise of a
    measurement has `noise` times half of the head's importance and half of the median one as its
    standard deviation. Of itself each head loses a tenth, gains or loses with its layer, and by
    chance a fifth of itself (one standard deviation). `effect`: what being chosen adds, in the
    unit that noise is in.
    """
    layers = np.repeat(np.arange(LAYERS[heads]), heads // LAYERS[heads])
    normal = rng.standard_normal
    by_layer = normal(LAYERS[heads])[layers], normal(LAYERS[heads])[layers]
    true = np.exp(1.3 * normal(heads) + 0.5 * by_layer[0])
    size = (np.median(true) + true) / 2
    before = true + noise * size * normal(heads)
    change = -0.1 * true + 0.1 * by_layer[1] + 0.2 * true * normal(heads)
    key = {
        "top": before,
        "chance": level(before) + normal(heads),
        "other": true + noise * size * normal(heads),
    }[choice]
    able = np.flatnonzero(layers % 2)
    rows = np.sort(able[np.argsort(-key[able])[: heads // CHOSEN]])
    after = true + change + noise * size * normal(heads)
    after[rows] += effect * size[rows]
    return _as_table(layers, before, after - before), _pairs(layers, rows)


def _as_table(layers: np.ndarray, before: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    head = np.arange(len(layers)) % int((layers == 0).sum())
    table = pd.DataFrame({"layer": layers, "head": head, "before": before, "score": score})
    table = table.assign(share_score=score, by_document=[[one] for one in score])
    document = {"id": "drawn", "tokens": 1, "hash": ""}
    table.attrs = {"unit": "nats/token", "documents": [document]}
    return table


def _pairs(layers: np.ndarray, rows: np.ndarray) -> list[tuple[int, int]]:
    width = int((layers == 0).sum())
    return [(int(layers[row]), int(row % width)) for row in rows]


def outcome(
    heads: int,
    noise: float,
    choice: str,
    tables: int,
    *,
    effect: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Of so many tables: how many had a chosen head without a control, how many had none with one
    (`silent`), in how many p could be at most ALPHA (`able`), and in how many it was."""
    counts = {"refused": 0, "silent": 0, "able": 0, "rejected": 0}
    matched, gaps = [], []
    for number in range(tables):
        rng = np.random.default_rng([seed, number, heads, round(100 * noise)])
        table, chosen = drawn_table(rng, heads, noise, choice, effect)
        try:
            found = amplification_contrast(
                table, chosen, unmatched="drop", draws=400, seed=number, **options
            )
        except NoOverlap:
            counts["refused"] += 1
            counts["silent"] += 1
            continue
        row = found.iloc[0]
        counts["refused"] += bool(found.attrs["unmatched"])
        counts["able"] += bool(row["p_least"] <= ALPHA)
        counts["rejected"] += bool(row["p"] <= ALPHA)
        matched.append(int(row["heads"]))
        gaps.append(float(row["smd"]))
    answered = tables - counts["silent"]
    return {
        "heads": heads,
        "noise": noise,
        "choice": choice,
        "effect": effect,
        "tables": tables,
        **counts,
        "answered": answered,
        "matched": float(np.mean(matched)) if matched else 0.0,
        "smd": float(np.mean(gaps)) if gaps else None,
        "upper": upper_bound(counts["rejected"], answered),
    }


def upper_bound(count: int, of: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's one-sided bound on a share of which `count` in `of` were seen."""
    return 1.0 if count >= of else float(stats.beta.ppf(confidence, count + 1, of - count))


def study(tables: int, powered: int) -> list[dict[str, Any]]:
    """Nulls in every setting, and a planted effect in those with little noise."""
    found = []
    for choice in CHOICES:
        for heads in LAYERS:
            for noise in NOISE:
                found.append(outcome(heads, noise, choice, tables))
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            if choice != "other":
                for effect in (0.5, 1.0):
                    found.append(outcome(heads, NOISE[0], choice, powered, effect=effect))
    return found


def report(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of docs/amplification.md."""
    lines = [
        "| heads chosen | heads | noise | effect | some had no control | matched, of | gap, SD |"
        " p could be ≤ 0.05 | p ≤ 0.05 (upper 95%) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        of = row["answered"]
        cells = [
            CHOICES[row["choice"]],
            row["heads"],
            row["noise"],
            row["effect"] or "none",
            f"{row['refused'] / row['tables']:.0%}",
            f"{row['matched']:.1f} of {row['heads'] // CHOSEN}",
            "" if row["smd"] is None else f"{row['smd']:.2f}",
            f"{row['able'] / of:.0%} of {of}" if of else "none",
            f"{row['rejected'] / of:.1%} ({row['upper']:.1%})" if of else "",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.contrast_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tables", type=int, default=1000, help="tables of each null")
    parser.add_argument("--powered", type=int, default=300, help="tables with a planted effect")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of amplification.md")
    given = parser.parse_args(arguments)
    try:
        if min(given.tables, given.powered) < 1:
            raise MidusError("--tables and --powered must be at least 1")
        found = study(given.tables, given.powered)
        text = json.dumps({"alpha": ALPHA, "settings": found}, indent=1)
        write_file(given.docs / "contrasts.json", text + "\n")
        fill_in(given.docs / "amplification.md", "contrasts", report(found))
    except (MidusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
