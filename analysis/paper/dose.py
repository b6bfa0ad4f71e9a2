"""Amplification as a cause: the loss by gain, and which roles and heads were amplified."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, CURVE, FULL, SMALL, Figure, canvas, style
from analysis.paper.lanes import dots, name_lanes, rule_lanes, score_axis


def dose_response(table: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """Change of the loss as heads are weakened or amplified, a line an arm with its interval.

    Raises MidusError on another table.
    """
    responses = data.responses_of(table, "dose_response")
    with style():
        figure = canvas(width, 2.5, data.dose_caption(table))
        ax = figure.subplots()
        ax.axhline(0, color="#888888", lw=0.6, zorder=0)
        for arm in responses:
            name, colour, marker, _ = arm.style
            ax.fill_between(arm.gain, arm.low, arm.high, color=colour, alpha=0.22, lw=0)
            ax.plot(
                arm.gain,
                arm.change,
                marker=marker,
                color=colour,
                **CURVE,
                label=name,
                gid="change",
            )
        for gain, words in data.GAIN_MARKS.items():
            ax.axvline(gain, color="#666666", lw=0.7, ls="--", zorder=0)
            ax.annotate(
                words,
                (gain, 1),
                xycoords=ax.get_xaxis_transform(),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                size=SMALL,
            )
        ax.set(xlabel="gain of the heads' outputs", ylabel=data.dose_label(table))
        ax.margins(x=0.04)
        figure.legend(
            loc="outside upper center", ncols=2, handlelength=1.5, columnspacing=1.1, borderpad=0
        )
    return figure


def role_slopes(
    slopes: pd.DataFrame, contrast: pd.DataFrame | None = None, *, width: float | None = None
) -> Figure:
    """How much more heads of a role were amplified, from `amplification_by_role`.

    A panel a measure. With `contrast`, from `amplification_contrast`, chosen heads stand against
    their controls below. Raises MidusError on another table.
    """
    panels, lanes = data.slopes_of(slopes, "role_slopes")
    contrasts = data.contrasts_of(contrast, "role_slopes")
    columns = max(len(panels), len(contrasts))
    width = width or (COLUMN if columns == 1 else FULL)
    tall, low = 0.17 * lanes.height, 0.17 * 3
    with style():
        height = 0.55 + tall + (0.75 + low if contrasts else 0)
        figure = canvas(width, height, data.slopes_caption(slopes, contrast, panels))
        axes = figure.subplots(
            2 if contrasts else 1,
            columns,
            squeeze=False,
            sharey="row",
            height_ratios=[tall, low] if contrasts else None,
        )
        for ax, panel in zip(axes[0], panels, strict=False):
            dots(ax, panel.rows, data.BEFORE)
            rule_lanes(ax, lanes)
            score_axis(ax, panel.axis, panel.label)
        name_lanes(axes[0, 0], lanes)
        for ax in axes.ravel():
            ax.tick_params(axis="y", length=0)
        for ax in axes[0, len(panels) :]:
            ax.set_axis_off()
        if contrasts:
            _contrasts(list(axes[1]), contrasts)
    return figure


def _contrasts(axes: list[Axes], contrasts: list[data.Contrast]) -> None:
    """Chosen heads, controls and their difference, a panel a measure."""
    lanes = data.lanes(list(contrasts[0].rows["name"]))
    for ax, contrast in zip(axes, contrasts, strict=False):
        for (_, row), colour, marker in zip(
            contrast.rows.iterrows(),
            (data.AFTER, data.NEUTRAL, "black"),
            ("s", "^", "D"),
            strict=True,
        ):
            part = row.to_frame().T.astype({"sure": bool})
            whole = part.assign(sure=True) if row["name"] != "difference" else part
            dots(ax, whole, colour, marker, 3.8)
        rule_lanes(ax, lanes)
        score_axis(ax, contrast.axis, contrast.label)
        ax.set_title(contrast.p_words, pad=3, loc="right", size=SMALL)
    name_lanes(axes[0], lanes)
    for ax in axes[len(contrasts) :]:
        ax.set_axis_off()
