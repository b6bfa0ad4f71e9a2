"""`midus memory` and `midus costs`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli import common, options
from workbench.inputs import inputs_of


@common.reports
@options.runs_model
@options.reads_text
def memory(
    model: common.Model = "pico-midus",
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    slots: Annotated[
        str | None,
        typer.Option(metavar="BLOCK[:HEAD]", help="Also show what is in the slots most used."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Other data: how alike is the use of slots there?")
    ] = None,
    output: common.Output = None,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
) -> None:
    """What every memory head retrieves: slots used, how evenly, and how sharply.

    Given the run folder of an interrupted count, the same command goes on from its tables.

    Example: `midus memory pico-midus --data packages --split test --limit 40 --slots 2:0`
    """
    loaded = placed.load(model)
    at = _memory_place(loaded, slots)
    texts = read(data, model=loaded, split=split, limit=limit)
    others = None
    if against is not None:
        others = read(against, model=loaded, split=split, limit=limit)
    parameters = {
        "model": model, "data": data, "split": split, "limit": limit, "slots": slots,
        "against": against, **options.parameters(placed, read),
    }  # fmt: skip
    placed.tell(loaded, texts=texts)
    read_texts = {part.name: part for part in (texts, others) if part is not None}
    made_of = inputs_of({model: loaded}, read_texts)
    with common.begin(output, "memory", model, parameters, made_of, overwrite) as run:
        run.add_model("after", model)
        with common.progress() as progress:
            _usage(run, loaded, texts, others, progress)
            if at is not None:
                _contents(run, loaded, texts, *at, progress)
        usage = run.load_table("memory_usage")
        run.finish({"coverage": float(usage["coverage"].mean())})
        stability = None if others is None else run.load_table("memory_stability")
        _print_usage(model, usage, stability)
        if at is not None:
            _print_contents(*at, *map(run.load_table, ("memory_contents", "memory_tokens")))
        common.closing(run.path)


def _usage(run: Any, model: Any, texts: Any, others: Any, progress: Any) -> None:
    """The tables of how slots are used, where the run folder lacks one of them."""
    from analysis import memory_usage
    from analysis.memory import usage_stability

    names = ["memory_slots", "memory_usage", "memory_blocks"]
    if all(map(run.has_table, names if others is None else [*names, "memory_stability"])):
        return
    usage = memory_usage(model, texts, progress=progress)
    for name, table in zip(names, (usage.all_slots(), usage, usage.blocks()), strict=True):
        run.save_table(name, table)
    if others is not None:
        second = memory_usage(model, others, progress=progress)
        run.save_table("memory_stability", usage_stability(usage, second))


def _memory_place(model: Any, text: str | None) -> tuple[int, int | None] | None:
    """`--slots` as (block, head or None), both being there; refuses a model without memory."""
    from analysis.memory.places import memories_of, memory_at
    from kernels.errors import HeadError

    memories_of(model)
    if text is None:
        return None
    try:
        block, *head = (int(part) for part in text.split(":", 1))
    except ValueError as error:
        raise HeadError(
            f"--slots is {text!r}; give a block such as 2, or block:head such as 2:0"
        ) from error
    memory_at(model, block, *head)
    return block, head[0] if head else None


def _contents(
    run: Any, model: Any, texts: Any, block: int, head: int | None, progress: Any
) -> None:
    """The tables memory_contents and memory_tokens of the slots most used, where one is lacking."""
    import pandas as pd

    from analysis.memory import memory_contents, slot_tokens

    if run.has_table("memory_contents") and run.has_table("memory_tokens"):
        return
    contents = memory_contents(model, texts, block=block, head=head, progress=progress)
    tokens = [slot_tokens(model, block, slot, head) for slot in contents["slot"].unique()]
    attrs = tokens[0].attrs
    table = pd.concat(tokens, ignore_index=True)
    table.attrs = attrs
    run.save_table("memory_contents", contents)
    run.save_table("memory_tokens", table)


def _print_usage(model: str, usage: Any, stability: Any) -> None:
    rows = [
        [str(r["layer"]), str(r["head"]), f"{r['slots']:,}", f"{100 * r['coverage']:.1f}%",
         f"{r['effective_slots']:,.0f}", f"{r['effective_k']:.2f}", f"{r['top1_weight']:.2f}",
         f"{r['collisions']:.2f}", f"{r['read_ratio']:.3f}"]
        for r in usage.to_dict("records")
    ]  # fmt: skip
    columns = [
        "block", "head", "slots", "coverage", "effective slots", "effective k", "top-1 weight",
        "shared", "read/stream",
    ]  # fmt: skip
    if stability is not None:
        columns.append("similarity")
        for row, value in zip(rows, stability["similarity"], strict=True):
            row.append(f"{value:.2f}")
    common.print_table(f"Memory use of {model}", columns, rows)


def _print_contents(block: int, head: int | None, contents: Any, tokens: Any) -> None:
    """A row a slot: its three heaviest contexts, and what its value speaks for most."""
    rows = []
    for slot, part in contents.groupby("slot", sort=False):
        best = tokens[(tokens["slot"] == slot) & (tokens["direction"] == "promotes")]
        best = best.sort_values("logit", ascending=False).drop_duplicates("token_id")[:4]
        texts = [_shown(row) for row in part[:3].to_dict("records")]
        rows.append([str(slot), "\n".join(texts), " ".join(map(repr, _words(best)))])
    where = f"block {block}" if head is None else f"block {block}, head {head}"
    columns = ["slot", "read most at", "promotes"]
    common.print_table(f"Slots most used in {where}", columns, rows)


def _shown(row: dict[str, Any]) -> str:
    """A context on one line, the token at which the slot was read in brackets."""
    if row["token"] is None:
        return f"{row['weight']:.2f} token {row['token_id']}"
    before = repr(row["before"][-24:])[1:-1]
    return f"{row['weight']:.2f} {before}[{repr(row['token'])[1:-1]}]"


def _words(table: Any) -> list[Any]:
    return [
        row["token_id"] if row["token"] is None else row["token"]
        for row in table.to_dict("records")
    ]


@common.reports
@options.runs_model
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
    *,
    placed: options.Placed,
) -> None:
    """Parameters, FLOP and bytes a token by component; saved where --output is given.

    Example: `midus costs pico-midus --against pico --latency`
    """
    from analysis import costs as measured

    names = {"costs_before": against or model} | ({"costs_after": model} if against else {})
    models = {key: placed.load(name) for key, name in names.items()}
    placed.tell(*models.values())
    asked: dict[str, Any] = {"context": context, "latency": latency}
    if output is None:
        for key, loaded in models.items():
            _print_costs(names[key], measured(loaded, **asked))
        return
    parameters = {"models": names, **asked, **options.parameters(placed)}
    made_of = inputs_of({names[key]: loaded for key, loaded in models.items()}, {})
    with common.begin(output, "costs", model, parameters, made_of, overwrite) as run:
        for key, loaded in models.items():
            run.add_model(key.removeprefix("costs_"), names[key])
            if not run.has_table(key):
                run.save_table(key, measured(loaded, **asked))
        run.finish()
        for key in models:
            _print_costs(names[key], run.load_table(key))
        common.closing(run.path)


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
            common.say(f"{phase}: {times[phase]:.2f} ms")
