"""Gradient importance with the arithmetic of published code, quirks included.

"michel" (code of Michel et al. 2019, 1905.10650) departs from the paper's equation 2:
- the absolute value is taken at every token, not of an example's sum;
- sums are divided by tokens, those of the last block by examples (there only one token has a
  gradient in the classifier that the code was written for);
- each block's scores are divided by their L2 norm plus 1e-20.

"bertology" (Hugging Face's run_bertology.py) gates with a head mask whose gradient is never set
back: what is added at each batch is the absolute value of the sum of all gradients so far, so the
scores depend on the documents' order. They are divided by tokens, each block's by their L2 norm
plus 1e-20, and then moved to 0 (the least head) to 1 (the greatest).

Both take gradients of a batch's mean loss. Here a batch is one window, which the published code's
scores depend on too. Intervals are those of the sums, scaled like the scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.documents import Documents
from analysis.tables import ENDS, head_table

TINY = 1e-20


def convention_table(
    convention: str, effects: np.ndarray, units: Any, docs: Documents, attrs: dict[str, Any]
) -> pd.DataFrame:
    """The table of a convention from `Method`'s sums.

    `effects` [G, documents]; of "bertology" [G, windows].
    """
    owner = np.array([window.unit for window in docs.windows])
    positions = np.zeros(len(docs.units))
    np.add.at(positions, owner, [len(window.ids) for window in docs.windows])
    if convention == "bertology":
        piled = np.abs(np.cumsum(effects, axis=1))
        effects = np.zeros((len(effects), len(positions)))
        np.add.at(effects.T, owner, piled.T)
    by_document = effects / positions
    if convention == "michel":
        last = np.array([unit.layer for unit in units]) == max(unit.layer for unit in units)
        by_document[last] *= positions.sum() / len(docs.windows)
    table = head_table(units, by_document, positions, attrs)
    layers = table["layer"].to_numpy()
    norms = pd.Series(table["score"] ** 2).groupby(layers).transform("sum") ** 0.5 + TINY
    columns = ["score", "stderr", *ENDS]
    scaled = table[columns].div(norms, axis=0)
    if convention == "bertology":
        low, high = scaled["score"].min(), scaled["score"].max()
        scaled[["score", *ENDS]] -= low
        scaled /= high - low
    attrs = table.attrs
    table[columns] = scaled
    table.attrs = attrs | {"normalise": convention}
    return table
