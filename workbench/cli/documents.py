"""`midus documents`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import common, options


@common.reports
@options.reads_text
def documents(
    data: Annotated[
        str,
        typer.Argument(
            help="heldout, stdlib, packages, a file (text or source, .jsonl, .json, .csv, .tsv, "
            ".parquet, each also .gz), a folder, or hf:NAME."
        ),
    ] = "heldout",
    model: Annotated[
        str,
        typer.Option(help="Whose tokenizer and context: a shipped name, a directory, or a hub id."),
    ] = "pico",
    split: common.Split = None,
    limit: common.Limit = None,
    show: Annotated[int, typer.Option(min=0, help="Documents whose tokens are shown.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens shown of each.")] = 12,
    *,
    read: options.Reader,
) -> None:
    """What a model would read of some data: counts, tokens with their ids, and what is left out.

    A bar stands before the first token that is scored.

    Example: `midus documents tasks.csv --model pico --show 5`
    """
    import warnings

    from analysis.overview import overview

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was left out stands in the overview
        texts = read(data, model=model, split=split, limit=limit)
    for line in overview(texts, show, tokens):
        common.say(line)
