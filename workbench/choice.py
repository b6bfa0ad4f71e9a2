"""Is memory worth more for chosen heads? Equal training and equal parameters, several seeds.

Three arms: memory for the ranking's top heads; for as many heads of the same layers, drawn at
random; for all heads of those layers, with a latent size that makes the parameters equal. All arms
of a seed train on the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import tables
from analysis.documents import Documents
from analysis.intervals import t_interval
from analysis.methods import Method
from analysis.quality import document_values
from analysis.subject import Unit, prepared
from analysis.sweep import swept
from kernels.errors import MidusError
from midus_model import upscale
from midus_model.budgets import block_parameters
from midus_model.optim import new_parameter_names

ARMS = ("chosen", "random", "all")
COMPARISONS = (("chosen", "random"), ("chosen", "all"))
Heads = list[tuple[int, int]]


# ---------------------------------------------------------------- arms


def heads_of(arm: str, top: Heads, heads: int, seed: int) -> Heads:
    """The heads that get memory: `top`, all of their layers, or as many others of each layer.

    Where a layer has fewer others than it has top heads, top heads fill up.
    """
    if arm == "chosen":
        return sorted(top)
    layers = sorted({layer for layer, _ in top})
    if arm == "all":
        return [(layer, head) for layer in layers for head in range(heads)]
    rng, found = np.random.default_rng(seed), []
    for layer in layers:
        mine = [head for at, head in top if at == layer]
        others = [head for head in range(heads) if head not in mine]
        order = [*rng.permutation(others), *rng.permutation(mine)]
        found += [(layer, int(head)) for head in order[: len(mine)]]
    return sorted(found)


def arm_model(base: Any, arm: str, top: Heads, seed: int, **sizes: Any) -> tuple[Any, Heads]:
    """The base up-scaled for an arm, with the heads that have memory.

    `sizes` (num_keys, top_k, latent_dim) are the chosen arm's; the others have the widest latent
    that needs no more parameters.
    """
    heads = heads_of(arm, top, base.config.num_attention_heads, seed)
    if arm != "chosen":
        budget = added_parameters(upscale(base, heads=sorted(top), **sizes))
        sizes["latent_dim"] = _latent_within(base.config, heads, budget, sizes["num_keys"])
    return upscale(base, heads=heads, seed=seed, **sizes), heads


def added_parameters(model: Any) -> int:
    """Parameters of the inserted blocks."""
    new = new_parameter_names(model)
    return sum(p.numel() for name, p in model.named_parameters() if name in new)


def _latent_within(config: Any, heads: Heads, parameters: int, num_keys: int) -> int:
    """The widest latent; parameters grow linearly with it."""
    layers = sorted({layer for layer, _ in heads})
    by_layer = [[head for at, head in heads if at == layer] for layer in layers]
    one, two = (
        sum(block_parameters(config, here, num_keys, latent) for here in by_layer)
        for latent in (1, 2)
    )
    if one > parameters:
        raise MidusError(
            f"memory for {len(heads)} heads takes {one:,} parameters at the least, and the chosen "
            f"heads' takes {parameters:,}: give a larger bank (num_keys, latent_dim)"
        )
    return 1 + (parameters - one) // (two - one)


# ---------------------------------------------------------------- measuring an arm


def arm_row(
    arm: str, seed: int, model: Any, heads: Heads, texts: dict[str, Documents], before: pd.DataFrame
) -> dict[str, Any]:
    """One trained model: its losses, and what its memory heads' sources gained, on average.

    texts: "new" and "heldout"; before: importance of the base's heads on "new".
    """
    row: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "heads": len(heads),
        "parameters": added_parameters(model),
        "latent_dim": model.config.latent_dim,
    }
    found = {f"loss_{name}": document_values(model, docs) for name, docs in texts.items()}
    early = before.set_index(["layer", "head"]).loc[heads, "by_document"]
    late = together(model, texts["new"], heads, str(before.attrs["baseline"]))
    found["amplification"] = (late - np.array(early.tolist()).sum(0)) / len(heads)
    for name, values in found.items():
        docs = texts["heldout" if name == "loss_heldout" else "new"]
        tokens = np.array([unit["tokens"] for unit in docs.units], dtype=float)
        row[name] = float(values @ tokens / tokens.sum())
        row[f"{name}_by_document"] = values.tolist()
    return row


def together(model: Any, docs: Documents, heads: Heads, baseline: str) -> np.ndarray:
    """Importance of the given base heads and of all that came from them, summed: [documents].

    By exact ablation of these heads alone, one by one.
    """
    subject = prepared(model, docs, baseline=baseline)
    mine = [unit for unit in subject.units if _source(unit) in set(heads)]
    subject = replace(subject, units=mine)
    method = Method("ablation", subject)
    totals = swept(subject, method, method.text, forwards=method.forwards)
    return totals["effects"].sum(0) / subject.weights


def _source(unit: Unit) -> tuple[int, int]:
    return unit.sites[0].source_layer, unit.sites[0].head


def choice_table(rows: Sequence[dict[str, Any]], texts: dict[str, Documents]) -> pd.DataFrame:
    """All arms and seeds, a row a trained model."""
    table = pd.DataFrame(rows)
    table.attrs = tables.json_attrs(
        {
            "schema": tables.SCHEMA,
            "table": "choice",
            "unit": "nats/token",
            "data": {name: docs.name for name, docs in texts.items()},
            "data_hash": {name: docs.sha256 for name, docs in texts.items()},
            "documents": {name: docs.units for name, docs in texts.items()},
            "versions": tables.versions(),
        }
    )
    return table


# ---------------------------------------------------------------- comparing arms

MEASURES = ("loss_new", "loss_heldout", "amplification")


def choice_contrast(table: pd.DataFrame) -> pd.DataFrame:
    """Differences of arms, first less second: a row a comparison and measure.

    `difference` is the mean over seeds, each paired. `ci_low`, `ci_high`: over documents, for
    these very trained models. `seed_low`, `seed_high`: a t interval over seeds, for another
    training; with few seeds it is wide, as it should be.
    """
    rows = []
    for first, second in COMPARISONS:
        seeds = set.intersection(*(set(table["seed"][table["arm"] == a]) for a in (first, second)))
        if not seeds:
            continue
        pairs = [_of(table[table["seed"].isin(seeds)], arm) for arm in (first, second)]
        for measure in MEASURES:
            rows.append(
                {"first": first, "second": second, "measure": measure, "seeds": len(pairs[0])}
                | _difference(pairs[0], pairs[1], measure, table.attrs["documents"])
            )
    contrast = pd.DataFrame(rows)
    how = {"table": "choice_contrast", "confidence": 0.95, "interval": "t"}
    contrast.attrs = {**table.attrs, **how}
    return contrast


def _of(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    return table[table["arm"] == arm].sort_values("seed").reset_index(drop=True)


def _difference(
    first: pd.DataFrame, second: pd.DataFrame, measure: str, documents: dict[str, Any]
) -> dict[str, float]:
    name = "heldout" if measure == "loss_heldout" else "new"
    tokens = [unit["tokens"] for unit in documents[name]]
    by_seed = (first[measure] - second[measure]).to_numpy()
    column = f"{measure}_by_document"
    parts = [np.array(part[column].tolist()).mean(0) for part in (first, second)]
    found = t_interval(parts[0] - parts[1], tokens, together=False)
    low, high = _t_interval(by_seed)
    return {
        "difference": float(by_seed.mean()),
        "ci_low": float(found.low),
        "ci_high": float(found.high),
        "seed_low": low,
        "seed_high": high,
    }


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of a mean; NaN for one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    radius = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - radius), float(values.mean() + radius)
