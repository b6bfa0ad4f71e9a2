"""The run folder: written whole, read back, and clear about what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from kernels.errors import MidusError, RunError
from workbench.runs import RunFolder, check_place, free_place


def table(values=(1.0, 2.0)):
    made = pd.DataFrame({"score": list(values), "by_document": [[v, v] for v in values]})
    made.attrs = {"table": "head_importance", "model": "m"}
    return made


def test_what_is_saved_is_what_is_loaded(tmp_path):
    run = RunFolder.create(tmp_path / "a" / "b", "train", ["midus", "train"], {"steps": 3})
    run.save_table("importance_before", table())
    run.add_model("before", "pico")
    run.log("stage", name="x")
    run.finish({"loss": 1.5})
    again = RunFolder.open(tmp_path / "a" / "b")
    assert again.done and again.summary == {"loss": 1.5} and again.kind == "train"
    loaded = again.load_table("importance_before")
    assert loaded.equals(table()) and loaded.attrs["model"] == "m"
    assert again.model_path("before") == "pico"
    assert not list((tmp_path / "a" / "b").glob(".*"))


def test_manifest_holds_what_the_contract_says(tmp_path):
    run = RunFolder.create(tmp_path / "r", "demo", ["midus", "demo"], {"steps": 3})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert set(manifest) == {
        "schema", "midus", "kind", "status", "created", "command", "parameters", "versions",
        "inputs", "models", "made", "tables", "figures", "summary", "overwrites", "sha256",
    }  # fmt: skip
    assert manifest["schema"] == 2 and manifest["status"] == "running"


def test_a_finished_run_is_not_overwritten_unasked(tmp_path):
    run = RunFolder.create(tmp_path / "r", "demo")
    run.save_table("ranking", table())
    run.finish()
    with pytest.raises(RunError, match="finished run"):
        RunFolder.create(tmp_path / "r", "demo")
    assert RunFolder.open(tmp_path / "r").done
    assert RunFolder.create(tmp_path / "r", "demo", overwrite=True).tables == []


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="no run folder"):
            RunFolder.create(tmp_path, "demo", overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "file" / "below" / "run", "demo")
    with pytest.raises(RunError, match="is a file"):
        check_place(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no manifest.json"),
        ("{", "damaged"),
        ("[]", "holds an array, not an object"),
        ("{}", "names no schema"),
        ('{"schema": 1}', "lacks kind"),
        ('{"schema": 7, "midus": "9.9"}', "made by midus 9.9"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=message) as error:
        RunFolder.open(tmp_path)
    assert "\n" not in str(error.value)


def test_begin_goes_on_with_the_same_and_refuses_another(tmp_path):
    RunFolder.create(tmp_path / "r", "demo", None, {"steps": 3}).save_table("ranking", table())
    assert RunFolder.begin(tmp_path / "r", "demo", None, {"steps": 3}).has_table("ranking")
    with pytest.raises(RunError, match="other steps"):
        RunFolder.begin(tmp_path / "r", "demo", None, {"steps": 4})
    with pytest.raises(RunError, match="kind 'demo'"):
        RunFolder.begin(tmp_path / "r", "train", None, {"steps": 3})
    anew = RunFolder.begin(tmp_path / "r", "demo", None, {"steps": 4}, overwrite=True)
    assert not anew.has_table("ranking")


def test_a_failed_run_says_so_and_an_empty_one_goes(tmp_path):
    with pytest.raises(MidusError), RunFolder.create(tmp_path / "empty", "demo"):
        raise MidusError("nothing came of it")
    assert not (tmp_path / "empty").exists()
    with pytest.raises(MidusError), RunFolder.create(tmp_path / "some", "demo") as run:
        run.save_table("ranking", table())
        raise MidusError("stopped half-way")
    manifest = RunFolder.open(tmp_path / "some").manifest
    assert manifest["status"] == "failed" and manifest["message"] == "stopped half-way"


def test_unknown_names_are_named(tmp_path):
    run = RunFolder.create(tmp_path / "r", "demo")
    with pytest.raises(RunError, match="no table 'x'.*none"):
        run.load_table("x")
    with pytest.raises(RunError, match="no model 'x'"):
        run.model_path("x")


def test_free_place_never_names_what_is_there(tmp_path):
    assert free_place(tmp_path, "rank-pico").name == "rank-pico"
    (tmp_path / "rank-pico").mkdir()
    assert free_place(tmp_path, "rank-pico").name == "rank-pico-2"
    assert free_place(tmp_path, "a b/c").name == "a-b-c"


def test_a_models_folder_is_found_from_another_working_directory(tmp_path, monkeypatch):
    for name in ("project/models/mine", "project/pico", "project/runs/one/models/after"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    run = RunFolder.create("runs/two", "importance")
    absolute = str(tmp_path / "project" / "models" / "mine")
    given = {
        "relative": "models/mine", "dotted": "./models/../models/mine", "absolute": absolute,
        "shipped": "pico", "hub": "nobody/model", "inside": "models/inside",
    }  # fmt: skip
    (run.path / "models" / "inside").mkdir(parents=True)
    for label, where in given.items():
        run.add_model(label, where)
    run.finish()
    monkeypatch.chdir(tmp_path)
    again = RunFolder.open("project/runs/two")
    found = {label: again.model_path(label) for label in given}
    for label in ("relative", "dotted", "absolute"):
        assert Path(found[label]).samefile(absolute), label
    assert Path(found["inside"]).samefile("project/runs/two/models/inside")
    assert (found["shipped"], found["hub"]) == ("pico", "nobody/model")
    written = json.loads((tmp_path / "project/runs/two/manifest.json").read_text())["models"]
    assert str(tmp_path) not in written["relative"]


HOLD = """
import sys
from workbench.runs import RunFolder
with getattr(RunFolder, sys.argv[2])(sys.argv[1], *sys.argv[3:]) as run:
    print(run.kind, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def elsewhere(place, how, *words):
    """Another process that writes the run at `place`, as it says."""
    line = [sys.executable, "-c", HOLD, str(place), how, *words]
    with subprocess.Popen(line, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == "demo"
        yield other
        other.kill()


@pytest.mark.parametrize("how", ["create", "begin"])
def test_one_process_at_a_time_writes_a_run(tmp_path, how):
    place = tmp_path / "run"
    with elsewhere(place, how, "demo") as other:
        before = (place / "manifest.json").read_bytes()
        for write in (
            lambda: RunFolder.create(place, "demo"),
            lambda: RunFolder.create(place, "demo", overwrite=True),
            lambda: RunFolder.begin(place, "demo"),
            lambda: RunFolder.begin(place, "rank", overwrite=True),
            lambda: RunFolder.open(place, writing=True),
        ):
            with pytest.raises(RunError, match=f"being written by process {other.pid}"):
                write()
        assert RunFolder.open(place).kind == "demo"  # whoever reads is not kept waiting
        assert (place / "manifest.json").read_bytes() == before
    RunFolder.begin(place, "demo").finish()  # the killed one holds nothing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_refused_run_holds_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RunError) as caught:
        RunFolder.create(tmp_path, "demo")
    with elsewhere(tmp_path / "run", "create", "demo"):
        assert caught.value is not None  # its traceback lives
    run = RunFolder.create(tmp_path / "mine", "demo")
    run.finish()
    run.release()
    with elsewhere(tmp_path / "run", "create", "demo"):
        pass


ODD = {
    "kind": 5, "status": ["done"], "parameters": [1], "models": ["a"], "tables": {"a": 1},
    "figures": "all", "summary": None, "created": 3.5, "command": "midus", "versions": [],
}  # fmt: skip


@pytest.mark.parametrize("field", ODD)
def test_a_field_of_another_kind_is_said(tmp_path, field):
    RunFolder.create(tmp_path / "r", "demo").release()
    path = tmp_path / "r" / "manifest.json"
    known = json.loads(path.read_text())
    del known["sha256"]
    known["schema"] = 1  # as earlier versions had it, without a checksum
    for value in (ODD[field], *([[[1]]] if field == "tables" else [])):
        path.write_text(json.dumps(known | {field: value}))
        with pytest.raises(RunError, match="is damaged") as caught:
            RunFolder.open(tmp_path / "r")
        assert field in str(caught.value) and "\n" not in str(caught.value)
