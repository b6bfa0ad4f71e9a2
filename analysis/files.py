"""Files and folders as rows, by what their suffix says they are; any case of it, gz or not.

A table (csv, tsv, json, jsonl, ndjson, parquet) is read by its columns, a text file is one
document, anything else is refused by name. Files are read; none is executed or imported.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch

from analysis.containers import in_source, read_arrow, read_columns, read_entries, read_records
from analysis.escapes import storable
from analysis.rows import Found, NotText, Record, Row
from kernels.errors import DataError
from midus_model.ordinary import odd_kind
from midus_model.placement import free_bytes

HELD = 6  # bytes of memory that a byte of a file may take
READ = ".txt, .jsonl, .json, .csv, .tsv and .parquet, each also as .gz"
# Prose, and source code, which is a text as it stands.
PLAIN = """
.txt .text .md .markdown .mdx .rst .adoc .org .tex .bib .log .htm .html
.py .pyi .pyx .ipy .r .jl .m .lua .pl .pm .rb .php .js .mjs .cjs .jsx .ts .tsx .vue .css .scss
.c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh .cs .java .kt .kts .scala .groovy .go .rs .swift .zig
.hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .f .f90 .f95 .for .pas .d .dart .nim .v .sv .vhd
.asm .s .sh .bash .zsh .fish .ps1 .bat .sql .proto .cmake .mk .gradle .lean .sol .agda
"""
TEXT = frozenset(PLAIN.split())
CHUNK = 2**16  # bytes
BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_path(path: Path, found: Found) -> None:
    """A file, or every file below a folder."""
    if path.is_dir():
        _folder(path, found)
    else:
        _file(path, storable(path.name), found)


def _folder(root: Path, found: Found) -> None:
    """Every file below `root` that can be read; hidden ones are not looked at."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if hidden or not path.is_file():
            continue
        try:
            _file(path, storable(relative.as_posix()), found)
        except NotText as error:
            found.passed.append(str(error))
    if not found.rows:
        why = f"; {found.passed[0]}" if found.passed else ""
        raise DataError(f"{root} holds no readable text file{why}; give a folder of text files")


def _file(path: Path, name: str, found: Found) -> None:
    """One file, read as what its suffix says."""
    suffix, inner = path.suffix.lower(), PurePosixPath(path.stem).suffix.lower()
    packed = suffix == ".gz"
    kind = inner if packed else suffix
    read = TABLES.get(kind)
    if read is None and (kind not in TEXT if kind else packed):
        what = f"{kind}{suffix if packed else ''} file" if kind else ".gz file of unknown content"
        raise NotText(
            f"{name} is a {what}, which is not read as text; give {READ} (a plain text of another "
            "suffix can be renamed)"
        )
    data = _unpacked(path) if packed else _bytes(path)
    if read is not None:
        read(data, name, found)
    else:
        found.rows.append(Row(name, text=_text(data, name)))


def _bytes(path: Path) -> bytes:
    try:
        if (odd := odd_kind(path)) is not None:
            raise DataError(f"{path} is {odd}, not a file; give {READ}")
        most = _most_bytes()
        if (size := path.stat().st_size) > most:
            raise _too_large(path, size, most)
        with path.open("rb") as file:  # /proc says 0 of files without an end
            return _whole(file, path, most)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _whole(file: IO[bytes] | gzip.GzipFile, path: Path, most: int) -> bytes:
    """What a file holds, read in growing parts: room for `most` at once may not be there."""
    data = bytearray()
    while part := file.read(min(max(len(data), CHUNK), most + 1 - len(data))):
        data += part
        if len(data) > most:
            raise _too_large(path, len(data), most)
    return bytes(data)


def _most_bytes() -> int:
    """Of a file that is read whole: its text and rows take several times as much."""
    return (free_bytes(torch.device("cpu")) or 2**34) // HELD


def _too_large(path: Path, size: int, most: int) -> DataError:
    return DataError(
        f"{path} has {size / 1e9:.1f} GB unpacked, and this machine's memory holds texts of "
        f"{most / 1e9:.1f} GB; give a part of it"
    )


def _unpacked(path: Path) -> bytes:
    most = _most_bytes()
    try:
        with gzip.open(io.BytesIO(_bytes(path))) as file:
            return _whole(file, path, most)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path} is no whole gzip file: {error}") from error


def _text(data: bytes, name: str) -> str:
    """UTF-8 text, its line ends as they are."""
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            raise NotText(f"{name} is {encoding}, no UTF-8 text; write it anew as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(
            f"{name} is no UTF-8 text (byte {error.start}); write it anew as UTF-8, or give {READ}"
        ) from error
    if "\0" in text:
        raise NotText(f"{name} is a binary file; give {READ}")
    return text


# ---------------------------------------------------------------- tables


def _json_lines(data: bytes, name: str, found: Found) -> None:
    rows = []
    for number, line in enumerate(_text(data, name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = _json(line, where, "give one object a line")
        if not isinstance(row, dict):
            raise DataError(f'{where} is a {type(row).__name__}; give an object with a "text"')
        rows.append(Record(f"{name}:{number}", where, row))
    read_records(rows, name, found)


def _json_file(data: bytes, name: str, found: Found) -> None:
    """An array of rows, {"data": an array}, {column: an array}, or lines of objects after all."""
    text = _text(data, name)
    try:
        whole = _json(text, name, "")
    except NotText as error:
        first, _, more = text.strip().partition("\n")
        try:  # what is called .json is often one object a line
            lines = bool(more) and isinstance(_json(first, name, ""), dict)
        except NotText:
            lines = False
        if not lines:
            raise error
        return _json_lines(data, name, found)
    if isinstance(whole, dict) and set(whole) == {"data"}:
        whole = whole["data"]
    if isinstance(whole, dict) and whole and all(isinstance(v, list) for v in whole.values()):
        return read_columns(whole, name, in_source(name), found)
    if not isinstance(whole, list):
        raise NotText(
            f"{name} holds one {type(whole).__name__}, not rows; give an array of objects with a "
            '"text", or {"data": such an array}'
        )
    read_entries(whole, name, in_source(name), found)


def _json(text: str, where: str, then: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        advice = f"; {then}" if then else ""
        kind = DataError if then else NotText
        raise kind(f"{where} is no JSON ({error}){advice}") from error


def _separated(by: str) -> Callable[[bytes, str, Found], None]:
    """The reader of a csv or tsv file; its first line names the columns, and all are text."""

    def read(data: bytes, name: str, found: Found) -> None:
        text = _text(data, name)
        with _long_fields():
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=by, strict=True)
            try:
                lines = [(rows.line_num, row) for row in rows if row]
            except csv.Error as error:
                raise DataError(f"{name}, line {rows.line_num}, cannot be read: {error}") from error
        if not lines:
            return
        (_, header), *body = lines
        for number, row in body:
            if len(row) != len(header):
                raise DataError(
                    f"{name}, line {number}, has {len(row)} fields and the header {len(header)}; "
                    "put fields that hold the separator in double quotes"
                )
        _separated_rows(header, body, name, found)

    return read


def _separated_rows(
    header: list[str], body: list[tuple[int, list[str]]], name: str, found: Found
) -> None:
    cells = {column: [row[place] for _, row in body] for place, column in enumerate(header)}

    def of_text() -> list[str]:
        return [column for column, given in cells.items() if any(given) and not _numbers(given)]

    column = found.column_of(name, header, of_text)
    if column is not None and _numbers(cells[column]):
        raise DataError(f'{name}: column "{column}" must be text, it holds numbers alone')
    wanted = found.wanted(header, column)
    for place, (number, _) in enumerate(body):
        values = {key: cells[key][place] for key in wanted}
        found.add(Record(f"{name}:{number}", f"{name}, line {number}", values), column)


def _numbers(values: Sequence[str]) -> bool:
    """Whether a csv column is one of numbers or of true and false."""

    def number(value: str) -> bool:
        try:
            float(value)
        except ValueError:
            return value.strip().lower() in ("true", "false")
        return True

    given = [value for value in values if value.strip()]
    return bool(given) and all(map(number, given))


@contextmanager
def _long_fields() -> Iterator[None]:
    """csv's limit of 131,072 characters a field lifted."""
    usual = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _parquet(data: bytes, name: str, found: Found) -> None:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        schema = file.schema_arrow
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are of these kinds
        raise _no_parquet(name, error) from error

    def table(wanted: Sequence[str]) -> Any:
        try:
            return file.read(columns=list(wanted))
        except (OSError, ValueError, NotImplementedError) as error:
            raise _no_parquet(name, error) from error

    read_arrow(schema, table, name, in_source(name), found)


def _no_parquet(name: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{name} cannot be read as parquet: {reason}")


TABLES: dict[str, Callable[[bytes, str, Found], None]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
