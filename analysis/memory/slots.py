"""What is in a slot's value and key: the tokens it speaks for, and the slots that are like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from analysis.memory.places import at_least_one, described, memory_at, opened, slot_of
from analysis.memory.text import token_text, tokenizer_of
from analysis.subject import check_choice
from kernels.errors import HeadError, MidusError
from midus_model.maps import weight_of
from midus_model.memory import HeadwiseMemory
from midus_model.placement import at_hand, in_float64

NEARNESS = {"value": "cosine", "key": "distance"}  # by -> the column that is sorted on


@torch.no_grad()
def slot_tokens(
    model: Any, block: int, slot: int, head: int | None = None, top: int = 10
) -> pd.DataFrame:
    """The tokens that a slot's value promotes and suppresses, as each head realises it.

    A logit lens (nostalgebraist 2020): the value goes through the head's projection to its place
    in the stream (through `out_proj` with linear mixing), from there past all later blocks through
    the final norm's weights to `lm_head`. An approximation: later blocks are left out, and the
    norm's scale is taken for 1, so logits compare within a head, not between models.

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model.
        block, slot, head: by default the slot as every head of the block realises it.
        top: tokens in each direction.

    Returns:
        A row a (head, direction, rank): block, slot, head, direction ("promotes" or "suppresses"),
        rank (1 = the strongest), token_id, token (None without a tokenizer) and logit, read at
        weight 1, less its mean over the vocabulary, which no prediction depends on. A slot whose
        value is zero, as in a model fresh from up-scaling, speaks for no token: no rows.

    Raises HeadError where there is no memory at block or (block, head), MidusError for a slot that
    the bank does not have.

    >>> slot_tokens("pico-midus", 2, 17, head=0, top=5)  # doctest: +SKIP
    """
    top, network = at_least_one("top", top), opened(model)
    memory = memory_at(network, block, head)
    slot = slot_of(memory, slot)
    heads = memory.heads if head is None else [int(head)]
    written = _written(memory, slot)[[memory.heads.index(h) for h in heads]]  # [heads, d]
    states, tokens = written * weight_of(network.model.norm).to(written), weight_of(network.lm_head)
    found = F.linear(states.to(tokens), tokens).cpu().double()
    logits = (found - found.mean(-1, keepdim=True)).numpy()  # [heads, V]
    rows = []
    for row, one in zip(logits, heads, strict=True):
        for direction, sign in (("promotes", 1), ("suppresses", -1)):
            order = np.argsort(-sign * row, kind="stable")[:top]
            for rank, token in enumerate(order[sign * row[order] > 0], 1):
                rows.append((int(block), slot, one, direction, rank, int(token), row[token]))
    columns = ["block", "slot", "head", "direction", "rank", "token_id", "logit"]
    table = pd.DataFrame(rows, columns=columns)
    words = token_text(tokenizer_of(model), table["token_id"].tolist())
    table.insert(6, "token", pd.Series(words, dtype=object))
    table.attrs = described("slot_tokens", network)
    return table


def _written(memory: HeadwiseMemory, slot: int) -> torch.Tensor:
    """What each head adds to the stream where it reads the slot with weight 1: [M, d]."""
    with at_hand(memory):
        values = memory.bank[slot] @ memory.projections  # [M, D]
    heads = len(memory.heads)
    apart = values.new_zeros(heads, memory.num_heads, memory.head_dim)
    apart[torch.arange(heads), memory.heads] = values
    stream = apart.flatten(1)  # [M, H*D]
    return stream if memory.out_proj is None else memory.out_proj(stream)


@torch.no_grad()
def nearest_slots(
    model: Any, block: int, slot: int, top: int = 10, by: str = "value", head: int | None = None
) -> pd.DataFrame:
    """The slots most like a slot, by what they hold or by what finds them.

    Args:
        model: a name or directory that `midus_model.load` takes, or a loaded model.
        block, slot: the slot that others are compared with.
        top: slots returned, the nearest first, of equals the lowest number.
        by: "value": cosine of the bank's rows; with `head`, of the rows as that head realises them.
            "key": Euclidean distance of the head's composed keys, (row key, column key).
        head: needed by "key": each head has keys of its own.

    Returns:
        A row a slot: block, slot, rank, nearest (the other slot), its row and col, and cosine or
        distance. The cosine of a value that is zero is 0.

    Raises HeadError where there is no memory at block or (block, head), or "key" is given no head;
    MidusError for a slot that the bank does not have, or whose value is zero.

    >>> nearest_slots("pico-midus", 2, 17, by="key", head=0)  # doctest: +SKIP
    """
    check_choice("by", by, list(NEARNESS))
    top, network = at_least_one("top", top), opened(model)
    memory = memory_at(network, block, head)
    slot = slot_of(memory, slot)
    if by == "key" and head is None:
        raise HeadError(f'by="key" compares one head\'s keys; give head=, one of {memory.heads}')
    index = None if head is None else memory.heads.index(head)
    score = _cosines(memory, slot, index) if by == "value" else _distances(memory, slot, index)
    order = np.argsort(-score if by == "value" else score, kind="stable")
    order = order[order != slot][:top]
    n = memory.row_keys.shape[1]
    table = pd.DataFrame(
        {
            "block": int(block),
            "slot": slot,
            "rank": np.arange(1, len(order) + 1),
            "nearest": order,
            "row": order // n,
            "col": order % n,
            NEARNESS[by]: score[order],
        }
    )
    table.attrs = described(
        "nearest_slots", network, by=by, head=None if head is None else int(head)
    )
    return table


def _cosines(memory: HeadwiseMemory, slot: int, index: int | None) -> np.ndarray:
    """Cosine of every slot's value with that of `slot`: [N]."""
    with at_hand(memory):
        values = in_float64(memory.bank)  # [N, r]
        if index is not None:
            values = values @ in_float64(memory.projections[index])  # [N, D]
    length = values.norm(dim=1)
    if not length[slot] > 0:
        raise MidusError(
            f"the value of slot {slot} is zero, so no other is like it; give a slot of a trained "
            'model, or by="key"'
        )
    products = values @ values[slot] / length[slot]
    return torch.where(length > 0, products / length, 0.0).cpu().numpy()


def _distances(memory: HeadwiseMemory, slot: int, index: int | None) -> np.ndarray:
    """Distance of every slot's composed key from that of `slot`: [N]."""
    n = memory.row_keys.shape[1]
    with at_hand(memory):
        sides = [in_float64(keys[index]) for keys in (memory.row_keys, memory.col_keys)]
    squares = [
        (keys - keys[at]).pow(2).sum(1)  # [n]
        for keys, at in zip(sides, (slot // n, slot % n), strict=True)
    ]
    return (squares[0][:, None] + squares[1]).sqrt().flatten().cpu().numpy()
