"""Tables of texts and losses, as the functions that make them would return them."""

from __future__ import annotations

import numpy as np
import pandas as pd


def pattern_table(tokens: int = 24, kind: str = "attention", **attrs: object) -> pd.DataFrame:
    """What analysis.head_view() would return of a head that half looks at the token before."""
    texts = ["def", " $f$", "(", "x<y>", "):\n", "\t", " return", "", None, " self.counter_of"]
    rows = []
    for at in range(tokens):
        pattern = np.full(at + 1, 0.5 / (at + 1))
        pattern[max(at - 1, 0)] += 0.5
        token = texts[at % len(texts)]
        rows.append({"position": at, "token_id": at, "token": token, "pattern": pattern.tolist()})
    table = pd.DataFrame(rows)
    table.attrs = {"model": "pico-midus", "layer": 2, "kind": kind, "head": 3, "cut": 0, **attrs}
    return table


def token_table(**attrs: object) -> pd.DataFrame:
    """What analysis.next_tokens() would return of a head turned down."""
    tokens = ["encoding", " $x$", "(", "x<y>", "\n\t", None, " a_token_that_is_very_long_indeed"]
    before = np.array([0.45, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003])
    table = pd.DataFrame(
        {
            "token_id": range(7), "token": tokens, "probability_before": before,
            "probability_after": before[::-1],
        }
    )  # fmt: skip
    table.attrs = {
        "model": "pico-midus", "gains": [[3, 1, 0.0], [0, 0, 1.5]], "ids": [1, 2, 3],
        "loss_before": 2.1, "loss_after": 2.8, **attrs,
    }  # fmt: skip
    return table


def loss_table(models: int = 3) -> pd.DataFrame:
    """The losses of a study's models on two texts."""
    rows = [
        {
            "model": f"model-{at}", "data": data, "tokens": 1000 * (1 + at), "loss": loss,
            "new_parameters": 400_000 * at,
        }
        for at in range(models)
        for data, loss in (("new", 2.7 - 0.2 * at), ("heldout", 2.3 + 0.1 * at))
    ]  # fmt: skip
    return pd.DataFrame(rows)
