"""How much of the memory is in use: through a training, and by how its keys were started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.colours import SERIES, sequential_stops
from analysis.figure_data.lanes import Lanes, lanes
from analysis.figure_data.memory import usage_caption
from kernels.errors import MidusError

LOG_COLUMNS = ("step", "block", "coverage", "effective_slots")
KEY_COLUMNS = ("init", "block", "head", "coverage", "effective_slots")
# column -> label of its panel
USE_PANELS = {"coverage": "coverage (% of slots)", "effective_slots": "effective slots (number)"}


# --- through a training ---------------------------------------------------------------------------


@dataclass(frozen=True)
class UseLine:
    """One block's use of its slots in one run: `values` by column, in per cent and in number."""

    run: str
    block: int
    name: str
    colour: str
    place: int
    run_place: int
    step: np.ndarray
    values: dict[str, np.ndarray]


def use_lines(log: Any, figure: str) -> list[UseLine]:
    """A line a run and block, by step; MidusError where a step stands twice."""
    log = require(log, LOG_COLUMNS, figure, "a training run's usage log")
    runs = [str(name) for name in log["run"].unique()] if "run" in log.columns else [""]
    blocks = sorted({int(b) for b in log["block"]})
    lines = []
    for run_place, run in enumerate(runs):
        rows = log[log["run"].astype(str) == run] if run else log
        for place, block in enumerate(blocks):
            part = rows[rows["block"] == block].sort_values("step", kind="stable")
            if part["step"].duplicated().any():
                raise MidusError(
                    f"{figure}: block {block} has a step more than once; give each run a name of "
                    "its own in a column 'run'"
                )
            if len(part):
                values = {
                    "coverage": 100 * part["coverage"].to_numpy(float),
                    "effective_slots": part["effective_slots"].to_numpy(float),
                }
                name = f"block {block}" + (f", {run}" if len(runs) > 1 else "")
                colour = in_order(place, len(blocks))
                step = part["step"].to_numpy(int)
                lines.append(UseLine(run, block, name, colour, place, run_place, step, values))
    return lines


def use_legend(lines: list[UseLine]) -> list[tuple[str, UseLine | None, int]]:
    """A legend's entries: (name, a line of that block) and, of several runs, (name, None, run)."""
    blocks = {line.block: line for line in reversed(lines)}
    entries: list[tuple[str, UseLine | None, int]] = [
        (f"block {block}", blocks[block], 0) for block in sorted(blocks)
    ]
    runs = dict.fromkeys(line.run for line in lines)
    if len(runs) > 1:
        entries += [(run, None, place) for place, run in enumerate(runs)]
    return entries


def in_order(place: int, count: int) -> str:
    """The colour of one of a few, or, of many, its shade from light to dark."""
    if count <= len(SERIES):
        return SERIES[place]
    stops = sequential_stops(count + 3)  # the lightest three would be lost on white
    return stops[place + 3][1]


def log_caption(log: pd.DataFrame, lines: list[UseLine]) -> str:
    """What the curves are."""
    runs = dict.fromkeys(line.run for line in lines if line.run)
    notes = ["mean over a block's heads", f"runs {', '.join(runs)}" if runs else ""]
    return usage_caption(log, "Memory use through the training", notes)


# --- by how keys were started ---------------------------------------------------------------------


@dataclass(frozen=True)
class KeyStudy:
    """A row a block and start: `rows` has `block`, `init`, `y` and the `means` of each column.

    `heads`: the table's rows with their `y`, heads of a row spread a little above and below it;
    coverage is in per cent. `colours`: by start.
    """

    lanes: Lanes
    rows: pd.DataFrame
    heads: pd.DataFrame
    colours: dict[str, str]


def key_study(table: Any, figure: str) -> KeyStudy:
    """Every head's use of its slots, by block and start; MidusError where a head stands twice."""
    table = require(table, KEY_COLUMNS, figure, "a study of key starts")
    inits = [str(name) for name in table["init"].unique()]
    heads = table.assign(init=table["init"].astype(str), coverage=100 * table["coverage"])
    identity = [name for name in ("init", "seed", "block", "head") if name in heads.columns]
    if heads.duplicated(identity).any():
        raise MidusError(
            f"{figure}: a head stands twice under one start; give the rows of one number of tokens"
        )
    heads["order"] = [inits.index(name) for name in heads["init"]]
    heads = heads.sort_values(["block", "order", "head"], ignore_index=True)
    rows = heads.groupby(["block", "order", "init"], as_index=False)[list(USE_PANELS)].mean()
    stand = lanes(list(rows["init"]), [f"block {int(block)}" for block in rows["block"]])
    rows["y"] = stand.y
    heads["y"] = 0.0
    by_row = heads.groupby(["block", "order"])  # in the order of `rows`
    for middle, (_, part) in zip(stand.y, by_row, strict=True):
        spread = np.linspace(-0.25, 0.25, len(part)) if len(part) > 1 else np.zeros(1)
        heads.loc[part.index, "y"] = middle + spread
    colours = {name: in_order(place, len(inits)) for place, name in enumerate(inits)}
    return KeyStudy(stand, rows, heads, colours)


def key_caption(table: pd.DataFrame, study: KeyStudy) -> str:
    """What dots and ticks are, and over how many tokens."""
    tokens = sorted({int(n) for n in table["tokens"]}) if "tokens" in table.columns else []
    counted = f"{', '.join(f'{n:,}' for n in tokens)} tokens counted" if len(tokens) == 1 else ""
    notes = ["a dot a head, upright line the mean over heads", counted]
    return usage_caption(table, "Memory use by how keys were started", notes)
