"""Where documents come from: shipped names, files, folders, lists and hub data, as rows.

Files are read as text; none is executed or imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import reprlib
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kernels.errors import DataError

HELDOUT = Path(__file__).parent / "data" / "heldout.jsonl"
PACKAGES = ("pandas", "sympy", "networkx")
SHIPPED = {
    "heldout": "pico's held-out files of the standard library",
    "stdlib": "the running interpreter's standard library without those",
    "packages": f"the source of {', '.join(PACKAGES)}",
}
OVERLAP_LINES = 8
TEST_SHARE = 10  # one document in ten


# ---------------------------------------------------------------- rows, before any tokenizer


@dataclass(frozen=True)
class Row:
    """A document as it was found: `text`, or `task` (prompt, answer, foil), or `ids`."""

    id: str
    text: str | None = None
    task: tuple[str, str, str | None] | None = None
    ids: tuple[int, ...] | None = None

    @cached_property
    def sha256(self) -> str:
        if self.ids is not None:
            return ids_hash(torch.tensor(self.ids))
        content = self.text if self.task is None else json.dumps(self.task, ensure_ascii=False)
        try:
            return text_hash(content or "")
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {self.id!r} is no valid Unicode text ({error.reason}); "
                "write it anew as UTF-8"
            ) from error


def rows_of(data: Any, limit: int | None, split: str | None) -> tuple[str, list[Row]]:
    """Display name and rows of any data but Documents."""
    if data is None:
        data = "heldout"
    if is_hub(data):
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


def _named(data: str | os.PathLike[str]) -> tuple[str, list[Row]]:
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


def _entry(entry: Any, name: str) -> Row:
    """One element of a list: a text, a row, or token ids."""
    if isinstance(entry, str):
        return Row(name, text=entry)
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
            f"document {name} holds {reprlib.repr(wrong)}, which is no token id; give whole numbers"
        )
    return Row(name, ids=tuple(int(i) for i in entry))


def _row(row: Any, where: str, name: str) -> Row:
    """A row with "text", or with "prompt" and "answer" (and "foil")."""
    if not isinstance(row, dict):
        raise DataError(f'{where} is a {type(row).__name__}; give an object with a "text"')
    given = row.get("id")
    name = name if given is None else str(given)
    if row.get("text") is not None:
        return Row(name, text=_string(row, "text", where))
    if row.get("prompt") is None or row.get("answer") is None:
        keys = ", ".join(sorted(map(str, row))) or "nothing"
        raise DataError(f'{where} has no "text", and no "prompt" with "answer"; it has {keys}')
    foil = None if row.get("foil") is None else _string(row, "foil", where)
    return Row(name, task=(_string(row, "prompt", where), _string(row, "answer", where), foil))


def _string(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f'{where}: "{key}" must be text, it is a {type(row[key]).__name__}')
    return row[key]


# ---------------------------------------------------------------- files


def _file(path: Path, name: str) -> list[Row]:
    if path.suffix == ".parquet":
        return _parquet(path, name)
    text = _text(path)
    return _jsonl(text, name) if path.suffix == ".jsonl" else [Row(name, text=text)]


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


def _jsonl(text: str, name: str) -> list[Row]:
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


def _parquet(path: Path, name: str) -> list[Row]:
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


def _folder(root: Path) -> list[Row]:
    """Every readable text, .jsonl or .parquet file below `root`; hidden ones are passed over."""
    rows: list[Row] = []
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
            rows.append(Row(relative.as_posix(), text=_text(path)))
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


def is_hub(data: Any) -> bool:
    return isinstance(data, str) and data.startswith("hf:")


def _hub_rows(data: str, limit: int | None, split: str | None) -> list[Row]:
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
                if text_hash(row["text"]) != row["sha256"]:
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
    hashes = {text_hash(text) for text in heldout.values()}
    return {
        path: text
        for path, text in files.items()
        if path not in heldout
        and text_hash(text) not in hashes
        and runs.isdisjoint(line_runs(text))
    }


@lru_cache(maxsize=1)
def _training_library() -> dict[str, str]:
    files = without_overlap(standard_library(), heldout())
    if not files:
        raise DataError("this interpreter comes without its library's source; give other data")
    return files


def _packages(split: str | None) -> list[Row]:
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


def _source_rows(files: dict[str, str]) -> list[Row]:
    """Rows of the files that are not empty, as many an `__init__.py` is."""
    return [Row(path, text=text) for path, text in files.items() if text]


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


def sample(
    entries: list[Any],
    limit: int,
    content: Callable[[Any], str],
    name: Callable[[Any], str] = lambda entry: entry.id,
) -> list[Any]:
    """The `limit` entries of lowest hash of name and content, in their own order."""
    hashes = [text_hash(f"{name(entry)}\n{content(entry)}") for entry in entries]
    chosen = sorted(range(len(entries)), key=lambda index: (hashes[index], index))[:limit]
    return [entries[index] for index in sorted(chosen)]


def _is_test(name: str) -> bool:
    return int(text_hash(name)[:8], 16) % TEST_SHARE == 0


def _split_name(name: str, split: str | None) -> str:
    return name if split is None else f"{name} ({split})"


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ids_hash(ids: torch.Tensor) -> str:
    return text_hash(" ".join(map(str, ids.tolist())))
