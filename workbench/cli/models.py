"""`midus upscale` and `midus train`."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import hints
from workbench.cli import common, options

CALIBRATION_WINDOWS = 256
TOP_K, LATENT_DIM, EVAL_LIMIT = 32, 128, 40


@common.reports
@options.runs_model
@options.reads_text
def upscale(
    model: common.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")],
    method: Annotated[str, typer.Option(help="midus, or llama-pro (copied layers).")] = "midus",
    blocks: Annotated[
        str | None,
        typer.Option(help="How many blocks, or after which layers: 1,3,5. [default: half]"),
    ] = None,
    placement: Annotated[str, typer.Option(help="after or before the source layer.")] = "after",
    heads: Annotated[
        str | None,
        typer.Option(help="Memory for these heads only: 3:1,5:0 (layer:head) or a ranking.json."),
    ] = None,
    num_keys: Annotated[
        int | None, typer.Option(help="Sub-keys a half, n; n x n slots. [default: 256]")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Slots a block, N: a perfect square, in place of --num-keys.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Slots that a head reads a token.")] = TOP_K,
    latent_dim: Annotated[int, typer.Option(help="Width of the shared bank.")] = LATENT_DIM,
    budget: Annotated[
        str,
        typer.Option(
            help="uniform, or importance: larger memories where the scores beside ranking.json are "
            "higher, for no more parameters."
        ),
    ] = "uniform",
    key_init: Annotated[
        str, typer.Option(help="uniform (random), or queries: keys from what the heads ask.")
    ] = "uniform",
    calibration: Annotated[
        str | None,
        typer.Option(help="Text for --key-init queries: whatever --data of midus train takes."),
    ] = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
) -> None:
    """Make a model deeper with memory blocks (or copied layers); its output stays the same.

    Examples:

    `midus upscale pico -o runs/deeper --num-keys 64 --top-k 8 --latent-dim 64`

    `midus upscale pico -o runs/deeper --heads runs/rank-pico/ranking.json --slots 4096 --top-k 8`

    `midus upscale pico -o runs/deeper --heads runs/rank-pico/ranking.json --budget importance`

    `midus upscale pico -o runs/deeper --num-keys 64 --key-init queries --calibration heldout`
    """
    sizes = {"num_keys": _num_keys(num_keys, slots), "top_k": top_k, "latent_dim": latent_dim}
    from kernels.errors import RunError
    from midus_model import upscale as deeper
    from midus_model.placement import held_bytes
    from workbench.runs import check_place
    from workbench.training.saving import save_model

    check_place(output)
    common.hold(output)
    if output.exists() and not (overwrite and (output / "config.json").is_file()):
        raise RunError(
            f"{output} exists already; give another folder, or --overwrite if it is a model"
        )
    _check_choices(budget, key_init, calibration)
    if calibration is None:
        options.unused("--calibration", **dict.fromkeys(read.given, True))
    if method == "llama-pro":
        options.unused(
            "--method midus", num_keys=num_keys is not None, slots=slots is not None,
            top_k=top_k != TOP_K, latent_dim=latent_dim != LATENT_DIM, budget=budget != "uniform",
        )  # fmt: skip
    base = placed.load(model)
    placed.tell(base, more=held_bytes(base))  # the new model holds the base's weights too
    new = deeper(
        base,
        method,
        blocks=_blocks(blocks),
        placement=placement,
        **_heads_and_sizes(base, heads, budget, sizes),
        key_init=key_init,
        calibration=_calibration(base, calibration, read),
        seed=seed,
    )
    tokenizer = _tokenizer(model)
    save_model(new, tokenizer, output)
    _print_blocks(base, new, output, tokenizer is not None)


def _num_keys(num_keys: int | None, slots: int | None) -> int:
    from kernels.errors import UpscaleError

    if slots is None:
        return 256 if num_keys is None else num_keys
    root = math.isqrt(max(0, slots))
    if slots < 1 or root * root != slots:
        near = max(1, root) ** 2, (root + 1) ** 2
        raise UpscaleError(
            f"--slots is {slots}; it must be a perfect square, such as {near[0]} or {near[1]}"
        )
    if num_keys not in (None, root):
        raise UpscaleError(
            f"--slots {slots} means {root} sub-keys, --num-keys is {num_keys}; give one of the two"
        )
    return root


def _check_choices(budget: str, key_init: str, calibration: str | None) -> None:
    from kernels.errors import UpscaleError

    if budget not in ("uniform", "importance"):
        raise UpscaleError(f"--budget is {budget!r}; it must be uniform or importance")
    if key_init == "queries" and calibration is None:
        raise UpscaleError("--key-init queries needs text: give --calibration, such as heldout")
    if key_init != "queries" and calibration is not None:
        raise UpscaleError(
            "--calibration is used by --key-init queries alone; give both or neither"
        )


def _heads_and_sizes(
    base: Any, heads: str | None, budget: str, sizes: dict[str, int]
) -> dict[str, Any]:
    """What `upscale` takes as heads, num_keys, top_k and latent_dim."""
    from midus_model.budgets import budgets

    chosen = common.parse_heads(heads)
    return (
        {"heads": chosen, **sizes}
        if budget == "uniform"
        else budgets(_scored(chosen), base, **sizes)
    )


def _scored(chosen: Any) -> Any:
    """The heads of a ranking.json with their scores: a table of layer, head and score.

    They are in the run folder's table of the ranking, or in the file itself, under "scores".
    """
    import pandas as pd

    from kernels.errors import HeadError
    from kernels.reading import read_json
    from midus_model.sites import head_pairs
    from workbench.runs import MANIFEST, RunFolder

    if not isinstance(chosen, str):
        raise HeadError(
            "--budget importance needs scores: give --heads a ranking.json of midus rank"
        )
    path, pairs = Path(chosen), head_pairs(chosen)
    content = read_json(path)
    scores = content.get("scores") if isinstance(content, dict) else None
    if scores is None and (path.parent / MANIFEST).is_file():
        run = RunFolder.open(path.parent)
        if run.has_table("ranking"):
            rows = run.load_table("ranking").to_dict("records")
            known = {(row["layer"], row["head"]): row["score"] for row in rows}
            scores = [known[pair] for pair in pairs if pair in known]
    if not isinstance(scores, list) or len(scores) != len(pairs):
        raise HeadError(
            f"{chosen} has heads, but not a score for each; give the ranking.json in a run folder "
            'of midus rank, or add "scores", a list as long as "heads"'
        )
    layers, numbers = zip(*pairs, strict=True)
    return pd.DataFrame({"layer": layers, "head": numbers, "score": scores})


def _calibration(base: Any, data: str | None, read: options.Reader) -> Any:
    """Token ids of at most so many windows, from all over the documents."""
    if data is None:
        return None
    windows = read(data, model=base).windows
    return [window.ids for window in windows[:: -(-len(windows) // CALIBRATION_WINDOWS)]]


def _blocks(text: str | None) -> Any:
    """None, a number of blocks, or layers; "3," is layer 3 alone."""
    from kernels.errors import UpscaleError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError as error:
        raise UpscaleError(
            f"--blocks is {text!r}; give a number of blocks, or layers such as 1,3,5"
        ) from error


def _tokenizer(model: str) -> Any:
    from kernels.errors import DamagedTokenizer, ModelError
    from midus_model import load_tokenizer

    try:
        return load_tokenizer(model)
    except DamagedTokenizer:  # what is written would lack it
        raise
    except ModelError as error:  # token ids can be worked with too
        warnings.warn(f"{error}; the new model is saved without a tokenizer", stacklevel=2)
        return None


def _print_blocks(base: Any, new: Any, output: Path, reads_text: bool) -> None:
    from midus_model import blocks as blocks_of
    from midus_model.card import CARD

    old, grown = (sum(p.numel() for p in m.parameters()) for m in (base, new))
    stack = zip(new.config.layer_map, blocks_of(new), strict=True)
    rows = [
        [str(at), entry["kind"], str(entry["source"][0]), _heads(entry["heads"]), *_sizes(block)]
        for at, (entry, block) in enumerate(stack)
        if entry["kind"] != "base"
    ]
    columns = ["block", "kind", "source layer", "heads", "slots", "k", "r"]
    common.print_table("Inserted blocks", columns, rows)
    common.say(f"{grown - old:,} parameters added to {old:,}. The model is in {output}")
    common.say(f"How to load it elsewhere says {output / CARD}")
    if reads_text:
        words = ("--data", "packages", "--split", "train", "--steps", 200)
        common.say(hints.line(hints.typed("train", output, *words)))


def _heads(heads: list[int] | None) -> str:
    return "all" if heads is None else ", ".join(map(str, heads))


def _sizes(block: Any) -> list[str]:
    """Slots, k and r of a memory block, a range where its heads differ; blank for others."""
    memory = getattr(block, "memory", None)
    if memory is None:
        return ["", "", ""]
    slots, r = memory.bank.shape
    return [
        f"{slots:,}",
        *(
            str(most) if own is None else f"{min(own)}-{most}"
            for own, most in ((memory.head_top_k, memory.top_k), (memory.head_latent_dim, r))
        ),
    ]


@common.reports
@options.runs_model
@options.reads_text
def train(
    model: common.Model,
    data: common.Data = None,
    split: common.Split = None,
    limit: common.Limit = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Rows a step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate; banks get --bank-lr times it.")] = 2e-3,
    bank_lr: Annotated[float, typer.Option(help="Rate of the banks over --lr.")] = 10.0,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.1,
    params: Annotated[
        str | None,
        typer.Option(help="new (inserted blocks only) or all. [default: new where there are any]"),
    ] = None,
    eval_data: Annotated[str | None, typer.Option(help="Data for the held-out loss.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Its split: train or test.")] = None,
    eval_limit: Annotated[int, typer.Option(help="Documents of it, at most.")] = EVAL_LIMIT,
    eval_every: Annotated[int | None, typer.Option(help="Steps. [default: a tenth]")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps. [default: a tenth]")] = None,
    revive_every: Annotated[
        int | None, typer.Option(help="Steps after which dead sub-keys are moved to queries.")
    ] = None,
    balance: Annotated[float, typer.Option(help="Weight of the balance loss on slots.")] = 0.0,
    log_usage: Annotated[
        bool, typer.Option("--log-usage", help="Also follow how slots are used, on --eval-data.")
    ] = False,
    output: common.Output = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    *,
    placed: options.Placed,
    read: options.Reader,
) -> None:
    """Continue pre-training a model; the new blocks only, where it has any.

    Given the run folder of an interrupted training, the same command goes on where that was. Runs
    under torchrun and accelerate as the Hugging Face Trainer does. Rows are of --context tokens.
    Weights are float32; --dtype says what is computed in, auto being bfloat16 where the device
    multiplies in it.

    Example: `midus train runs/deeper --data packages --split train --limit 400 -o runs/trained`
    """
    from analysis.distributed import is_main
    from kernels.errors import MidusError
    from midus_model import load
    from midus_model.optim import new_parameter_names
    from workbench.inputs import inputs_of
    from workbench.runs import check_place
    from workbench.training.log import usage_log
    from workbench.training.rows import PackedRows
    from workbench.training.saving import save_model
    from workbench.training.settings import bf16_of, training_device
    from workbench.training.train import train as trained

    if eval_data is None:
        options.unused(
            "--eval-data", eval_split=eval_split is not None, eval_limit=eval_limit != EVAL_LIMIT,
            log_usage=log_usage,
        )  # fmt: skip
    if output is not None:
        check_place(output)
    device = training_device(placed.device)
    bf16 = bf16_of(placed.dtype, device)
    loaded = load(model, dtype="float32")  # the Trainer takes it to the device
    params = params or ("new" if new_parameter_names(loaded) else "all")
    if not 0 < lr < float("inf"):
        raise MidusError(f"--lr is {lr}; it must be a number above 0")
    asked: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "bank_lr_multiplier": bank_lr,
        "weight_decay": weight_decay, "train": params, "eval_every": eval_every,
        "save_every": save_every, "seed": seed, "revive_every": revive_every,
        "balance_weight": balance, "log_usage": log_usage,
    }  # fmt: skip
    source: dict[str, Any] = {"data": data, "split": split, "limit": limit}
    held: dict[str, Any] = {"data": eval_data, "split": eval_split, "limit": eval_limit}
    texts = read(**source, model=loaded)
    held_texts = read(**held, model=loaded) if eval_data else None
    PackedRows(texts, 1, seed)  # too little text is refused before a folder is made
    if steps < 1 or batch_size < 1:
        raise MidusError(f"--steps {steps} and --batch-size {batch_size} must be at least 1")
    parameters = {"model": model, **source, **asked, "eval": held}
    parameters |= options.parameters(placed, read)
    _tell_training(loaded, texts.context, batch_size, params, device, bf16)
    texts_read = {texts.name: texts}
    if held_texts is not None:
        texts_read[f"{held_texts.name} (held out)"] = held_texts
    made_of = inputs_of({model: loaded}, texts_read)
    with common.begin(output, "train", model, parameters, made_of, overwrite, finished=True) as run:
        if run.done:
            common.say(f"{run.path} holds this training, finished")
            return
        with common.progress() as progress:
            log = trained(
                loaded,
                texts,
                Path(run.shared) / "training",
                eval_documents=held_texts,
                run=Path(model).name,
                progress=progress,
                device=device,
                bf16=bf16,
                **asked,
            )
        if is_main():
            save_model(loaded, texts.tokenizer, run.path / "models" / "trained")
        run.add_model("after", "models/trained")
        if log_usage:
            run.save_table("usage_log", usage_log(log))
        run.save_table("training", log)
        run.finish(_training_summary(log))
        _print_training(log, run.path)


def _tell_training(
    model: Any, context: int, rows: int, params: str, device: Any, bf16: bool
) -> None:
    from workbench.training.settings import needed_bytes

    rows = -(-rows // int(os.environ.get("WORLD_SIZE", "1")))
    needs = needed_bytes(model, context, rows, params)
    options.tell(model, needs, ", computed in bfloat16" if bf16 else "", device)


def _training_summary(log: Any) -> dict[str, Any]:
    held = log["eval_loss"].dropna()
    found = {"steps": int(log["step"].max()), "loss": float(log["loss"].dropna().iloc[-1])}
    if len(held):
        found |= {"eval_loss_before": float(held.iloc[0]), "eval_loss_after": float(held.iloc[-1])}
    return found


def _print_training(log: Any, place: Path) -> None:
    every = max(1, len(log) // 12)
    shown = log[(log.index % every == 0) | (log.index == len(log) - 1)]
    rows = [
        [str(int(row["step"]))]
        + ["" if row[c] != row[c] else f"{row[c]:.4f}" for c in ("loss", "eval_loss")]
        + ["" if row["learning_rate"] != row["learning_rate"] else f"{row['learning_rate']:.2e}"]
        for row in shown.to_dict("records")
    ]
    common.print_table(
        "Training (nats/token)", ["step", "loss", "held-out loss", "learning rate"], rows
    )
    common.say(f"The model is in {place / 'models' / 'trained'}, the log in {place / 'tables'}")
    common.closing(place)
