"""Quality against cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis import figure_data as data
from analysis.paper.canvas import FULL, SMALL, TEXT, Figure, canvas, entry, grow, style

_MARKS = dict(zip(data.MARKERS, "osD^Px", strict=True))


def quality_cost(table: pd.DataFrame, *, width: float = FULL) -> Figure:
    """A panel a text, a point a model: loss by parameters added.

    Raises MidusError on another table.
    """
    panels = data.quality_panels(table, "quality_cost")
    names = data.quality_labels(panels)
    titles = data.labels(panels, min(data.TITLE_EMS, (width / len(panels) - 0.5) * 72 / TEXT), 2)
    with style():
        height = 2.3 + 0.35 * (data.lines_of(titles.values()) - 1)
        figure = canvas(width, height, data.quality_caption(table))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, points) in zip(axes, panels.items(), strict=True):
            for point in points:
                ax.plot(
                    point.millions, point.loss, _MARKS[point.symbol], color=point.colour, ms=5.5,
                    label=entry(names[point.name]), clip_on=False,
                )  # fmt: skip
            ax.set(title=titles[title], xlabel="parameters added (millions)")
            ax.set_ylabel("loss (nats/token)")
            ax.set_xlim(left=0)
            ax.margins(0.1)
            ax.yaxis.set_major_locator(MaxNLocator(5))
        if data.widest(names.values()) * SMALL / 72 < 0.35 * width / len(panels):
            axes[-1].legend(loc="best")
        else:
            figure.legend(
                *axes[-1].get_legend_handles_labels(), loc="outside upper left", borderpad=0,
                ncols=(columns := max(1, int(width / (data.NAME_EMS * SMALL / 72 + 0.4)))),
            )  # fmt: skip
            grow(figure, -(-len(names) // columns) * SMALL * 1.45 / 72)
    return figure
