"""`midus bench`: the kernel benchmark, its figure, and the benchmark of the head sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

    `midus bench importance` does so for the sweep over all heads, its peers being TransformerLens
    and nnsight: `midus bench importance --help`. `midus bench device` is all that a GPU is wanted
    for, in nine minutes: `midus bench device --help`.

    Example: `midus bench --full --markdown docs/benchmarks.md`
    """
    arguments = [_at_home(word) for word in context.args]
    if arguments[:1] == ["importance"]:
        _importance(arguments[1:])
    elif arguments[:1] == ["device"]:
        _device(arguments[1:])
    else:
        _kernels(arguments)


def _at_home(word: str) -> str:
    """A word of the command line, ~ also after an = being the home folder."""
    option, equals, value = word.partition("=")
    return f"{option}={common.at_home(value)}" if equals else str(common.at_home(word))


def _kernels(arguments: Sequence[str]) -> None:
    from analysis.benchmark_figure import benchmark_ratios
    from analysis.paper import save
    from midus_model.bench.__main__ import checked, main

    given = checked(arguments)
    code = main(arguments)
    if code:
        raise typer.Exit(code)
    figure = benchmark_ratios(given.out / "benchmark.json")
    if figure is not None:
        save(figure, given.out / "benchmark")
        common.say(f"drawn: {given.out / 'benchmark'}.pdf, .svg, .png")


def _device(arguments: Sequence[str]) -> None:
    from midus_model.bench.device.__main__ import main

    code = main(arguments)
    if code:
        raise typer.Exit(code)


def _importance(arguments: Sequence[str]) -> None:
    import torch

    from midus_model import resolve_device
    from midus_model.bench.parser import Parser
    from midus_model.bench.report import around, fill_in
    from midus_model.bench.verify import WrongResult
    from workbench import importance_bench
    from workbench.importance_bench import cases, report

    parser = Parser(
        prog="midus bench importance",
        description=importance_bench.__doc__,
        epilog="Example: midus bench importance --quick",
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two, rough")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, or cuda:1; default: cpu")
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto",
                        help="all tools are verified against each other in float32")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
    folder = Path("benchmark-importance")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the results")
    parser.add_argument("--markdown", type=Path, help="page whose tables are filled in")
    given = parser.parse_args(arguments)
    place = resolve_device(given.device)
    if place.type not in ("cpu", "cuda"):
        parser.error(f"--device is {given.device}, and the benchmark times cpu and cuda; give one")
    if place.index:
        torch.cuda.set_device(place)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads is {given.threads}; it must be at least 1")
    try:  # now, not after a long run
        given.out.mkdir(parents=True, exist_ok=True)
        if given.markdown:
            around(given.markdown, place.type)
    except (OSError, ValueError) as error:
        parser.error(f"{'--markdown' if isinstance(error, ValueError) else '--out'}: {error}")
    common.hold(given.out)
    if given.threads:
        torch.set_num_threads(given.threads)
    chosen, seconds = (cases.QUICK, 2.0) if given.quick else (cases.CASES, 20.0)
    try:
        result = report.run(chosen, given.out, device=place.type, seconds=seconds, tell=common.say)
    except WrongResult as error:
        common.stop(f"wrong result, the benchmark ends here: {error}", 1)
    common.say(report.summary(result))
    for table in report.tables(result):
        common.print_table(*table)
    if given.markdown:
        fill_in(given.markdown, place.type, report.markdown(result))
    common.say(f"written: {given.out / 'benchmark.json'}, {given.out / 'benchmark.csv'}")
