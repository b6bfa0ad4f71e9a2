"""`midus bench`: the kernel benchmark, and its figure."""

from __future__ import annotations

import typer

from workbench.cli import common

# The options are those of `python -m midus_model.bench`, which has no typer to lean on.
PASSED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@common.reports
def bench(context: typer.Context) -> None:
    """Verify the memory kernels, then time them against their peers: `midus bench --help`.

    Example: `midus bench --full --markdown docs/benchmarks.md`
    """
    from analysis.benchmark_figure import benchmark_ratios
    from analysis.paper import save
    from midus_model.bench.__main__ import checked, main

    given = checked(context.args)
    code = main(context.args)
    if code:
        raise typer.Exit(code)
    figure = benchmark_ratios(given.out / "benchmark.json")
    if figure is not None:
        save(figure, given.out / "benchmark")
        typer.echo(f"drawn: {given.out / 'benchmark'}.pdf, .svg, .png")
