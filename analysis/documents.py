"""The one reader of data: whatever a user has becomes documents, cut into windows of the context.

Windows overlap by one token, so that every token of a document but its first is predicted exactly
once. The document is the unit of every interval; of a single one the window is, by name.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from analysis.containers import has_splits
from analysis.overview import overview
from analysis.reader import MAX_CONTEXT, Reader, Reading, whole_number
from analysis.sources import Dropped, ids_hash, is_hub, rows_of, sample, text_hash
from analysis.tokens import BOS
from analysis.windows import Document, Window, spans, window_of
from kernels.errors import DataError

__all__ = ["MAX_CONTEXT", "Document", "Documents", "Window", "documents"]


class Documents:
    """Documents with their windows; `len`, indexing and iteration go over `items`.

    `reading`: how texts became ids; `dropped`: what of the data was left out; `notes`: what else to
    know, a line each. All three are printed with the first tokens: `print(documents)`.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Document],
        context: int,
        tokenizer: Any = None,
        *,
        reading: Reading | None = None,
        dropped: Sequence[Dropped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        if not items:
            raise DataError(f"{name} has no documents; give at least one text of two tokens")
        self.name = name
        self.items = list(items)
        self.context = whole_number(context, "context", at_least=2)
        self.tokenizer = tokenizer
        self.reading = reading or Reading()
        self.dropped, self.notes = list(dropped), list(notes)
        if self.context < len(self._again) + 2:
            raise DataError(
                f'context {context} holds no text beside the start token of bos="every"; give at '
                f"least {len(self._again) + 2}"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Document:
        return self.items[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self.items)

    def __repr__(self) -> str:
        left_out = sum(dropped.count for dropped in self.dropped)
        return (
            f"Documents({self.name!r}, documents={len(self)}, scored_tokens={self.tokens}, "
            f"context={self.context}, bos={self.bos!r}{f', left_out={left_out}' * bool(left_out)})"
        )

    def __str__(self) -> str:
        return "\n".join(overview(self))

    @property
    def bos(self) -> str:
        """Which windows begin with a start token: "first", "every" or "none"."""
        return self.reading.bos

    @property
    def _again(self) -> tuple[int, ...]:
        """The start tokens of every window but a document's first."""
        return self.reading.start if self.bos == "every" else ()

    def spans(self, item: Document) -> list[tuple[int, int]]:
        """First and last token (exclusive) of each window of a document."""
        return spans(item, self.context, len(self._again))

    @cached_property
    def tokens(self) -> int:
        """Scored tokens in all."""
        return sum(item.tokens for item in self.items)

    @cached_property
    def sha256(self) -> str:
        """Hash of the documents' hashes, in order. Says nothing of the tokenizer or context."""
        return text_hash("\n".join(item.sha256 for item in self.items))

    @property
    def unit(self) -> str:
        """What intervals are over: "document", or "window" of a single document."""
        return "document" if len(self) > 1 else "window"

    @cached_property
    def windows(self) -> list[Window]:
        """Every window that holds a scored token, in order."""
        by_document = self.unit == "document"
        if not by_document:
            warnings.warn(
                f"{self.name}: one document, so intervals are over its windows, which are alike; "
                "they say nothing of another document",
                stacklevel=2,
            )
        windows: list[Window] = []
        for number, item in enumerate(self.items):
            for span in self.spans(item):
                unit = number if by_document else len(windows)
                windows.append(window_of(item, number, unit, span, self._again))
        return windows

    @cached_property
    def units(self) -> list[dict[str, Any]]:
        """What intervals are over, a dict each: id, tokens (scored) and sha256."""
        if self.unit == "document":
            return [
                {"id": item.id, "tokens": item.tokens, "sha256": item.sha256} for item in self.items
            ]
        return [
            {
                "id": f"{self.items[window.document].id}@{window.start}",
                "tokens": int(window.scored.sum()),
                "sha256": ids_hash(window.ids),
            }
            for window in self.windows
        ]

    def subset(self, indices: Iterable[int], name: str | None = None) -> Documents:
        """The documents at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        outside = [index for index in chosen if not 0 <= index < len(self)]
        if outside:
            raise DataError(
                f"{self.name} has documents 0 to {len(self) - 1}; there is no {outside[0]}"
            )
        name = name or f"{self.name} ({len(chosen)} of {len(self)} documents)"
        return self.with_items([self.items[i] for i in chosen], name)

    def with_context(self, context: int) -> Documents:
        """The same documents in windows of another size."""
        return self._like(self.name, self.items, context)

    def with_items(self, items: Sequence[Document], name: str) -> Documents:
        """Other documents that were read as these were, under a name of their own."""
        return self._like(name, items, self.context)

    def _like(self, name: str, items: Sequence[Document], context: int) -> Documents:
        return Documents(
            name, items, context, self.tokenizer,
            reading=self.reading, dropped=self.dropped, notes=self.notes,
        )  # fmt: skip

    def halves(self, seed: int = 0) -> tuple[Documents, Documents]:
        """Two halves by whole documents drawn at random, each in the original order."""
        if len(self) < 2:
            raise DataError(f"{self.name} has one document and cannot be halved; give two or more")
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        middle = len(order) // 2
        first, second = sorted(order[:middle]), sorted(order[middle:])
        return (
            self.subset(first, f"{self.name}, half 1 of 2 (seed {seed})"),
            self.subset(second, f"{self.name}, half 2 of 2 (seed {seed})"),
        )


# ---------------------------------------------------------------- the reader


def documents(
    data: Any = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    context: int | None = None,
    limit: int | None = None,
    split: str | None = None,
    text_column: str | None = None,
    chat: bool = False,
    bos: str = "first",
) -> Documents:
    """Turn any data into documents for a model.

    Args:
        data: None or "heldout" (pico's held-out files of the standard library); "stdlib" (the
            running interpreter's standard library without those); "packages" (the source of the
            installed pandas, sympy and networkx); a path to a text or source file, to a table
            (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), to one of these as .gz, or to a folder
            of such files; a list of texts, of rows as dicts, or of token-id lists; a table: a
            DataFrame, a `datasets.Dataset` or one split of a `DatasetDict`, a pyarrow Table, a
            dict of columns; a tokenizer's `BatchEncoding`; Documents, passed through; "hf:NAME"
            or "hf:NAME:CONFIG", a Hugging Face dataset. A table's documents are its "text", or
            "prompt" and "answer" (and "foil"), or "messages", or "input_ids" (padding that
            "attention_mask" tells of is left out), or its only column of text. What is none of
            these is refused by name, never read as something else; null rows are left out. Files
            are read; none is executed or imported.
        model: a loaded model, a name or a directory; "pico" when neither it nor a tokenizer is
            given. It sets the tokenizer, the largest context and the vocabulary.
        tokenizer: a tokenizer or the name of one; by default the model's.
        context: tokens a window; by default the model's, at most 1,024.
        limit: at most that many documents: those whose hash of id and content is lowest, a fair
            sample that does not depend on the source's order and that a larger limit only adds
            to. Their order stays the source's.
        split: "train" or "test": whole documents by the hash of their id, one in ten for test.
            A training file of "packages" that shares 8 consecutive non-blank lines with a test
            file is dropped. For "hf:" data it names the dataset's own split (default: test,
            validation or train, the first that there is).

        text_column: the table's column that holds the texts.
        chat: the tokenizer's chat template writes each prompt, as a user's message or from
            "messages", and the answer follows it.
        bos: which windows begin with the tokenizer's start token: "first", the first of each
            document, where the tokenizer adds one; "every" window, so that each sees one less
            token of text; "none".

    A task is scored on its answer alone. Prompt and answer are tokenized together, as
    `tokenizer(prompt + answer)` does, and the first token that reaches into the answer is its
    first; where that begins in the prompt, a warning shows both tokenizations. An end token that
    the tokenizer appends is taken off, and no text gets two start tokens. Documents with nothing
    to predict are left out with a warning. `print` shows what was read.

    Raises DataError, one line, when the data cannot be used.

        analysis.documents(["def f(x):\\n    return x"], model="pico")
    """
    if limit is not None:
        limit = whole_number(limit, "limit", at_least=1)
    if bos not in BOS:
        raise DataError(f"bos must be one of {', '.join(BOS)}; got {bos!r}")
    if isinstance(data, Documents):
        _check_read(data, split, text_column, chat, bos)
        return _pass_through(data, model, tokenizer, context, limit)
    if split not in (None, "train", "test") and not is_hub(data) and not has_splits(data):
        raise DataError(f'split must be "train", "test" or None; got {split!r}')
    reader = Reader(model, tokenizer, bos, chat)
    name, found = rows_of(data, limit, split, text_column)
    rows = found.rows
    if limit is not None:
        rows = sample(rows, limit, lambda row: row.sha256)
    items = reader.read(name, rows)
    dropped, notes = found.dropped + reader.dropped, found.notes + reader.notes
    for line in [*notes, *(f"{left_out} left out" for left_out in dropped)]:
        warnings.warn(f"{name}: {line}", stacklevel=2)
    return Documents(
        name, items, reader.context(context), reader.tokenizer_if_any,
        reading=reader.reading, dropped=dropped, notes=notes,
    )  # fmt: skip


def _check_read(
    data: Documents, split: str | None, text_column: str | None, chat: bool, bos: str
) -> None:
    """Raises DataError for what applies where data is read, which these documents are already."""
    given = {
        "split": split is not None,
        "text_column": text_column is not None,
        "chat": chat and not data.reading.chat,
        "bos": bos not in ("first", data.bos),
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise DataError(f"{name} applies where data is read; these documents are read already")


def _pass_through(
    data: Documents, model: Any, tokenizer: Any, context: int | None, limit: int | None
) -> Documents:
    if limit is not None and limit < len(data):
        chosen = sample(list(enumerate(data)), limit, lambda p: p[1].sha256, lambda p: p[1].id)
        data = data.subset(index for index, _ in chosen)
    wanted = data.context if context is None else context
    if model is not None:
        reader = Reader(model, tokenizer)
        reader.check_vocabulary(data.items)
        wanted = reader.context(wanted)
    return data if wanted == data.context else data.with_context(wanted)
