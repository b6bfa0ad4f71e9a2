"""The whole study in minutes: pico before and after, from head importance to figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from analysis.escapes import terminal
from workbench import hints
from workbench.recipe import Recipe, Study
from workbench.runs import RunFolder

DEMO = Recipe(top=16, memory_heads="top")


def run_demo(
    output: str | os.PathLike[str] = "runs/demo",
    *,
    steps: int | None = None,
    recipe: Recipe = DEMO,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> RunFolder:
    """Measure pico, up-scale it, train the new blocks on library code, measure again, draw.

    Stopped at any point, a second call with the same arguments goes on where the first was; a
    finished run is returned as it is.

    Args:
        output: the run folder.
        steps: optimiser steps in place of the recipe's.
        overwrite: replace a run that lies there.
        device, dtype: of the models, as `midus_model.load` takes them.
        progress: called as progress(done, total, text).

    Raises RunError where a run of other parameters or inputs lies at `output`, and Diverged where
    a training does.
    """
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    placed = {"device": device, "dtype": dtype}
    parameters = recipe.parameters() | {k: value for k, value in placed.items() if value}
    study = Study(recipe, progress, **placed)
    run = RunFolder.begin(
        output, "demo", command, parameters, inputs=study.inputs(), overwrite=overwrite
    )
    if run.done:
        return run
    began = time.monotonic()
    with run:
        run.resume()
        summary = study.run(run)
        run.finish({**summary, "seconds": round(time.monotonic() - began, 1)})
    return run


def show(run: RunFolder, console: Console | None = None) -> None:
    """Print what a finished study found, where it lies, and what to type next."""
    (console or Console()).print(Group(_losses(run.summary), _heads(run.summary), _closing(run)))


def _losses(found: dict[str, Any]) -> Table:
    table = Table(title="Loss (nats/token)", title_justify="left")
    for name in ("text", "before", "after", "change"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for label, key in (("new domain, test files", "new"), ("held-out standard library", "heldout")):
        before, after = found[f"loss_{key}_before"], found[f"loss_{key}_after"]
        table.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    return table


def _heads(found: dict[str, Any]) -> Table:
    rows = found["most_amplified"]
    unit = rows[0].get("unit", "document") if rows else "document"
    title = f"Most amplified heads (nats/token, 95% over {unit}s)"
    table = Table(title=title, title_justify="left")
    for name in ("head", "expected change", "measured", "interval, all heads together"):
        table.add_column(name, justify="right")
    for row in rows:  # what an older version wrote has neither
        low, high = row.get("ci_low_all", row["ci_low"]), row.get("ci_high_all", row["ci_high"])
        table.add_row(
            f"L{row['layer']} H{row['head']}",
            f"{row.get('shrunk', row['score']):+.4f}",
            f"{row['score']:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
        )
    return table


def _closing(run: RunFolder) -> Panel:
    found, where = run.summary, run.path
    covered = ", ".join(f"block {b}: {100 * c:.0f}%" for b, c in found["coverage"].items())
    more = found["flops_per_token_after"] / found["flops_per_token_before"] - 1
    lines = [
        f"{found['amplified']} of {found['heads']} heads were amplified and {found['weakened']} "
        "weakened, of which 5% are expected to be neither (false discovery rate).",
        f"Of the {found['top']} heads ranked highest on the other half {found['chosen']} got "
        f"memory; {found['chosen_amplified']} of these were amplified.",
        f"Slots used by a head, of {found['slots']:,}: {covered}.",
        f"{found['parameters_added']:,} parameters added to {found['parameters_before']:,}; "
        f"{100 * more:.0f}% more FLOP a token.",
        "",
        f"Tables, figures and the model are in {run.path}",
        "",
        "Next:",
        f"  {hints.typed('explore', '--run', where)}",
        f"  {hints.typed('rank', where / 'models' / 'midus', '--top', 16)}",
        f"  {hints.typed('figures', where, '--format', 'pdf')}",
    ]
    return Panel(Text(terminal("\n".join(lines))), title="demo", title_align="left", expand=False)
