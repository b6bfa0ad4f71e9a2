"""What a model predicts after a text with some heads amplified or weakened, beside what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from analysis.amplify import amplify
from analysis.memory.places import at_least_one, described
from analysis.memory.text import opened_text, token_text
from analysis.subject import loaded
from midus_model import input_device


@torch.no_grad()
def next_tokens(
    model: Any = None,
    text: Any = "",
    gains: Mapping[tuple[int, int], float] | None = None,
    *,
    top: int = 10,
) -> pd.DataFrame:
    """The likeliest next tokens after a text, as the model is and with gains on some heads.

    Args:
        model: what `midus_model.load` takes; where None, "pico".
        text: a string, or token ids, of two tokens at least (a start token counts).
        gains: by (layer, head), as `amplify` takes them; without, both sides are the same.
        top: tokens of each side; what is in either's first `top` is listed.

    Returns:
        A row a token, the likeliest before first: token_id, token (None without a tokenizer),
        probability_before, probability_after, difference. `.attrs`: gains; the text's ids and
        tokens, with losses_before and losses_after, nats, of every token but the first; loss_before
        and loss_after, their means; kl, of the prediction before from that after, in nats.

    Raises:
        HeadError, MidusError: for heads or gains that cannot be used.
        DataError: for a text too long for the model, or too short.

    >>> next_tokens("pico", "import os\\nimport ", {(3, 1): 0.0})  # doctest: +SKIP
    """
    top = at_least_one("top", top)
    network = loaded(model)
    ids, tokenizer = opened_text(network, text)
    before = _log_probabilities(network, ids)  # [T, V]
    after = before
    if gains:
        with amplify(network, list(gains), list(gains.values())) as changed:
            after = _log_probabilities(changed.model, ids)
    chosen = _either(before[-1], after[-1], top)
    sides = {"before": before[-1].exp()[chosen], "after": after[-1].exp()[chosen]}
    table = pd.DataFrame(
        {
            "token_id": chosen.numpy(),
            "token": token_text(tokenizer, chosen.tolist()),
            **{f"probability_{side}": values.numpy() for side, values in sides.items()},
        }
    )
    table["difference"] = table["probability_after"] - table["probability_before"]
    table.attrs = described(
        "next_tokens", network,
        gains=[[int(b), int(h), float(gain)] for (b, h), gain in (gains or {}).items()],
        ids=ids.tolist(), tokens=token_text(tokenizer, ids.tolist()),
        **_losses(before, ids, "before"), **_losses(after, ids, "after"),
        kl=float((before[-1].exp() * (before[-1] - after[-1])).sum()),
    )  # fmt: skip
    return table


def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[None].to(input_device(model)), use_cache=False).logits[0]
    return logits.cpu().double().log_softmax(-1)


def _either(before: torch.Tensor, after: torch.Tensor, top: int) -> torch.Tensor:
    """Tokens in the first `top` of either, by their probability before."""
    count = min(top, before.numel())
    both = torch.cat([before.topk(count).indices, after.topk(count).indices]).unique()
    return both[before[both].argsort(descending=True, stable=True)]


def _losses(logs: torch.Tensor, ids: torch.Tensor, side: str) -> dict[str, Any]:
    losses = -logs[:-1].gather(1, ids[1:, None])[:, 0]
    return {f"losses_{side}": losses.tolist(), f"loss_{side}": float(losses.mean())}
