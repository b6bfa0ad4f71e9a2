"""Loss against the parameters that a model had added to it: quality for its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.colours import SERIES
from analysis.figure_data.names import NAME_EMS, TITLE_EMS, labels, whole_names

QUALITY_COLUMNS = ("model", "data", "loss", "new_parameters")
DATA_WORDS = {"new": "text trained on (test half)", "heldout": "the base's own held-out text"}
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


@dataclass(frozen=True)
class QualityPoint:
    """One model on one text."""

    name: str
    millions: float
    loss: float
    colour: str
    symbol: str


def quality_panels(table: pd.DataFrame, figure: str) -> dict[str, list[QualityPoint]]:
    """Title of a panel (a text) -> its models; a model has the same colour and mark in all."""
    table = require(table, QUALITY_COLUMNS, figure, "workbench's studies (the table losses)")
    names = list(dict.fromkeys(model_names(table)))
    panels: dict[str, list[QualityPoint]] = {}
    for name, row in zip(model_names(table), table.to_dict("records"), strict=True):
        at = names.index(name)
        panels.setdefault(DATA_WORDS.get(str(row["data"]), str(row["data"])), []).append(
            QualityPoint(
                name,
                float(row["new_parameters"]) / 1e6,
                float(row["loss"]),
                SERIES[at % len(SERIES)],
                MARKERS[at % len(MARKERS)],
            )
        )
    return panels


def model_names(table: pd.DataFrame) -> list[str]:
    """Each row's model, with its run where several runs stand together."""
    if "run" not in table or table["run"].nunique() < 2:
        return [str(model) for model in table["model"]]
    return [f"{model} ({run})" for model, run in zip(table["model"], table["run"], strict=True)]


def quality_labels(panels: Mapping[str, Sequence[QualityPoint]]) -> dict[str, str]:
    """Each model's name as a legend shows it."""
    return labels([point.name for points in panels.values() for point in points], NAME_EMS)


def quality_caption(table: pd.DataFrame) -> str:
    """What the axes are, over how many tokens, and the whole names of what is shown short."""
    tokens = table["tokens"].dropna() if "tokens" in table else pd.Series(dtype=float)
    counted = f"; {int(np.min(tokens)):,} to {int(np.max(tokens)):,} tokens" if len(tokens) else ""
    texts = [DATA_WORDS.get(str(name), str(name)) for name in table["data"].unique()]
    notes = (labels(model_names(table), NAME_EMS), labels(texts, TITLE_EMS, 2))
    whole = "".join(f"; {note}" for note in map(whole_names, notes) if note)
    return (
        "Loss (nats/token) against the parameters added to the base model, lower and further left "
        f"is better; one training each{counted}{whole}."
    )
