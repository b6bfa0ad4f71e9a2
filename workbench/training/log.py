"""The tables of a training: losses and rates, and how memory was used along it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import memory_usage, tables
from analysis.documents import Documents
from kernels.errors import MidusError

COLUMNS = ("run", "step", "loss", "eval_loss", "learning_rate")
USAGE = "memory_usage"  # key of what `log_usage` leaves in the logs


def usage_of(model: Any, documents: Documents) -> list[dict[str, float]]:
    """How each block's slots are used at this moment: means over its heads."""
    usage = memory_usage(model, documents)
    heads = usage.groupby("layer")[["coverage", "effective_slots"]].mean().reset_index()
    return heads.rename(columns={"layer": "block"}).to_dict("records")


def usage_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": entry["step"], **row} for entry in history for row in entry.get(USAGE, ())]


def usage_log(log: pd.DataFrame) -> pd.DataFrame:
    """Memory use along a training: run, step, block, coverage, effective slots (means over heads).

    `log` is the table of a training with `log_usage`. Raises MidusError for another.
    """
    rows = log.attrs.get("usage")
    if not rows:
        raise MidusError("this training logged no memory use; train with log_usage=True")
    table = pd.DataFrame(rows)
    table.insert(0, "run", log["run"].iloc[0])
    table.attrs = {key: value for key, value in log.attrs.items() if key != "usage"}
    table.attrs |= {"table": "usage_log", "data": log.attrs["eval_data"]}
    return table


def training_table(history: list[dict[str, Any]], name: str, attrs: dict[str, Any]) -> pd.DataFrame:
    """The Trainer's log as one row a step."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        row = steps.setdefault(int(entry["step"]), {})
        for column in ("loss", "eval_loss", "learning_rate"):
            if column in entry:
                row[column] = float(entry[column])
    rows = [
        {"run": name, "step": step, "loss": None, "eval_loss": None, "learning_rate": None} | row
        for step, row in sorted(steps.items())
        if row
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["loss", "eval_loss", "learning_rate"]
    table[numbers] = table[numbers].astype("float64")
    table.attrs = tables.json_attrs({"schema": tables.SCHEMA, **attrs})
    return table
