"""Every container and every suffix: read by a named column, or refused by name in one line."""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from analysis.documents import Documents, documents
from kernels.errors import DataError
from tests.analysis.tokenizer_kinds import tokenizer_of

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Columns = dict[str, list[Any]]


def read(data: Any, **options: Any) -> Documents:
    return documents(data, tokenizer=tokenizer_of("llama3"), context=64, **options)


def refused(data: Any, **options: Any) -> str:
    """The one line with which data is refused."""
    with pytest.raises(DataError) as caught:
        read(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(data: Documents) -> list[str | None]:
    return [item.text for item in data]


# ---------------------------------------------------------------- the matrix of tables


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def file(suffix: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"table{suffix}"
        path.write_bytes(gzip.compress(content) if suffix.lower().endswith(".gz") else content)
        return path

    return make


def csv_of(columns: Columns, by: str = ",") -> bytes:
    return pd.DataFrame(columns).to_csv(index=False, sep=by).encode()


def lines_of(columns: Columns) -> bytes:
    return "\n".join(map(json.dumps, rows_of(columns))).encode()


def parquet_of(columns: Columns) -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


MEMORY: dict[str, Callable[[Columns], Any]] = {
    "DataFrame": lambda c: pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in c.items()}),
    "typed DataFrame": lambda c: pd.DataFrame(c).convert_dtypes(),
    "Dataset": datasets.Dataset.from_dict,
    "Dataset as numpy": lambda c: datasets.Dataset.from_dict(c).with_format("numpy"),
    "DatasetDict": lambda c: datasets.DatasetDict({"train": datasets.Dataset.from_dict(c)}),
    "IterableDataset": lambda c: datasets.Dataset.from_dict(c).to_iterable_dataset(),
    "Table": pa.table,
    "dict of columns": dict,
    "list of dicts": rows_of,
}
FILES: dict[str, Callable[[Columns], Callable[[Path], Path]]] = {
    suffix + packed: lambda c, s=suffix + packed, of=of: file(s, of(c))
    for suffix, of in {
        ".csv": csv_of,
        ".TSV": lambda c: csv_of(c, "\t"),
        ".jsonl": lines_of,
        ".NDJSON": lines_of,
        ".json": lambda c: json.dumps(rows_of(c)).encode(),
        ".Json": lambda c: json.dumps({"data": rows_of(c)}).encode(),
        ".parquet": parquet_of,
    }.items()
    for packed in ("", ".gz", ".GZ")
}
TABLES = [*MEMORY, *FILES]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str, Columns], Any]:
    """A table of a kind with the given columns."""

    def make(kind: str, columns: Columns) -> Any:
        return MEMORY[kind](columns) if kind in MEMORY else FILES[kind](columns)(tmp_path)

    return make


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_by_a_named_column(kind: str, made: Any) -> None:
    columns = {
        "n": [1, 2, 3], "text": ["the dog", "the\r\nfox, and", 'a "dog"'], "body": ["x y"] * 3,
        "ok": [True, False, True],
    }  # fmt: skip
    assert texts(read(made(kind, columns))) == columns["text"]
    assert texts(read(made(kind, columns), text_column="body")) == columns["body"]
    assert "has no column 'title'; it has" in refused(made(kind, columns), text_column="title")
    for column in ("n", "ok"):
        line = refused(made(kind, columns), text_column=column)
        assert f'"{column}" must be text' in line


@pytest.mark.parametrize("kind", TABLES)
def test_the_only_column_of_text_is_taken_with_a_note(kind: str, made: Any) -> None:
    columns = {"label": [1, 0], "review": ["the dog", "the fox"]}
    with pytest.warns(UserWarning, match="its only column of text, 'review', was read"):
        data = read(made(kind, columns))
    assert texts(data) == columns["review"]
    line = refused(made(kind, columns | {"title": ["a", "b"]}))
    assert "2 others hold text (review, title)" in line
    assert "text_column= (--text-column)" in line
    assert "it has label" in refused(made(kind, {"label": [1, 0]}))


@pytest.mark.parametrize("kind", TABLES)
def test_task_columns_are_read_in_every_table(kind: str, made: Any) -> None:
    columns = {
        "id": ["a", "b"], "prompt": ["the ", "2 + 2 = "], "answer": ["dog", "4"],
        "foil": ["fox", "5"], "counterfactual": ["it ", "3 + 3 = "],
    }  # fmt: skip
    data = read(made(kind, columns))
    assert [item.id for item in data] == ["a", "b"]
    assert texts(data) == ["the dog", "2 + 2 = 4"]
    assert all(item.task and item.foil is not None for item in data)
    assert 'no "prompt" with "answer"' in refused(made(kind, {"prompt": ["the dog", "the fox"]}))


NO_NULLS = (".csv", ".TSV")  # an empty field is an empty text
NAN = ("DataFrame", "list of dicts", ".json", ".jsonl")  # what holds NaN among texts


@pytest.mark.parametrize(
    ("kind", "null"),
    [
        *((kind, None) for kind in TABLES if not kind.startswith(NO_NULLS)),
        *((kind, float("nan")) for kind in NAN),
    ],
)
def test_null_rows_are_left_out_with_a_count(kind: str, null: Any, made: Any) -> None:
    columns = {"text": ["the dog", null, "the fox", null], "n": [1, 2, 3, 4]}
    with pytest.warns(UserWarning, match=r"2 rows are (null|empty) \(the first: .*\) left out"):
        data = read(made(kind, columns))
    assert texts(data) == ["the dog", "the fox"]
    assert sum(dropped.count for dropped in data.dropped) == 2
    assert "left_out=2" in repr(data)
    task = {"prompt": ["the ", "the ", null], "answer": ["dog", null, "x"], "foil": [null] * 3}
    data = read(made(kind, task))
    assert texts(data) == ["the dog"] and data[0].foil is None
    assert sum(dropped.count for dropped in data.dropped) == 2


@pytest.mark.parametrize("kind", [".csv", ".TSV"])
def test_empty_fields_of_csv_have_nothing_to_predict(kind: str, made: Any) -> None:
    with pytest.warns(UserWarning, match="1 of 2 documents have nothing to predict"):
        data = read(made(kind, {"text": ["the dog", None], "n": [1, 2]}))
    assert texts(data) == ["the dog"]


@pytest.mark.parametrize("kind", [k for k in MEMORY if k != "list of dicts"])
def test_one_null_column_is_no_text(kind: str, made: Any) -> None:
    line = refused(made(kind, {"text": [None, None]}))
    assert re.search("all of its 2 rows are null|is empty", line)


@pytest.mark.parametrize(
    "kind",
    [
        "DataFrame",
        "Dataset",
        "Dataset as numpy",
        "Table",
        "dict of columns",
        "list of dicts",
        ".jsonl",
        ".parquet",
    ],
)
def test_columns_of_token_ids_lose_their_padding(kind: str, made: Any) -> None:
    columns = {
        "input_ids": [[1, 20, 30, 0, 0], [0, 0, 1, 40, 50]],
        "attention_mask": [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]],
    }
    assert [item.ids.tolist() for item in read(made(kind, columns))] == [[1, 20, 30], [1, 40, 50]]
    columns["attention_mask"][0] = [1, 0, 1, 1, 1]
    assert "ones beside padding at an end" in refused(made(kind, columns))


# ---------------------------------------------------------------- what is in memory


def test_batch_encodings_are_token_ids() -> None:
    tokenizer = tokenizer_of("llama3")
    given = ["the dog and the fox", "the dog"]
    expected = [tokenizer(text)["input_ids"] for text in given]
    tokenizer.pad_token = "<|end|>"
    for options in (
        {},
        {"padding": True},
        {"padding": True, "return_tensors": "pt"},
        {"padding": True, "return_tensors": "np"},
    ):
        batch = tokenizer(given, **options)
        assert [item.ids.tolist() for item in read(batch)] == expected
    assert [item.ids.tolist() for item in read(tokenizer(given[0]))] == expected[:1]
    assert [i.ids.tolist() for i in read(tokenizer(given[0], return_tensors="pt"))] == expected[:1]


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_arrays_of_ids(make: Any) -> None:
    ids = [[1, 2, 3], [4, 5, 6]]
    assert [item.ids.tolist() for item in read(make(ids))] == ids
    assert "holds 1.5" in refused(make([[1.5, 2.5]]))
    assert "holds True" in refused(make([[True, False]]))
    assert "one document is a list of one" in refused(make([1, 2, 3]))
    assert "which is no token id" in refused(make([[[1, 2], [3, 4]]]))
    assert "got " in refused(make(3))


def test_series_and_dataset_columns_are_texts() -> None:
    given = ["the dog", "the fox"]
    assert texts(read(pd.Series([*given, None], index=[7, 8, 9]))) == given
    assert texts(read(datasets.Dataset.from_dict({"a": given})["a"])) == given
    assert texts(read(np.array(given))) == given
    assert texts(read(iter(given))) == given
    assert texts(read([*given, None, float("nan")])) == given


def test_a_dataset_dict_needs_its_split() -> None:
    sets = {
        name: datasets.Dataset.from_dict({"text": [f"the {name} dog"]})
        for name in ("train", "validation")
    }
    for kind in (datasets.DatasetDict, datasets.IterableDatasetDict):
        given = sets
        if kind is datasets.IterableDatasetDict:
            given = {name: one.to_iterable_dataset() for name, one in sets.items()}
        both = kind(given)
        assert "has the splits train, validation; say which" in refused(both)
        assert "no split 'test'; it has train, validation" in refused(both, split="test")
        assert texts(read(both, split="validation")) == ["the validation dog"]
        assert texts(read(kind({"train": given["train"]}))) == ["the train dog"]


def test_a_limit_ends_an_endless_stream() -> None:
    def forever() -> Any:
        number = 0
        while True:
            number += 1
            yield {"text": f"the dog {number}"}

    assert len(read(datasets.IterableDataset.from_generator(forever), limit=7)) == 7


class Columns2D:
    """A frame of another library, whose elements are its columns."""

    columns = ("text",)

    def __iter__(self) -> Any:
        return iter([["the dog"]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame([["a b", "c d"]], columns=["text", "text"]), "more than one column 'text'"),
        (pd.DataFrame({"text": [1.0, None]}), '"text" must be text, it is a float'),
        (pd.DataFrame({"text": pd.to_datetime(["2020-01-01"])}), "it is a Timestamp"),
        (pd.DataFrame({"text": []}), "is empty"),
        (pd.DataFrame(), 'no column "text".*it has none'),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "more than one column 'text'"),
        ({"text": ["a b", "c"], "id": ["x"]}, "not of one length: text 2, id 1"),
        ({"text": "the dog"}, "got dict"),
        ({}, "got dict"),
        ({"train": pd.DataFrame({"text": ["a b"]})}, "got dict"),
        (Columns2D(), "got Columns2D"),
        (io.StringIO("the dog\nthe fox\n"), "got StringIO"),
        (bytearray(b"the dog"), "got bytearray"),
        ({"the dog", "the fox"}, "a set has no order of its own"),
        ([[1, 2, None]], "holds None, which is no token id"),
        (pd.DataFrame({"text": ["a b"], "n": [1]}).groupby("n"), "which is no token id"),
        (np.array([("a", 1)], dtype=[("x", "U1"), ("y", int)]), "which is no token id"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], "it has 1 for 2 tokens"),
        ([{"input_ids": "the dog"}], "is of type str"),
        ([None, None], "all of its 2 rows are null"),
        ([["the dog", "the fox"]], "which is no token id"),
    ],
)
def test_other_containers_are_refused_by_name(data: Any, message: str) -> None:
    assert re.search(message, refused(data))


def test_a_text_column_is_for_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the dog")
    for data in (["the dog"], tmp_path / "a.txt", tmp_path, "heldout", [[1, 2]]):
        assert "has no columns; leave it out" in refused(data, text_column="body")
    (tmp_path / "b.csv").write_text("body,n\nthe fox,1\n")
    assert texts(read(tmp_path, text_column="body")) == ["the dog", "the fox"]


# ---------------------------------------------------------------- files


STRUCTURED = """.zip .pdf .docx .xlsx .npz .npy .pkl .pt .pth .bin .safetensors .gguf .arrow
.feather .h5 .tar .bz2 .xz .zst .7z .png .jpg .mp3 .xml .yaml .yml .toml .ipynb .html5 .sqlite
.db .tgz .geojson .avro .orc .msgpack .whl .exe .so .unknown .tar.gz .pdf.gz .PDF"""


@pytest.mark.parametrize("suffix", STRUCTURED.split())
def test_other_suffixes_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    path.write_text("the dog and the fox")
    line = refused(path)
    assert f"table{suffix} is a {suffix.lower()} file, which is not read as text" in line


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".md", ".py", ".rs", ".txt.gz", ".TXT.GZ", ""])
def test_texts_keep_their_line_ends_and_lose_their_mark(suffix: str, tmp_path: Path) -> None:
    content = "\ufeffthe dog\r\nand\rthe fox\n"
    path = file(suffix, content.encode())(tmp_path)
    assert texts(read(path)) == [content[1:]]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".json", ".txt.gz", ".csv.gz"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [("latin-1", "no UTF-8 text"), ("utf-16", "is UTF-16, no UTF-8"), ("utf-32", "is UTF-32")],
)
def test_other_encodings_are_one_line(
    suffix: str, encoding: str, message: str, tmp_path: Path
) -> None:
    assert message in refused(file(suffix, "text\nnaïve dog\n".encode(encoding))(tmp_path))


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".csv", b"", "is empty"),
        (".csv", b"text\n", "is empty"),
        (".csv", b"text,n\na b,1\nc d\n", "line 3, has 1 fields and the header 2"),
        (".csv", b"text\na, b\n", "line 2, has 2 fields and the header 1"),
        (".csv", b'text\n"a b\n', "line 2, cannot be read: unexpected end of data"),
        (".csv", b"text,text\na,b\n", "more than one column 'text'"),
        (".csv", b"text\n1\n2.5\n", 'column "text" must be text, it holds numbers alone'),
        (".csv", b"a b\0c\n", "binary file"),
        (".tsv", b"text\tn\na b\n", "has 1 fields and the header 2"),
        (".json", b"", "is no JSON"),
        (".json", b"[]", "is empty"),
        (".json", b"3", "holds one int, not rows"),
        (".json", b'{"text": "the dog"}', "holds one dict, not rows"),
        (".json", b'{"data": {"text": "the dog"}}', "holds one dict, not rows"),
        (".json", b'[{"text": "a b"}, 3]', "row 1 is of type int"),
        (".json", b"[" * 100_000, "is no JSON"),
        (".json", b'[{"text": ', "is no JSON"),
        (".jsonl", b"", "is empty"),
        (".jsonl", b'"the dog"\n', "line 1 is a str"),
        (".parquet", b"", "cannot be read as parquet"),
        (".parquet.gz", b"the dog", "cannot be read as parquet"),
        (".gz", b"the dog", "of unknown content"),
        (".txt", b"", "too short"),
    ],
)
def test_damaged_files_are_one_line(
    suffix: str, content: bytes, message: str, tmp_path: Path
) -> None:
    assert message in refused(file(suffix, content)(tmp_path))


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".csv.gz", ".parquet.gz"])
def test_broken_gzip_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    whole = gzip.compress(b"the dog and the fox" * 100)
    for content in (b"the dog", whole[:-9], whole[:20] + b"\xff" * 20, b""):
        path.write_bytes(content)
        line = refused(path)
        assert "is no whole gzip file" in line or not content


def test_json_by_columns_and_by_lines(tmp_path: Path) -> None:
    given = ["the dog", "the fox"]
    columns = json.dumps({"text": given, "n": [1, 2]}).encode()
    assert texts(read(file(".json", columns)(tmp_path))) == given
    lines = b'{"text": "the dog"}\n{"text": "the fox"}\n'
    assert texts(read(file(".json", lines)(tmp_path))) == given
    assert texts(read(file(".json", json.dumps(given).encode())(tmp_path))) == given


def test_csv_holds_long_fields_quotes_and_line_ends(tmp_path: Path) -> None:
    long = "the dog " * 40_000
    content = f'\ufefftext,n\r\n"{long}",1\r\n"a ""dog""\r\nb",2\r\n\r\n'
    path = file(".csv", content.encode())(tmp_path)
    found = read(path)
    assert texts(found) == [long, 'a "dog"\r\nb']
    assert [item.id for item in found] == ["table.csv:2", "table.csv:4"]


def test_a_folder_reads_its_tables_and_counts_what_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("the dog")
    (tmp_path / "b.csv").write_text("text,n\nthe fox,1\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "it is"}\n'))
    (tmp_path / "d.parquet").write_bytes(parquet_of({"text": ["the end"]}))
    (tmp_path / "package.json").write_text('{"name": "the dog"}')
    (tmp_path / "numbers.csv").write_text("n\n1\n")
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 9)
    (tmp_path / "sub.csv").mkdir()
    (tmp_path / "sub.csv" / "e.txt").write_text("and so on")
    with pytest.warns(UserWarning, match=r"3 files are no text that can be read \(the first: numb"):
        data = read(tmp_path)
    assert texts(data) == ["the dog", "the fox", "it is", "the end", "and so on"]
    assert [dropped.count for dropped in data.dropped] == [3]
    assert texts(read(tmp_path / "sub.csv")) == ["and so on"]
    (tmp_path / "broken.jsonl").write_text('{"text": "the dog"}\n{"text": ')
    assert "broken.jsonl, line 2 is no JSON" in refused(tmp_path)  # a part of the data is missing


def test_a_saved_dataset_is_not_read_as_its_files(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["the dog"]}).save_to_disk(str(tmp_path / "saved"))
    assert "holds no readable text file" in refused(tmp_path / "saved")


# ---------------------------------------------------------------- what was read, printed


def test_print_shows_counts_tokens_and_what_was_left_out() -> None:
    rows = [
        {"id": "a", "prompt": "the ", "answer": "dog", "foil": "fox"},
        {"id": "b", "prompt": "the", "answer": " dog", "foil": None},
        {"id": "c", "prompt": None, "answer": "x"},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read(rows)
    shown = str(data)
    tokenizer = data.tokenizer
    assert "3 documents given: 2 documents, " in shown
    assert '"<s>"[1] at the start of the first window of each document' in shown
    for item in data:
        first = int(item.ids[item.scored_from])
        token = json.dumps(tokenizer.convert_ids_to_tokens([first])[0], ensure_ascii=False)
        assert f"| {token}[{first}]" in shown
    assert "left out: 1 row is null (the first: document 2)" in shown
    assert "foil: | " in shown
    assert str(read([[1, 2, 3]] * 5)).endswith("and 2 documents more")
    from types import SimpleNamespace

    bare = SimpleNamespace(config=SimpleNamespace(vocab_size=10, max_position_embeddings=8))
    assert "1 | 2 3" in str(documents([[1, 2, 3]], model=bare))
