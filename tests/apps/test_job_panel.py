"""Jobs on the pages: a damaged one breaks none, a planted one reads and writes nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.workbench.test_jobs import DAMAGED
from workbench import jobs

APP = Path(__file__).parents[2] / "apps" / "main.py"


def planted(workspace: Path, name: str, content: str | bytes) -> None:
    folder = workspace / ".jobs" / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_bytes(content if isinstance(content, bytes) else content.encode())


def choose(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", [str(APP), "--runs", str(workspace)])
    app = AppTest.from_file(str(APP), default_timeout=120)
    app.run()
    assert not app.exception and not app.error
    return app.switch_page("views/choose.py").run()


def test_damaged_jobs_break_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.parts.job_panel.SHOWN", 100)
    for number, content in enumerate(DAMAGED.values()):
        planted(tmp_path, f"bad-{number}", content)
    about = {"arguments": ["rank", "pico"], "started": 5.0}
    for name in ("deep", "odd", "bare"):
        planted(tmp_path, name, json.dumps(about))
    deep = "[" * 10**5
    (tmp_path / ".jobs" / "deep" / "progress.json").write_text(deep)
    (tmp_path / ".jobs" / "deep" / "code").write_text(deep)
    (tmp_path / ".jobs" / "odd" / "output.txt").write_bytes(b"midus: \xff\x00\x1b[31m")
    for name, manifest in (("deep", deep), ("odd", '{"status": 5, "message": [1]}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(manifest)
    app = choose(tmp_path, monkeypatch)
    assert not app.exception
    shown = " ".join(part.value for part in app.markdown)
    assert shown.count(": damaged") == len(DAMAGED)
    keys = {button.key for button in app.button}
    for number in range(len(DAMAGED)):
        assert f"remove_bad-{number}" in keys and f"again_bad-{number}" not in keys


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["costs", "pico", "-o", "{outside}"], "says where to write"),
        (["rank", "pico", "--data", "{outside}"], "was not given to the explorer"),
        (["costs", "{outside}"], "was not given to the explorer"),
    ],
)
def test_a_planted_job_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    workspace, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    words = [word.replace("{outside}", str(outside)) for word in words]
    planted(workspace, "mine", json.dumps({"arguments": words, "started": 5.0}))
    app = choose(workspace, monkeypatch)
    app.button(key="again_mine").click().run()
    assert not app.exception and message in " ".join(toast.value for toast in app.toast)
    assert jobs.one(workspace, "mine").status == "interrupted" and not list(outside.iterdir())
