"""What was read, as lines to print: counts, the first tokens, what is scored, what was left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.tokens import token_names

if TYPE_CHECKING:
    from analysis.documents import Documents
    from analysis.windows import Document


def overview(docs: Documents, shown: int = 3, tokens: int = 8) -> list[str]:
    """A line a fact; of the first `shown` documents the first `tokens` tokens with their ids.

    A bar stands before the first token that is scored; a task is shown around its answer.
    """
    windows = sum(len(docs.spans(item)) for item in docs)
    lines = [
        f"{docs.name}: {_count(len(docs), 'document')}, {docs.tokens:,} scored tokens, "
        f"{_count(windows, 'window')} of at most {docs.context:,} tokens",
        f"start token: {_start(docs)}",
    ]
    if docs.reading.end:
        lines.append(f"end token: {_words(docs, docs.reading.end)}, appended and taken off again")
    if docs.reading.chat:
        lines.append("prompts: as the chat template writes them")
    for item in docs.items[:shown]:
        lines += _document(docs, item, tokens)
    if len(docs) > shown:
        lines.append(f"and {_count(len(docs) - shown, 'document')} more")
    lines += [f"left out: {dropped}" for dropped in docs.dropped]
    lines += [f"note: {note}" for note in docs.notes]
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _start(docs: Documents) -> str:
    if docs.bos == "none":
        return 'none (bos="none")'
    if not docs.reading.start:
        return "none is added"
    which = "every window" if docs.bos == "every" else "the first window of each document"
    return f'{_words(docs, docs.reading.start)} at the start of {which} (bos="{docs.bos}")'


def _document(docs: Documents, item: Document, most: int) -> list[str]:
    ids, first = item.ids.tolist(), item.scored_from
    begin = max(0, min(first - most // 2, len(ids) - most)) if item.is_task else 0
    end = min(len(ids), begin + most)
    parts = [_words(docs, ids[begin:first]), _words(docs, ids[max(first, begin) : end])]
    before = f"... {begin:,} before, " if begin else ""
    after = f" ... {len(ids) - end:,} more" if end < len(ids) else ""
    head = f"  {item.id} ({_count(len(ids), 'token')}, scored from {first}): "
    lines = [f"{head}{before}{parts[0]} | {parts[1]}{after}"]
    if item.foil is not None:
        foil: list[Any] = item.foil.tolist()
        lines.append(f"    foil: | {_words(docs, foil[:most])}")
    return lines


def _words(docs: Documents, ids: Any) -> str:
    """Tokens with their ids in brackets; the ids alone without a tokenizer."""
    if docs.tokenizer is None:
        return " ".join(map(str, ids))
    return " ".join(f"{n}[{i}]" for n, i in zip(token_names(docs.tokenizer, ids), ids, strict=True))
