"""`midus figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import common

FORMATS = ("pdf", "svg", "png", "html")


@common.reports
def figures(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    figure: Annotated[
        list[str] | None, typer.Option(help="This figure only; may be given more than once.")
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="pdf, svg, png, html; may be given more than once.")
    ] = None,
) -> None:
    """Draw a run's figures from its tables, for a paper (PDF, SVG, PNG) and interactive (HTML).

    Example: `midus figures runs/demo --figure importance_map --format pdf`
    """
    from kernels.errors import RunError
    from workbench.drawing import draw
    from workbench.runs import RunFolder, check_place

    formats = list(format or FORMATS)
    for name in formats:
        if name not in FORMATS:
            raise RunError(f"--format is {name!r}; it must be one of {', '.join(FORMATS)}")
    RunFolder.open(run)  # what is wrong with it is said first
    check_place(run)
    paper = [name for name in formats if name != "html"]
    common.hold(run)
    folder = RunFolder.open(run, writing=True)
    with common.progress() as progress:
        names = draw(folder, figure, paper or ["png"], "html" in formats, progress)
    rows = [[name, ", ".join(formats if paper else ["png", "html"])] for name in names]
    common.print_table(f"Figures in {folder.path / 'figures'}", ["figure", "formats"], rows)
