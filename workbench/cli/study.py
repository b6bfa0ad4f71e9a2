"""`midus demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import common, options


@common.reports
@options.runs_model
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(help="Training steps. [default: 150]")] = None,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
) -> None:
    """Everything on the shipped model, in minutes: measure, up-scale, train, measure again, draw.

    Interrupted, the same command goes on where it was.

    Example: `midus demo`
    """
    from workbench.demo import run_demo, show

    placed.tell(placed.load("pico"))
    with common.progress() as progress:
        run = run_demo(
            output, steps=steps, overwrite=overwrite, progress=progress, **placed.parameters
        )
    show(run)
