"""Result tables as files: one parquet file each, its attrs inside, checked to the last byte.

Beside the columns the file has three entries of key-value metadata: `PANDAS_ATTRS`, the attrs as
pandas itself keeps them; `midus.parts`, where each row group ends and its sha256; `midus.sha256`,
over the rest (the footer, with this digest as zeros). So a few rows are checked by reading them.
Older tables are pairs, .parquet and .json, the attrs and the parquet file's sha256 in the second.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_object_dtype

from kernels import files
from kernels.errors import DataError, MidusError
from kernels.reading import read_json, said

SCHEMA = 1  # of the attrs
MAGIC, HEAD, TAIL = b"PAR1", 4, 8  # first bytes; last bytes: the footer's length, and MAGIC
ROWS = 1 << 16  # a row group
MARK = b"midus:sha256:"
DIGEST = re.compile(MARK + rb"[0-9a-f]{64}")
ATTRS, PARTS, CHECK = "PANDAS_ATTRS", "midus.parts", "midus.sha256"
Read = TypeVar("Read")
PAIR_CHECKSUM = "parquet_sha256"  # in the .json of a pair


# ---------------------------------------------------------------- attrs


def json_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """`attrs` as plain JSON values: tuples to lists, numpy scalars to Python's, NaN to None."""
    return {key: _plain(value, key) for key, value in attrs.items()}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, where) for entry in value]
    raise MidusError(
        f"attrs hold JSON values only (text, numbers, lists, dicts, None); "
        f"{where} is a {type(value).__name__}"
    )


# ---------------------------------------------------------------- writing


def save(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write `path.parquet`, whole or not at all, and return its path.

    A suffix in `path` is set aside. `table.attrs` goes along, as JSON values; `pandas.read_parquet`
    gives both back too, unchecked. Raises DataError where nothing can be written.
    """
    parquet, sidecar = _places(path)
    attrs = json_attrs({"schema": SCHEMA} | {str(key): value for key, value in table.attrs.items()})
    content = _encoded(table, json.dumps(attrs, ensure_ascii=False, allow_nan=False))
    files.write_file(parquet, content, error=DataError)
    if _is_pair(sidecar):  # of the table that was replaced
        sidecar.unlink(missing_ok=True)
    return parquet


def _encoded(table: pd.DataFrame, attrs: str) -> bytes:
    """The file's bytes."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    frame = pd.DataFrame(table).copy(deep=False)
    frame.attrs = {}
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    sink, ends = io.BytesIO(), []
    # Arrow's own copy of the schema would hold the attrs a second time.
    with pq.ParquetWriter(sink, rows.schema, store_schema=False) as writer:
        for start in range(0, max(1, rows.num_rows), ROWS):
            writer.write_table(rows.slice(start, ROWS), row_group_size=ROWS)
            ends.append(sink.tell())
        content = sink.getvalue()
        starts = [HEAD, *ends[:-1]]
        parts = [[e, _sha256(content[s:e])] for s, e in zip(starts, ends, strict=True)]
        described = {"pandas": rows.schema.metadata[b"pandas"].decode(), ATTRS: attrs}
        placeholder = (MARK + b"0" * 64).decode()
        writer.add_key_value_metadata({**described, PARTS: json.dumps(parts), CHECK: placeholder})
    content = sink.getvalue()
    at = content.rindex(MARK) + len(MARK)
    digest = _sha256(content[ends[-1] :]).encode()
    return content[:at] + digest + content[at + len(digest) :]


# ---------------------------------------------------------------- reading


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table that `save` wrote, attrs and lists restored; `path` with or without suffix.

    Raises DataError where none is there, or where a byte of it is not as it was written.
    """
    return _read(path, None)


def load_rows(path: str | os.PathLike[str], equal: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table that `save` wrote whose columns have the values given, read alone.

    For tables too large to be read whole for a few rows: parts of the file in which no such row
    can be are skipped by their statistics; what is read is checked as `load` checks it.
    """
    return _read(path, equal)


def load_attrs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attrs of a table that `save` wrote, its rows unread; DataError as `load` has it."""
    return _opened(path, lambda file, footer, place: footer.attrs(place), _pair_attrs)


def _read(path: str | os.PathLike[str], equal: Mapping[str, Any] | None) -> pd.DataFrame:
    return _opened(
        path,
        lambda file, footer, place: _decoded(file, footer, place, equal),
        lambda sidecar, place: _read_pair(sidecar, place, equal),
    )


def _opened(
    path: str | os.PathLike[str],
    read: Callable[[BinaryIO, _Footer, Path], Read],
    read_pair: Callable[[Path, Path], Read],
) -> Read:
    """What `read` gives for a table's file and its checked footer, or `read_pair` for a pair."""
    parquet, sidecar = _places(path)
    if not parquet.is_file():
        raise DataError(f"no table at {parquet}; give the path that it was saved under")
    try:
        with parquet.open("rb") as file:
            footer = _Footer.read(file, parquet)
            return read_pair(sidecar, parquet) if footer is None else read(file, footer, parquet)
    except OSError as error:
        raise DataError(
            f"cannot read the table {parquet}: {error.strerror or error}; "
            "give the path that it was saved under"
        ) from error


@dataclass(frozen=True)
class _Footer:
    """What is checked of a file before anything in it is decoded."""

    content: bytes
    size: int  # of the file

    @classmethod
    def read(cls, file: BinaryIO, parquet: Path) -> _Footer | None:
        """The checked footer of the file; None where it has no digest, as an older table."""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little") + TAIL
        if size < HEAD + TAIL or tail[4:] != MAGIC or length > size - HEAD:
            raise _damaged(parquet, "it is cut short or no parquet file")
        file.seek(size - length)
        content = file.read()
        found = list(DIGEST.finditer(content))
        if not found:
            return None
        for match in found:
            at, digest = match.end() - 64, match.group()[len(MARK) :]
            blank = content[:at] + b"0" * 64 + content[match.end() :]
            if _sha256(blank).encode() == digest:
                return cls(content, size)
        raise _damaged(parquet, "the checksum differs")

    def attrs(self, parquet: Path) -> dict[str, Any]:
        from pyarrow import parquet as pq

        # A file of its own, as far as parquet is concerned: it is read from the end.
        known = pq.read_metadata(io.BytesIO(MAGIC + self.content)).metadata
        attrs = json.loads(known[ATTRS.encode()])
        _check_schema(attrs, parquet)
        return dict(attrs)


def _decoded(
    file: BinaryIO, footer: _Footer, parquet: Path, equal: Mapping[str, Any] | None
) -> pd.DataFrame:
    from pyarrow import parquet as pq

    opened = pq.ParquetFile(file)
    known = opened.metadata.metadata
    parts = json.loads(known[PARTS.encode()])
    starts = [HEAD, *(end for end, _ in parts)]
    file.seek(0)
    if file.read(HEAD) != MAGIC or starts[-1] != footer.size - len(footer.content):
        raise _damaged(parquet, "the checksum differs")
    groups = range(opened.metadata.num_row_groups)
    wanted = [g for g in groups if equal is None or _may_have(opened.metadata, g, equal)]
    for group in groups if equal is None else wanted:
        file.seek(starts[group])
        end, digest = parts[group]
        if _sha256(file.read(end - starts[group])) != digest:
            raise _damaged(parquet, "the checksum differs")
    attrs = footer.attrs(parquet)
    rows = opened.read_row_groups(wanted)
    return _frame(_filtered(rows, equal, parquet), attrs)


def _may_have(metadata: Any, group: int, equal: Mapping[str, Any]) -> bool:
    """Whether a row group's statistics leave it open that it has such rows."""
    part = metadata.row_group(group)
    for column in (part.column(i) for i in range(part.num_columns)):
        found = column.statistics
        value = equal.get(column.path_in_schema)
        if value is None or found is None or not found.has_min_max:
            continue
        try:
            if value < found.min or value > found.max:
                return False
        except TypeError:
            continue
    return True


def _filtered(rows: Any, equal: Mapping[str, Any] | None, parquet: Path) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    for name, value in (equal or {}).items():
        if name not in rows.column_names:
            raise DataError(
                f"cannot read the table {parquet}: it has no column {name}, only "
                f"{', '.join(rows.column_names)}"
            )
        try:
            rows = rows.filter(compute.equal(rows[name], value))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            line = " ".join(str(error).split())
            raise DataError(f"cannot compare the column {name} with {value!r}: {line}") from error
    return rows


def _frame(rows: Any, attrs: Mapping[str, Any]) -> pd.DataFrame:
    table = rows.to_pandas()
    for name in (name for name in table.columns if is_object_dtype(table[name])):
        if table[name].map(lambda value: isinstance(value, np.ndarray)).any():
            table[name] = table[name].map(_as_list)
    table.attrs = _light(attrs)
    return table


class _Shared(list[Any]):
    """A long list in attrs that copies of a table share: pandas copies attrs at every step."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _light(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _shared(value) if key == "documents" else value for key, value in attrs.items()}


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shared(part) for key, part in value.items()}
    return _Shared(value) if isinstance(value, list) else value


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


# ---------------------------------------------------------------- older tables, in pairs


def _read_pair(sidecar: Path, parquet: Path, equal: Mapping[str, Any] | None) -> pd.DataFrame:
    from pyarrow import parquet as pq

    attrs, content = _described(sidecar, parquet), parquet.read_bytes()
    if _sha256(content) != attrs.pop(PAIR_CHECKSUM):
        raise DataError(
            f"{parquet} and {sidecar.name} do not belong together (the checksum differs): "
            "one was replaced or cut short; make the table again or restore both files"
        )
    rows = pq.ParquetFile(io.BytesIO(content)).read()
    return _frame(_filtered(rows, equal, parquet), attrs)


def _pair_attrs(sidecar: Path, parquet: Path) -> dict[str, Any]:
    return {k: v for k, v in _described(sidecar, parquet).items() if k != PAIR_CHECKSUM}


def _described(sidecar: Path, parquet: Path) -> dict[str, Any]:
    if not sidecar.is_file():
        raise DataError(
            f"{parquet} is not a result table: it has no checksum of ours, and no {sidecar.name} "
            "is beside it; give the path that the table was saved under"
        )
    try:
        attrs = read_json(sidecar)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{sidecar} is damaged ({said(error)}); make the table again or restore both files"
        ) from error
    if not isinstance(attrs, dict) or "schema" not in attrs or PAIR_CHECKSUM not in attrs:
        raise DataError(
            f"{sidecar} is not the description of a result table (it has no schema and checksum); "
            "give the path that the table was saved under"
        )
    _check_schema(attrs, sidecar)
    return attrs


def _is_pair(sidecar: Path) -> bool:
    """Whether a .json describes a table, and is no other file of that name."""
    try:
        return PAIR_CHECKSUM in read_json(sidecar)
    except (OSError, ValueError, TypeError):
        return False


# ---------------------------------------------------------------- names and errors


def _places(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The table's file, and the second file that an older one has."""
    given = Path(path).expanduser()
    name = given.name
    for suffix in (".parquet", ".json"):
        name = name.removesuffix(suffix)
    if not name:
        raise DataError(f"a table needs a file name, for example results/pico; got {str(path)!r}")
    return given.with_name(f"{name}.parquet"), given.with_name(f"{name}.json")


def _check_schema(attrs: Mapping[str, Any], path: Path) -> None:
    if attrs["schema"] != SCHEMA:
        raise DataError(
            f"{path} has table schema {attrs['schema']}, this version reads {SCHEMA}; "
            "open it with the version that made it"
        )


def _damaged(parquet: Path, what: str) -> DataError:
    return DataError(f"the table {parquet} is damaged ({what}); make it again or restore it")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


__all__ = ["json_attrs", "load", "load_attrs", "load_rows", "save"]
