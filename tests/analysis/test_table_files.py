"""Tables as files: exact round trips, every flipped bit refused, older pairs, failed saves."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet as pq

from analysis import table_files, tables
from kernels import files
from kernels.errors import DataError, MidusError

STUDY = Path(__file__).resolve().parents[2] / "workbench" / "study" / "tables"


def table(rows: int = 6, **attrs: Any) -> pd.DataFrame:
    made = pd.DataFrame(
        {
            "block": np.arange(rows) // 3,
            "kind": ["attention", "memory", "ü"] * (rows // 3),
            "score": np.random.default_rng(0).normal(size=rows),
            "small": np.arange(rows, dtype=np.float32),
            "settled": [True, False, True] * (rows // 3),
            "by_document": [[0.5, float("nan")], [], [1.0]] * (rows // 3),
            "nothing": [None] * rows,
            "label": ["a", None, "c"] * (rows // 3),
        }
    )
    made.attrs = {"schema": 1, "table": "t", "documents": [{"id": "é", "tokens": 3}], **attrs}
    return made


def pair(folder: Path, made: pd.DataFrame) -> Path:
    """A table as earlier versions wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    bare = made.copy()
    bare.attrs = {}
    bare.to_parquet(folder / "t.parquet", index=False)
    digest = hashlib.sha256((folder / "t.parquet").read_bytes()).hexdigest()
    (folder / "t.json").write_text(json.dumps(made.attrs | {"parquet_sha256": digest}))
    return folder / "t.parquet"


def same(found: pd.DataFrame, made: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, made)
    assert found.attrs == made.attrs


def test_attrs_are_json_only() -> None:
    plain = tables.json_attrs({"a": (1, np.int64(2)), "b": float("nan"), "c": {3: np.bool_(True)}})
    assert plain == {"a": [1, 2], "b": None, "c": {"3": True}}
    with pytest.raises(MidusError, match=r"x\.y is a ndarray"):
        tables.json_attrs({"x": {"y": np.zeros(2)}})


def test_round_trip_keeps_everything_in_one_file(tmp_path: Path) -> None:
    made = table()
    path = tables.save(made, tmp_path / "new" / "pico-0.5")
    assert path == tmp_path / "new" / "pico-0.5.parquet"
    for spelling in ("pico-0.5", "pico-0.5.parquet", "pico-0.5.json"):
        back = tables.load(tmp_path / "new" / spelling)
        same(back, made)
        assert isinstance(back["by_document"][0], list)
        assert table_files.load_attrs(tmp_path / "new" / spelling) == made.attrs
    assert [p.name for p in path.parent.iterdir()] == ["pico-0.5.parquet"]
    assert made.attrs["documents"][0]["id"] == "é"  # saving leaves the table alone
    assert pd.read_parquet(path).attrs == made.attrs  # and pandas alone reads them too


@pytest.mark.parametrize("rows", [0, 3, table_files.ROWS - 1, table_files.ROWS, 200_001])
def test_tables_of_any_length(tmp_path: Path, rows: int) -> None:
    made = pd.DataFrame({"block": np.arange(rows) // 60_000, "hits": np.arange(rows) % 7})
    path = tables.save(made, tmp_path / "t")
    same(tables.load(path), made.copy().pipe(_with_schema))
    found = tables.load_rows(path, {"block": 1, "hits": 2})
    want = made[(made["block"] == 1) & (made["hits"] == 2)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, want)


def _with_schema(made: pd.DataFrame) -> pd.DataFrame:
    made.attrs = {"schema": 1}
    return made


def test_parts_cover_the_file(tmp_path: Path) -> None:
    """Where a row group ends by our own count is where its columns end by parquet's."""
    made = pd.DataFrame(
        {"a": np.arange(200_000), "b": np.random.default_rng(0).normal(size=200_000)}
    )
    metadata = pq.ParquetFile(tables.save(made, tmp_path / "t")).metadata
    parts = json.loads(metadata.metadata[b"midus.parts"])
    start = 4
    for group, (end, _) in enumerate(parts):
        part = metadata.row_group(group)
        columns = [part.column(i) for i in range(part.num_columns)]
        first = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
        assert first == start and sum(c.total_compressed_size for c in columns) == end - start
        start = end
    assert metadata.num_row_groups == len(parts) == 4


def test_rows_are_read_alone_and_skip_what_cannot_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pd.DataFrame({"block": np.arange(200_000) // 50_000, "kind": ["a", "b"] * 100_000})
    path = tables.save(made, tmp_path / "t")
    read: list[list[int]] = []
    whole = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups: read.append(list(groups)) or whole(self, groups),
    )
    assert len(tables.load_rows(path, {"block": 3, "kind": "b"})) == 25_000
    assert tables.load_rows(path, {"block": 9}).empty
    assert read == [[2, 3], []]
    with pytest.raises(DataError, match="no column layer, only block, kind"):
        tables.load_rows(path, {"layer": 1})
    with pytest.raises(DataError, match="cannot compare the column block with 'x'"):
        tables.load_rows(path, {"block": "x"})


def flips(content: bytes, every: int) -> list[int]:
    """Bits to flip: all, or one drawn from so many."""
    drawn = random.Random(0)
    return [bit + drawn.randrange(every) for bit in range(0, 8 * len(content) - every, every)]


@pytest.mark.parametrize("every", [83, pytest.param(1, marks=pytest.mark.verify)])
@pytest.mark.parametrize("read", [tables.load, lambda path: tables.load_rows(path, {"block": 0})])
def test_no_flipped_bit_is_accepted(
    tmp_path: Path, read: Callable[[Path], pd.DataFrame], every: int
) -> None:
    path = tables.save(table(), tmp_path / "t")
    content = path.read_bytes()
    for bit in flips(content, every):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            read(path)
        assert "\n" not in str(caught.value), bit
    path.write_bytes(content)
    read(path)


def test_cut_lengthened_and_rearranged_files_are_refused(tmp_path: Path) -> None:
    path = tables.save(table(), tmp_path / "t")
    other = tables.save(table(table="other").iloc[::-1], tmp_path / "other").read_bytes()
    content = path.read_bytes()
    wrong = [content[:n] for n in range(0, len(content), 37)]
    wrong += [content + b"\x00", b"\x00" + content, content * 2, content + other]
    wrong += [content[:200] + other[200:], b"", b"PAR1", b"\xff" * 4 + b"PAR1" * 3, b"PAR1" * 9]
    for damaged in wrong:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged|is not a result table"):
            tables.load(path)


def test_rows_outside_what_is_read_are_not_looked_at(tmp_path: Path) -> None:
    made = pd.DataFrame({"block": np.arange(200_000) // 50_000})
    path = tables.save(made, tmp_path / "t")
    content = bytearray(path.read_bytes())
    content[10] ^= 1  # in the first row group
    path.write_bytes(content)
    assert len(tables.load_rows(path, {"block": 3})) == 50_000
    for read in (tables.load, lambda p: tables.load_rows(p, {"block": 0})):
        with pytest.raises(DataError, match="checksum differs"):
            read(path)


def test_attrs_may_speak_of_checksums(tmp_path: Path) -> None:
    made = table(note="midus:sha256:" + "0" * 64, other=["midus:sha256:" + "a" * 64])
    same(tables.load(tables.save(made, tmp_path / "t")), made)


def test_tables_of_other_programs_and_other_schemas_are_refused(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "theirs.parquet")
    with pytest.raises(DataError, match="is not a result table: it has no checksum"):
        tables.load(tmp_path / "theirs")
    with pytest.raises(DataError, match="table schema 99, this version reads 1"):
        tables.load(tables.save(table(schema=99), tmp_path / "new"))
    with pytest.raises(DataError, match="no table at"):
        tables.load(tmp_path / "absent")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match="no table at"):
        tables.load(tmp_path / "folder")


# ---------------------------------------------------------------- older pairs


def test_an_older_pair_still_opens(tmp_path: Path) -> None:
    path = pair(tmp_path, table())
    same(tables.load(path), table())
    assert table_files.load_attrs(path) == table().attrs
    found = tables.load_rows(path, {"kind": "memory"})
    assert found["block"].tolist() == [0, 1] and found.attrs == table().attrs


def test_a_pair_that_is_saved_again_becomes_one_file(tmp_path: Path) -> None:
    path = pair(tmp_path, table())
    (tmp_path / "u.json").write_text('{"mine": 1}')
    tables.save(table(table="new"), path)
    tables.save(table(), tmp_path / "u")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "u.json", "u.parquet"]
    assert tables.load(path).attrs["table"] == "new"


def test_a_kill_before_the_second_file_of_a_pair_is_removed_does_no_harm(tmp_path: Path) -> None:
    path = pair(tmp_path, table())
    second = path.with_suffix(".json").read_text()
    tables.save(table(table="new"), path)
    path.with_suffix(".json").write_text(second)
    assert tables.load(path).attrs["table"] == "new"


def _other_schema(folder: Path) -> None:
    stored = json.loads((folder / "t.json").read_text())
    (folder / "t.json").write_text(json.dumps({**stored, "schema": 99}))


def _flipped(folder: Path) -> None:
    content = bytearray((folder / "t.parquet").read_bytes())
    content[40] ^= 1
    (folder / "t.parquet").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "t.json").unlink(), "no t.json is beside it"),
        (lambda folder: (folder / "t.parquet").unlink(), "no table at"),
        (lambda folder: (folder / "t.json").write_text('{"sch'), "is damaged"),
        (lambda folder: (folder / "t.json").write_text("[" * 100_000), "is damaged"),
        (lambda folder: (folder / "t.json").write_text("[1]"), "not the description of a result"),
        (_other_schema, "schema 99"),
        (_flipped, "do not belong together"),
    ],
)
def test_a_damaged_pair_is_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    path = pair(tmp_path, table())
    damage(tmp_path)
    for read in (tables.load, lambda p: tables.load_rows(p, {"block": 0})):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- writing


def test_a_failed_save_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.save(table(), tmp_path / "t")

    def full(self: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device; free some space"):
        tables.save(table(table="new"), tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    same(tables.load(tmp_path / "t"), table())


def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        tables.save(table(), tmp_path / "file" / "t")
    with pytest.raises(DataError, match="needs a file name"):
        tables.save(table(), ".parquet")


def test_what_is_shipped_opens() -> None:
    shipped = sorted(STUDY.glob("*.parquet"))
    assert len(shipped) > 20
    for path in shipped:
        assert tables.load(path).attrs["schema"] == 1
    assert not files.sweep(STUDY)
