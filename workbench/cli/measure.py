"""`midus importance`, `rank`, `memory` and `costs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import common

Method = Annotated[
    str,
    typer.Option(help="ablation, gradient, taylor, integrated_gradients, fisher, dla, shapley."),
]
Baseline = Annotated[str, typer.Option(help="What replaces a head's output: mean or zero.")]
SHOWN = 20


@common.reports
def importance(
    model: common.Model = "pico",
    after: Annotated[
        str | None, typer.Option(help="A model grown from MODEL: also measure what changed.")
    ] = None,
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    method: Method = "ablation",
    baseline: Baseline = "mean",
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
) -> None:
    """How much every head helps, in nats a token; for one model, or before and after.

    Examples:

    `midus importance pico --data my.txt`

    `midus importance pico --after pico-midus --data packages --split test --limit 40 -o runs/mine`
    """
    from analysis import amplification, head_importance
    from analysis.documents import documents
    from midus_model import load
    from workbench.runs import RunFolder

    place = common.run_place(output, "importance", model, overwrite)
    before = load(model)
    grown = None if after is None else load(after)
    texts = documents(data, model=before, split=split, limit=limit)
    parameters = {
        "model": model, "after": after, "data": data, "split": split, "limit": limit,
        "method": method, "baseline": baseline, "seed": seed,
    }  # fmt: skip
    options: dict[str, Any] = {"method": method, "baseline": baseline, "seed": seed}
    with RunFolder.create(place, "importance", None, parameters, overwrite=overwrite) as run:
        with common.progress() as progress:
            table = head_importance(before, texts, progress=progress, **options)
            run.save_table("importance_before", table)
            run.add_model("before", model)
            if grown is not None:
                later = head_importance(grown, texts, progress=progress, **options)
                run.save_table("importance_after", later)
                run.add_model("after", str(after))
                run.save_table("amplification", amplification(table, later, seed=seed))
        run.finish({"clean_loss": table.attrs["clean_loss"], "heads": len(table)})
    _print_scores(f"Head importance of {model} (nats/token)", table.sort_values("score")[::-1])
    if grown is not None:
        change = run.load_table("amplification").sort_values("score", ascending=False)
        _print_scores("Amplification, after minus before (nats/token)", change)
    _closing(place)


@common.reports
def rank(
    model: common.Model = "pico",
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    top: Annotated[int, typer.Option(help="Size of the top set.")] = 16,
    confidence: Annotated[float, typer.Option(help="When the top set counts as settled.")] = 0.95,
    budget: Annotated[
        int | None, typer.Option(help="Exact evaluations at most, a head on a window each.")
    ] = None,
    method: Method = "ablation",
    baseline: Baseline = "mean",
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
) -> None:
    """The heads worth amplifying, best first; stops as soon as the top set is settled.

    The run folder's ranking.json can be given to `midus upscale --heads`.

    Example: `midus rank pico --top 16 -o runs/ranked`
    """
    from analysis import rank_heads
    from analysis.documents import documents
    from midus_model import load
    from workbench.runs import RunFolder

    place = common.run_place(output, "rank", model, overwrite)
    loaded = load(model)
    texts = documents(data, model=loaded, split=split, limit=limit)
    options: dict[str, Any] = {
        "method": method, "baseline": baseline, "top": top, "confidence": confidence,
        "budget": budget, "seed": seed,
    }  # fmt: skip
    parameters = {"model": model, "data": data, "split": split, "limit": limit, **options}
    with RunFolder.create(place, "rank", None, parameters, overwrite=overwrite) as run:
        with common.progress() as progress:
            table = rank_heads(loaded, texts, progress=progress, **options)
        best = table.iloc[: table.attrs.get("top") or top]
        heads = [[int(row.layer), int(row.head)] for row in best.itertuples()]
        run.save_table("ranking", table)
        run.write_json("ranking.json", {"heads": heads})
        run.add_model("before", model)
        run.finish({"stopped": table.attrs["stopped"], "evaluations": table.attrs["evaluations"]})
    _print_scores(
        f"Heads of {model}, best first (nats/token); stopped: {table.attrs['stopped']}",
        table,
        {"p_top": ".2f", "exact": "d"},
    )
    _closing(place)


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
    _closing(place)


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
        _closing(place)


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


def _print_scores(title: str, table: Any, more: dict[str, str] | None = None) -> None:
    more = {name: form for name, form in (more or {}).items() if name in table.columns}
    rows = [
        [str(r["layer"]), r["kind"], str(r["head"]), f"{r['score']:+.5f}",
         f"{r['ci_low']:+.5f} to {r['ci_high']:+.5f}", *(format(r[c], f) for c, f in more.items())]
        for r in table.head(SHOWN).to_dict("records")
    ]  # fmt: skip
    columns = ["layer", "kind", "head", "score", "interval", *more]
    left = len(table) - len(rows)
    common.print_table(title, columns, rows)
    if left > 0:
        typer.echo(f"and {left} more")


def _closing(place: Path) -> None:
    typer.echo(f"Saved in {place}. Next: midus figures {place}, or midus explore --run {place}")
