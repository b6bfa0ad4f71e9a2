"""Where documents come from: shipped names, hub data, and what files and containers hold, as rows.

Files are read as text; none is executed or imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.containers import (
    has_splits,
    in_source,
    read_container,
    read_entries,
    streamed,
)
from analysis.escapes import storable
from analysis.files import read_path
from analysis.rows import Dropped, Found, Row, ids_hash, text_hash
from kernels.errors import DataError

__all__ = [
    "Dropped",
    "Found",
    "Row",
    "heldout",
    "ids_hash",
    "is_hub",
    "rows_of",
    "sample",
    "standard_library",
    "text_hash",
    "without_overlap",
]

HELDOUT = Path(__file__).parent / "data" / "heldout.jsonl"
PACKAGES = ("pandas", "sympy", "networkx")
SHIPPED = {
    "heldout": "pico's held-out files of the standard library",
    "stdlib": "the running interpreter's standard library without those",
    "packages": f"the source of {', '.join(PACKAGES)}",
}
OVERLAP_LINES = 8
TEST_SHARE = 10  # one document in ten


# ---------------------------------------------------------------- any data


def rows_of(
    data: Any, limit: int | None, split: str | None, text_column: str | None = None
) -> tuple[str, Found]:
    """Display name and rows of any data but Documents, with what was left out."""
    found = Found(text_column)
    if data is None:
        data = "heldout"
    if is_hub(data):
        _hub_rows(data, limit, split, found)
        found.check(data)
        return data, found
    if isinstance(data, (str, os.PathLike)):
        if data == "packages":
            found.rows = _packages(split)
            found.check("packages")
            return _split_name("packages", split), found
        name = _named(data, found)
    else:
        name = read_container(data, limit, split, found)
    found.check(name)
    if split is None or has_splits(data):
        return _split_name(name, split), found
    count = len(found.rows)
    found.rows = [row for row in found.rows if _is_test(row.id) == (split == "test")]
    if not found.rows:
        raise DataError(
            f"{name} has no {split} documents: one in {TEST_SHARE} is for test by the hash of its "
            f"id, and it has {count}; give more documents or no split"
        )
    return _split_name(name, split), found


def _named(data: str | os.PathLike[str], found: Found) -> str:
    if data in ("heldout", "stdlib"):
        found.rows = _source_rows(heldout() if data == "heldout" else _training_library())
        return str(data)
    path = Path(data).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a path, or a null byte in it: a text, most likely
        exists = False
    if not exists:
        shown = str(data) if len(str(data)) <= 80 else f"{str(data)[:77]}..."
        raise DataError(
            f"no data at {shown!r}: it is no file and no folder, and the shipped names are "
            f"{', '.join(SHIPPED)}; to measure a text itself give it in a list"
        )
    read_path(path, found)
    return storable(path.resolve().name)


def is_hub(data: Any) -> bool:
    """Whether it names a Hugging Face dataset."""
    return isinstance(data, str) and data.startswith("hf:")


def _hub_rows(data: str, limit: int | None, split: str | None, found: Found) -> None:
    """Rows of a Hugging Face dataset, streamed; `limit` rows after a shuffle when given."""
    name, _, config = data.removeprefix("hf:").partition(":")
    if not name:
        raise DataError('"hf:" needs a dataset\'s name, for example "hf:roneneldan/TinyStories"')
    # The library would take files of the working directory for either kind of name.
    here = Path(name).exists() and not Path(name).is_absolute()
    if here or importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        raise DataError(
            f'"{data}" names no dataset of the hub; give owner/name after "hf:", and a file or '
            'folder of the working directory without "hf:"'
        )
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
        entries = streamed(stream, limit, found)
    # The library raises a dozen kinds of its own, of aiohttp's and of the hub's.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{data} could not be read: {reason}; check the name and the network, or give a file"
        ) from error
    where = f"{data} ({split})"
    read_entries(entries, where, in_source(split, where), found)


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
