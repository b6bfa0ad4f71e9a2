"""Continual pre-training: one call, which goes on where it was stopped.

The rows are a function of documents, context, batch size, steps and seed alone, so every model and
every baseline sees the same rows in the same order, also after a resume and on any number of
processes. Runs under torchrun and accelerate as the Trainer does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback

from analysis import tables
from analysis.documents import Documents
from kernels import locks
from kernels.errors import MidusError, ModelError
from midus_model import param_groups
from midus_model.placement import is_offloaded
from workbench import revival
from workbench.inputs import code
from workbench.revival import Balance, Revival
from workbench.training import checkpoints
from workbench.training.divergence import Watch, check_start
from workbench.training.evaluation import Progress
from workbench.training.log import training_table, usage_rows
from workbench.training.rows import PackedRows
from workbench.training.saving import write_model
from workbench.training.settings import (
    at_least_one,
    cadence,
    check_rates,
    trainer_arguments,
    training_device,
)
from workbench.training.trainer import ContinualTrainer, Reporter

Given = ParamSpec("Given")
Made = TypeVar("Made")


def _held(train: Callable[Given, Made]) -> Callable[Given, Made]:
    """`train`, its folder held by one training at a time."""

    @functools.wraps(train)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        place: Any = args[2] if len(args) > 2 else kwargs["output_dir"]
        with locks.hold_for_all(place):
            return train(*args, **kwargs)

    return run


@_held
def train(
    model: Any,
    documents: Documents,
    output_dir: str | os.PathLike[str],
    *,
    steps: int,
    batch_size: int = 16,
    lr: float = 2e-3,
    bank_lr_multiplier: float = 10.0,
    weight_decay: float = 0.1,
    train: str = "new",
    revive_every: int | None = None,
    balance_weight: float = 0.0,
    eval_documents: Documents | None = None,
    log_usage: bool = False,
    eval_every: int | None = None,
    save_every: int | None = None,
    resume: bool = True,
    seed: int = 0,
    bf16: bool | str = "auto",
    device: str | torch.device = "auto",
    run: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train `model` in place for `steps` optimiser steps and write it to `output_dir/model`.

    Args:
        documents: what is trained on, packed into rows of their context.
        output_dir: checkpoints go to `checkpoints/` below it, the final model to `model/`.
        steps: optimiser steps of `batch_size` rows each, over all processes together.
        lr: learning rate, 5% warm-up and a cosine to zero; banks get `bank_lr_multiplier` times it.
        weight_decay: of matrices; never of norms, biases, keys and banks.
        train: "new" (inserted blocks only) or "all".
        revive_every: steps after which sub-keys that a head hardly ever selected are moved to where
            its queries are (see `workbench.revival`); None never moves any.
        balance_weight: of the balance loss over each head's sub-keys, whose gradient is added; the
            losses in the table are of the next token alone.
        eval_documents: their token-weighted loss is taken before, every `eval_every` steps (by
            default ten times in all), and at the end.
        log_usage: also how memory is used on `eval_documents` at these steps: see `usage_log`.
        save_every: steps between checkpoints; by default ten in all, every 500 at the most.
        resume: go on from the newest whole checkpoint of the same training, if there is one.
        seed: of the rows' order.
        bf16: autocast to bfloat16; "auto" where the device computes in it. Weights stay fp32.
        device: where: "auto", an accelerator where there is one, "cpu", "cuda" or "mps"; the model
            stays there. Of several cuda devices a process takes the first that it sees, or under
            torchrun its own.
        run: the training's name in the table; by default the model's.
        progress: called as progress(step, steps, text).

    Returns:
        A table with columns run, step, loss (mean since the row before), eval_loss, learning_rate.
        With `revive_every`, `attrs["revived"]` lists [step, sub-keys moved]; with `log_usage`,
        `attrs["usage"]` has the rows of `usage_log`.

    Raises:
        DataError: too few tokens for a row.
        Diverged: a loss, gradient or weight is no finite number; nothing of that is kept.
        RunError: checkpoints of another training lie in `output_dir`, or it cannot be written.
        UpscaleError: there are no memory blocks to revive or balance, or none to train.
        ModelError: the device is not there, or the model lies on disk.
    """
    target = training_device(device)
    if is_offloaded(model):
        raise ModelError("the model lies in part on disk and cannot be trained; load it whole")
    place = Path(output_dir).expanduser()
    steps = at_least_one("steps", steps)
    batch_size = at_least_one("batch_size", batch_size)
    check_rates(lr, bank_lr_multiplier, weight_decay)
    per_device = _per_device(batch_size, log_usage, eval_documents)
    rows = PackedRows(documents, batch_size * steps, seed)
    recipe: dict[str, Any] = {
        "lr": lr,
        "bank_lr_multiplier": bank_lr_multiplier,
        "weight_decay": weight_decay,
        "train": train,
    }
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    param_groups(model, **recipe)  # refuses what cannot be trained before anything is written
    asked = revival.asked(model, revive_every, balance_weight)
    every = cadence(steps, eval_every, save_every)
    check_start(model)
    name = run or tables.display_name(model)
    start = tables.model_hash(model)
    about = {"steps": steps, "batch_size": batch_size, "seed": seed, **recipe}
    about |= {
        "rows": rows.sha256(),
        "model": start,
        "context": documents.context,
        **asked,
        **code(),
    }
    if int(os.environ.get("RANK", "0")) == 0:
        checkpoints.claim(place, about, resume)
    arguments = trainer_arguments(
        place, steps, per_device, lr, every, eval_documents, bf16, seed, target
    )
    reviving = None if revive_every is None else Revival(model, revive_every, seed)
    trainer = ContinualTrainer(
        model=model.float(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows if eval_documents is not None else None,  # see ContinualTrainer.evaluate
        recipe=recipe,
        watch=Watch(name, steps, lr, place / "checkpoints"),
        tokenizer=documents.tokenizer,
        eval_documents=eval_documents,
        balance=Balance(balance_weight) if balance_weight else None,
        log_usage=log_usage,
        callbacks=[Reporter(progress), *([reviving] if reviving else [])],
    )
    try:
        _run(trainer, reviving, place / "checkpoints", resume)
    finally:
        for parameter_name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(trainable[parameter_name])
        model.eval()
    write_model(trainer, documents.tokenizer, place / "model")
    history = trainer.state.log_history
    return training_table(
        history,
        name,
        {
            "table": "training",
            "model": name,
            "model_hash": tables.model_hash(model),
            "start_hash": start,
            "data": documents.name,
            "data_hash": documents.sha256,
            "eval_data": None if eval_documents is None else eval_documents.name,
            "unit": "nats/token",
            "tokens": steps * batch_size * documents.context,
            "parameters": {**recipe, **asked, "steps": steps, "batch_size": batch_size},
            **({"revived": reviving.revived} if reviving else {}),
            **({"usage": usage_rows(history)} if log_usage else {}),
            "context": documents.context,
            "seed": seed,
            "versions": tables.versions(),
        },
    )


def _per_device(batch_size: int, log_usage: bool, eval_documents: Documents | None) -> int:
    """Rows a step of each process; raises MidusError for what several cannot do."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if log_usage and (eval_documents is None or world > 1):
        raise MidusError("log_usage needs eval_documents to look at, and a single process")
    if batch_size % world:
        raise MidusError(f"batch_size is {batch_size}; with {world} processes give a multiple")
    return batch_size // world


def _run(trainer: ContinualTrainer, reviving: Revival | None, folder: Path, resume: bool) -> None:
    """All steps, from the newest whole checkpoint on where there is one."""
    trainer.remove_callback(PrinterCallback)
    last: list[Any] = [None]
    if resume and trainer.is_world_process_zero():  # one process reads them all
        last = [checkpoints.newest_whole(folder)]
    broadcast_object_list(last)
    trainer.args.eval_on_start = trainer.eval_documents is not None and last[0] is None
    trainer.accelerator.wait_for_everyone()
    looks: list[revival.Look] = [part.look for part in (reviving, trainer.balance) if part]
    with revival.watching(trainer.model, looks), checkpoints.reading(last[0]):
        trainer.train(resume_from_checkpoint=None if last[0] is None else str(last[0]))
    if trainer.is_world_process_zero():
        checkpoints.prune(folder)  # no save may have been left to end what a kill cut short
