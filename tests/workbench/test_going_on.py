"""A command given the run folder of an interrupted one measures nothing again that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import analysis
from tests.crash.cases import FEW, make_inputs
from workbench.cli import app
from workbench.runs import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
# command -> what it measures with, by its name in `analysis`
MEASURES = {
    f"memory grown {FEW} --against few.jsonl": ["memory_usage"],
    "costs grown --against base": ["costs"],
    f"roles base {FEW}": ["head_roles"],
    f"doctor grown {FEW} --no-timing": ["doctor"],
    f"rank base {FEW} --method taylor --top 2": ["rank_heads"],
    f"importance base {FEW} --method gradient": ["head_importance"],
}
AMPLIFY = f"amplify base --heads 0:1 --gain 1.5 {FEW} --save louder"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    make_inputs(place)
    return place


@pytest.fixture
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def midus(line: str) -> Any:
    return CliRunner().invoke(app, [*line.split(), "-o", "run"])


def interrupted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", stop)
        assert midus(line).exit_code == 130
    assert not RunFolder.open("run").done


@pytest.mark.parametrize("line", MEASURES)
def test_what_is_there_is_not_measured_again(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    interrupted(line, monkeypatch)
    for name in MEASURES[line]:
        monkeypatch.setattr(analysis, name, measured)
    ended = midus(line)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    run = RunFolder.open("run")
    assert run.done and run.tables and run.manifest["models"]
    once_more = midus(line)
    assert once_more.exit_code == 2 and "--overwrite" in once_more.stderr
    assert len(once_more.stderr.splitlines()) == 1


def test_an_amplified_model_that_was_begun_is_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(AMPLIFY, monkeypatch)
    assert Path("louder/config.json").is_file()
    ended = midus(AMPLIFY)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert RunFolder.open("run").manifest["models"]["after"] == "../louder"
    Path("run/.manifest.json.0123456789ab.tmp").mkdir()  # of the last thing that was written
    again = midus(AMPLIFY)
    assert again.exit_code == 2 and "run holds a run already" in again.stderr
    assert not Path("run/.manifest.json.0123456789ab.tmp").exists()


def test_a_model_of_somebody_elses_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = AMPLIFY.replace("louder", "grown")
    refused = midus(line)
    assert refused.exit_code == 2 and "grown exists already" in refused.stderr
    assert not Path("run").exists()
    interrupted(AMPLIFY, monkeypatch)  # the run folder knows another model
    assert "grown exists already" in midus(line).stderr
