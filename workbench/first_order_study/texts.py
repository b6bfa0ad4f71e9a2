"""Documents of like length: the prose of Python's own reference, or a model's own held-out text."""

from __future__ import annotations

import pydoc_data.topics
from typing import Any

from analysis.documents import Documents, documents
from kernels.errors import DataError


def evenly(model: Any, source: str, count: int, tokens: int, context: int) -> Documents:
    """The first `tokens` of so many documents, spread evenly over those that hold as many.

    source: "topics", Python's reference; or what `analysis.documents` takes. Every text is a
    document of its own, so that documents are what intervals speak of.

    Raises DataError where too few are as long.
    """
    topics = sorted(pydoc_data.topics.topics.items())
    data: Any = [{"id": name, "text": text} for name, text in topics]
    whole = documents(data if source == "topics" else source, model=model, context=context)
    long = [item for item in whole if len(item.ids) >= tokens]
    if not 1 <= count <= len(long):
        raise DataError(
            f"documents is {count}; it must be between 1 and {len(long)}, those of {source!r} that "
            f"hold {tokens} tokens"
        )
    chosen = [long[at * len(long) // count] for at in range(count)]
    rows = [{"id": item.id, "input_ids": item.ids[:tokens].tolist()} for item in chosen]
    return documents(rows, model=model, context=context)
