"""Planted tables for the tests of figures, and how the tests read a drawn figure."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.text import Text

from analysis import paper
from analysis.figure_data import ROLES

HEADS = 8
BASE_BLOCKS = [("attention", i) for i in range(6)]
MIDUS_BLOCKS = [
    ("attention", 0),
    ("attention", 1),
    ("memory", 1),
    ("attention", 2),
    ("attention", 3),
    ("memory", 3),
    ("attention", 4),
    ("attention", 5),
    ("memory", 5),
]
DOCUMENTS = [{"id": f"file{i}.py", "tokens": 500 + i, "sha256": f"{i:064x}"} for i in range(24)]


def importance_table(
    blocks: list[tuple[str, int]],
    model: str,
    *,
    heads: int = HEADS,
    seed: int = 0,
    tower: float = 1.0,
    **attrs: object,
) -> pd.DataFrame:
    """A head-importance table with planted scores: skewed, some negative, known intervals."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer, (kind, source) in enumerate(blocks):
        for head in range(heads):
            score = float(rng.gamma(0.7, 0.02) - 0.006) * (0.6 if kind == "memory" else 1.0)
            spread = 0.001 + 0.15 * abs(score)
            rows.append(
                {
                    "layer": layer,
                    "kind": kind,
                    "head": head,
                    "source_layer": source,
                    "score": score,
                    "stderr": spread / 2,
                    "ci_low": score - spread,
                    "ci_high": score + spread,
                    "by_document": (score + rng.normal(0, spread, len(DOCUMENTS))).tolist(),
                }
            )
    table = pd.DataFrame(rows)
    table.loc[0, ["score", "ci_low", "ci_high"]] *= tower
    table.attrs = {
        "schema": 1,
        "table": "head_importance",
        "method": "ablation",
        "baseline": "mean",
        "metric": "loss",
        "unit": "nats/token",
        "model": model,
        "model_hash": model,
        "data": "heldout",
        "data_hash": "d",
        "documents": DOCUMENTS,
        "bootstrap_unit": "document",
        "clean_loss": 2.0,
        "seed": 0,
        "versions": {},
        **attrs,
    }
    return table


def amplification_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What analysis.amplification() would return for two planted tables."""
    rows = []
    for layer, head, score in before[["layer", "head", "score"]].itertuples(index=False):
        grown = after[(after["source_layer"] == layer) & (after["head"] == head)]
        base = float(grown.loc[grown["kind"] == "attention", "score"].iloc[0])
        memory = float(grown.loc[grown["kind"] == "memory", "score"].sum())
        change = base + memory - score
        rows.append(
            {
                "layer": layer,
                "kind": "base",
                "head": head,
                "source_layer": layer,
                "before": score,
                "after_base": base,
                "after_memory": memory,
                "after_copy": 0.0,
                "after": base + memory,
                "score": change,
                "stderr": 0.002,
                "ci_low": change - 0.004,
                "ci_high": change + 0.004,
                "share_before": score,
                "share_after": base,
                "share_score": base - score,
                "share_ci_low": base - score - 0.1,
                "share_ci_high": base - score + 0.1,
                "ratio": np.nan,
            }
        )
    table = pd.DataFrame(rows)
    table.attrs = {
        **before.attrs,
        "table": "amplification",
        "before_model": before.attrs["model"],
        "after_model": after.attrs["model"],
        "chosen": [[1, 2], [3, 4]],
    }
    return table


def usage_table(blocks: list[tuple[str, int]], heads: int = HEADS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {
            "layer": layer,
            "kind": kind,
            "head": head,
            "source_layer": source,
            "slots": 4096,
            "tokens": 9000,
            "hits": 288000,
            "coverage": rng.uniform(0.2, 0.99),
            "effective_slots": rng.uniform(100, 2800),
        }
        for layer, (kind, source) in enumerate(blocks)
        if kind == "memory"
        for head in range(heads)
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"model": "pico-midus", "data": "heldout", "documents": DOCUMENTS}
    return table


def slots_table() -> pd.DataFrame:
    hits = np.maximum(1, 20000 / np.arange(1, 2801) ** 0.9).astype(int)
    slot = np.random.default_rng(4).permutation(4096)[: len(hits)]
    table = pd.DataFrame(
        {"slot": slot, "row": slot // 64, "col": slot % 64, "hits": hits, "weight": hits / 8}
    )
    table.attrs = {"model": "pico-midus", "data": "heldout", "documents": DOCUMENTS}
    return table


def costs_table(model: str, memory: float, latency: bool = True) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "component": ["embeddings", "attention", "ffn", "memory", "lm_head"],
            "blocks": [1, 6, 6, 3, 1],
            "parameters": [393e3, 664e3, 1770e3, memory, 0.0],
            "flops_per_token": [0.0, 1.7e6, 3.5e6, 1.4 * memory, 0.8e6],
            "weight_bytes_per_token": [768.0, 2.6e6, 7e6, 1.1 * memory, 1.5e6],
            "kv_bytes_per_token": [0.0, 4608.0, 0.0, 0.0048 * memory, 0.0],
        }
    )
    total = table.drop(columns="component").sum().to_frame().T.assign(component="total")
    table = pd.concat([table, total], ignore_index=True)
    times = {"prefill": 41.0 + memory / 1e5, "decode": 3.2, "threads": 2, "device": "cpu"}
    table.attrs = {
        "model": model,
        "context": 256,
        "dtype": "float32",
        "latency_ms": times if latency else None,
    }
    return table


def training_log(gain: float) -> pd.DataFrame:
    step = np.arange(0, 400, 4)
    curve = 2.1 + 0.6 * np.exp(-gain * step / 100)
    noise = np.random.default_rng(5).normal(0, 0.05, len(step))
    return pd.DataFrame(
        {
            "step": step,
            "loss": curve + noise,
            "eval_loss": np.where(step % 40, np.nan, curve),
            "learning_rate": 2e-3 * np.minimum(step / 40, (400 - step) / 360),
        }
    )


def prune_table(heads: int = 48, draws: int = 5, **attrs: object) -> pd.DataFrame:
    """What analysis.prune_curve() would return: best first far above worst first."""
    rng = np.random.default_rng(6)
    removed = np.arange(0, heads + 1, heads // 8)
    share = removed / heads
    rows = []
    for order, draw, power in (
        ("worst first", 0, 4.0),
        ("best first", 0, 0.2),
        *(("random", draw, rng.uniform(0.7, 1.6)) for draw in range(draws)),
    ):
        for count, part in zip(removed.tolist(), share.tolist(), strict=True):
            score = 2.5 + 5 * part**power
            rows.append(
                {
                    "order": order,
                    "draw": draw,
                    "removed": count,
                    "share": part,
                    "score": score,
                    "stderr": 0.07,
                    "ci_low": score - 0.14,
                    "ci_high": score + 0.15,
                }
            )
    table = pd.DataFrame(rows)
    areas = {"worst first": 0.993, "best first": 4.14, "random": 2.345}
    table.attrs = {**importance_table(BASE_BLOCKS[:1], "pico").attrs, "areas": areas, **attrs}
    del table.attrs["method"]
    return table


def evidence_table(methods: list[str], others: list[str], top: int = 16) -> pd.DataFrame:
    """What analysis.evidence() would return, correlations of both signs."""
    rng = np.random.default_rng(7)

    def row(kind: str, first: str, second: str) -> dict[str, object]:
        middle = float(rng.uniform(-0.6, 0.99))
        return {
            "kind": kind,
            "first": first,
            "second": second,
            "spearman": middle,
            "ci_low": max(-1.0, middle - 0.2),
            "ci_high": min(1.0, middle + 0.15),
            "overlap": int(rng.integers(0, top + 1)) / top,
        }

    rows = [row("split half", methods[0], methods[0]) | {"spearman": 0.93, "overlap": 0.8625}]
    rows += [row("method", a, b) for a, b in combinations(methods, 2)]
    rows += [row("data", "heldout", name) for name in others]
    rows.append({"kind": "pruning", "first": methods[0], "area": 3.147, "random_at": 0.43})
    table = pd.DataFrame(rows)
    attrs = importance_table(BASE_BLOCKS[:1], "pico").attrs
    table.attrs = {**attrs, "table": "evidence", "top": top, "methods": methods}
    return table


def roles_table(blocks: list[tuple[str, int]], *, heads: int = HEADS) -> pd.DataFrame:
    """What analysis.head_roles() would return: every role in turn, with its scores."""
    names = list(ROLES)
    rows = []
    for layer, (kind, source) in enumerate(blocks):
        for head in range(heads):
            role = names[(3 * layer + head) % len(names)]
            known = role != "none"
            scores = {name: 0.01 * i + 0.02 * head for i, name in enumerate(names[:-1])}
            rows.append(
                {
                    "layer": layer,
                    "kind": kind,
                    "head": head,
                    "source_layer": source,
                    "role": role,
                    "role_score": 0.9 if known else np.nan,
                    "role_margin": 0.35 if known else np.nan,
                    **scores,
                }
            )
    table = pd.DataFrame(rows)
    table.attrs = {
        **importance_table(BASE_BLOCKS[:1], "pico-midus").attrs,
        "table": "head_roles",
        "confidence": 0.95,
        "margin": 0.2,
        "sequences": {"kinds": ["repeated", "permuted", "needle"], "each": 32},
    }
    return table


def drawn(figure: paper.Figure, gid: str) -> list:
    """Everything on a paper figure with that group id, in the order drawn."""
    return [a for a in figure.findobj() if a.get_gid() == gid]


def words(figure: paper.Figure) -> str:
    """All text on a paper figure."""
    figure.canvas.draw()
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def plain(text: str) -> str:
    """Text without line breaks."""
    return re.sub(r"<br>|\s+", " ", text)


def hidden(text: str) -> str:
    """A label without plotly's bold."""
    return re.sub("</?b>", "", text)
