"""Texts for a real model: the prose of Python's own reference, which every Python brings."""

from __future__ import annotations

import pydoc_data.topics
from typing import Any

from analysis.documents import Documents, documents
from kernels.errors import DataError


def reference_windows(model: Any, windows: int = 24, context: int = 128) -> Documents:
    """The first `context` tokens of so many topics, spread over their alphabet.

    Each is a document of its own, so that documents are what intervals speak of.

    Raises DataError where too few topics are as long.
    """
    texts = [{"id": name, "text": text} for name, text in sorted(pydoc_data.topics.topics.items())]
    whole = documents(texts, model=model, context=context)
    long = [item for item in whole if len(item.ids) >= context]
    if not 1 <= windows <= len(long):
        raise DataError(
            f"windows is {windows}; it must be between 1 and {len(long)}, the topics of Python's "
            f"reference that hold {context} tokens"
        )
    chosen = [long[at * len(long) // windows] for at in range(windows)]
    rows = [{"id": item.id, "input_ids": item.ids[:context].tolist()} for item in chosen]
    return documents(rows, model=model, context=context)
