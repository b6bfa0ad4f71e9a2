"""The one reader of data: whatever a user has becomes documents, cut into windows of the context.

Windows overlap by one token, so that every token of a document but its first is predicted exactly
once. The document is the unit of every bootstrap; with fewer than 20 of them the window is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from midus_model.errors import DataError, MidusError, ModelError

HELDOUT = Path(__file__).parent / "data" / "heldout.jsonl"
PACKAGES = ("pandas", "sympy", "networkx")
SHIPPED = {
    "heldout": "pico's held-out files of the standard library",
    "stdlib": "the running interpreter's standard library without those",
    "packages": f"the source of {', '.join(PACKAGES)}",
}
MAX_CONTEXT = 1024
MIN_DOCUMENTS = 20
OVERLAP_LINES = 8
TEST_SHARE = 10  # one document in ten
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
    """

    id: str
    ids: torch.Tensor
    sha256: str
    text: str | None = None
    scored_from: int = 1
    foil: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens whose loss counts."""
        return len(self.ids) - self.scored_from


@dataclass(frozen=True, eq=False)
class Window:
    """What a model sees at once: `ids` are `documents[document].ids[start : start + len(ids)]`.

    `scored` [len(ids) - 1]: whether the loss of predicting `ids[i + 1]` counts. `unit` is the
    window's index into `Documents.units`.
    """

    document: int
    unit: int
    start: int
    ids: torch.Tensor
    scored: torch.Tensor


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
        return _sha256("\n".join(item.sha256 for item in self.items))

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
                windows.append(Window(number, unit, start, item.ids[start:stop], scored))
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
                "sha256": _ids_hash(window.ids),
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
    if split not in (None, "train", "test") and not _is_hub(data):
        raise DataError(f'split must be "train", "test" or None; got {split!r}')
    reader = _Reader(model, tokenizer)
    name, rows = _rows(data, limit, split)
    if limit is not None:
        rows = _sample(rows, limit, lambda row: row.sha256)
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
        chosen = _sample(list(enumerate(data)), limit, lambda p: p[1].sha256, lambda p: p[1].id)
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
            self.config = getattr(self.model, "config", None)

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

    def read(self, name: str, rows: Sequence[_Row]) -> list[Document]:
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

    def _tokenized(self, rows: Sequence[_Row]) -> list[Document]:
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

    from midus_model.loading import resolve

    try:
        return AutoConfig.from_pretrained(resolve(os.fspath(name)))
    except MidusError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the model {str(name)!r} cannot be opened: {reason}") from error


def _task(
    row: _Row,
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
    )


# ---------------------------------------------------------------- rows, before any tokenizer


@dataclass(frozen=True)
class _Row:
    """A document as it was found: `text`, or `task` (prompt, answer, foil), or `ids`."""

    id: str
    text: str | None = None
    task: tuple[str, str, str | None] | None = None
    ids: tuple[int, ...] | None = None

    @cached_property
    def sha256(self) -> str:
        if self.ids is not None:
            return _ids_hash(torch.tensor(self.ids))
        content = self.text if self.task is None else json.dumps(self.task, ensure_ascii=False)
        try:
            return _sha256(content or "")
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {self.id!r} is no valid Unicode text ({error.reason}); "
                "write it anew as UTF-8"
            ) from error


def _rows(data: Any, limit: int | None, split: str | None) -> tuple[str, list[_Row]]:
    """Display name and rows of any data but Documents."""
    if data is None:
        data = "heldout"
    if _is_hub(data):
        return data, _hub_rows(data, limit, split)
    if isinstance(data, (str, os.PathLike)):
        if data == "packages":
            return _split_name("packages", split), _packages(split)
        name, rows = _named(data)
    elif isinstance(data, (bytes, dict, int, float)) or not isinstance(data, Iterable):
        raise DataError(
            f"data must be a shipped name ({', '.join(SHIPPED)}), a path, a list of texts or a "
            f"list of token-id lists; got {type(data).__name__}"
        )
    else:
        entries = list(data)
        name, rows = _list_name(entries), [_entry(e, str(i)) for i, e in enumerate(entries)]
    if split is None:
        return name, rows
    kept = [row for row in rows if _is_test(row.id) == (split == "test")]
    if not kept:
        raise DataError(
            f"{name} has no {split} documents: one in {TEST_SHARE} is for test by the hash of its "
            f"id, and it has {len(rows)}; give more documents or no split"
        )
    return _split_name(name, split), kept


def _named(data: str | os.PathLike[str]) -> tuple[str, list[_Row]]:
    if data == "heldout":
        return "heldout", _source_rows(heldout())
    if data == "stdlib":
        return "stdlib", _source_rows(_training_library())
    path = Path(data).expanduser()
    try:
        found = path.exists()
    except (OSError, ValueError):  # too long for a path, or a null byte in it: a text, most likely
        found = False
    if not found:
        shown = str(data) if len(str(data)) <= 80 else f"{str(data)[:77]}..."
        raise DataError(
            f"no data at {shown!r}: it is no file and no folder, and the shipped names are "
            f"{', '.join(SHIPPED)}; to measure a text itself give it in a list"
        )
    return path.resolve().name, _folder(path) if path.is_dir() else _file(path, path.name)


def _list_name(entries: list[Any]) -> str:
    number = "1 document" if len(entries) == 1 else f"{len(entries)} documents"
    return f"{number} given"


def _entry(entry: Any, name: str) -> _Row:
    """One element of a list: a text, a row, or token ids."""
    if isinstance(entry, str):
        return _Row(name, text=entry)
    if isinstance(entry, dict):
        return _row(entry, f"document {name}", name)
    if hasattr(entry, "tolist"):  # a tensor or an array
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        raise DataError(
            f"document {name} is of type {type(entry).__name__}; give a list of texts or a list of "
            "token-id lists (one document is a list of one)"
        )
    wrong = next((i for i in entry if isinstance(i, bool) or not hasattr(i, "__index__")), None)
    if wrong is not None:
        raise DataError(
            f"document {name} holds {wrong!r}, which is no token id; give whole numbers"
        )
    return _Row(name, ids=tuple(int(i) for i in entry))


def _row(row: Any, where: str, name: str) -> _Row:
    """A row with "text", or with "prompt" and "answer" (and "foil")."""
    if not isinstance(row, dict):
        raise DataError(f'{where} is a {type(row).__name__}; give an object with a "text"')
    given = row.get("id")
    name = name if given is None else str(given)
    if row.get("text") is not None:
        return _Row(name, text=_string(row, "text", where))
    if row.get("prompt") is None or row.get("answer") is None:
        keys = ", ".join(sorted(map(str, row))) or "nothing"
        raise DataError(f'{where} has no "text", and no "prompt" with "answer"; it has {keys}')
    foil = None if row.get("foil") is None else _string(row, "foil", where)
    return _Row(name, task=(_string(row, "prompt", where), _string(row, "answer", where), foil))


def _string(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f'{where}: "{key}" must be text, it is a {type(row[key]).__name__}')
    return row[key]


# ---------------------------------------------------------------- files


def _file(path: Path, name: str) -> list[_Row]:
    if path.suffix == ".parquet":
        return _parquet(path, name)
    text = _text(path)
    return _jsonl(text, name) if path.suffix == ".jsonl" else [_Row(name, text=text)]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text; give a text, .jsonl or .parquet file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if "\0" in text:
        raise DataError(f"{path} is a binary file; give a text, .jsonl or .parquet file")
    return text


def _jsonl(text: str, name: str) -> list[_Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is no JSON ({error}); give one object a line") from error
        rows.append(_row(row, where, f"{name}:{number}"))
    return rows


def _parquet(path: Path, name: str) -> list[_Row]:
    import pandas as pd
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        wanted = [c for c in ("id", "text", "prompt", "answer", "foil") if c in columns]
        frame = pd.read_parquet(path, columns=wanted)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as parquet: {reason}") from error
    if "text" not in wanted and not {"prompt", "answer"} <= set(wanted):
        raise DataError(
            f'{path} has no column "text", and no "prompt" with "answer"; '
            f"it has {', '.join(columns)}"
        )
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [_row(r, f"{name}, row {i}", f"{name}:{i}") for i, r in enumerate(records)]


def _folder(root: Path) -> list[_Row]:
    """Every readable text, .jsonl or .parquet file below `root`; hidden ones are passed over."""
    rows: list[_Row] = []
    passed: list[str] = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if hidden or not path.is_file():
            continue
        if path.suffix in (".jsonl", ".parquet"):
            rows += _file(path, relative.as_posix())
            continue
        try:
            rows.append(_Row(relative.as_posix(), text=_text(path)))
        except DataError:
            passed.append(relative.as_posix())
    if not rows:
        raise DataError(f"{root} holds no readable text file; give a folder of text files")
    if passed:
        warnings.warn(
            f"{root.name}: {len(passed)} files are no readable text and were left out "
            f"(the first: {passed[0]})",
            stacklevel=6,
        )
    return rows


def _is_hub(data: Any) -> bool:
    return isinstance(data, str) and data.startswith("hf:")


def _hub_rows(data: str, limit: int | None, split: str | None) -> list[_Row]:
    """Rows of a Hugging Face dataset, streamed; `limit` rows after a shuffle when given."""
    name, _, config = data.removeprefix("hf:").partition(":")
    if not name:
        raise DataError('"hf:" needs a dataset\'s name, for example "hf:roneneldan/TinyStories"')
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise DataError(f"{data} needs the datasets library: pip install datasets") from error
    try:
        if split is None:
            names = get_dataset_split_names(name, config or None)
            usual = [s for s in ("test", "validation", "train") if s in names]
            split = (usual or names)[0]
        stream = load_dataset(name, config or None, split=split, streaming=True)
        if limit is not None:
            stream = stream.shuffle(seed=0)
        entries = list(islice((e for e in stream if e.get("text") != ""), limit))
    # The library raises a dozen kinds of its own, of aiohttp's and of the hub's.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{data} could not be read: {reason}; check the name and the network, or give a file"
        ) from error
    where = f"{data} ({split})"
    return [_row(e, f"{where}, row {i}", f"{split}:{i}") for i, e in enumerate(entries)]


# ---------------------------------------------------------------- source files as data


def heldout() -> dict[str, str]:
    """pico's held-out files: relative path -> text, each checked against its stored hash."""
    files: dict[str, str] = {}
    try:
        for line in HELDOUT.read_text(encoding="utf-8").split("\n"):
            if line:
                row = json.loads(line)
                files[row["id"]] = row["text"]
                if _sha256(row["text"]) != row["sha256"]:
                    raise ValueError(f"the hash of {row['id']} differs")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the shipped {HELDOUT.name} is missing or damaged ({error}); install midus again"
        ) from error
    return files


def standard_library() -> dict[str, str]:
    """Every Python source file of the running interpreter's standard library, by relative path."""
    return _sources(Path(sysconfig.get_paths()["stdlib"]))


def line_runs(text: str, length: int = OVERLAP_LINES) -> set[int]:
    """Hashes of every run of `length` consecutive non-blank lines; good within one process."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {hash(tuple(lines[i : i + length])) for i in range(len(lines) - length + 1)}


def without_overlap(files: dict[str, str], heldout: dict[str, str]) -> dict[str, str]:
    """`files` without those that are held out, equal one that is, or share 8 lines with one."""
    runs: set[int] = set().union(*(line_runs(text) for text in heldout.values()))
    hashes = {_sha256(text) for text in heldout.values()}
    return {
        path: text
        for path, text in files.items()
        if path not in heldout and _sha256(text) not in hashes and runs.isdisjoint(line_runs(text))
    }


@lru_cache(maxsize=1)
def _training_library() -> dict[str, str]:
    files = without_overlap(standard_library(), heldout())
    if not files:
        raise DataError("this interpreter comes without its library's source; give other data")
    return files


def _packages(split: str | None) -> list[_Row]:
    files: dict[str, str] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the folder, imports nothing
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f'"packages" needs {package} installed: pip install {package}')
        found = _sources(Path(spec.submodule_search_locations[0]))
        files |= {f"{package}/{path}": text for path, text in found.items()}
    test = {path: text for path, text in files.items() if _is_test(path)}
    if split == "test":
        files = test
    elif split == "train":
        files = without_overlap(files, test)
    return _source_rows(files)


def _source_rows(files: dict[str, str]) -> list[_Row]:
    """Rows of the files that are not empty, as many an `__init__.py` is."""
    return [_Row(path, text=text) for path, text in files.items() if text]


def _sources(root: Path) -> dict[str, str]:
    """Every readable .py file below `root`: relative path -> text."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if "site-packages" in relative or "__pycache__" in relative:
            continue
        try:
            files[relative] = path.read_text(encoding="utf-8")
        except (
            UnicodeDecodeError,
            OSError,
        ):  # a few test fixtures are in other encodings on purpose
            continue
    return files


# ---------------------------------------------------------------- helpers


def _sample(
    entries: list[Any],
    limit: int,
    content: Callable[[Any], str],
    name: Callable[[Any], str] = lambda entry: entry.id,
) -> list[Any]:
    """The `limit` entries of lowest hash of name and content, in their own order."""
    hashes = [_sha256(f"{name(entry)}\n{content(entry)}") for entry in entries]
    chosen = sorted(range(len(entries)), key=lambda index: (hashes[index], index))[:limit]
    return [entries[index] for index in sorted(chosen)]


def _is_test(name: str) -> bool:
    return int(_sha256(name)[:8], 16) % TEST_SHARE == 0


def _split_name(name: str, split: str | None) -> str:
    return name if split is None else f"{name} ({split})"


def _whole(value: Any, name: str, at_least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise DataError(f"{name} must be a whole number of at least {at_least}; got {value!r}")
    return int(value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ids_hash(ids: torch.Tensor) -> str:
    return _sha256(" ".join(map(str, ids.tolist())))
