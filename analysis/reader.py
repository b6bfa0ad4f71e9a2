"""Rows as documents of a model's vocabulary: what is tokenized how, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from analysis.rows import Dropped, Row
from analysis.tokens import Encoder, Placed, token_names
from analysis.windows import Document
from kernels.errors import DamagedTokenizer, DataError, MidusError

MAX_CONTEXT = 1024
TOKENIZER_BATCH = 64
SHOWN = 3  # tokens on each side of a boundary that is told of


@dataclass(frozen=True)
class Reading:
    """How texts became ids.

    Attributes:
        bos: which windows begin with a start token: "first", "every" or "none".
        start: the ids that stand for a start.
        end: what the tokenizer appends, which was taken off.
        chat: whether a chat template wrote the prompts.
    """

    bos: str = "first"
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    chat: bool = False


class Reader:
    """Knows a model's context and vocabulary, and its tokenizer, loaded when first needed."""

    def __init__(self, model: Any, tokenizer: Any, bos: str = "first", chat: bool = False) -> None:
        self.model = "pico" if model is None and tokenizer is None else model
        self.given, self.bos, self.chat = tokenizer, bos, chat
        self.dropped: list[Dropped] = []
        self.notes: list[str] = []
        if isinstance(self.model, (str, os.PathLike)):
            self.config = _model_config(self.model)
        else:
            from midus_model.intake import config_of

            self.config = config_of(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        given = self.given if self.given is not None else getattr(self.model, "tokenizer", None)
        if given is not None and not isinstance(given, (str, os.PathLike)):
            if not callable(given):
                raise DataError(
                    f"tokenizer must be a transformers tokenizer or the name of one; "
                    f"got {type(given).__name__}"
                )
            return given
        name = given or self.model
        if not isinstance(name, (str, os.PathLike)):
            name = getattr(self.model, "name_or_path", "")
        if not name:
            raise DataError(
                f"this {type(self.model).__name__} does not say which tokenizer it has; "
                "pass tokenizer=, or token ids as data"
            )
        from midus_model import load_tokenizer

        return load_tokenizer(os.fspath(name))

    @property
    def tokenizer_if_any(self) -> Any:
        """The tokenizer, or None: token ids can be measured without one."""
        try:
            return self.tokenizer
        except DamagedTokenizer:
            raise
        except MidusError:
            return None

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.bos)

    @property
    def reading(self) -> Reading:
        """How the texts were read."""
        if self.bos == "first" and self.tokenizer_if_any is None:
            return Reading()
        before, after = self.encoder.around
        start = before if self.bos == "first" else self.encoder.start
        return Reading(self.bos, tuple(start), tuple(after), self.chat)

    def context(self, asked: int | None) -> int:
        known = getattr(self.config, "max_position_embeddings", None)
        if known is None and self.tokenizer_if_any is not None:
            known = getattr(self.tokenizer, "model_max_length", None)
        if asked is None:
            return min(int(known), MAX_CONTEXT) if known else MAX_CONTEXT
        asked = whole_number(asked, "context", at_least=2)
        if known is not None and asked > known:
            raise DataError(
                f"context {asked} is longer than the model's {known}; give at most that"
            )
        return asked

    def check_vocabulary(self, items: Sequence[Document]) -> None:
        size = getattr(self.config, "vocab_size", None)
        if size is None and self.tokenizer_if_any is not None:
            size = len(self.tokenizer)
        for item in items:
            parts = [item.ids] if item.foil is None else [item.ids, item.foil]
            low = min(int(part.min()) for part in parts)
            high = max(int(part.max()) for part in parts)
            if low < 0 or (size is not None and high >= size):
                allowed = "0 and above" if size is None else f"0 to {size - 1}"
                raise DataError(
                    f"document {item.id!r} has token id {low if low < 0 else high}, the model's "
                    f"are {allowed}; tokenize with the model's own tokenizer"
                )

    # ------------------------------------------------ reading

    def read(self, name: str, rows: Sequence[Row]) -> list[Document]:
        """Rows as documents; what is left out stands in `dropped`, what to know in `notes`."""
        if not rows:
            raise DataError(f"{name} is empty; give at least one text of two tokens")
        if self.chat:
            rows = [self.encoder.conversation(row) for row in rows]
        for row in rows:
            if row.messages is not None:
                raise DataError(
                    f'document {row.id!r} is a conversation ("messages"), which a chat template '
                    "must write: chat=True (--chat)"
                )
        items: list[Document] = []
        self._inside: list[str] = []
        self._apart: list[str] = []
        for start in range(0, len(rows), TOKENIZER_BATCH):
            items += self._tokenized(rows[start : start + TOKENIZER_BATCH])
        kept = [item for item in items if item.tokens >= 1]
        if not kept and not self._apart:
            raise DataError(
                f"{name} is too short: nothing in it is longer than one token, so there is "
                "nothing to predict; give a longer text"
            )
        self._tell(len(rows), [item.id for item in items if item.tokens < 1])
        if not kept:
            raise DataError(f"{name} has no documents left: {self.dropped[-1]}")
        self.check_vocabulary(kept)
        return kept

    def _tell(self, rows: int, short: list[str]) -> None:
        if short:
            end = f"of {rows} documents have nothing to predict (fewer than two tokens)"
            self.dropped.append(Dropped(len(short), end, end, short[0]))
        if self._apart:
            what = "answer and foil that the tokenizer parts from the prompt at different places"
            self.dropped.append(
                Dropped(len(self._apart), f"row has {what}", f"rows have {what}", self._apart[0])
            )
        if self._inside:
            self.notes.append(
                f"in {len(self._inside)} of {rows} rows the answer begins inside a token, which is "
                f"scored as the answer's first; the first: {self._inside[0]}; where that is not "
                "meant, end the prompt without white space and begin the answer with it"
            )

    def _tokenized(self, rows: Sequence[Row]) -> list[Document]:
        hashes = [row.sha256 for row in rows]  # before the tokenizer: refuses what is no text
        tasks = [row.task for row in rows if row.task is not None]
        plain = [row.text for row in rows if row.text is not None]
        texts = iter(self.encoder.texts(plain) if plain else [])
        answers = iter(self.encoder.tasks([(p, a) for p, a, _ in tasks]) if tasks else [])
        with_foil = [(prompt, foil) for prompt, _, foil in tasks if foil is not None]
        foils = iter(self.encoder.tasks(with_foil) if with_foil else [])
        items: list[Document] = []
        for row, sha256 in zip(rows, hashes, strict=True):
            if row.task is not None:
                foil = None if row.task[2] is None else next(foils)
                task = self._task(row, row.task, next(answers), foil, sha256)
                items += [] if task is None else [task]
            else:
                ids = next(texts) if row.ids is None else self._given(row.ids)
                items.append(Document(row.id, _tensor(ids), sha256, row.text))
        return items

    def _given(self, ids: Sequence[int]) -> list[int]:
        """Token ids as they were given, their start changed only where that was asked for."""
        return list(ids) if self.bos == "first" else self.encoder.begun(list(ids))[0]

    def _task(
        self,
        row: Row,
        texts: tuple[str, str, str | None],
        right: Placed,
        wrong: Placed | None,
        sha256: str,
    ) -> Document | None:
        """A task's document; None where its foil cannot be set against its answer."""
        prompt, answer, foil = texts
        if right.empty:
            raise DataError(
                f"task {row.id!r} has an empty answer, of no token; give the text to be predicted"
            )
        if wrong is not None and wrong.empty:
            raise DataError(
                f"task {row.id!r} has an empty foil, of no token; give the wrong answer or leave "
                "it out"
            )
        given = right.ids[: right.answer]
        if wrong is not None and wrong.ids[: right.answer] != given:
            self._apart.append(f"{row.id!r}, {foil!r} after {prompt[-20:]!r}")
            return None
        if right.inside:
            self._inside.append(self._boundary(row.id, prompt, right))
        against = None if wrong is None else _tensor(wrong.ids[right.answer :])
        return Document(
            row.id, _tensor(right.ids), sha256, prompt + answer, right.answer, against, task=True
        )

    def _boundary(self, name: str, prompt: str, task: Placed) -> str:
        """Both tokenizations of a prompt that ends inside a token, the last tokens of each."""
        alone = self.encoder.texts([prompt])[0]
        apart = token_names(self.tokenizer, alone[-SHOWN:])
        first = max(0, task.answer - SHOWN + 1)
        together = token_names(self.tokenizer, task.ids[first : task.answer + 1])
        return (
            f"{name!r}, whose prompt ends in {' '.join(apart)} alone and in "
            f"{' '.join(together)} with its answer"
        )


def _tensor(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(ids), dtype=torch.long)


def _model_config(name: str | os.PathLike[str]) -> Any:
    """A model's config by name, without its weights."""
    from midus_model.loading import config_place, read_config

    return read_config(config_place(os.fspath(name)), str(name))


def whole_number(value: Any, name: str, at_least: int) -> int:
    """`value` as an int; DataError where it is none, or too small."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise DataError(f"{name} must be a whole number of at least {at_least}; got {value!r}")
    return int(value)
