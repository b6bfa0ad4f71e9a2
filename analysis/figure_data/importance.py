"""Heads sorted by score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figure_data.grids import block_rows


def sorted_scores(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows by score, best first, with `rank` from 1 and `inserted`."""
    inserted = {(r.layer, r.kind): r.inserted for r in block_rows(table)}
    out = table.dropna(subset=["score"]).sort_values(
        ["score", "layer", "head"], ascending=[False, True, True], ignore_index=True
    )
    return out.assign(
        rank=np.arange(1, len(out) + 1),
        inserted=[inserted[int(b), str(k)] for b, k in zip(out["layer"], out["kind"], strict=True)],
    )
