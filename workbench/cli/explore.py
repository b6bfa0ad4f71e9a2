"""`midus explore`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import common


@common.reports
def explore(
    run: Annotated[
        Path | None, typer.Option(help="A run folder. [default: the shipped study]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1.")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser.")] = False,
) -> None:
    """Open the explorer in a browser, on this machine only.

    Example: `midus explore --run runs/demo`
    """
    from workbench.runs import RunFolder

    if run is not None:
        RunFolder.open(run)
    raise typer.Exit(subprocess.call(command(explorer(), run, port, headless)))


def explorer() -> Path:
    """Where apps/explorer.py lies, installed or in a checkout."""
    from midus_model.errors import MidusError

    spec = importlib.util.find_spec("apps")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in [*places, str(Path(__file__).resolve().parents[2] / "apps")]:
        if (Path(place) / "explorer.py").is_file():
            return Path(place) / "explorer.py"
    raise MidusError("apps/explorer.py is not installed; install midus-workbench again")


def command(app: Path, run: Path | None, port: int | None, headless: bool) -> list[str]:
    """The command line that starts the explorer, bound to this machine, telling nobody."""
    line = [sys.executable, "-m", "streamlit", "run", str(app)]
    line += ["--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
    line += ["--server.headless", "true"] if headless else []
    line += ["--server.port", str(port)] if port is not None else []
    return line + (["--", "--run", str(run.resolve())] if run is not None else [])
