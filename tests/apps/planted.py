"""A run folder with planted tables: what a small up-scaled model's run would hold, in a second."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import intervals, statistics, tables


@dataclass(frozen=True)
class Site:
    layer: int
    kind: str
    head: int
    source_layer: int


def sites(layers: int, heads: int, grown: bool) -> list[Site]:
    """Heads of a model with `layers` attention blocks, a memory block after 1, 3, ... if grown."""
    found: list[Site] = []
    block = 0
    for layer in range(layers):
        kinds = ["attention", "memory"] if grown and layer % 2 else ["attention"]
        for kind in kinds:
            found += [Site(block, kind, head, layer) for head in range(heads)]
            block += 1
    return found


def plant_run(
    folder: Path, *, layers: int = 4, heads: int = 4, side: int = 8, documents: int = 24
) -> Path:
    """Write manifest and tables of a base of layers x heads and its model with side^2 slots."""
    rng = np.random.default_rng(7)
    weights = rng.integers(200, 900, documents).astype(float)
    listed = [
        {"id": f"text-{i}", "tokens": int(w), "sha256": hashlib.sha256(str(i).encode()).hexdigest()}
        for i, w in enumerate(weights)
    ]
    attrs = {
        "method": "ablation", "baseline": "mean", "metric": "loss", "unit": "nats/token",
        "data": "planted", "data_hash": "0" * 64, "documents": listed, "seed": 0,
        "bootstrap_unit": "document", "clean_loss": 2.0, "versions": tables.versions(),
    }  # fmt: skip
    old, new = sites(layers, heads, False), sites(layers, heads, True)
    first = rng.gamma(0.5, 0.02, (len(old), 1)) - 0.001
    first = first + rng.normal(0, 0.004, (len(old), documents))
    second = np.empty((len(new), documents))
    for i, site in enumerate(new):
        parent = first[site.source_layer * heads + site.head]
        change = 0.3 if site.kind == "memory" else 0.9
        second[i] = change * parent + rng.normal(0.001, 0.003, documents)
    before = tables.head_table(
        old, first, weights, {**attrs, "table": "head_importance", "model": "small"}
    )
    after = tables.head_table(
        new, second, weights, {**attrs, "table": "head_importance", "model": "small-midus"},
    )  # fmt: skip
    change = _amplification(old, new, first, second, weights, attrs)
    usage, slots = _memory(new, side, attrs, rng)
    run = {
        "importance_before": before, "importance_after": after, "amplification": change,
        "memory_usage": usage, "memory_slots": slots,
    }  # fmt: skip
    for name, table in run.items():
        tables.save(table, folder / "tables" / name)
    manifest = {
        "schema": 1, "midus": "0.1.0", "kind": "demo", "status": "done",
        "created": "2025-01-02T03:04:05+00:00", "command": ["midus", "demo"],
        "parameters": {"seed": 0}, "versions": tables.versions(),
        "models": {"before": "small", "after": "models/small-midus"},
        "tables": sorted(run), "figures": [], "summary": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _amplification(
    old: list[Site],
    new: list[Site],
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    attrs: dict[str, Any],
) -> pd.DataFrame:
    def part(kind: str) -> np.ndarray:
        out = np.zeros_like(first)
        for i, base in enumerate(old):
            for j, site in enumerate(new):
                if (site.kind, site.source_layer, site.head) == (kind, base.layer, base.head):
                    out[i] += second[j]
        return out

    own, memory = part("attention"), part("memory")
    total = own + memory
    found = intervals.t_interval(total - first, weights)
    means = [statistics.weighted_mean(values, weights) for values in (first, own, memory, total)]
    share_before, share_after = (statistics.shares(means[i])[0] for i in (0, 3))
    table = pd.DataFrame(
        {
            "layer": [s.layer for s in old],
            "kind": "base",
            "head": [s.head for s in old],
            "source_layer": [s.source_layer for s in old],
            "before": means[0],
            "after_base": means[1],
            "after_memory": means[2],
            "after_copy": 0.0,
            "after": means[3],
            "score": found.estimate,
            **found.columns(),
            "unit": "document",
            "changed": np.where(
                found.p < 0.01, np.where(found.estimate > 0, "amplified", "weakened"), ""
            ),
            "shrunk": 0.8 * found.estimate,
            "share_before": share_before,
            "share_after": share_after,
            "share_score": share_after - share_before,
            "share_ci_low": share_after - share_before - 0.01,
            "share_ci_high": share_after - share_before + 0.01,
            "ratio": share_after / np.where(share_before > 0.01, share_before, np.nan),
            "by_document": (total - first).tolist(),
        }
    )
    table.attrs = tables.json_attrs(
        {
            **attrs, "schema": 1, "table": "amplification", "model": "small-midus",
            "before_model": "small", "after_model": "small-midus",
            "concentration": {
                "before": statistics.concentration(means[0]),
                "after": statistics.concentration(means[3]),
            },
            "chosen": [[s.layer, s.head] for s in old if s.layer == 1],
        }
    )  # fmt: skip
    return table


def _memory(
    new: list[Site], side: int, attrs: dict[str, Any], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, parts = [], []
    tokens, count = int(sum(d["tokens"] for d in attrs["documents"])), side * side
    for site in new:
        if site.kind != "memory":
            continue
        skew = 1 / np.arange(1, count + 1) ** rng.uniform(0.4, 1.1)
        hits = rng.multinomial(8 * tokens, rng.permutation(skew / skew.sum()))
        hits[rng.random(count) < 0.05] = 0
        share = hits[hits > 0] / hits.sum()
        entropy = float(-(share * np.log(share)).sum())
        rows.append(
            {
                "layer": site.layer, "kind": "memory", "head": site.head,
                "source_layer": site.source_layer, "slots": count, "tokens": tokens,
                "hits": int(hits.sum()), "coverage": float((hits > 0).mean()),
                "dead": int((hits == 0).sum()), "entropy": entropy,
                "effective_slots": math.exp(entropy), "kl_uniform": math.log(count) - entropy,
                "effective_k": 5.5, "top1_weight": 0.31,
            }
        )  # fmt: skip
        slot = np.flatnonzero(hits)
        parts.append(
            pd.DataFrame(
                {
                    "block": site.layer, "head": site.head, "slot": slot, "row": slot // side,
                    "col": slot % side, "hits": hits[slot], "weight": hits[slot] / 8,
                }
            )
        )  # fmt: skip
    shared = {"model": "small-midus", "data": attrs["data"], "documents": attrs["documents"]}
    usage = pd.DataFrame(rows)
    usage.attrs = {**shared, "schema": 1, "table": "memory_usage"}
    slots = pd.concat(parts, ignore_index=True)
    slots.attrs = {**shared, "schema": 1, "table": "memory_slots"}
    return usage, slots
