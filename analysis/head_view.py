"""What one head does on one text: where it looks, what it writes, and for which tokens that speaks.

Shape letters: T tokens, D head size, d hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from analysis.direct import as_logits, final_scale, written
from analysis.documents import documents
from analysis.memory.places import described
from analysis.memory.text import token_text
from analysis.roles.watch import Sight, watch
from analysis.subject import loaded
from kernels.errors import HeadError
from midus_model import HeadSite, head_sites, input_device
from midus_model.config import is_whole

LONGEST = 256  # tokens shown: a pattern of more is no picture, and a row of it no table cell
TOP = 5  # tokens named each way
METHOD = (
    "pattern: softmax attention weights; logits: direct effect of what the head writes, through "
    "the final norm at its clean scale and the unembedding, later blocks not counted"
)


@torch.no_grad()
def head_view(model: Any, text: Any, layer: int, head: int) -> pd.DataFrame:
    """What one head of a base or up-scaled model does at every token of a text.

    A memory head's pattern is that of the attention in its own block, which makes its query, and
    what it writes is what it reads from the bank.

    Args:
        model: what `midus_model.load` takes; where None, "pico".
        text: a string, or token ids, of two tokens at least (a start token counts). Its first 256
            tokens are shown, or as many as the model holds if these are fewer; what comes later
            changes nothing there.
        layer, head: the head, as `midus_model.head_sites` numbers it.

    Returns:
        A row a token: position, token_id, token (None without a tokenizer); `pattern`, the
        attention to positions 0 to its own, a list of position + 1 weights; `looks_at`, the
        position with most of it, and its `weight`; `entropy` of the pattern, in nats; `norm` of
        what the head writes into the stream; `promotes` and `suppresses`, the 5 tokens whose logits
        that raises and lowers the most, as text, with `promotes_ids` and `suppresses_ids`, and by
        how much, `raises` and `lowers`, in logits; `next`, what it adds to the logit of the token
        that comes next less the mean over the vocabulary, NaN at the last. Effects are direct:
        through the final norm at its clean scale and the unembedding (the logit lens). `.attrs`:
        model, layer, kind, head, source_layer, ids, tokens, `cut` (how many tokens of the text are
        not shown), method.

    Raises:
        HeadError: where the model has no such head.
        DataError: for a text that is empty or too short.
        UnsupportedArchitecture: where the model's attention gives no pattern.

    >>> head_view("pico", "import os\\nimport ", 3, 1)  # doctest: +SKIP
    """
    network: Any = loaded(model)
    site, place = _site(network, layer, head)
    texts = documents([text], model=network)
    whole = texts[0].ids
    ids = whole[: min(LONGEST, network.config.max_position_embeddings)]
    seen = _look(network, ids, site, place)
    known = token_text(texts.tokenizer, ids.tolist())
    columns = {"position": range(len(ids)), "token_id": ids.tolist(), "token": known}
    effects = _named(_effects(network, seen, site, ids), texts.tokenizer)
    table = pd.DataFrame(columns | _attention(seen.pattern) | effects)
    table.attrs = described(
        "head_view", network,
        layer=site.layer, kind=site.kind, head=site.head, source_layer=site.source_layer,
        ids=ids.tolist(), tokens=known, cut=len(whole) - len(ids), method=METHOD,
    )  # fmt: skip
    return table


@dataclass(frozen=True)
class _Seen:
    """A head's pattern [T, T], its output [T, D], and the stream before the final norm [T, d]."""

    pattern: torch.Tensor
    output: torch.Tensor
    stream: torch.Tensor


def _site(model: Any, layer: Any, head: Any) -> tuple[HeadSite, int]:
    """The head, and its place among those that its block attends with."""
    here = [site for site in head_sites(model) if site.layer == layer]
    found = [place for place, site in enumerate(here) if site.head == head]
    if found and is_whole(layer) and is_whole(head):
        return here[found[0]], found[0]
    has = ", ".join(str(site.head) for site in here)
    last = max(site.layer for site in head_sites(model))
    what = f"block {layer} has heads {has}" if here else f"the model has blocks 0 to {last}"
    raise HeadError(f"there is no head {head!r} in block {layer!r}; {what}")


def _look(model: Any, ids: torch.Tensor, site: HeadSite, place: int) -> _Seen:
    """One pass over ids [T]; of the other heads nothing is kept."""
    kept: list[torch.Tensor] = []

    def see(sight: Sight) -> None:
        if sight.layer == site.layer:
            output = sight.outputs[0, :, site.start : site.stop]
            kept.extend((sight.patterns[0, place].clone(), output.clone()))

    stream, _ = watch(model, ids[None].to(input_device(model)), see)
    return _Seen(*(part.to(_wide(part)) for part in (*kept, stream[0])))


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _attention(pattern: torch.Tensor) -> dict[str, Any]:
    """The columns of where the head looks, of its pattern [T, T]."""
    weight, looks_at = pattern.max(-1)
    return {
        "pattern": [row[: at + 1].tolist() for at, row in enumerate(pattern.cpu())],
        "looks_at": looks_at.tolist(),
        "weight": weight.tolist(),
        "entropy": torch.special.entr(pattern).sum(-1).tolist(),
    }


def _effects(model: Any, seen: _Seen, site: HeadSite, ids: torch.Tensor) -> dict[str, Any]:
    """The columns of what the head writes, tokens as ids."""
    added = written(model, site, seen.output)  # [T, d]
    logits = as_logits(model, added, final_scale(model, seen.stream))  # [T, V]
    most = min(TOP, logits.shape[-1])
    raised, lowered = logits.topk(most), logits.topk(most, largest=False)
    coming = logits[:-1].gather(1, ids[1:, None].to(logits.device))[:, 0]
    return {
        "norm": added.norm(dim=-1).tolist(),
        "promotes_ids": raised.indices.tolist(),
        "raises": raised.values.tolist(),
        "suppresses_ids": lowered.indices.tolist(),
        "lowers": lowered.values.tolist(),
        "next": [*(coming - logits[:-1].mean(-1)).tolist(), float("nan")],
    }


def _named(effects: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The same columns with the tokens as text beside their ids."""
    texts = {
        name: [token_text(tokenizer, row) for row in effects[f"{name}_ids"]]
        for name in ("promotes", "suppresses")
    }
    return effects | texts
