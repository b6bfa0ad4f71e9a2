"""Tables in memory as rows: pandas, datasets, pyarrow, dicts of columns, batches of token ids.

None of those libraries is imported here: what is none of theirs cannot have come from them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from analysis.rows import Found, Record, Row, check_names, ids_of, is_null
from kernels.errors import DataError

STRINGS = ("string", "large_string", "string_view")  # Arrow's names of text
# An element's id, and how messages call it, by its number.
Labels = Callable[[int], tuple[str, str]]


def in_memory(number: int) -> tuple[str, str]:
    """Labels of what the caller holds."""
    return str(number), f"document {number}"


def in_source(name: str, shown: str | None = None) -> Labels:
    """Labels of what a file or a hub's dataset holds."""
    return lambda number: (f"{name}:{number}", f"{shown or name}, row {number}")


# ---------------------------------------------------------------- what is handed in


def is_a(value: Any, library: str, *names: str) -> bool:
    """Whether a value is of one of a library's classes, which is imported already if it is."""
    module = sys.modules.get(library)
    kinds = tuple(getattr(module, name) for name in names if hasattr(module, name))
    return isinstance(value, kinds)


def has_splits(data: Any) -> bool:
    """Whether it is a `DatasetDict`, which has splits of its own."""
    return is_a(data, "datasets", "DatasetDict", "IterableDatasetDict")


def read_container(data: Any, limit: int | None, split: str | None, found: Found) -> str:
    """Read what is in memory into `found`; returns its display name.

    Raises DataError for what is no container of texts, of rows or of token ids. `limit` and
    `split` are for what is streamed and what has splits of its own; others are read whole.
    """
    kind = type(data).__name__
    if has_splits(data):
        data = _one_split(data, split)
    if is_a(data, "pandas", "DataFrame"):
        read_columns(_frame(data), f"the {kind}", in_memory, found)
    elif is_a(data, "datasets", "Dataset"):
        _dataset(data, found)
    elif is_a(data, "datasets", "IterableDataset"):
        read_entries(streamed(data, limit, found), f"the {kind}", in_memory, found)
    elif is_a(data, "pyarrow", "Table", "RecordBatch"):
        read_arrow(data.schema, data.select, f"the {kind}", in_memory, found)
    elif isinstance(data, Mapping):
        read_columns(_mapping(data), f"the {kind}", in_memory, found)
    else:
        _check_elements(data)
        read_entries(list(data), f"the {kind}", in_memory, found)
    count = len(found.rows) + len(found.nulls)
    return "1 document given" if count == 1 else f"{count} documents given"


def _refused(data: Any) -> DataError:
    return DataError(
        "data must be a shipped name (heldout, stdlib, packages), a path, a list of texts, a list "
        "of token-id lists, or a table (of pandas, datasets or pyarrow, or a dict of columns); "
        f"got {type(data).__name__}"
    )


def _check_elements(data: Any) -> None:
    """Raises DataError where iterating does not give documents."""
    if isinstance(data, (bytes, bytearray, memoryview, io.IOBase, int, float)):
        raise _refused(data)  # iterating gives bytes, or the lines of a file
    if isinstance(data, (set, frozenset)):
        raise DataError(f"a {type(data).__name__} has no order of its own; give a list")
    # A frame of another library gives its columns, an array of no dimension nothing.
    frame = hasattr(data, "columns") or hasattr(data, "collect_schema")
    if frame or not isinstance(data, Iterable) or getattr(data, "shape", None) == ():
        raise _refused(data)


def _one_split(data: Any, split: str | None) -> Any:
    """The dataset of a `DatasetDict` that is asked for, or the only one."""
    kind, names = type(data).__name__, ", ".join(map(str, data)) or "none"
    if split is None and len(data) != 1:
        raise DataError(f"the {kind} has the splits {names}; say which: split= (--split)")
    if split is not None and split not in data:
        raise DataError(f"the {kind} has no split {split!r}; it has {names}")
    return data[next(iter(data)) if split is None else split]


def _frame(frame: Any) -> dict[str, list[Any]]:
    """A DataFrame's columns; names that occur twice are refused, as the others' are."""
    names = [str(name) for name in frame.columns]
    check_names("the DataFrame", names)
    return {name: frame.iloc[:, place].tolist() for place, name in enumerate(names)}


def _dataset(data: Any, found: Found) -> None:
    """A `datasets.Dataset`, whatever format it is set to."""
    features, name = data.features, f"the {type(data).__name__}"

    def of_text() -> list[str]:
        return [key for key, kind in features.items() if getattr(kind, "dtype", "") in STRINGS]

    column = found.column_of(name, data.column_names, of_text)
    rows = data.select_columns(found.wanted(data.column_names, column)).with_format(None)
    for number, row in enumerate(rows):
        found.add(Record(*in_memory(number), row), column)


def _mapping(data: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """A dict of columns, or a tokenizer's `BatchEncoding` of one text or of several."""
    columns: dict[str, list[Any]] = {}
    for key, column in data.items():
        array = hasattr(column, "tolist") and getattr(column, "shape", ()) != ()
        if not isinstance(column, (list, tuple)) and not array:
            raise _refused(data)
        columns[str(key)] = list(column)
    if not columns:
        raise _refused(data)
    one = columns.get("input_ids")
    if one and not isinstance(one[0], (list, tuple)) and getattr(one[0], "shape", ()) == ():
        return {key: [columns[key]] for key in ("input_ids", "attention_mask") if key in columns}
    return columns


def streamed(stream: Iterable[Any], limit: int | None, found: Found) -> list[Any]:
    """Rows of a stream that are not blank; with `limit` so many, after a shuffle."""
    if limit is not None:
        stream = stream.shuffle(seed=0)  # type: ignore[attr-defined]

    def filled() -> Iterator[Any]:
        for number, row in enumerate(stream):
            text = row.get(found.text_column or "text", row)
            if is_null(text) or text == "":
                found.blank.append(f"row {number}")
            else:
                yield row

    return list(islice(filled(), limit))


# ---------------------------------------------------------------- shapes of tables


def read_entries(entries: Sequence[Any], name: str, labels: Labels, found: Found) -> None:
    """Elements of a list: texts, rows as dicts, token ids; those that are null are left out."""
    rows = [e for e in entries if isinstance(e, Mapping)]
    column = _column_of(rows, name, found) if rows else None
    for number, entry in enumerate(entries):
        label, where = labels(number)
        if isinstance(entry, Mapping):
            found.add(Record(label, where, entry), column)
        elif is_null(entry):
            found.add_row(None, where)
        elif isinstance(entry, str):
            found.add_row(Row(label, text=str(entry)), where)
        else:
            found.add_row(Row(label, ids=ids_of(entry, where)), where)


def read_records(records: Sequence[Record], name: str, found: Found) -> None:
    """Rows that may each have columns of their own."""
    if records:
        column = _column_of([record.values for record in records], name, found)
        for record in records:
            found.add(record, column)


def _column_of(rows: Sequence[Mapping[str, Any]], name: str, found: Found) -> str | None:
    cells: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            cells.setdefault(str(key), []).append(value)
    return found.column_of(
        name, list(cells), lambda: [key for key, given in cells.items() if _is_text(given)]
    )


def read_columns(
    columns: Mapping[str, Sequence[Any]], name: str, labels: Labels, found: Found
) -> None:
    """A table by its columns, all of one length."""
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"the columns of {name} are not of one length: {shown}")
    column = found.column_of(
        name, list(columns), lambda: [key for key, cells in columns.items() if _is_text(cells)]
    )
    wanted = found.wanted(list(columns), column)
    for i in range(next(iter(lengths.values()), 0)):
        found.add(Record(*labels(i), {key: columns[key][i] for key in wanted}), column)


def read_arrow(
    schema: Any, select: Callable[[list[str]], Any], name: str, labels: Labels, found: Found
) -> None:
    """An Arrow table; `select` gives that of the columns asked for alone."""
    import pyarrow as pa

    def of_text() -> list[str]:
        kinds = {field.name: field.type for field in schema}
        plain = {
            key: kind.value_type if pa.types.is_dictionary(kind) else kind
            for key, kind in kinds.items()
        }
        return [key for key, kind in plain.items() if str(kind) in STRINGS]

    column = found.column_of(name, list(schema.names), of_text)
    rows = select(found.wanted(list(schema.names), column)).to_pylist()
    for number, row in enumerate(rows):
        found.add(Record(*labels(number), row), column)


def _is_text(cells: Iterable[Any]) -> bool:
    """Whether a column holds text, and nothing else but nulls."""
    given = [value for value in cells if not is_null(value)]
    return bool(given) and all(isinstance(value, str) for value in given)
