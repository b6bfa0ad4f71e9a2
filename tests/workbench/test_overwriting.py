"""A run that replaces another: the old one stands until the new one is whole, links are left."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kernels import files
from kernels.errors import RunError
from workbench.runs import RunFolder, written_at


def table(value: float) -> pd.DataFrame:
    return pd.DataFrame({"score": [value]})


def score(place: Path) -> float:
    return float(RunFolder.open(place).load_table("ranking")["score"][0])


def finished(place: Path, value: float = 1.0, **given: Any) -> RunFolder:
    with RunFolder.begin(place, "rank", None, {"top": 3}, **given) as run:
        run.resume()
        run.save_table("ranking", table(value))
        run.finish({"value": value})
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_run_stands_until_the_new_one_is_finished(tmp_path: Path) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)
    (place / "figures").mkdir()
    with RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True) as run:
        run.save_table("ranking", table(2.0))
        assert score(place) == 1.0 and RunFolder.open(place).done and not run.done
        run.finish({"value": 2.0})
        assert run.path == place and run.done and score(place) == 2.0
        run.save_table("later", table(3.0))
    assert names(tmp_path) == ["r"] and names(place) == ["manifest.json", "tables"]
    assert RunFolder.open(place).tables == ["ranking", "later"]


def test_a_killed_overwrite_is_gone_on_with(tmp_path: Path) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)
    RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True).save_table("a", table(2.0))
    again = RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True)
    assert again.has_table("a") and score(place) == 1.0
    assert written_at(place, True) == again.path and written_at(place, False) == place
    other = RunFolder.begin(place, "rank", None, {"top": 4}, overwrite=True)
    assert not other.has_table("a") and score(place) == 1.0
    changed = RunFolder.begin(
        place, "rank", None, {"top": 4}, inputs={"weights": "0"}, overwrite=True
    )
    assert changed.manifest["inputs"] == {"weights": "0"}


def test_what_was_begun_with_overwrite_where_nothing_lay_is_gone_on_with(tmp_path: Path) -> None:
    place = tmp_path / "r"
    RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True).save_table("a", table(2.0))
    again = RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True)
    assert again.path == place and again.has_table("a")
    again.finish()
    anew = RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True)
    assert anew.path != place and not anew.has_table("a")


def test_a_kill_before_the_exchange_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "move", killed)
        finished(place, 2.0, overwrite=True)
    assert score(place) == 1.0
    run = RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True)
    assert run.has_table("ranking") and not run.done
    run.finish()
    run.release()
    assert score(place) == 2.0 and names(tmp_path) == ["r"]


def test_a_failed_overwrite_keeps_the_old_run(tmp_path: Path) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)
    with (
        pytest.raises(RunError),
        RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True),
    ):
        raise RunError("the method is not known")
    assert names(tmp_path) == ["r"] and score(place) == 1.0


def test_a_move_that_fails_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)
    run = RunFolder.begin(place, "rank", None, {"top": 3}, overwrite=True)
    run.save_table("ranking", table(2.0))

    def full(draft: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="No space left"):
        patched.setattr(files, "_take_place", full)
        run.finish()
    assert score(place) == 1.0 and run.has_table("ranking") and not run.done
    run.finish()
    run.release()
    assert score(place) == 2.0 and names(tmp_path) == ["r"]


@pytest.mark.parametrize("linked", ["run", "tables"])
def test_nothing_behind_a_link_is_cleared(tmp_path: Path, linked: str) -> None:
    kept, place = tmp_path / "kept", tmp_path / "r"
    if linked == "run":
        finished(kept, 1.0)
        place.symlink_to(kept)
    else:
        finished(place, 1.0)
        shutil.move(place / "tables", kept)
        (place / "tables").symlink_to(kept)
    before = sorted(kept.rglob("*"))
    finished(place, 2.0, overwrite=True)
    assert score(place) == 2.0 and sorted(kept.rglob("*")) == before
    assert not place.is_symlink() and names(tmp_path) == ["kept", "r"]


def test_a_damaged_manifest_can_be_replaced_when_asked(tmp_path: Path) -> None:
    place = tmp_path / "r"
    finished(place, 1.0)
    (place / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        finished(place, 2.0)
    finished(place, 2.0, overwrite=True)
    assert score(place) == 2.0


def dead_draft(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{name}.0123456789ab.tmp"
    draft.mkdir()
    (draft / name).write_text("half")
    return draft


def test_a_folder_whose_manifest_was_never_renamed_can_be_used(tmp_path: Path) -> None:
    dead_draft(tmp_path / "r", "manifest.json")
    finished(tmp_path / "r", 1.0)
    assert names(tmp_path / "r") == ["manifest.json", "tables"]


def test_drafts_are_swept_when_a_run_is_opened_for_writing(tmp_path: Path) -> None:
    place = tmp_path / "r"
    run = RunFolder.begin(place, "rank", None, {"top": 3})
    run.save_table("ranking", table(1.0))
    run.release()
    drafts = [dead_draft(place / at, "x") for at in (".", "tables", "models/m", "partial")]
    drafts.append(dead_draft(tmp_path, "r"))
    RunFolder.open(place)
    assert all(map(Path.exists, drafts)), "whoever only reads changes nothing"
    RunFolder.begin(place, "rank", None, {"top": 3})
    assert not any(map(Path.exists, drafts))


def test_the_sums_of_a_sweep_stay_until_the_run_is_finished(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path / "r", "rank")
    (run.path / "partial").mkdir()
    (run.path / "partial" / "ranking.safetensors").touch()
    run.save_table("ranking", table(1.0))
    assert (run.path / "partial" / "ranking.safetensors").exists()
    run.finish()
    assert not (run.path / "partial").exists()
