"""Training logs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.words import model_name
from kernels.errors import MidusError

TRAINING_COLUMNS = ("step", "loss", "eval_loss", "learning_rate")


def training_logs(runs: Any, figure: str) -> dict[str, pd.DataFrame]:
    """One log or several as {name: log}, each by step."""
    if isinstance(runs, pd.DataFrame):
        runs = {model_name(runs, "run"): runs}
    if not isinstance(runs, Mapping) or not runs:
        raise MidusError(
            f"{figure} draws a training log or a dict of name -> log; got {type(runs).__name__}"
        )
    return {
        str(n): require(t, TRAINING_COLUMNS, figure, "a training run").sort_values(
            "step", kind="stable"
        )
        for n, t in runs.items()
    }


def training_caption(runs: Mapping[str, pd.DataFrame]) -> str:
    """The loss, its unit, the data and the runs shown."""
    attrs = next(iter(runs.values())).attrs
    data = f"data {attrs['data']}; " if attrs.get("data") else ""
    return (
        f"Training: next-token loss, nats/token; {data}thin line: each logged training batch; "
        f"markers: held-out loss; runs {', '.join(runs)}."
    )
