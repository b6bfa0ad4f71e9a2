"""`midus memory` and `midus costs`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli import common


@common.reports
def memory(
    model: common.Model = "pico-midus",
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    output: common.Output = None,
    overwrite: common.Overwrite = False,
) -> None:
    """What every memory head retrieves: slots used, how evenly, and how sharply.

    Example: `midus memory pico-midus --data packages --split test --limit 40`
    """
    from analysis import memory_usage
    from analysis.documents import documents
    from midus_model import head_sites, load
    from midus_model.errors import MidusError
    from workbench.runs import RunFolder

    place = common.run_place(output, "memory", model, overwrite)
    loaded = load(model)
    if not any(site.kind == "memory" for site in head_sites(loaded)):
        raise MidusError(f"{model} has no memory blocks; give a model that `midus upscale` made")
    texts = documents(data, model=loaded, split=split, limit=limit)
    parameters = {"model": model, "data": data, "split": split, "limit": limit}
    with RunFolder.create(place, "memory", None, parameters, overwrite=overwrite) as run:
        with common.progress() as progress:
            usage = memory_usage(loaded, texts, progress=progress)
        run.save_table("memory_slots", usage.all_slots())
        run.save_table("memory_usage", usage)
        run.add_model("after", model)
        run.finish({"coverage": float(usage["coverage"].mean())})
    rows = [
        [str(r["layer"]), str(r["head"]), f"{r['slots']:,}", f"{100 * r['coverage']:.1f}%",
         f"{r['effective_slots']:,.0f}", f"{r['effective_k']:.2f}", f"{r['top1_weight']:.2f}"]
        for r in usage.to_dict("records")
    ]  # fmt: skip
    columns = [
        "block", "head", "slots", "coverage", "effective slots", "effective k", "top-1 weight",
    ]  # fmt: skip
    common.print_table(f"Memory use of {model}", columns, rows)
    common.closing(place)


@common.reports
def costs(
    model: common.Model = "pico-midus",
    against: Annotated[
        str | None, typer.Option(help="A second model, taken as the one before.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens. [default: the model's]")] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also time prefill and decode on this machine.")
    ] = False,
    output: common.Output = None,
    overwrite: common.Overwrite = False,
) -> None:
    """Parameters, FLOP and bytes a token by component; saved where --output is given.

    Example: `midus costs pico-midus --against pico --latency`
    """
    from analysis import costs as measured
    from midus_model import load
    from workbench.runs import RunFolder

    place = None if output is None else common.run_place(output, "costs", model, overwrite)
    names = {"costs_before": against or model} | ({"costs_after": model} if against else {})
    tables = {
        key: measured(load(name), context=context, latency=latency) for key, name in names.items()
    }
    if place is not None:
        parameters = {"models": names, "context": context, "latency": latency}
        with RunFolder.create(place, "costs", None, parameters, overwrite=overwrite) as run:
            for key, table in tables.items():
                run.save_table(key, table)
                run.add_model(key.removeprefix("costs_"), names[key])
            run.finish()
    for key, table in tables.items():
        _print_costs(names[key], table)
    if place is not None:
        common.closing(place)


def _print_costs(name: str, table: Any) -> None:
    numbers = ["parameters", "flops_per_token", "weight_bytes_per_token", "kv_bytes_per_token"]
    rows = [
        [row["component"], str(int(row["blocks"])), *(f"{row[c]:,.0f}" for c in numbers)]
        for row in table.to_dict("records")
    ]
    columns = ["component", "blocks", "parameters", "FLOP/token", "weight B/token", "KV B/token"]
    common.print_table(f"Costs of {name}", columns, rows)
    times = table.attrs.get("latency_ms") or {}
    for phase in ("prefill", "decode"):
        if times.get(phase) is not None:
            typer.echo(f"{phase}: {times[phase]:.2f} ms")
