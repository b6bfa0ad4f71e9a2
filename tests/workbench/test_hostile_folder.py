"""Started in a folder that somebody else filled, nothing of that folder is run or obeyed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest

from analysis import paper
from tests.analysis.test_figure_sheets import SHEETS
from tests.midus_model.planted import plant
from workbench import jobs
from workbench.cli import explore

ROOT = Path(__file__).resolve().parents[2]
SHADOWS = ("torch", "transformers", "pandas", "streamlit", "typer", "random", "workbench", "midus")
CODE = "from pathlib import Path; Path({mark!r}).write_text(__name__); raise SystemExit(9)"
OPTIONS = {
    "server.address": "127.0.0.1",
    "server.enableCORS": True,
    "server.enableXsrfProtection": True,
    "server.enableStaticServing": False,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "browser.serverAddress": "127.0.0.1",
    "client.showErrorDetails": "none",
}
HOSTILE_CONFIG = """
[server]
address = "0.0.0.0"
enableCORS = false
enableXsrfProtection = false
enableStaticServing = true
fileWatcherType = "auto"
[browser]
gatherUsageStats = true
serverAddress = "elsewhere.example"
[client]
showErrorDetails = "full"
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, full of modules named like ours; their mark is `run`."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in (*SHADOWS, "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(CODE.format(mark=str(tmp_path / "run")))
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(HOSTILE_CONFIG)
    (folder / ".env").write_text("MIDUS_DEBUG=1\n")
    monkeypatch.chdir(folder)
    return folder


def called(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


@pytest.mark.verify
def test_the_command_imports_nothing_from_there(hostile: Path, tmp_path: Path) -> None:
    """`midus` is a script of its environment, which Python reads modules beside, not here."""
    script = tmp_path / "bin" / "midus"
    script.parent.mkdir()
    script.write_text("from workbench.cli import main\nmain()\n")
    assert "pico" in called(sys.executable, str(script), "costs", "pico")
    assert not (tmp_path / "run").exists()


def test_a_job_imports_nothing_from_there(hostile: Path, tmp_path: Path) -> None:
    job = jobs.start(["costs", "pico"], tmp_path / "runs", "costs")
    end = time.monotonic() + 240
    while job.status == "running" and time.monotonic() < end:
        time.sleep(0.05)
    assert job.status == "done", job.message
    assert not (tmp_path / "run").exists()


def test_the_explorer_imports_nothing_from_there(hostile: Path, tmp_path: Path) -> None:
    line = explore.command(explore.explorer(), [], tmp_path, [], None, True)
    module = line.index("run")
    assert called(*line[:module], "version").startswith("Streamlit")
    assert not (tmp_path / "run").exists()


def test_the_explorer_answers_here_only_whatever_is_configured_there(hostile: Path) -> None:
    code = (
        "import json, sys; from streamlit import config; config._main_script_path = sys.argv[1]; "
        "print(json.dumps({k: config.get_option(k) for k in sys.argv[2:]}))"
    )
    said = called(sys.executable, "-P", "-c", code, str(explore.explorer()), *OPTIONS)
    assert json.loads(said.splitlines()[-1]) == OPTIONS


def test_a_figure_is_drawn_as_ever_whatever_a_matplotlibrc_says(tmp_path: Path) -> None:
    """With `text.usetex` its texts would even be run through LaTeX."""
    figure, tables, options = SHEETS["training"]
    settings = {"text.usetex": True, "axes.facecolor": "red", "lines.marker": "o"}
    drawn = []
    for number, changed in enumerate(({}, settings)):
        with matplotlib.rc_context(changed):
            sheet = getattr(paper, figure)(*tables, **options)
            paths = paper.save(sheet, tmp_path / str(number))
        drawn.append({path.suffix: path.read_bytes() for path in paths})
    assert drawn[0] == drawn[1] and len(drawn[0]) == 3


NETWORK = """
import socket, sys, warnings
tried = []
def refuse(*args, **more):
    tried.append(args)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from typer.testing import CliRunner
from workbench.cli import app
from midus_model import load, load_tokenizer
warnings.simplefilter("ignore")
for words in (["documents", sys.argv[2]], ["costs", "pico-midus"],
              ["importance", "pico", "--data", sys.argv[2], "--method", "gradient", "-o",
               sys.argv[1]]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
load(sys.argv[3]), load_tokenizer(sys.argv[3])
print(tried)
"""


def test_no_connection_is_made_for_what_lies_here(tmp_path: Path) -> None:
    """Not by transformers for a folder either, and no telemetry."""
    place, _ = plant(tmp_path, "model")
    texts = tmp_path / "texts.txt"
    texts.write_text("def f(x):\n    return x\n" * 4)
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", NETWORK, *map(str, (tmp_path / "run", texts, place))],
        env=known | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
