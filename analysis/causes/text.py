"""What a model says of one text with a part of its memory switched: the next token, and the rest.

The part is named as in `scaled_memory`. Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.causes.switches import scaled_memory
from analysis.memory.places import DEFAULT_MODEL, at_least_one, described, memories_of
from analysis.memory.text import opened_text, token_text
from analysis.subject import loaded
from analysis.tokens import decoded


def token_effects(
    model: Any,
    text: Any,
    *,
    block: int | None = None,
    head: int | None = None,
    slot: int | None = None,
    gain: float = 0.0,
    top: int = 10,
) -> pd.DataFrame:
    """The next tokens after a text that a part of memory raises or lowers the most.

    Args:
        model: what `midus_model.load` takes; where None, "pico-midus".
        text: a string, or token ids, of two tokens at least (a start token counts).
        block, head, slot, gain: what is scaled, at every position; see `scaled_memory`.
        top: tokens each way.

    Returns:
        A row a token, from the most raised to the most lowered by the switch: token_id, token
        (None without a tokenizer); before, after and their `difference`, logits at the text's last
        position; probability_before, probability_after. Of raised and lowered tokens at most `top`
        each; none where the logit stays the same. Logits are ordered as they stand: what raises all
        alike shows in them, and not in the probabilities. `.attrs["kl"]`: of the prediction before
        from that after, in nats.

    Raises:
        DataError: for a text too long for the model, or too short.
        MidusError: for a part that the model does not have, or arguments that cannot be used.

    >>> token_effects("pico-midus", "import os\\nimport ", block=2)  # doctest: +SKIP
    """
    top = at_least_one("top", top)
    network, ids, tokenizer = _opened(model, text, new=0)
    part = {"block": block, "head": head, "slot": slot}
    before, after = (_next_logits(network, ids, **part, gain=at) for at in (1.0, gain))
    difference = after - before  # [V]
    order = difference.argsort(descending=True, stable=True)
    raised = order[difference[order] > 0][:top]
    lowered = order[difference[order] < 0][-top:]
    chosen = torch.cat([raised, lowered])
    logs = before.log_softmax(-1), after.log_softmax(-1)
    table = pd.DataFrame(
        {
            "token_id": chosen.numpy(),
            "token": token_text(tokenizer, chosen.tolist()),
            "before": before[chosen].numpy(),
            "after": after[chosen].numpy(),
            "difference": difference[chosen].numpy(),
            "probability_before": logs[0].exp()[chosen].numpy(),
            "probability_after": logs[1].exp()[chosen].numpy(),
        }
    )
    kl = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    more: dict[str, Any] = {"ids": ids.tolist(), **part, "gain": float(gain), "kl": kl}
    table.attrs = described("token_effects", network, **more)
    return table


def generation_effects(
    model: Any,
    prompt: Any,
    *,
    block: int | None = None,
    head: int | None = None,
    slot: int | None = None,
    gain: float = 0.0,
    max_new_tokens: int = 32,
) -> pd.DataFrame:
    """How the model goes on after a prompt, greedily, with and without a part of its memory.

    Args:
        model, block, head, slot, gain: as `token_effects` takes them. The part is scaled at the
            prompt's positions too.
        prompt: a string, or token ids, of two tokens at least (a start token counts).
        max_new_tokens: both end there, or at the model's end token.

    Returns:
        A row a new token: step (from 0), before_id and before (id and text), after_id and after,
        same; what one that has ended does not have is missing. `.attrs`: `before` and `after`, the
        new texts (None without a tokenizer); `parts_at`, the first step that differs, or None.

    Raises:
        DataError: for a prompt that is too short, or with the new tokens too long for the model.
        MidusError: for a part that the model does not have, or arguments that cannot be used.

    >>> generation_effects("pico-midus", "def main(", block=2).attrs["after"]  # doctest: +SKIP
    """
    new = at_least_one("max_new_tokens", max_new_tokens)
    network, ids, tokenizer = _opened(model, prompt, new)
    part = {"block": block, "head": head, "slot": slot}
    made = {"before": _greedy(network, ids, new, **part, gain=1.0)}
    made["after"] = _greedy(network, ids, new, **part, gain=gain)
    columns: dict[str, Any] = {"step": range(max(map(len, made.values())))}
    for name, tokens in made.items():
        columns[f"{name}_id"] = pd.Series(tokens, dtype="Int64")
        columns[name] = pd.Series(token_text(tokenizer, tokens))
    table = pd.DataFrame(columns)
    table = table.assign(same=(table["before_id"] == table["after_id"]).fillna(False).astype(bool))
    texts = {
        name: None if tokenizer is None else decoded(tokenizer, tokens)
        for name, tokens in made.items()
    }
    parted = np.flatnonzero(~table["same"])
    more: dict[str, Any] = {"ids": ids.tolist(), **part, "gain": float(gain), **texts}
    more["parts_at"] = int(parted[0]) if len(parted) else None
    table.attrs = described("generation_effects", network, **more)
    return table


def _opened(model: Any, text: Any, new: int) -> tuple[Any, torch.Tensor, Any]:
    """The model, the text's token ids [T], and the tokenizer or None."""
    network: Any = loaded(DEFAULT_MODEL if model is None else model)
    memories_of(network)  # refuses a model without
    return network, *opened_text(network, text, new)


@torch.no_grad()
def _next_logits(model: Any, ids: torch.Tensor, **part: Any) -> torch.Tensor:
    """Logits after the last token, [V], on the CPU in fp32 at least."""
    # With gain 1 too, so that both passes take the same way through memory, and round alike.
    with scaled_memory(model, **part):
        logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu()


@torch.no_grad()
def _greedy(model: Any, ids: torch.Tensor, new: int, **part: Any) -> list[int]:
    """The most likely token, again and again: at most `new`, or up to an end token."""
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    made: list[int] = []
    cache, fed = None, ids[None]
    with scaled_memory(model, **part):
        while len(made) < new and not ends & set(made[-1:]):
            out = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            made.append(int(out.logits[0, -1].argmax()))
            cache, fed = out.past_key_values, ids.new_tensor([made[-1:]])
    return made
