"""Next-token probabilities before and after: the bars of `analysis.next_tokens`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.words import model_name

TOKEN_COLUMNS = ("token_id", "token", "probability_before", "probability_after")
MOST_TOKENS = 12


@dataclass(frozen=True)
class TokenBars:
    """Tokens as labels, the likeliest first, and their probabilities in per cent, both [tokens]."""

    labels: list[str]
    before: np.ndarray
    after: np.ndarray


def token_bars(table: pd.DataFrame, figure: str) -> TokenBars:
    """The likeliest tokens of either side, `MOST_TOKENS` at most."""
    table = require(table, TOKEN_COLUMNS, figure, "analysis.next_tokens()")
    either = table[["probability_before", "probability_after"]].max(axis=1)
    shown = table.loc[either.nlargest(MOST_TOKENS).index]
    shown = shown.sort_values("probability_before", ascending=False, kind="stable")
    texts = [
        f"id {number}" if token is None else readable(str(token))
        for number, token in zip(shown["token_id"], shown["token"], strict=True)
    ]
    sides = [100 * shown[f"probability_{side}"].to_numpy(float) for side in ("before", "after")]
    return TokenBars(texts, *sides)


def readable(token: str, most: int = 18) -> str:
    """A token as a label: its space and line ends visible, cut where it is long."""
    text = repr(token)[1:-1].replace(" ", "␣") or "(empty)"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def tokens_caption(table: pd.DataFrame) -> str:
    """Text length, gains, losses and model."""
    attrs = table.attrs
    gains = ", ".join(f"{layer}.{head} × {gain:g}" for layer, head, gain in attrs.get("gains", []))
    losses = [attrs.get(f"loss_{side}", float("nan")) for side in ("before", "after")]
    return (
        f"Next-token probabilities after a text of {len(attrs.get('ids') or [])} tokens; gains "
        f"(block.head): {gains or 'none'}; baseline zero; loss on the text {losses[0]:.3f} → "
        f"{losses[1]:.3f} nats/token; model {model_name(table)}."
    )
