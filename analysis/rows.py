"""Rows: documents as they were found, before any tokenizer, and how records of columns become rows.

What cannot be read as what it is, is refused by name; a null row is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from kernels.errors import DataError

TASK = ("prompt", "answer", "foil")
KNOWN = ("id", "text", *TASK, "messages", "input_ids", "attention_mask")


class NotText(DataError):
    """A file or table that holds no text that could be read: in a folder it is passed over."""


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def ids_hash(ids: torch.Tensor) -> str:
    """SHA-256 of token ids [T], in hex."""
    return text_hash(" ".join(map(str, ids.tolist())))


@dataclass(frozen=True)
class Row:
    """A document as it was found: `text`, or `task` (prompt, answer, foil), or `ids`.

    With `messages`, a conversation as dicts of role and content, the task's prompt is empty until
    a chat template has written it.
    """

    id: str
    text: str | None = None
    task: tuple[str, str, str | None] | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, str], ...] | None = None

    @cached_property
    def sha256(self) -> str:
        if self.ids is not None:
            return ids_hash(torch.tensor(self.ids))
        whole = self.task if self.messages is None else [self.messages, self.task]
        content = self.text if self.task is None else json.dumps(whole, ensure_ascii=False)
        try:
            return text_hash(content or "")
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {self.id!r} is no valid Unicode text ({error.reason}); "
                "write it anew as UTF-8"
            ) from error


@dataclass(frozen=True)
class Dropped:
    """What was left out: how many, what they are (one, and several), and the first by name."""

    count: int
    one: str
    many: str
    first: str

    def __str__(self) -> str:
        what = self.one if self.count == 1 else self.many
        return f"{self.count:,} {what} (the first: {self.first})"


@dataclass(frozen=True)
class Record:
    """A row of a table: its values by column, and where it stands, for ids and for messages."""

    id: str
    where: str
    values: Mapping[str, Any]


@dataclass
class Found:
    """What was read of a source so far.

    Attributes:
        text_column: the column that was asked for.
        rows: its documents.
        nulls: where a row is null.
        blank: where a streamed row is empty.
        passed: files that were passed over, with the reason.
        taken: columns that were taken for want of a "text", and of what.
        tables: how many tables were read.
    """

    text_column: str | None = None
    rows: list[Row] = field(default_factory=list)
    nulls: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    tables: int = 0

    @property
    def dropped(self) -> list[Dropped]:
        """What was left out, by kind."""
        kinds = (
            (self.nulls, "row is null", "rows are null"),
            (self.blank, "row is empty", "rows are empty"),
            (self.passed, "file is no text that can be read", "files are no text that can be read"),
        )
        return [Dropped(len(k), one, many, k[0]) for k, one, many in kinds if k]

    @property
    def notes(self) -> list[str]:
        """What was decided while reading, a line each."""
        return [
            f'{where} has no column "text"; its only column of text, {column!r}, was read'
            for column, where in self.taken.items()
        ]

    def column_of(
        self, name: str, columns: Sequence[str], of_text: Callable[[], list[str]]
    ) -> str | None:
        """A table's column of text; None where other known columns make the documents.

        of_text: the columns that hold text alone, asked for only where no known column says what
        the table is.
        """
        self.tables += 1
        has = ", ".join(columns) or "none"
        check_names(name, columns)
        if self.text_column is not None:
            if self.text_column not in columns:
                raise NotText(f"{name} has no column {self.text_column!r}; it has {has}")
            return self.text_column
        if "text" in columns:
            return "text"
        if {"prompt", "answer"} <= set(columns) or {"messages", "input_ids"} & set(columns):
            return None
        found = [column for column in of_text() if column not in KNOWN]
        if len(found) > 1:
            raise NotText(
                f'{name} has no column "text", and {len(found)} others hold text '
                f"({', '.join(found)}); say which is meant: text_column= (--text-column)"
            )
        if not found:
            raise NotText(
                f'{name} has no column "text", and no "prompt" with "answer"; it has {has}'
            )
        self.taken.setdefault(found[0], name)
        return found[0]

    def wanted(self, columns: Sequence[str], column: str | None) -> list[str]:
        """The columns that are read, where `column` is that of text."""
        asked = self.text_column is not None
        return [c for c in columns if c in (column, "id") or (c in KNOWN and not asked)]

    def add(self, record: Record, column: str | None) -> None:
        """One row of a table; counted only where it is null."""
        self.add_row(row_of(record, column, asked=self.text_column is not None), record.where)

    def add_row(self, row: Row | None, where: str) -> None:
        if row is None:
            self.nulls.append(where)
        else:
            self.rows.append(row)

    def check(self, name: str) -> None:
        """Raises DataError where a column was asked for and there was no table to have one."""
        if self.text_column is not None and not self.tables:
            raise DataError(
                f"text_column is {self.text_column!r}, and {name} has no columns; leave it out"
            )
        if not self.rows and self.nulls:
            raise DataError(f"{name} has no documents: all of its {len(self.nulls)} rows are null")


def check_names(name: str, columns: Sequence[str]) -> None:
    """Raises DataError where a table has two columns of one name."""
    twice = sorted(column for column, count in Counter(columns).items() if count > 1)
    if twice:
        raise DataError(
            f"{name} has more than one column {', '.join(map(repr, twice))}; give each its own name"
        )


# ---------------------------------------------------------------- one record


def row_of(record: Record, column: str | None, asked: bool = False) -> Row | None:
    """The row of a record, None where it is null.

    column: the column of text; asked: whether no other may make the document.
    """
    values, where = record.values, record.where
    name = record.id if is_null(values.get("id")) else str(values["id"])
    if column is not None and not is_null(values.get(column)):
        return Row(name, text=_string(values, column, where))
    there = set() if asked else set(values)
    if {"prompt", "answer"} <= there and not is_null(values["prompt"]):
        if is_null(values["answer"]):
            return None
        return Row(name, task=(_string(values, "prompt", where), *_answer(values, where)))
    if "messages" in there and not is_null(values["messages"]):
        return _conversation(values, where, name)
    if "input_ids" in there and not is_null(values["input_ids"]):
        return Row(name, ids=_unpadded(values["input_ids"], values.get("attention_mask"), where))
    if {"prompt", "answer"} <= there or there & {"messages", "input_ids"} or column in values:
        return None
    has = ", ".join(sorted(map(str, values))) or "nothing"
    raise DataError(
        f'{where} has no "{column or "text"}", and no "prompt" with "answer"; it has {has}'
    )


def is_null(value: Any) -> bool:
    """None, NaN, or pandas' own nulls."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Real) and bool(value != value)


def _answer(values: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    foil = None if is_null(values.get("foil")) else _string(values, "foil", where)
    return _string(values, "answer", where), foil


def _string(values: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(values[key], str):
        raise DataError(f'{where}: "{key}" must be text, it is a {type(values[key]).__name__}')
    return str(values[key])


def _conversation(values: Mapping[str, Any], where: str, name: str) -> Row:
    """Messages before an answer: that of "answer", or what the assistant says last."""
    given = values["messages"]
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, (list, tuple)) or not given:
        raise DataError(f'{where}: "messages" must be a list of messages, each of role and content')
    messages: list[dict[str, str]] = []
    for message in given:
        pair = {key: message.get(key) for key in ("role", "content")} if _is_dict(message) else {}
        if not pair or not all(isinstance(part, str) for part in pair.values()):
            raise DataError(
                f'{where}: a message must have a "role" and a "content", both text; '
                f"got {' '.join(reprlib.repr(message).split())}"
            )
        messages.append(pair)
    if not is_null(values.get("answer")):
        answer, foil = _answer(values, where)
    elif messages[-1]["role"] == "assistant" and len(messages) > 1:
        answer = messages.pop()["content"]
        foil = _answer({**values, "answer": answer}, where)[1]
    else:
        raise DataError(
            f"{where}: its messages end with the role {messages[-1]['role']!r} and there is no "
            '"answer"; end them with what the assistant says, or give an "answer"'
        )
    return Row(name, task=("", answer, foil), messages=tuple(messages))


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


# ---------------------------------------------------------------- token ids


def ids_of(entry: Any, where: str) -> tuple[int, ...]:
    """Token ids of a list, a tensor or an array."""
    if hasattr(entry, "tolist"):
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        raise DataError(
            f"{where} is of type {type(entry).__name__}; give a list of texts or a list of "
            "token-id lists (one document is a list of one)"
        )
    for one in entry:
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            shown = " ".join(reprlib.repr(one).split())
            raise DataError(f"{where} holds {shown}, which is no token id; give whole numbers")
    return tuple(int(i) for i in entry)


def _unpadded(ids: Any, mask: Any, where: str) -> tuple[int, ...]:
    """The ids without padding, where an attention mask says which they are."""
    found = ids_of(ids, f'{where}: "input_ids"')
    if is_null(mask):
        return found
    kept = ids_of(mask, f'{where}: "attention_mask"')
    real = [place for place, one in enumerate(kept) if one == 1]
    whole = not real or real == list(range(real[0], real[-1] + 1))
    if len(kept) != len(found) or set(kept) - {0, 1} or not whole:
        raise DataError(
            f'{where}: "attention_mask" must be ones beside padding at an end, one a token; '
            f"it has {len(kept)} for {len(found)} tokens, {len(real)} of them ones"
        )
    return tuple(found[place] for place in real)
