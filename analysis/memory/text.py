"""Tokens as text, where there is a tokenizer."""

from __future__ import annotations

from typing import Any

import torch

from analysis.documents import Documents, documents
from analysis.memory.places import read
from analysis.tokens import decoded
from kernels.errors import DataError
from midus_model import input_device

TEXT_COLUMNS = ("before", "token", "after", "text")


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of a model as the user gave it, or None."""
    return read([[0, 0]], model).tokenizer  # the reader of documents knows where it is


def token_text(tokenizer: Any, ids: list[int]) -> list[str | None]:
    """Each token's text; None without a tokenizer."""
    known: dict[int, str | None] = {}
    for one in set(ids):
        known[one] = None if tokenizer is None else decoded(tokenizer, [one])
    return [known[one] for one in ids]


def opened_text(model: Any, text: Any, new: int = 0) -> tuple[torch.Tensor, Any]:
    """The token ids [T] of a string or of ids, on the model's device, and the tokenizer or None.

    Raises DataError where the model's context does not hold them and `new` tokens more.
    """
    texts = documents([text], model=model)
    ids, holds = texts[0].ids, model.config.max_position_embeddings
    if len(ids) + new > holds:
        with_new = f", with {new:,} new ones" if new else ""
        raise DataError(
            f"the text has {len(ids):,} tokens{with_new}; the model holds {holds:,}: give a "
            "shorter text" + (", or fewer new tokens" if new else "")
        )
    return ids.to(input_device(model)), texts.tokenizer


def around(
    docs: Documents, document: int, position: int, start: int, width: int
) -> dict[str, str | None]:
    """The columns of TEXT_COLUMNS for a token: see `memory_contents`; None without a tokenizer.

    `start`: the index in the document that what the model saw begins at.
    """
    if docs.tokenizer is None:
        return dict.fromkeys(TEXT_COLUMNS)
    ids = docs[document].ids
    left, end = max(start, position + 1 - width), position + 1
    before = _decoded(docs, ids[left:position])
    text = _decoded(docs, ids[left:end])
    longer = _decoded(docs, ids[left : end + width // 2])
    # A tokenizer may write a token otherwise at the beginning of a text, so pieces are cut out of
    # the whole.
    token = (
        text.removeprefix(before) if text.startswith(before) else _decoded(docs, ids[position:end])
    )
    after = longer.removeprefix(text) if longer.startswith(text) else ""
    return {"before": before, "token": token, "after": after, "text": text}


def _decoded(docs: Documents, ids: torch.Tensor) -> str:
    return decoded(docs.tokenizer, ids.tolist(), clean_up_tokenization_spaces=False)
