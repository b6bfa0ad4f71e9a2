"""What memory is worth: by part of it switched off, and by how its content reaches the heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.lanes import dots, lanes_height, lanes_room, name_lanes, score_axis
from analysis.figures.page import finish


def memory_effects(table: pd.DataFrame) -> go.Figure:
    """What each part of memory is worth, with its interval, sorted within blocks.

    Every marker's customdata is [block, head, slot], None where a part has none. Errors as
    `analysis.paper.memory_effects`.
    """
    effects = data.effects_of(table, "memory_effects")
    trace = dots(effects.rows, data.BEFORE, data.unit(table), name=effects.of)
    trace.customdata = [
        [_whole(record.get(name)) for name in ("block", "head", "slot")]
        for record in effects.rows.to_dict("records")
    ]
    figure = make_subplots(1, 1)
    figure.add_trace(trace, row=1, col=1)
    name_lanes(figure, effects.lanes)
    score_axis(figure, effects.axis, data.effect_label(table).replace("\n", ", "))
    return finish(
        figure,
        data.effects_caption(table, effects),
        plot_height=lanes_height(effects.lanes),
        left=lanes_room(effects.lanes),
        top=20,
    )


def _whole(value: object) -> int | None:
    return None if value is None or pd.isna(value) else int(value)  # type: ignore[call-overload]


def realisations(table: pd.DataFrame) -> go.Figure:
    """How much the loss rises with another realisation of the memory, by block.

    Hover texts have the KL divergence from the clean model, where the table has it. Errors as
    `analysis.paper.realisations`.
    """
    rows, lanes, axis = data.realisation_rows(table, "realisations")
    figure = make_subplots(1, 1)
    for name, kind in data.REALISATIONS.items():
        part = rows[rows["realisation"] == name]
        if part.empty:
            continue
        trace = dots(part, kind.colour, data.unit(table), kind.symbol, name=kind.name)
        if "kl" in part.columns:
            known = zip(trace.hovertext, part["kl"].astype(float), strict=True)
            trace.hovertext = [
                f"{text}<br>KL from clean {kl:.4g} nats/token" if np.isfinite(kl) else text
                for text, kl in known
            ]
        figure.add_trace(trace, row=1, col=1)
    name_lanes(figure, lanes)
    score_axis(figure, axis, data.realisation_label(table))
    return finish(
        figure,
        data.realisations_caption(table, axis),
        plot_height=lanes_height(lanes),
        left=lanes_room(lanes),
        top=20,
    )
