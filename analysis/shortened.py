"""Fewer and shorter documents of a set: what fits a time, and what a smaller limit would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from analysis.documents import Document, Documents
from analysis.sources import text_hash


def fair_order(docs: Documents) -> list[int]:
    """Indices of the documents, in the order in which a larger `limit` adds them."""
    hashes = [text_hash(f"{item.id}\n{item.sha256}") for item in docs]
    return sorted(range(len(docs)), key=lambda index: (hashes[index], index))


def lessened(
    docs: Documents,
    limit: int | None = None,
    tokens: int | None = None,
    context: int | None = None,
) -> Documents:
    """The documents that `limit` chooses, the first tokens of each, in windows of `context`.

    Tasks are never cut: their answers stand at the end.
    """
    if limit is not None and limit < len(docs):
        docs = docs.subset(sorted(fair_order(docs)[:limit]))
    if tokens is not None and any(len(item.ids) > tokens for item in docs):
        cut = [_cut(item, tokens) for item in docs]
        name = f"{docs.name} (the first {tokens} tokens of each document)"
        docs = docs.with_items(cut, name)
    if context is not None and context < docs.context:
        docs = docs.with_context(context)
    return docs


def _cut(item: Document, tokens: int) -> Document:
    return item if item.is_task else replace(item, ids=item.ids[:tokens])


def first_tokens(docs: Documents, ends: Mapping[int, int]) -> Documents:
    """The documents that are named, by index, up to so many tokens each."""
    chosen = docs if len(ends) == len(docs) else docs.subset(sorted(ends))
    cut = [_cut(docs[index], end) for index, end in sorted(ends.items())]
    return docs.with_items(cut, chosen.name)


def passes_of(docs: Documents) -> int:
    """Tokens that go through the model where every document is read, overlaps of windows included.

    A task whose prompt is longer than the context counts whole, though its start may not be read.
    """
    step = docs.context - 1
    return sum(len(item.ids) + max(0, len(item.ids) - 2) // step for item in docs)
