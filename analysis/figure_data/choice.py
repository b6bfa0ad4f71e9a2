"""Memory for chosen heads, random heads or all: every trained model, and the arms' differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.arms import ARMS, arms_of
from analysis.figure_data.checks import require
from analysis.figure_data.words import data_words, model_name, unit

CHOICE_COLUMNS = ("arm", "seed", "loss_new")
CONTRAST_COLUMNS = (
    "first",
    "second",
    "measure",
    "difference",
    "ci_low",
    "ci_high",
    "seed_low",
    "seed_high",
)
MAKER = "the study of chosen heads"
MEASURES = {
    "loss_new": "loss on new text",
    "loss_heldout": "loss on held-out text",
    "amplification": "amplification",
}


@dataclass(frozen=True)
class ChoicePanel:
    """One measure. `values` [seeds, arms] of every trained model, NaN where one is missing.

    `rows`: the differences of arms with their two intervals, y and name; empty without a contrast.
    """

    measure: str
    unit: str
    arms: list[str]
    seeds: list[int]
    values: np.ndarray
    rows: pd.DataFrame

    @property
    def label(self) -> str:
        """The measure and its unit."""
        return f"{MEASURES[self.measure]} ({self.unit})"

    @property
    def names(self) -> list[str]:
        """The arms as the axis names them."""
        return [ARMS[arm].name for arm in self.arms]

    @property
    def means(self) -> np.ndarray:
        """Mean over seeds, [arms]."""
        return np.nanmean(self.values, axis=0)


def choice_panels(choice: Any, contrast: Any, figure: str) -> list[ChoicePanel]:
    """A panel a measure that the table has; MidusError where it is another table."""
    choice = require(choice, CHOICE_COLUMNS, figure, MAKER)
    if contrast is not None:
        contrast = require(contrast, CONTRAST_COLUMNS, figure, MAKER)
    arms = arms_of([str(arm) for arm in choice["arm"]], figure, MAKER)
    seeds = sorted({int(seed) for seed in choice["seed"]})
    panels = []
    for measure in MEASURES:
        if measure not in choice.columns or choice[measure].isna().all():
            continue
        wide = choice.pivot_table(index="seed", columns="arm", values=measure)
        values = wide.reindex(index=seeds, columns=arms).to_numpy(float)
        rows = _differences(contrast, measure)
        panels.append(ChoicePanel(measure, unit(choice), arms, seeds, values, rows))
    return panels


def _differences(contrast: pd.DataFrame | None, measure: str) -> pd.DataFrame:
    if contrast is None:
        return pd.DataFrame(columns=[*CONTRAST_COLUMNS, "y", "name"])
    rows = contrast[contrast["measure"] == measure].reset_index(drop=True)
    pairs = zip(rows["first"], rows["second"], strict=True)
    names = [f"{first} − {second}" for first, second in pairs]
    return rows.assign(y=np.arange(len(rows), dtype=float), name=names)


def choice_caption(choice: pd.DataFrame, panels: list[ChoicePanel], contrast: bool) -> str:
    """What the arms are, on which data, and what the two intervals are."""
    attrs = choice.attrs
    seeds = len(panels[0].seeds)
    parts = [
        "Memory for chosen heads, for random heads of the same layers, or for all of them",
        _equal(choice),
        f"a dot a trained model ({seeds} seed{'s' * (seeds != 1)}, thin lines join a seed's), "
        "upright line the mean",
        *_data_parts(attrs),
        f"model {model_name(choice, 'not recorded')}",
        "of losses less is better",
        "amplification: mean over the heads with memory"
        if any(panel.measure == "amplification" for panel in panels)
        else "",
    ]
    if contrast:
        parts.append(
            f"right: differences of the means; thick: 95% {attrs.get('interval', 'bootstrap')} "
            "over documents, for these "
            "trained models; thin: 95% t interval over seeds, for another training"
        )
    return "; ".join(part for part in parts if part) + "."


def _equal(choice: pd.DataFrame) -> str:
    """How many parameters the arms added."""
    if "parameters" not in choice.columns:
        return ""
    added = choice["parameters"].to_numpy(float)
    ends = dict.fromkeys(f"{end:,.0f}" for end in (added.min(), added.max()))
    return f"{' to '.join(ends)} parameters added"


def _data_parts(attrs: Mapping[Any, Any]) -> list[str]:
    """The data of each text, where a table names several."""
    if not isinstance(attrs.get("data"), Mapping):
        return [data_words(attrs)]
    documents = attrs.get("documents") or {}
    parts = []
    for name, data in attrs["data"].items():
        text = {"new": "new text", "heldout": "held-out text"}.get(name, name)
        own = {**attrs, "data": data, "documents": documents.get(name)}
        parts.append(f"{text}: {data_words(own)}")
    return parts
