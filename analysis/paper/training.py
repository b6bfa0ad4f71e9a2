"""Training logs."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, CURVE, SMALL, Figure, canvas, entry, name_legend, style


def training_curves(
    runs: pd.DataFrame | Mapping[str, pd.DataFrame], *, width: float = COLUMN
) -> Figure:
    """Training and held-out loss by step, the learning rate below; one log or {name: log}."""
    logs = data.training_logs(runs, "training_curves")
    with style():
        figure = canvas(width, 2.7, data.training_caption(logs))
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        shown = data.labels(logs, (width - 0.4) * 72 / SMALL)
        for i, (name, log) in enumerate(logs.items()):
            colour = data.SERIES[i % len(data.SERIES)]
            held = log.dropna(subset=["eval_loss"])
            loss.plot(log["step"], log["loss"], color=colour, lw=0.5, alpha=0.45, gid="train")
            loss.plot(
                held["step"],
                held["eval_loss"],
                "osD^v>"[i % 6] + "-",
                color=colour,
                **CURVE,
                label=entry(shown[name]),
                gid="eval",
            )
            dash = ("-", "--", ":", "-.")[i % 4]
            rate.plot(log["step"], log["learning_rate"], color=colour, lw=1, ls=dash)
        loss.set_ylabel("loss (nats/token)")
        name_legend(figure, loss, list(shown.values()))
        rate.set(xlabel="optimiser step", ylabel="learning\nrate")
        peak = max(float(log["learning_rate"].max()) for log in logs.values()) or 1.0
        rate.set_ylim(0, 1.12 * peak)
        rate.set_yticks([0, peak], ["0", f"{peak:.2g}"])
        figure.align_ylabels()
    return figure
