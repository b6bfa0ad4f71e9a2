"""The numbers of a finished study that a reader wants first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.amplification import amplification
from analysis.ties import best_first
from workbench.runs import RunFolder

# What is said of the most amplified heads.
MOST = (
    "layer", "head", "score", "shrunk", "ci_low", "ci_high", "ci_low_all", "ci_high_all", "unit",
)  # fmt: skip


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The numbers a reader wants first, each read off the run's own tables."""
    loss = folder.load_table("losses").set_index(["model", "data"])["loss"]
    log = folder.load_table("training")
    table = folder.load_table("amplification")
    if "changed" not in table.columns:  # of an older version
        sides = (folder.load_table(f"importance_{side}") for side in ("before", "after"))
        table = amplification(*sides, chosen=table.attrs.get("chosen"))
    table = table.iloc[best_first(table["shrunk"].fillna(table["score"]))]
    up, down = table["changed"] == "amplified", table["changed"] == "weakened"
    chosen = {tuple(pair) for pair in table.attrs.get("chosen") or []}
    is_chosen = pd.Series(
        [(int(r.layer), int(r.head)) in chosen for r in table.itertuples()], index=table.index
    )
    usage = folder.load_table("memory_usage")
    before, after = (_total(folder.load_table(f"costs_{side}")) for side in ("before", "after"))
    base = folder.manifest["parameters"]["base"]
    summary: dict[str, Any] = {
        "loss_new_before": loss[base, "new"],
        "loss_new_after": loss["midus", "new"],
        "loss_heldout_before": loss[base, "heldout"],
        "loss_heldout_after": loss["midus", "heldout"],
        "steps": log.loc[log["run"] == "midus", "step"].max(),
        "heads": len(table),
        "top": folder.manifest["parameters"]["top"],
        "amplified": up.sum(),
        "weakened": down.sum(),
        "chosen": is_chosen.sum(),
        "chosen_amplified": (up & is_chosen).sum(),
        "most_amplified": [
            {key: row[key] for key in MOST} for row in table.head(5).to_dict("records")
        ],
        "slots": usage["slots"].max(),
        "coverage": {
            str(layer): value for layer, value in usage.groupby("layer")["coverage"].mean().items()
        },
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
        "parameters_added": after["parameters"] - before["parameters"],
        "flops_per_token_before": before["flops_per_token"],
        "flops_per_token_after": after["flops_per_token"],
    }
    if ("llama-pro", "new") in loss.index:
        summary["loss_new_baseline"] = loss["llama-pro", "new"]
        summary["loss_heldout_baseline"] = loss["llama-pro", "heldout"]
        summary["parameters_baseline"] = _total(folder.load_table("costs_baseline"))["parameters"]
    return _plain(summary)


def _total(table: pd.DataFrame) -> dict[str, float]:
    return table[table["component"] == "total"].iloc[0].to_dict()


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic | torch.Tensor) else value
