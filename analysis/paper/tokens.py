"""What a model predicts next, before and after heads were scaled."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, Figure, canvas, style


def next_tokens(table: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """Two bars a token, its probability before and after. Raises MidusError on another table."""
    bars = data.token_bars(table, "next_tokens")
    places = np.arange(len(bars.labels))
    with style():
        figure = canvas(width, 0.6 + 0.24 * len(places), data.tokens_caption(table))
        ax = figure.subplots()
        for name, values, colour, shift in (
            ("before", bars.before, data.BEFORE, -0.2),
            ("after", bars.after, data.AFTER, 0.2),
        ):
            ax.barh(
                places + shift, values, 0.38, color=colour, label=name,
                hatch="///" if name == "after" else None, edgecolor="white", lw=0,
            )  # fmt: skip
        ax.set_yticks(places, bars.labels)
        ax.set_ylim(len(places) - 0.5, -0.5)
        ax.set_xlabel("probability of the next token (%)")
        ax.legend(loc="lower right")
    return figure
