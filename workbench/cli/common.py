"""What every command shares: errors as one line, progress, result tables, option types."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from analysis.escapes import terminal
from workbench import hints
from workbench.progress import written

settings = {"debug": False}

Model = Annotated[
    str, typer.Argument(help="A name (pico, pico-midus, smollm2), a model directory, or a hub id.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="heldout, stdlib, packages, a file (text or source, .jsonl, .json, .csv, .tsv, "
        ".parquet, each also .gz), a folder, or hf:NAME. "
        "[default: heldout]"
    ),
]
Split = Annotated[str | None, typer.Option(help="train or test: one document in ten is for test.")]
Limit = Annotated[int | None, typer.Option(help="Use at most that many documents.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder. [default: a new one in runs/]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies at --output.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]


def say(text: str, err: bool = False) -> None:
    """A line on the terminal; what comes in names from outside shows and does nothing."""
    typer.echo(terminal(text), err=err)


def complain(message: str) -> None:
    """One line on stderr."""
    say(f"midus: {' '.join(message.split())}", err=True)


def stop(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit code."""
    complain(message)
    raise typer.Exit(code)


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line and exit code 2, and whose interruption is 130.

    A training that diverges was asked for rightly: 1.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        _quiet()
        try:
            with _holding:
                command(*args, **{name: at_home(value) for name, value in kwargs.items()})
        except KeyboardInterrupt:
            stop(
                "interrupted; the same command goes on where a run folder holds what was done, "
                "and starts again where not",
                130,
            )
        except Exception as error:
            from kernels.errors import Diverged, MidusError

            if settings["debug"] or not isinstance(error, MidusError | OSError):
                raise
            said = as_options(str(error), kwargs) or type(error).__name__
            stop(said, 1 if isinstance(error, Diverged) else 2)

    return run


_holding = ExitStack()  # what the command that runs holds


def hold(place: str | os.PathLike[str]) -> None:
    """Hold a folder until the command ends; RunError where another process writes it.

    What a killed writer of it had left is removed.
    """
    from kernels import files, locks

    _holding.enter_context(locks.hold(place))
    files.sweep(Path(place).expanduser().parent, Path(place).name)


def as_options(text: str, given: Iterable[str]) -> str:
    """A message of Python's arguments with the names that the command line has for them.

    >>> as_options("top_k is 5; give limit=8, or heads= alone", ["top_k", "limit", "heads"])
    '--top-k is 5; give --limit 8, or --heads alone'
    """
    for name in given:
        option = "--" + name.replace("_", "-")
        alone = rf"(?<![\w.-]){name}(?![\w(=])" if "_" in name else rf"^{name}(?= (?:is|has) )"
        text = re.sub(alone, option, text)
        text = re.sub(rf"(?<![\w.-]){name}=(?=[\d'\"])", f"{option} ", text)
        text = re.sub(rf"(?<![\w.-]){name}=", option, text)
    return text


def at_home(value: Any) -> Any:
    """A path that begins with ~ with the home folder put in: no shell does so after an =."""
    if isinstance(value, list):
        return [at_home(part) for part in value]
    if isinstance(value, Path):
        text = str(value).removeprefix("=")  # -o=FOLDER, which is not how a short option is given
        return Path(text).expanduser() if text != str(value) or text.startswith("~") else value
    return os.path.expanduser(value) if isinstance(value, str) else value


def _quiet() -> None:
    """Warnings as one line each; no bars and no chatter of the libraries."""
    warnings.showwarning = lambda message, *args, **kwargs: complain(f"note: {message}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar with an estimate; yields progress(done, total, text). A new total begins it anew."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield written(_plain_progress())
        return
    state: dict[str, Any] = {"total": None, "stage": ""}
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def report(done: int, total: int, text: str) -> None:
            if total == 0:  # a stage begins; what follows tells its own steps
                console.print(terminal(text), highlight=False, markup=False, emoji=False)
                state["total"] = None
                bar.reset(task, total=None, description=terminal(text))
                return
            if total != state["total"]:
                state["total"] = total
                bar.reset(task, total=total)
            bar.update(task, completed=done, description=terminal(text))

        yield written(report)


def _plain_progress() -> Callable[[int, int, str], None]:
    """Where no bar can be drawn (a log file, a pipe): a line a stage and a tenth."""
    told: dict[str, int] = {}

    def report(done: int, total: int, text: str) -> None:
        if total == 0:
            say(text, err=True)
            told.clear()
            return
        tenth = 10 * done // total
        if total >= 10 and tenth > told.get(text, 0):
            say(f"{text} {done}/{total}", err=True)
        told[text] = tenth

    return report


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, numbers to the right; nothing in it is markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> Text:
        return Text(terminal(text))

    table = Table(title=plain(title), title_justify="left")
    for column in columns:
        table.add_column(plain(column), justify="right")
    for row in rows:
        table.add_row(*map(plain, row))
    # A pipe has no width of its own: eighty columns would cut the numbers.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)


def parse_heads(text: str | None) -> Any:
    """`--heads`: the path of a ranking's JSON, or pairs such as 3:1,5:0."""
    from kernels.errors import HeadError

    if text is None or Path(text).is_file():
        return text
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [(int(layer), int(head)) for layer, head in pairs]
    except ValueError as error:
        raise HeadError(
            f"--heads is {text!r}; give layer:head pairs such as 3:1,5:0, or a ranking.json"
        ) from error


def parse_bytes(text: str | None) -> int | None:
    """512MB, 2GiB or a plain number, in bytes."""
    from kernels.errors import MidusError

    if text is None:
        return None
    sizes = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    try:
        if found is None:
            raise ValueError
        return int(float(found[1]) * sizes[found[2].upper()])
    except ValueError as error:
        raise MidusError(
            f"--memory-budget is {text!r}; give a size such as 512MB or 2GB"
        ) from error


@contextmanager
def begin(
    output: Path | None,
    kind: str,
    name: str,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    overwrite: bool,
    *,
    finished: bool = False,
) -> Iterator[Any]:
    """A new run, or the unfinished one at `output` that was asked the same, to be gone on with.

    `inputs` is what it is made of, as `workbench.inputs.inputs_of` has it. One that is finished is
    refused, or given as it is with `finished`.

    Of several processes the first has the run folder; the others work in a folder that is thrown
    away and print nothing, but keep their checkpoints in the run's.
    """
    from analysis.distributed import barrier, is_main, rank_and_size
    from kernels.errors import RunError
    from workbench.runs import RunFolder, written_at

    if output is None and rank_and_size()[1] > 1:
        raise RunError("several processes need one run folder: give it with --output")
    place = output or free_folder(kind, name)
    if not is_main():
        barrier()
        with tempfile.TemporaryDirectory() as folder, _silent():
            copied = Path(folder) / place.name  # with the tables that are there already
            begun = written_at(place, overwrite)
            left = shutil.ignore_patterns("partial", "models", "training", ".*")
            shutil.copytree(begun, copied, ignore=left)
            run = RunFolder.open(copied)
            run.shared = begun
            barrier()
            yield run
        return
    run = RunFolder.begin(place, kind, None, parameters, inputs=inputs, overwrite=overwrite)
    if run.done and not finished:
        raise RunError(f"{place} holds a run already; give another folder, or --overwrite")
    if not run.done:
        run.resume()
    barrier()  # the others copy what is there
    barrier()
    with run:
        yield run


def free_folder(command: str, model: str) -> Path:
    """A folder in runs/ that is not there yet, named after what is done with which model."""
    from analysis.tables import display_name
    from workbench.runs import free_place

    return free_place("runs", f"{command}-{Path(display_name(model)).name}")


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def checkpoint(run: Any, table: str) -> Path:
    """Where a table that is being measured keeps what it has."""
    return Path(run.shared) / "partial" / f"{table}.safetensors"


def closing(place: Path, *commands: str) -> None:
    """The last lines of a command that leaves a run folder; what a time budget left out is last.

    commands: what is next, before what can be done with any run folder.
    """
    say(f"Saved in {place}. {hints.line(*commands, *hints.of_run(place))}")
    for line in _left_out(place):
        say(line)


def _left_out(place: Path) -> Iterator[str]:
    """What the measurements of a run folder left out to keep to a time, a line each."""
    from analysis.estimates import left_out
    from analysis.table_files import load_attrs

    for path in sorted((place / "tables").glob("*.parquet")):
        if line := left_out(load_attrs(path)):
            yield f"{path.stem}: {line}"
