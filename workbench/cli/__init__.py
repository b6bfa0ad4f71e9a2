"""The command `midus`. Heavy imports stay inside the commands, so that `midus --help` is quick."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from workbench.cli import (
    amplify,
    bench,
    common,
    doctor,
    documents,
    explore,
    measure,
    mistakes,
    models,
    show,
    study,
    usage,
)


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"midus {metadata.version('midus-workbench')}")
        except metadata.PackageNotFoundError:
            typer.echo("midus (checkout, not installed)")
        raise typer.Exit


def _start(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MIDUS_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """See which attention heads matter, make a model deeper with MIDUS memory, see what changed.

    Try `midus demo` first: everything on the shipped model, in a few minutes on a laptop.
    """
    common.settings["debug"] = debug
    try:
        other = metadata.distribution("kernels")
    except metadata.PackageNotFoundError:
        return
    common.stop(
        f"Hugging Face's own package `kernels` {other.version} is installed, and midus brings "
        "another of that name: the two cannot share an environment; install midus in one of its own"
    )


app = typer.Typer(
    name="midus",
    cls=mistakes.Group,
    callback=_start,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(study.demo)
app.command("upscale")(models.upscale)
app.command("train")(models.train)
app.command("documents")(documents.documents)
app.command("importance")(measure.importance)
app.command("rank")(measure.rank)
app.command("roles")(measure.roles)
app.command("memory")(usage.memory)
app.command("amplify")(amplify.amplify)
app.command("doctor")(doctor.doctor)
app.command("figures")(show.figures)
app.command("costs")(usage.costs)
app.command("bench", context_settings=bench.PASSED_ON)(bench.bench)
app.command("explore")(explore.explore)


def main() -> None:
    """The entry point of the `midus` command."""
    app()


__all__ = ["app", "main"]
