"""`midus doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import common, options
from workbench.inputs import inputs_of


@common.reports
@options.runs_model
@options.reads_text
def doctor(
    model: common.Model = "pico-midus",
    before: Annotated[
        str | None, typer.Option(help="The model it was grown from, to see what was lost.")
    ] = None,
    data: common.Data = None,
    split: common.Split = None,
    general: Annotated[
        str | None, typer.Option(help="Text of the kind the base was trained on. [default: DATA]")
    ] = None,
    limit: common.Limit = None,
    timing: Annotated[bool, typer.Option(help="Also time the memory against its floor.")] = True,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
) -> None:
    """What is wrong with a model's memory, if anything: evidence, and what to try.

    Example: `midus doctor pico-midus --before pico --data packages --split test --limit 24`
    """
    from pandas import isna

    from analysis import doctor as examined

    loaded = placed.load(model)
    texts = read(data, model=loaded, split=split, limit=limit)
    base = None if before is None else placed.load(before)
    familiar = None if general is None else read(general, model=loaded, limit=limit)
    parameters = {
        "model": model, "before": before, "data": data, "split": split, "general": general,
        "limit": limit, "timing": timing, "seed": seed, **options.parameters(placed, read),
    }  # fmt: skip
    placed.tell(*filter(None, (loaded, base)), texts=texts)
    models = {model: loaded} | ({} if before is None else {before: base})
    read_texts = {part.name: part for part in (texts, familiar) if part is not None}
    made_of = inputs_of(models, read_texts)
    with common.begin(output, "doctor", model, parameters, made_of, overwrite) as run:
        run.add_model("after", model)
        if not run.has_table("doctor"):
            with common.progress() as progress:
                table = examined(
                    loaded, texts, before=base, general=familiar, limit=limit, timing=timing,
                    seed=seed, progress=progress,
                )  # fmt: skip
            run.save_table("doctor", table)
        table = run.load_table("doctor")
        run.finish({"findings": [str(name) for name in table["finding"]]})
        for row in table.to_dict("records"):
            where = "" if isna(row["block"]) else f" (block {int(row['block'])})"
            common.say(f"{row['finding']}{where}: {row['evidence']}")
            common.say(f"    try: {row['advice']}")
        if table.empty:
            common.say(f"nothing found; looked for: {', '.join(table.attrs['checked'])}")
        for name, why in table.attrs["skipped"].items():
            said = "cannot tell" if name in table.attrs["checked"] else "not looked for"
            common.say(f"{said}: {name} ({why})")
        common.closing(run.path)
