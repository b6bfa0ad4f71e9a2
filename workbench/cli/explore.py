"""`midus explore`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from workbench.cli import common


@common.reports
def explore(
    run: Annotated[
        list[Path] | None,
        typer.Option(help="A run folder; may be given again. [default: the shipped study]"),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder of runs: all in it can be opened, and jobs write there.")
    ] = Path("runs"),
    models: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of checkpoints that may be loaded; may be given again."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1.")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser.")] = False,
) -> None:
    """Open the explorer in a browser, on this machine only.

    It reads no other folder than those given, and the shipped study.

    Examples:

    `midus explore --run runs/demo`

    `midus explore --runs runs --models checkpoints`
    """
    from kernels.errors import RunError
    from workbench.runs import RunFolder

    for folder in run or []:
        RunFolder.open(folder)
    for folder in models or []:
        if not folder.is_dir():
            raise RunError(f"--models is {folder}, which is no folder; give one of checkpoints")
    line = command(explorer(), run or [], runs, models or [], port, headless)
    _become(line)


def _become(line: list[str]) -> NoReturn:
    """Go on as the server: signals reach it, its exit code is ours, and nothing outlives it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":  # which would start another process and end this one
        raise typer.Exit(subprocess.call(line))
    os.execv(line[0], line)


def explorer() -> Path:
    """Where apps/explorer.py lies, installed or in a checkout."""
    from kernels.errors import MidusError

    spec = importlib.util.find_spec("apps")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in [*places, str(Path(__file__).resolve().parents[2] / "apps")]:
        if (Path(place) / "explorer.py").is_file():
            return Path(place) / "explorer.py"
    raise MidusError("apps/explorer.py is not installed; install midus-workbench again")


def command(
    app: Path,
    run: Sequence[Path],
    runs: Path,
    models: Sequence[Path],
    port: int | None,
    headless: bool,
) -> list[str]:
    """The command line that starts the explorer, bound to this machine, telling nobody."""
    # -P: nothing is imported from the folder that it is started in.
    line = [sys.executable, "-P", str(Path(__file__).with_name("serve.py")), "run", str(app)]
    line += ["--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
    line += ["--server.headless", str(headless).lower()]
    line += ["--server.port", str(port)] if port is not None else []
    line += ["--", "--runs", str(runs.resolve())]
    for option, folders in (("--run", run), ("--models", models)):
        line += [option, *(str(folder.resolve()) for folder in folders)] if folders else []
    return line
