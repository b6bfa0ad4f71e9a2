"""`midus importance`, `rank` and `roles`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.first_order import REGISTERED
from workbench import hints
from workbench.cli import common, options
from workbench.inputs import inputs_of

Method = Annotated[
    str,
    typer.Option(
        help="ablation, gradient, taylor, integrated_gradients, fisher, dla, shapley, "
        f"{', '.join(REGISTERED)}."
    ),
]
Ranked = Annotated[
    str,
    typer.Option(
        help="ablation; screen (first order chooses what is ablated, for a tenth of the cost); or "
        "a method of `midus importance`."
    ),
]
Baseline = Annotated[
    str, typer.Option(help="What replaces a head's output: mean, zero, or resample.")
]
Metric = Annotated[
    str,
    typer.Option(
        help="loss, kl, accuracy, or logit_difference (data: rows of prompt, answer, foil)."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(help="Memory beside the weights, such as 512MB. [default: 1GB on a CPU]"),
]
SHOWN = 20
FORWARD = ("ablation", "dla")  # methods without a backward pass


@common.reports
@options.runs_model
@options.reads_text
@options.measures
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
    metric: Metric = "loss",
    stage: Annotated[
        str, typer.Option(help="output, or query: gate what memory heads ask with.")
    ] = "output",
    group: Annotated[
        str, typer.Option(help="head, or kv: heads with one key-value head, together.")
    ] = "head",
    convention: Annotated[
        str | None, typer.Option(help="michel or bertology: gradients as published code has them.")
    ] = None,
    normalise: Annotated[str, typer.Option(help="none, layer, or share.")] = "none",
    agreement: Annotated[
        bool,
        typer.Option(
            help="Ablate a sample of heads exactly, to say how far a cheap method agrees."
        ),
    ] = True,
    memory_budget: Budget = None,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
    within: options.Within,
) -> None:
    """How much every head helps, in nats a token; for one model, or before and after.

    Given the run folder of an interrupted measurement, the same command goes on where that was.
    Runs under torchrun or accelerate launch too: processes share the documents.

    Examples:

    `midus importance pico --data my.txt`

    `midus importance pico --after pico-midus --data packages --split test --limit 40 -o runs/mine`

    `midus importance pico --data tasks.jsonl --metric logit_difference`
    """
    from analysis import amplification, head_importance
    from analysis.ties import best_first
    from kernels.errors import MidusError

    if after is not None and (normalise != "none" or convention is not None):
        raise MidusError(
            "--after compares scores as they were measured; leave --normalise and --convention out"
        )
    asked: dict[str, Any] = {
        "method": method, "baseline": baseline, "metric": metric, "stage": stage, "group": group,
        "convention": convention, "normalise": normalise, "agreement": agreement, "seed": seed,
    }  # fmt: skip
    parameters = {
        "model": model, "after": after, "data": data, "split": split, "limit": limit, **asked,
        **options.parameters(placed, read, within),
    }  # fmt: skip
    names = {"before": model} | ({} if after is None else {"after": after})
    given = asked | {"memory_budget": common.parse_bytes(memory_budget)}
    given |= within(head_importance)
    models = {side: placed.load(name) for side, name in names.items()}
    texts = read(data, model=models["before"], split=split, limit=limit)
    placed.tell(*models.values(), texts=texts, gradients=method not in FORWARD)
    made_of = inputs_of({name: models[side] for side, name in names.items()}, {texts.name: texts})
    with common.begin(output, "importance", model, parameters, made_of, overwrite) as run:
        with common.progress() as progress:
            tables = _importances(run, names, models, texts, progress, given)
            if after is not None:
                found = amplification(tables["before"], tables["after"], seed=seed)
                run.save_table("amplification", found)
        before = tables["before"]
        clean = {key: before.attrs[key] for key in ("clean_loss", "clean") if key in before.attrs}
        run.finish(clean | {"heads": len(before)})
        unit = before.attrs["unit"]
        _print_scores(
            f"Head importance of {model} ({unit})", before.iloc[best_first(before["score"])],
            {"below_noise": ""},
        )  # fmt: skip
        if after is not None:
            change = run.load_table("amplification")
            change = change.iloc[best_first(change["shrunk"].fillna(change["score"]))]
            title = f"Amplification, after minus before ({unit}), by what is expected of it"
            _print_scores(title, change, {"shrunk": "+.5f", "changed": ""})
        _say_agreement(tables)
        common.closing(run.path)


def _importances(
    run: Any, names: dict[str, str], models: Any, texts: Any, progress: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """The tables of "before" and "after", each measured where the run folder has none yet.

    Two models within a time are measured on the same documents: the larger one, that after,
    chooses them, and the one before repeats the choice.
    """
    from analysis import head_importance
    from analysis.few_heads import all_heads

    tables: dict[str, Any] = {}
    in_time = "within" in given and len(names) > 1
    for side in reversed(names) if in_time else names:
        table = f"importance_{side}"
        if not run.has_table(table):
            if in_time and tables:
                all_heads(tables["after"], "--after")
                given = given | {"within": tables["after"].attrs["within"]}
            run.add_model(side, names[side])
            kept = common.checkpoint(run, table)
            found = head_importance(
                models[side], texts, progress=progress, checkpoint=kept, **given
            )
            run.save_table(table, found)
        tables[side] = run.load_table(table)
    return tables


@common.reports
@options.runs_model
@options.reads_text
@options.measures
def rank(
    model: common.Model = "pico",
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    top: Annotated[int, typer.Option(help="Size of the top set.")] = 16,
    confidence: Annotated[float, typer.Option(help="When the top set counts as settled.")] = 0.95,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Exact evaluations at most, a head on a window each: 5000, 0.25 (of all there "
            "are), or all. [default: 56 a head]"
        ),
    ] = None,
    method: Ranked = "ablation",
    baseline: Baseline = "mean",
    metric: Metric = "loss",
    evidence: Annotated[
        bool,
        typer.Option("--evidence", help="Also measure how far to trust it: see analysis.evidence."),
    ] = False,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
    within: options.Within,
) -> None:
    """The heads worth amplifying, best first; stops as soon as the top set is settled.

    The run folder's ranking.json can be given to `midus upscale --heads`.

    Examples:

    `midus rank pico --top 16 -o runs/ranked`

    `midus rank pico --data tasks.jsonl --metric logit_difference --evidence`
    """
    from analysis import rank_heads
    from analysis.ranking_words import summary

    asked: dict[str, Any] = {
        "method": method, "baseline": baseline, "metric": metric, "top": top,
        "confidence": confidence, "budget": parse_budget(budget), "seed": seed,
    }  # fmt: skip
    parameters = {
        "model": model, "data": data, "split": split, "limit": limit, "evidence": evidence,
        **asked, **options.parameters(placed, read, within),
    }  # fmt: skip
    given = asked | within(rank_heads)
    loaded = placed.load(model)
    texts = read(data, model=loaded, split=split, limit=limit)
    placed.tell(loaded, texts=texts, gradients=method not in FORWARD)
    made_of = inputs_of({model: loaded}, {texts.name: texts})
    with common.begin(output, "rank", model, parameters, made_of, overwrite) as run:
        run.add_model("before", model)
        with common.progress() as progress:
            if not run.has_table("ranking"):
                run.save_table("ranking", rank_heads(loaded, texts, progress=progress, **given))
            table = run.load_table("ranking")
            if evidence:
                _trust(run, loaded, texts, table, progress, asked, within)
        best = table.iloc[: table.attrs.get("top") or top]
        heads = [[int(row.layer), int(row.head)] for row in best.itertuples()]
        run.write_json("ranking.json", {"heads": heads})
        run.finish({"stopped": table.attrs["stopped"], "evaluations": table.attrs["evaluations"]})
        _print_scores(
            f"Heads of {model}, best first ({table.attrs['unit']}); "
            f"stopped: {table.attrs['stopped']}",
            table,
            {"p_top": ".2f", "exact": "d"},
        )
        _say_agreement({"": table})
        if evidence:
            _print_evidence(run.load_table("evidence"))
        common.closing(run.path, *hints.deeper(loaded, model, run.path / "ranking.json"))
        common.say(summary(table))


@common.reports
@options.runs_model
@options.reads_text
@options.measures
def roles(
    model: common.Model = "pico",
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = 20,
    importance: Annotated[
        Path | None, typer.Option(help="A run of `midus importance` of the same model, to set by.")
    ] = None,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
    within: options.Within,
) -> None:
    """What every head does: previous token, induction, sink, ..., where the evidence is clear.

    Example: `midus roles pico -o runs/roles`
    """
    from analysis import head_roles
    from analysis.roles import by_role
    from workbench.runs import RunFolder

    beside = None if importance is None else RunFolder.open(importance)
    parameters = {
        "model": model, "data": data, "split": split, "limit": limit, "seed": seed,
        "importance": None if importance is None else str(importance),
        **options.parameters(placed, read, within),
    }  # fmt: skip
    given = within(head_roles)
    loaded = placed.load(model)
    texts = read(data, model=loaded, split=split, limit=limit)
    placed.tell(loaded, texts=texts)
    made_of = inputs_of({model: loaded}, {texts.name: texts})
    with common.begin(output, "roles", model, parameters, made_of, overwrite) as run:
        run.add_model("before", model)
        if not run.has_table("roles"):
            with common.progress() as progress:
                table = head_roles(loaded, texts, seed=seed, progress=progress, **given)
            run.save_table("roles", table)
        table = run.load_table("roles")
        if beside is not None:
            measured = beside.load_table("importance_before")
            run.save_table("role_importance", by_role(table, measured))
            run.save_table("importance_before", measured)
        counts = table["role"].value_counts()
        run.finish({"labelled": int((table["role"] != "none").sum()), "heads": len(table)})
        common.print_table(
            f"Roles of {model}'s heads",
            ["role", "heads", "which (layer.head)"],
            [
                [str(role), str(count), ", ".join(_places(table[table["role"] == role]))]
                for role, count in counts.items()
            ],
        )
        common.closing(run.path)


def _say_agreement(tables: dict[str, Any]) -> None:
    """How far each table's scores agree with exact ablation, a line each."""
    from analysis.agreement_words import agreement_words

    for side, table in tables.items():
        if words := agreement_words(table.attrs):
            common.say(f"{side}: {words}" if len(tables) > 1 else words)


def parse_budget(text: str | None) -> int | float | str | None:
    """`--budget`: 5000, 0.25 or all, as `analysis.rank_heads` takes it."""
    from kernels.errors import MidusError

    if text is None or text == "all":
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise MidusError(f"--budget is {text!r}; give evaluations (5000), a share (0.25), or all")


def _places(heads: Any) -> list[str]:
    """The first few, as 3.1 is layer 3, head 1."""
    names = [f"{r['layer']}.{r['head']}" for r in heads.to_dict("records")]
    return names[:12] + ([f"and {len(names) - 12} more"] if len(names) > 12 else [])


def _trust(
    run: Any,
    model: Any,
    texts: Any,
    ranking: Any,
    progress: Any,
    asked: dict[str, Any],
    within: options.Within,
) -> None:
    """Evidence and prune curves into the run folder."""
    from analysis import evidence, prune_curve

    given = {name: asked[name] for name in ("baseline", "metric", "seed")}
    if not run.has_table("evidence"):
        limits = within(evidence)
        found = evidence(model, texts, top=asked["top"], progress=progress, **given, **limits)
        run.save_table("evidence", found)
    if not run.has_table("prune_curve"):
        limits = within(prune_curve)
        found = prune_curve(model, ranking, texts, progress=progress, **given, **limits)
        run.save_table("prune_curve", found)


def _print_evidence(table: Any) -> None:
    rows = [
        [r["kind"], str(r["first"]), str(r["second"]),
         *("" if r[c] != r[c] else f"{r[c]:.2f}" for c in ("spearman", "overlap", "random_at"))]
        for r in table.to_dict("records")
    ]  # fmt: skip
    columns = ["kind", "first", "second", "spearman", "top overlap", "random at"]
    common.print_table("How far to trust it", columns, rows)


def _print_scores(title: str, table: Any, more: dict[str, str] | None = None) -> None:
    together = "ci_low_all" in table.columns and bool(table["ci_low_all"].notna().any())
    more = {name: form for name, form in (more or {}).items() if name in table.columns}
    rows = [
        [str(r["layer"]), r["kind"], str(r["head"]), f"{r['score']:+.5f}",
         f"{r['ci_low']:+.5f} to {r['ci_high']:+.5f}",
         *([f"{r['ci_low_all']:+.5f} to {r['ci_high_all']:+.5f}"] * together),
         *(format(r[c], f) for c, f in more.items())]
        for r in table.head(SHOWN).to_dict("records")
    ]  # fmt: skip
    columns = ["layer", "kind", "head", "score", "interval", *["all heads"] * together, *more]
    left = len(table) - len(rows)
    common.print_table(title, columns, rows)
    if left > 0:
        common.say(f"and {left} more")
