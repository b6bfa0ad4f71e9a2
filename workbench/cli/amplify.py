"""`midus amplify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import hints
from workbench.cli import common, options
from workbench.cli.measure import Metric
from workbench.inputs import inputs_of

DRAWS = 8


@common.reports
@options.runs_model
@options.reads_text
@options.measures
def amplify(
    model: common.Model,
    heads: Annotated[
        str, typer.Option(help="Heads to scale: 3:1,5:0 (layer:head) or a ranking.json.")
    ],
    gain: Annotated[
        float, typer.Option(help="What their outputs are multiplied by; 0 silences them.")
    ],
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    metric: Metric = "loss",
    dose: Annotated[
        bool,
        typer.Option(
            "--dose",
            help="Also gains from 0 to 2, and controls, as analysis.dose_response has them: 72 "
            "forward passes over the text, or as --within holds.",
        ),
    ] = False,
    draws: Annotated[int, typer.Option(help="Sets of random heads, with --dose.")] = DRAWS,
    save: Annotated[
        Path | None, typer.Option(help="Folder for a model with the gains in its weights.")
    ] = None,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
    within: options.Within,
) -> None:
    """Scale the outputs of chosen heads, see what it does, and keep the model if you like.

    With --dose the same gains are put on random heads of the same layers, and the stream is moved
    as far in random directions: what is special about the heads is what goes beyond these.

    Examples:

    `midus amplify pico --heads 5:1,5:4 --gain 1.5 --limit 20 --dose`

    `midus amplify pico --heads runs/rank-pico/ranking.json --gain 1.2 --save runs/louder`
    """
    from analysis.amplify import amplify as amplified
    from analysis.distributed import is_main
    from analysis.dose import CONTROLS, GAINS, dose_response

    if not dose:
        options.unused("--dose", draws=draws != DRAWS)
    replaces = _check_target(save, output, overwrite)
    given = within(dose_response)
    loaded = placed.load(model)
    louder = amplified(loaded, common.parse_heads(heads), gain)
    texts = read(data, model=loaded, split=split, limit=limit)
    asked: dict[str, Any] = {"metric": metric, "draws": draws, "seed": seed}
    parameters = {
        "model": model, "heads": [list(pair) for pair in louder.gains], "gain": gain, "data": data,
        "split": split, "limit": limit, "dose": dose, **asked,
        "save": None if save is None else str(save), **options.parameters(placed, read, within),
    }  # fmt: skip
    placed.tell(loaded, texts=texts)
    asked |= given
    asked |= {"gains": (*GAINS, gain) if dose else (1, gain), "controls": CONTROLS if dose else ()}
    made_of = inputs_of({model: loaded}, {texts.name: texts})
    with common.begin(output, "amplify", model, parameters, made_of, overwrite) as run:
        run.add_model("before", model)
        if not run.has_table("dose_response"):
            with common.progress() as progress:
                found = dose_response(loaded, list(louder.gains), texts, progress=progress, **asked)
            run.save_table("dose_response", found)
        if save is not None and is_main():
            # Entered first: an interrupted command is known by it to have begun that model.
            where = os.path.relpath(save.resolve(), run.path.resolve())
            run.add_model("after", where)
            louder.save(save, overwrite=replaces)
            run.add_model("after", where, made=True)
        table = run.load_table("dose_response")
        run.finish(_summary(table, gain))
        _print_effect(table, gain)
        if dose:
            _print_curves(table)
        kept = []
        if save is not None:
            common.say(f"The model is in {save}")
            words = options.words(data=data, split=split, limit=limit, metric=metric)
            kept = [hints.typed("importance", save, *words, *read.words)]
        common.closing(run.path, *kept)


def _check_target(save: Path | None, output: Path | None, overwrite: bool) -> bool:
    """Whether a model at `save` is to be replaced: asked for, or begun by this very command.

    Raises RunError before anything is measured for a model that could not be kept.
    """
    from kernels.errors import RunError
    from workbench.runs import check_place

    if save is None:
        return overwrite
    check_place(save)
    common.hold(save)
    replaces = overwrite or _began(output, save)
    if save.exists() and not (replaces and (save / "config.json").is_file()):
        raise RunError(
            f"{save} exists already; give another folder, or --overwrite if it is a model"
        )
    return replaces


def _began(output: Path | None, save: Path) -> bool:
    """Whether the run at `output` was about to write, or wrote, the model at `save`.

    Where it is finished, it is refused, and tidied, as every finished run is.
    """
    from kernels.errors import RunError
    from workbench.runs import RunFolder

    if output is None:
        return False
    try:
        run = RunFolder.open(output)
    except RunError:
        return False
    after = run.manifest["models"].get("after")
    return after is not None and (run.path / after).resolve() == save.resolve()


def _chosen_at(table: Any, gain: float) -> dict[str, Any]:
    rows = table[(table["arm"] == "chosen") & (table["gain"] == gain)]
    return rows.iloc[0].to_dict()


def _summary(table: Any, gain: float) -> dict[str, Any]:
    before, after = _chosen_at(table, 1), _chosen_at(table, gain)
    return {
        "heads": int(after["heads"]),
        "gain": gain,
        "before": before["loss"],
        "after": after["loss"],
        **{name: after[name] for name in ("change", "ci_low", "ci_high")},
    }


def _print_effect(table: Any, gain: float) -> None:
    found, attrs = _summary(table, gain), table.attrs
    common.say(
        f"{attrs['metric']} of {attrs['model']} ({attrs['unit']}) with {found['heads']} heads at "
        f"gain {gain:g}: {found['before']:.4f} before, {found['after']:.4f} after; change "
        f"{found['change']:+.4f}, 95% {found['ci_low']:+.4f} to {found['ci_high']:+.4f}"
    )


def _print_curves(table: Any) -> None:
    rows = [
        [r["arm"].replace("_", " "), f"{r['gain']:g}", str(r["heads"]), str(r["draws"]),
         f"{r['loss']:.4f}", f"{r['change']:+.5f}", f"{r['ci_low']:+.5f} to {r['ci_high']:+.5f}"]
        for r in table.to_dict("records")
    ]  # fmt: skip
    columns = ["arm", "gain", "heads", "draws", table.attrs["metric"], "change", "interval"]
    common.print_table(f"Dose and response ({table.attrs['unit']})", columns, rows)
