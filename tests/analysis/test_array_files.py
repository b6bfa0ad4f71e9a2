"""Arrays on disc: exact, and no flipped bit is taken for a number."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from analysis.array_files import load_arrays, save_arrays
from kernels.errors import DataError, RunError

ARRAYS = {"effects": np.arange(6.0).reshape(2, 3).T, "n": np.array(3), "none": np.zeros((0, 2))}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save_arrays(tmp_path / "below" / "kept", ARRAYS, {"identity": "x", "done": "3"})
    arrays, about = load_arrays(tmp_path / "below" / "kept")
    assert about == {"identity": "x", "done": "3"} and set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["kept"]


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.verify)])
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, every: int) -> None:
    path = save_arrays(tmp_path / "kept", ARRAYS, {"identity": "x", "done": "3"})
    content, drawn = path.read_bytes(), random.Random(0)
    for start in range(0, 8 * len(content) - every, every):
        damaged, bit = bytearray(content), start + drawn.randrange(every)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            arrays, about = load_arrays(path)
        except DataError as error:
            assert "\n" not in str(error) and "remove it to begin anew" in str(error)
            continue
        assert about == {"identity": "x", "done": "3"} and set(arrays) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write to"):
        save_arrays(tmp_path / "file" / "kept", ARRAYS, {}, RunError)
    with pytest.raises(DataError, match="is damaged"):
        load_arrays(tmp_path / "absent")
