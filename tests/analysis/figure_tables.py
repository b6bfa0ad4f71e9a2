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
                    "ci_low_all": score - 1.6 * spread,
                    "ci_high_all": score + 1.6 * spread,
                    "unit": "document",
                    "by_document": (score + rng.normal(0, spread, len(DOCUMENTS))).tolist(),
                }
            )
    table = pd.DataFrame(rows)
    table.loc[0, ["score", "ci_low", "ci_high", "ci_low_all", "ci_high_all"]] *= tower
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
                "ci_low_all": change - 0.007,
                "ci_high_all": change + 0.007,
                "unit": "document",
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
                    "unit": "document",
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


def with_reads(usage: pd.DataFrame, ratio: float = 0.3) -> pd.DataFrame:
    """A usage table with the columns of sub-keys, collisions and the read ratio."""
    rng = np.random.default_rng(8)
    names = ("row_coverage", "col_coverage", "collisions", "read_ratio")
    scales = (1.0, 1.0, 0.6, ratio)
    drawn = {n: s * rng.uniform(0.02, 1, len(usage)) for n, s in zip(names, scales, strict=True)}
    table = usage.assign(**drawn)
    table.attrs = dict(usage.attrs)
    return table


def effects_table(of: str, blocks: int = 3, heads: int = HEADS) -> pd.DataFrame:
    """What analysis.memory_effects(of=of) would return."""
    rng = np.random.default_rng(9)
    count = {"heads": blocks * heads, "blocks": blocks, "all": 1, "slots": 16 * blocks}[of]
    score = rng.gamma(0.7, 0.004, count) - 0.0008
    half = 0.0005 + 0.2 * np.abs(score)
    each = count // blocks or 1
    block = np.array([2 + 3 * (i // each) for i in range(count)])
    whole = pd.array(np.arange(count) % each, dtype="Int64")
    none = pd.array([pd.NA] * count, dtype="Int64")
    table = pd.DataFrame(
        {
            "block": none if of == "all" else block,
            "source_layer": none if of == "all" else block - 1,
            "head": whole if of == "heads" else none,
            "slot": pd.array(rng.permutation(4096)[:count]) if of == "slots" else none,
            "score": score,
            "stderr": half / 2,
            "ci_low": score - half,
            "ci_high": score + half,
        }
    )
    about = importance_table(BASE_BLOCKS[:1], "pico-midus", baseline="zero").attrs
    table.attrs = {**about, "table": "memory_effects", "of": of, "gain": 0.0, "method": "scaling"}
    return table


def view_table(heads: int = HEADS, tokens: int = 30, ranks: int = 3) -> pd.DataFrame:
    """What analysis.memory_view() would return, of two blocks."""
    words = ["def", " $f$", "(", "x", "):\n", "\t", "return", " <s>", "x", "", " self.counter_of"]
    rng = np.random.default_rng(10)
    rows = []
    for block in (2, 5):
        for head in range(heads):
            for position in range(tokens):
                weights = np.sort(rng.dirichlet(np.ones(ranks)))[::-1]
                rows += [
                    {
                        "block": block,
                        "head": head,
                        "position": position,
                        "token_id": position,
                        "token": words[position % len(words)],
                        "rank": rank + 1,
                        "slot": int(rng.integers(4096)),
                        "weight": float(weight),
                    }
                    for rank, weight in enumerate(weights)
                ]
    table = pd.DataFrame(rows)
    table.attrs = {"model": "pico-midus", "data": "1 text", "documents": DOCUMENTS[:1]}
    return table


def realisations_table(blocks: tuple[str | int, ...] = ("all", 2, 5, 8)) -> pd.DataFrame:
    """What analysis.memory_realisations() would return, of all blocks and one by one."""
    rng = np.random.default_rng(11)
    sizes = {
        "clean": 0.0,
        "shared": 0.06,
        "shared_scaled": 0.05,
        "swapped": 0.09,
        "averaged": 0.03,
        "off": 0.04,
    }
    rows = []
    for block in blocks:
        for name, size in sizes.items():
            score = size * (3 if block == "all" else 1) * rng.uniform(0.5, 1.2)
            half = 0.2 * score
            rows.append(
                {
                    "block": str(block),
                    "realisation": name,
                    "score": score,
                    "ci_low": score - half,
                    "ci_high": score + half,
                    "kl": score / 2,
                }
            )
    table = pd.DataFrame(rows)
    about = importance_table(BASE_BLOCKS[:1], "pico-midus", baseline="zero").attrs
    table.attrs = {**about, "table": "memory_realisations", "method": "fixed retrieval"}
    return table


def dose_table() -> pd.DataFrame:
    """What analysis.dose_response() would return."""
    rows = []
    for arm, size in (("chosen", 0.3), ("random", 0.02), ("matched_norm", 0.12)):
        for gain in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2):
            change = size * (gain - 1) ** 2
            rows.append(
                {
                    "arm": arm,
                    "gain": float(gain),
                    "heads": 4,
                    "draws": 8 if arm == "random" else 1,
                    "loss": 2.0 + change,
                    "change": change,
                    "ci_low": 0.8 * change,
                    "ci_high": 1.2 * change,
                }
            )
    table = pd.DataFrame(rows)
    about = importance_table(BASE_BLOCKS[:1], "pico", baseline="zero").attrs
    table.attrs = {**about, "table": "dose_response", "heads": [[5, 1], [5, 4], [3, 2], [0, 7]]}
    del table.attrs["method"]
    return table


def slopes_table(measures: tuple[str, ...] = ("score", "share_score")) -> pd.DataFrame:
    """What analysis.amplification_by_role() would return; one role's slope is unknown."""
    rng = np.random.default_rng(12)
    rows = []
    for measure in measures:
        for role in list(ROLES)[:-1]:
            slope = float(rng.normal(0.001, 0.002)) * (1 if measure == "score" else 0.4)
            half = 0.0025 * (1 if measure == "score" else 0.4)
            known = role != "retrieval"
            rows.append(
                {
                    "measure": measure,
                    "unit": "nats/token" if measure == "score" else "share",
                    "role": role,
                    "slope": slope if known else np.nan,
                    "stderr": half / 2 if known else np.nan,
                    "ci_low": slope - half if known else np.nan,
                    "ci_high": slope + half if known else np.nan,
                }
            )
    table = pd.DataFrame(rows)
    about = amplification_about()
    table.attrs = {**about, "table": "amplification_by_role", "heads": 48, "layers": 6}
    return table


def contrast_table() -> pd.DataFrame:
    """What analysis.amplification_contrast() would return."""
    table = pd.DataFrame(
        {
            "measure": ["score", "share_score"],
            "unit": ["nats/token", "share"],
            "heads": [16, 16],
            "chosen": [0.0061, 0.0042],
            "controls": [0.0022, 0.0047],
            "difference": [0.0039, -0.0005],
            "stderr": [0.0008, 0.0006],
            "ci_low": [0.0023, -0.0017],
            "ci_high": [0.0055, 0.0007],
            "p": [0.0004, 0.43],
        }
    )
    about = amplification_about()
    table.attrs = {**about, "table": "amplification_contrast", "controls": "matched"}
    return table


def amplification_about() -> dict[str, object]:
    """The attrs of tables that are made from an amplification table."""
    about = importance_table(BASE_BLOCKS[:1], "pico").attrs
    return {**about, "before_model": "pico", "after_model": "pico-midus"}


def choice_table(
    seeds: int = 3, arms: tuple[str, ...] = ("chosen", "random", "all")
) -> pd.DataFrame:
    """What the study of chosen heads would return: a row a trained model."""
    rng = np.random.default_rng(13)
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "heads": 16,
            "parameters": 474_000 - 120 * place,
            "loss_new": 2.41 + 0.012 * place + 0.01 * seed + float(rng.normal(0, 0.002)),
            "loss_heldout": 2.05 + 0.003 * place + 0.004 * seed + float(rng.normal(0, 0.002)),
            "amplification": 0.004 - 0.001 * place + float(rng.normal(0, 0.0003)),
        }
        for seed in range(seeds)
        for place, arm in enumerate(arms)
    ]
    table = pd.DataFrame(rows)
    table.attrs = {
        "table": "choice",
        "unit": "nats/token",
        "model": "pico",
        "data": {"new": "packages (test), 96 excerpts", "heldout": "heldout excerpts"},
        "documents": {"new": DOCUMENTS, "heldout": DOCUMENTS[:20]},
    }
    return table


def choice_contrast_table(choice: pd.DataFrame) -> pd.DataFrame:
    """The differences of the arms of `choice_table`, with made-up intervals."""
    rows = []
    for first, second in (("chosen", "random"), ("chosen", "all")):
        for measure in ("loss_new", "loss_heldout", "amplification"):
            means = choice.groupby("arm")[measure].mean()
            size = float(means[first] - means[second])
            half = 0.15 * abs(size) + 0.0002
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "measure": measure,
                    "seeds": 3,
                    "difference": size,
                    "ci_low": size - half,
                    "ci_high": size + half,
                    "seed_low": size - 4 * half,
                    "seed_high": size + 4 * half,
                }
            )
    table = pd.DataFrame(rows)
    table.attrs = {**choice.attrs, "table": "choice_contrast"}
    return table


def usage_log(blocks: tuple[int, ...] = (2, 5, 8), runs: tuple[str, ...] = ()) -> pd.DataFrame:
    """Use of the memory as a training goes on: a row a step and block."""
    rows = []
    for start, run in enumerate(runs or ("",)):
        for place, block in enumerate(blocks):
            for step in range(0, 401, 50):
                reach = 1 - np.exp(-(step + 40) / (120 * (1 + 0.3 * place)))
                row = {
                    "step": step,
                    "block": block,
                    "coverage": (0.5 + 0.4 * start) * reach,
                    "effective_slots": 1800 * reach / (1 + place),
                }
                rows.append({"run": run, **row} if run else row)
    table = pd.DataFrame(rows)
    table.attrs = {"model": "midus", "data": "packages (train)"}
    return table


def key_table(blocks: tuple[int, ...] = (2, 5, 8), heads: int = HEADS) -> pd.DataFrame:
    """Use of the memory by head, for several ways to start its keys."""
    rng = np.random.default_rng(14)
    inits = {"uniform": 0.8, "k-means": 0.6, "queries": 0.96}
    rows = [
        {
            "init": init,
            "block": block,
            "head": head,
            "coverage": float(np.clip(level + rng.normal(0, 0.06), 0, 1)),
            "effective_slots": float(2500 * level * rng.uniform(0.6, 1)),
            "tokens": 196_608,
        }
        for init, level in inits.items()
        for block in blocks
        for head in range(heads)
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"model": "pico-midus", "data": "heldout", "documents": DOCUMENTS}
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
