"""What a figure asks of its table: the columns, some rows, and numbers in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from kernels.errors import MidusError

HEAD_COLUMNS = ("layer", "kind", "head", "source_layer")
IMPORTANCE_COLUMNS = (*HEAD_COLUMNS, "score", "ci_low", "ci_high")


def require(table: Any, columns: Iterable[str], figure: str, maker: str) -> pd.DataFrame:
    """The table itself, or MidusError when it is no table, is empty or lacks a column."""
    if not isinstance(table, pd.DataFrame):
        raise MidusError(
            f"{figure} draws a DataFrame as {maker} returns it; got {type(table).__name__}"
        )
    missing = [c for c in columns if c not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns)) or "no columns"
        raise MidusError(
            f"{figure} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"the table has {has}. A table from {maker} has them all"
        )
    if table.empty:
        raise MidusError(f"{figure} was given a table without rows; make one with {maker}")
    return table


def require_importance(table: Any, figure: str) -> pd.DataFrame:
    """The table itself, or MidusError when it is no table of importance or has no score at all."""
    table = require(table, IMPORTANCE_COLUMNS, figure, "analysis.head_importance()")
    if not np.isfinite(table["score"].to_numpy(float)).any():
        raise MidusError(f"{figure} was given a table whose scores are all missing (NaN)")
    return table


def require_pair(before: Any, after: Any, figure: str, force: bool = False) -> None:
    """Check both tables, and that their numbers may stand beside each other."""
    require_importance(before, figure)
    if after is None:
        return
    require_importance(after, figure)
    from analysis.tables import comparable

    comparable(before, after, force=force)
