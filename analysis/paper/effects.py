"""What memory is worth: by part of it switched off, and by how its content reaches the heads."""

from __future__ import annotations

import pandas as pd

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, Figure, canvas, style
from analysis.paper.lanes import dots, lanes_height, name_lanes, score_axis


def memory_effects(table: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """What each part of memory is worth, with its interval, sorted within blocks.

    From `memory_effects` of heads, blocks, all memory or slots (the 20 with the largest effects).
    Positive: memory helps. Raises MidusError on another table.
    """
    effects = data.effects_of(table, "memory_effects")
    many = len(effects.rows) > data.MOST_NAMED
    with style():
        height = 0.55 + lanes_height(effects.lanes)
        figure = canvas(width, height, data.effects_caption(table, effects))
        ax = figure.subplots()
        dots(ax, effects.rows, data.BEFORE, size=2.2 if many else 3.4, bar=0.5 if many else 0.9)
        name_lanes(ax, effects.lanes)
        score_axis(ax, effects.axis, data.effect_label(table))
    return figure


def realisations(table: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """How much the loss rises with another realisation of the memory, by block.

    The zero line is the clean model. Raises MidusError on another table.
    """
    rows, lanes, axis = data.realisation_rows(table, "realisations")
    with style():
        height = 0.55 + lanes_height(lanes)
        figure = canvas(width, height, data.realisations_caption(table, axis))
        ax = figure.subplots()
        for name, kind in data.REALISATIONS.items():
            dots(ax, rows[rows["realisation"] == name], kind.colour, kind.marker)
        name_lanes(ax, lanes)
        score_axis(ax, axis, data.realisation_label(table))
    return figure
