"""The attention pattern of one head on one text, from `analysis.head_view`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.tokens import readable
from analysis.figure_data.words import model_name

PATTERN_COLUMNS = ("position", "token_id", "token", "pattern")
MOST_LABELS = 60  # tokens; the axes of longer texts count positions
_LONGEST = 12  # characters of a token


@dataclass(frozen=True)
class Pattern:
    """Weights [T, T], from row to column, NaN where a head cannot look; colours end at `top`."""

    weights: np.ndarray
    tokens: list[str]
    top: float

    @property
    def labelled(self) -> bool:
        """Whether the axes name the tokens."""
        return len(self.tokens) <= MOST_LABELS

    @property
    def beyond(self) -> bool:
        """Whether a weight lies beyond the colours."""
        return self.top < 1  # the first row is all on its own token


def pattern_of(view: Any, figure: str) -> Pattern:
    """The pattern that a table of `head_view` holds.

    Colours end at 1, or in a broad head at the largest weight of the rows' later half: a row's
    weights sum to 1, so the first rows are heavy in every head, and would leave the others pale.
    """
    view = require(view, PATTERN_COLUMNS, figure, "analysis.head_view()")
    count = len(view)
    weights = np.full((count, count), np.nan)
    for at, row in enumerate(view["pattern"]):
        weights[at, : at + 1] = np.asarray(row, dtype=float)
    tokens = [
        f"id {number}" if pd.isna(token) else readable(str(token), _LONGEST)
        for number, token in zip(view["token_id"], view["token"], strict=True)
    ]
    largest = float(np.nanmax(weights[count // 2 :]))
    return Pattern(weights, tokens, largest if largest < 0.5 else 1.0)


def pattern_caption(view: pd.DataFrame, pattern: Pattern) -> str:
    """Which head and text are shown, and how the map is read."""
    attrs, count = view.attrs, len(pattern.tokens)
    memory = attrs.get("kind") == "memory"
    cut = int(attrs.get("cut") or 0)
    notes = [
        f"Attention pattern of block {attrs.get('layer', '?')}, head {attrs.get('head', '?')}"
        + (" (memory)" if memory else ""),
        "the attention of the memory block, which makes the head's query" if memory else "",
        "rows: the token that looks, columns: the token looked at, each row sums to 1",
        f"the text's first {count:,} of {count + cut:,} tokens" if cut else f"{count:,} tokens",
        f"colours end at {pattern.top:.2g}, the largest weight of the later half of the rows"
        if pattern.beyond
        else "",
        "␣ space" if pattern.labelled and "␣" in "".join(pattern.tokens) else "",
        f"model {model_name(view, 'not recorded')}",
    ]
    return "; ".join(note for note in notes if note) + "."
