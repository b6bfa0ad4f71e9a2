"""How much of the memory is in use: through a training, and by how its keys were started."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, CURVE, FULL, SMALL, Figure, canvas, entry, style
from analysis.paper.lanes import lanes_height, name_lanes, rule_lanes

_MARKERS, _DASHES = "osD^v>", ("-", "--", ":", "-.")


def usage_curves(log: pd.DataFrame, *, width: float = COLUMN) -> Figure:
    """Coverage and effective slots by training step, a line a block, mean over its heads.

    Runs, where the log has a column `run`, differ in dashes. Raises MidusError on another table.
    """
    lines = data.use_lines(log, "usage_curves")
    few = len({line.block for line in lines}) <= len(_MARKERS)
    known = data.use_legend(lines)
    shown = data.labels([name for name, _, _ in known], (width - 0.9) / 2 * 72 / SMALL, 2)
    handles = [_handle(entry(shown[name]), line, run, few) for name, line, run in known]
    columns = 3 if data.widest(shown.values()) < 9 else 2
    tall = 0.14 + 0.1 * (data.lines_of(shown.values()) - 1)
    with style():
        height = 2.9 + tall * (-(-len(handles) // columns))
        figure = canvas(width, height, data.log_caption(log, lines))
        axes = figure.subplots(2, 1, sharex=True)
        for ax, (column, label) in zip(axes, data.USE_PANELS.items(), strict=True):
            for line in lines:
                ax.plot(
                    line.step,
                    line.values[column],
                    color=line.colour,
                    marker=_MARKERS[line.place] if few else None,
                    ls=_DASHES[line.run_place % len(_DASHES)],
                    **CURVE,
                    gid=column,
                )
            ax.set_ylabel(label)
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(MaxNLocator(5))
        axes[0].set_ylim(top=103)
        axes[1].set_xlabel("optimiser step")
        axes[1].margins(x=0.02)
        figure.align_ylabels()
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=columns,
            handlelength=1.8,
            columnspacing=1.1,
            borderpad=0,
        )
    return figure


def _handle(name: str, line: data.UseLine | None, run: int, few: bool) -> Line2D:
    """A legend's entry: of a block its colour and marker, of a run its dashes."""
    if line is None:
        return Line2D(
            [], [], color=data.NEUTRAL, ls=_DASHES[run % len(_DASHES)], lw=1.1, label=name
        )
    marker = _MARKERS[line.place] if few else None
    return Line2D([], [], color=line.colour, marker=marker, ms=3, lw=1.1, label=name)


def key_coverage(table: pd.DataFrame, *, width: float = FULL) -> Figure:
    """Every head's coverage and effective slots by block and by how its keys were started.

    Means over heads are marked. Raises MidusError on another table.
    """
    study = data.key_study(table, "key_coverage")
    with style():
        height = 0.55 + lanes_height(study.lanes, 0.17)
        figure = canvas(width, height, data.key_caption(table, study))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (column, label) in zip(axes, data.USE_PANELS.items(), strict=True):
            for init, colour in study.colours.items():
                part = study.heads[study.heads["init"] == init]
                ax.plot(part[column], part["y"], "o", color=colour, ms=2.6, mew=0, gid=column)
            ax.vlines(
                study.rows[column],
                study.rows["y"] - 0.4,
                study.rows["y"] + 0.4,
                color="black",
                lw=1.1,
                zorder=3,
                gid="means",
            )
            top = 103 if column == "coverage" else 1.05 * float(study.heads[column].max())
            ax.set(xlabel=label, xlim=(0, top))
            ax.xaxis.set_major_locator(MaxNLocator(5))
        name_lanes(axes[0], study.lanes)
        rule_lanes(axes[1], study.lanes)
        axes[1].tick_params(axis="y", length=0)
    return figure
