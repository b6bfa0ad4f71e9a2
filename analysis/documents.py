"""The one reader of data: whatever a user has becomes documents, cut into windows of the context.

Windows overlap by one token, so that every token of a document but its first is predicted exactly
once. The document is the unit of every bootstrap; with fewer than 20 of them the window is.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from analysis.sources import Row, ids_hash, is_hub, rows_of, sample, text_hash
from kernels.errors import DataError, MidusError, ModelError

MAX_CONTEXT = 1024
MIN_DOCUMENTS = 20
TOKENIZER_BATCH = 64


# ---------------------------------------------------------------- what is handed out


@dataclass(frozen=True, eq=False)
class Document:
    """One source text as token ids.

    Attributes:
        id: its name in its source (path, row, or number).
        ids: token ids, int64 [T].
        sha256: of the text; of the ids where there is no text.
        text: the text, prompt and answer joined for a task.
        scored_from: index of the first token whose loss counts: 1, or a task's first answer token.
        foil: ids of a task's wrong answer, int64 [F], to be set against `ids[scored_from:]`.
        task: whether it was given as a task, whatever the length of its prompt.
    """

    id: str
    ids: torch.Tensor
    sha256: str
    text: str | None = None
    scored_from: int = 1
    foil: torch.Tensor | None = None
    task: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens whose loss counts."""
        return len(self.ids) - self.scored_from

    @property
    def is_task(self) -> bool:
        """Whether only an answer counts, the prompt before it being given."""
        return self.task or self.scored_from > 1 or self.foil is not None

    @property
    def decision(self) -> tuple[int, int] | None:
        """Where answer and foil part: the answer's index in `ids`, and the foil's token there."""
        if self.foil is None:
            return None
        for offset, (right, wrong) in enumerate(
            zip(self.ids[self.scored_from :].tolist(), self.foil.tolist(), strict=False)
        ):
            if right != wrong:
                return self.scored_from + offset, wrong
        return None


@dataclass(frozen=True, eq=False)
class Window:
    """What a model sees at once: `ids` are `documents[document].ids[start : start + len(ids)]`.

    `scored` [len(ids) - 1]: whether the loss of predicting `ids[i + 1]` counts. `unit` is the
    window's index into `Documents.units`. `foil`: the position that decides between a task's answer
    and its foil, and the foil's token there, where they lie in this window.
    """

    document: int
    unit: int
    start: int
    ids: torch.Tensor
    scored: torch.Tensor
    foil: tuple[int, int] | None = None


class Documents:
    """Documents with their windows; `len`, indexing and iteration go over `items`."""

    def __init__(
        self, name: str, items: Sequence[Document], context: int, tokenizer: Any = None
    ) -> None:
        if not items:
            raise DataError(f"{name} has no documents; give at least one text of two tokens")
        self.name = name
        self.items = list(items)
        self.context = _whole(context, "context", at_least=2)
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Document:
        return self.items[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self.items)

    def __repr__(self) -> str:
        return (
            f"Documents({self.name!r}, documents={len(self)}, scored_tokens={self.tokens}, "
            f"context={self.context})"
        )

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
        """What a bootstrap resamples: "document", or "window" with fewer than 20 documents."""
        return "document" if len(self) >= MIN_DOCUMENTS else "window"

    @cached_property
    def windows(self) -> list[Window]:
        """Every window that holds a scored token, in order."""
        by_document = self.unit == "document"
        if not by_document:
            warnings.warn(
                f"{self.name}: fewer than {MIN_DOCUMENTS} documents ({len(self)}), so intervals "
                "resample windows, which takes windows of one text for independent",
                stacklevel=2,
            )
        windows: list[Window] = []
        for number, item in enumerate(self.items):
            for start, stop in _spans(item, self.context):
                unit = number if by_document else len(windows)
                scored = torch.arange(start + 1, stop) >= item.scored_from
                foil = None
                if item.decision is not None and start < item.decision[0] < stop:
                    foil = item.decision[0] - start - 1, item.decision[1]
                windows.append(Window(number, unit, start, item.ids[start:stop], scored, foil))
        return windows

    @cached_property
    def units(self) -> list[dict[str, Any]]:
        """What is resampled, a dict each: id, tokens (scored) and sha256."""
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
        return Documents(name, [self.items[i] for i in chosen], self.context, self.tokenizer)

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


def _spans(item: Document, context: int) -> list[tuple[int, int]]:
    """Start and stop of each window of a document.

    A text is cut from its start. A task is cut from its end, so that its answer sees as much of
    the prompt as the context holds; windows without a scored token are left out.
    """
    length, step = len(item.ids), context - 1
    if item.scored_from == 1:
        return [(s, min(s + context, length)) for s in range(0, length - 1, step)]
    stops = range(length, item.scored_from, -step)
    return [(max(0, stop - context), stop) for stop in reversed(stops)]


# ---------------------------------------------------------------- the reader


def documents(
    data: Any = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    context: int | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> Documents:
    """Turn any data into documents for a model.

    Args:
        data: None or "heldout" (pico's held-out files of the standard library); "stdlib" (the
            running interpreter's standard library without those); "packages" (the source of the
            installed pandas, sympy and networkx); a path to a text file, a .jsonl or .parquet
            file with "text", or with "prompt" and "answer" (and "foil"), or a folder of such
            files; a list of str, of such rows as dicts, or of token-id lists; Documents, passed
            through; "hf:NAME" or "hf:NAME:CONFIG", a Hugging Face dataset. Files are read as
            text; none is executed or imported.
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

    A task is scored on its answer alone; prompt and answer are tokenized apart and joined as they
    are, so an answer carries its own leading space. Documents with nothing to predict are left out
    with a warning.

    Raises DataError, one line, when the data cannot be used.

        analysis.documents(["def f(x):\\n    return x"], model="pico")
    """
    if limit is not None:
        limit = _whole(limit, "limit", at_least=1)
    if isinstance(data, Documents):
        return _pass_through(data, model, tokenizer, context, limit, split)
    if split not in (None, "train", "test") and not is_hub(data):
        raise DataError(f'split must be "train", "test" or None; got {split!r}')
    reader = _Reader(model, tokenizer)
    name, rows = rows_of(data, limit, split)
    if limit is not None:
        rows = sample(rows, limit, lambda row: row.sha256)
    items = reader.read(name, rows)
    return Documents(name, items, reader.context(context), reader.tokenizer_if_any)


def _pass_through(
    data: Documents,
    model: Any,
    tokenizer: Any,
    context: int | None,
    limit: int | None,
    split: str | None,
) -> Documents:
    if split is not None:
        raise DataError("split applies where data is read; these documents are read already")
    if limit is not None and limit < len(data):
        chosen = sample(list(enumerate(data)), limit, lambda p: p[1].sha256, lambda p: p[1].id)
        data = data.subset(index for index, _ in chosen)
    wanted = data.context if context is None else context
    if model is not None:
        reader = _Reader(model, tokenizer)
        reader.check_vocabulary(data.items)
        wanted = reader.context(wanted)
    if wanted == data.context:
        return data
    return Documents(data.name, data.items, wanted, data.tokenizer)


class _Reader:
    """Knows a model's context and vocabulary, and its tokenizer, loaded when first needed."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = "pico" if model is None and tokenizer is None else model
        self.given = tokenizer
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
        except MidusError:
            return None

    def context(self, asked: int | None) -> int:
        known = getattr(self.config, "max_position_embeddings", None)
        if known is None and self.tokenizer_if_any is not None:
            known = getattr(self.tokenizer, "model_max_length", None)
        if asked is None:
            return min(int(known), MAX_CONTEXT) if known else MAX_CONTEXT
        asked = _whole(asked, "context", at_least=2)
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

    def read(self, name: str, rows: Sequence[Row]) -> list[Document]:
        """Rows as documents; those with nothing to predict are left out with a warning."""
        if not rows:
            raise DataError(f"{name} is empty; give at least one text of two tokens")
        items: list[Document] = []
        for start in range(0, len(rows), TOKENIZER_BATCH):
            items += self._tokenized(rows[start : start + TOKENIZER_BATCH])
        kept = [item for item in items if item.tokens >= 1]
        if not kept:
            raise DataError(
                f"{name} is too short: nothing in it is longer than one token, so there is "
                "nothing to predict; give a longer text"
            )
        if len(kept) < len(items):
            warnings.warn(
                f"{name}: {len(items) - len(kept)} of {len(items)} documents have nothing to "
                "predict (fewer than two tokens) and were left out",
                stacklevel=4,
            )
        self.check_vocabulary(kept)
        return kept

    def _tokenized(self, rows: Sequence[Row]) -> list[Document]:
        hashes = [row.sha256 for row in rows]  # before the tokenizer: refuses what is no text
        tasks = [row.task for row in rows if row.task is not None]
        texts = iter(self._encode([row.text for row in rows if row.text is not None]))
        prompts = iter(self._encode([prompt for prompt, _, _ in tasks]))
        answers = iter(self._encode([answer for _, answer, _ in tasks], special=False))
        foils = iter(self._encode([foil or "" for _, _, foil in tasks], special=False))
        items = []
        for row, sha256 in zip(rows, hashes, strict=True):
            if row.task is not None:
                items.append(_task(row, row.task, next(prompts), next(answers), next(foils)))
            else:
                ids = torch.tensor(row.ids if row.text is None else next(texts), dtype=torch.long)
                items.append(Document(row.id, ids, sha256, row.text))
        return items

    def _encode(self, texts: list[str], special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        # Windows are cut later: nothing is truncated here, and nothing is too long to warn about.
        return self.tokenizer(
            texts,
            add_special_tokens=special,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]


def _model_config(name: str | os.PathLike[str]) -> Any:
    """A model's config by name, without its weights."""
    from transformers import AutoConfig

    from midus_model.loading import config_place

    try:
        return AutoConfig.from_pretrained(config_place(os.fspath(name)))
    except MidusError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the model {str(name)!r} cannot be opened: {reason}") from error


def _task(
    row: Row,
    texts: tuple[str, str, str | None],
    prompt: list[int],
    answer: list[int],
    foil: list[int],
) -> Document:
    if not answer:
        raise DataError(f"task {row.id!r} has an empty answer; give the text to be predicted")
    if texts[2] is not None and not foil:
        raise DataError(f"task {row.id!r} has an empty foil; give the wrong answer or leave it out")
    return Document(
        row.id,
        torch.tensor(prompt + answer, dtype=torch.long),
        row.sha256,
        texts[0] + texts[1],
        max(1, len(prompt)),  # without a prompt or a start token the first answer token is given
        torch.tensor(foil, dtype=torch.long) if foil else None,
        task=True,
    )


def _whole(value: Any, name: str, at_least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise DataError(f"{name} must be a whole number of at least {at_least}; got {value!r}")
    return int(value)
