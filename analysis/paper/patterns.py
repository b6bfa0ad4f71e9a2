"""Where one head looks in one text."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from analysis import figure_data as data
from analysis.paper.canvas import CAPTION, COLUMN, FULL, SMALL, Figure, canvas, style
from analysis.paper.maps import SEQUENTIAL, colour_bar

_CHARACTER = 0.065  # inches
_LINE = 0.09  # inches that a small label takes
_BAR = 0.75  # inches that the colour bar takes, and the title of the other axis


def attention_pattern(view: pd.DataFrame, *, width: float | None = None) -> Figure:
    """A head's attention from each token (rows) to those before it (columns), from `head_view`.

    Axes name the tokens of texts up to 60, as many as fit, and count positions of longer ones.
    `width`: by default a column for texts up to 16 tokens, the full page for others. Raises
    MidusError on another table.
    """
    pattern = data.pattern_of(view, "attention_pattern")
    count = len(pattern.tokens)
    width = width or (COLUMN if count <= 16 else FULL)
    label = _CHARACTER * max(map(len, pattern.tokens)) if pattern.labelled else 0.3
    side = width - label - _BAR  # of a square, nearly
    with style():
        figure = canvas(width, side + label + 0.3, data.pattern_caption(view, pattern))
        ax = figure.subplots()
        edges, norm = np.arange(count + 1) - 0.5, Normalize(0, pattern.top)
        mesh = ax.pcolormesh(
            edges, edges, np.ma.masked_invalid(pattern.weights), norm=norm, cmap=SEQUENTIAL,
            edgecolors="white", linewidth=0.3 if pattern.labelled else 0,
            rasterized=not pattern.labelled,  # ten thousand cells and more are no vector drawing
        )  # fmt: skip
        mesh.set_gid("cells")
        ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        ax.set(xlabel="to token (key)", ylabel="from token (query)")
        if pattern.labelled:
            step = data.tick_step(count, int(side / _LINE))
            size = CAPTION if side / count < 1.3 * _LINE else SMALL - 0.5
            at, shown = range(0, count, step), pattern.tokens[::step]
            ax.set_xticks(at, shown, rotation=90, parse_math=False, size=size)
            ax.set_yticks(at, shown, parse_math=False, size=size)
            ax.tick_params(length=0, pad=2)
        colour_bar(
            figure, ax, norm, SEQUENTIAL, "attention weight", "max" if pattern.beyond else "neither"
        )
    return figure
