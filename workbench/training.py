"""Continual pre-training through the Hugging Face Trainer.

The rows are a function of documents, context, batch size, steps and seed alone, so every model and
every baseline sees the same rows in the same order, also after a resume and on any number of
processes. Runs under torchrun and accelerate as the Trainer does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from analysis import memory_usage, tables
from analysis.documents import Documents
from analysis.memory_plan import activation_bytes
from kernels import locks
from kernels.errors import DataError, MidusError, ModelError, RunError
from midus_model import input_device, param_groups
from midus_model.card import write_card
from midus_model.optim import new_parameter_names
from midus_model.placement import counting_device, is_offloaded, resolve_device
from workbench import revival
from workbench.revival import Balance, Revival

Progress = Callable[[int, int, str], None]
Given = ParamSpec("Given")
Made = TypeVar("Made")
COLUMNS = ("run", "step", "loss", "eval_loss", "learning_rate")
BETAS = (0.9, 0.95)
IGNORED = -100  # label of a token whose loss does not count
USAGE = "memory_usage"  # key of what `log_usage` leaves in the logs
MOST_LOGGED = 10  # optimiser steps a logged loss is the mean of, at most


# ---------------------------------------------------------------- rows


class PackedRows(Dataset):
    """Documents end to end, cut into `rows` rows of `context` tokens.

    The order of documents is drawn once; every epoch has its own offset and its own order of
    rows. Tokens of a task's prompt carry no loss.
    """

    def __init__(self, documents: Documents, rows: int, seed: int = 0) -> None:
        self.context, self.rows, self.seed = documents.context, rows, seed
        order = np.random.default_rng((seed, 0)).permutation(len(documents))
        items = [documents[int(i)] for i in order]
        self.ids = torch.cat([item.ids for item in items])
        # A text's first token follows the text before: predicting it is learning where texts begin.
        counted = [
            torch.arange(len(item.ids)) >= (item.scored_from if item.scored_from > 1 else 0)
            for item in items
        ]
        self.labels = torch.where(torch.cat(counted), self.ids, IGNORED)
        self.per_epoch = len(self.ids) // self.context - 1
        if self.per_epoch < 1:
            raise DataError(
                f"{documents.name} has {len(self.ids):,} tokens, too few to train on; give at "
                f"least {2 * self.context:,} (two rows of the context, {self.context})"
            )
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(index, self.per_epoch)
        if epoch not in self._epochs:
            rng = np.random.default_rng((self.seed, 1, epoch))
            drawn = int(rng.integers(0, self.context)), rng.permutation(self.per_epoch)
            self._epochs = {epoch: drawn}
        offset, order = self._epochs[epoch]
        start = offset + int(order[position]) * self.context
        span = slice(start, start + self.context)
        labels = self.labels[span].clone()
        labels[0] = IGNORED  # nothing in the row predicts it
        return {"input_ids": self.ids[span].clone(), "labels": labels}

    def sha256(self) -> str:
        """Hash of what the rows are cut from."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


# ---------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(
    model: Any,
    documents: Documents,
    *,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> tuple[float, int]:
    """Loss in nats over the scored tokens of `documents`, and their number (of this rank's share).

    Every rank runs the same number of batches, the spare ones counting nothing, so that sharded
    models stay in step.
    """
    windows = sorted(documents.windows, key=lambda window: len(window.ids))
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    device = input_device(model)
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    for step in range(-(-len(batches) // world)):
        number = step * world + rank
        batch = batches[min(number, len(batches) - 1)]
        longest = max(len(window.ids) for window in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        scored = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
        for row, window in enumerate(batch):  # padded on the right: a causal model never sees it
            ids[row, : len(window.ids)] = window.ids
            scored[row, : len(window.scored)] = window.scored
        ids, scored = ids.to(device), scored.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1][scored].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][scored], reduction="sum")
        if number < len(batches):
            nats, count = nats + loss.item(), count + int(scored.sum())
        if progress:
            progress(step + 1, -(-len(batches) // world), "evaluating")
    model.train(was_training)
    return nats, count


# ---------------------------------------------------------------- the Trainer


class _Trainer(Trainer):
    """The Trainer with our optimiser groups, a token-weighted evaluation, and a balance loss."""

    optimizer: Any
    control: Any

    def __init__(
        self,
        *,
        recipe: dict[str, Any],
        eval_documents: Documents | None,
        balance: Balance | None,
        log_usage: bool,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.recipe, self.eval_documents, self.balance = recipe, eval_documents, balance
        self.log_usage = log_usage

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss if self.balance is None else self.balance.added_to(loss)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            bare = self.accelerator.unwrap_model(self.model if model is None else model)
            self.optimizer = torch.optim.AdamW(param_groups(bare, **self.recipe), betas=BETAS)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """The rate of everything but the banks, whichever group comes first."""
        group = self.optimizer.param_groups[0]
        return float(self.recipe["lr"] * group["lr"] / group["initial_lr"])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.eval_documents is not None
        nats, count = evaluate(
            self.model_wrapped,
            self.eval_documents,
            batch_size=self.args.per_device_train_batch_size,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        both = torch.tensor([nats, count], dtype=torch.float64)
        both = both.to(counting_device(self.args.device))
        nats, count = self.accelerator.reduce(both, "sum").tolist()
        metrics = {"eval_loss": nats / count}
        self.log(metrics)
        if self.log_usage:  # among the Trainer's own logs, so that a resumed training has it all
            self.log({USAGE: _usage(self.model, self.eval_documents)})  # type: ignore[dict-item]
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def _usage(model: Any, documents: Documents) -> list[dict[str, float]]:
    """How each block's slots are used at this moment: means over its heads."""
    usage = memory_usage(model, documents)
    heads = usage.groupby("layer")[["coverage", "effective_slots"]].mean().reset_index()
    return heads.rename(columns={"layer": "block"}).to_dict("records")


class _Reporter(TrainerCallback):
    """Tells `progress` of every step and of the last loss."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.text = progress, "training"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.text = f"training: loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def _tell(self, state: Any) -> None:
        if self.progress and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, self.text)


# ---------------------------------------------------------------- training


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
        RunError: checkpoints of another training lie in `output_dir`, or it cannot be written.
        UpscaleError: there are no memory blocks to revive or balance, or none to train.
        ModelError: the device is not there, or the model lies on disk.
    """
    target = training_device(device)
    if is_offloaded(model):
        raise ModelError("the model lies in part on disk and cannot be trained; load it whole")
    place = Path(output_dir).expanduser()
    steps = _at_least_one("steps", steps)
    batch_size = _at_least_one("batch_size", batch_size)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if log_usage and (eval_documents is None or world > 1):
        raise MidusError("log_usage needs eval_documents to look at, and a single process")
    if batch_size % world:
        raise MidusError(f"batch_size is {batch_size}; with {world} processes give a multiple")
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
    every = _cadence(steps, eval_every, save_every)
    model_hash = tables.model_hash(model)
    about = {"steps": steps, "batch_size": batch_size, "seed": seed, **recipe}
    about |= {"rows": rows.sha256(), "model": model_hash, "context": documents.context, **asked}
    name = run or tables.display_name(model)
    main = int(os.environ.get("RANK", "0")) == 0
    if main:
        _claim(place, about, resume)
    arguments = _arguments(
        place, steps, batch_size // world, lr, every, eval_documents, bf16, seed, target
    )
    reviving = None if revive_every is None else Revival(model, revive_every, seed)
    balance = Balance(balance_weight) if balance_weight else None
    trainer = _Trainer(
        model=model.float(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows if eval_documents is not None else None,  # see _Trainer.evaluate
        recipe=recipe,
        eval_documents=eval_documents,
        balance=balance,
        log_usage=log_usage,
        callbacks=[_Reporter(progress), *([reviving] if reviving else [])],
    )
    trainer.remove_callback(PrinterCallback)
    last = _newest_checkpoint(place / "checkpoints") if resume else None
    arguments.eval_on_start = eval_documents is not None and last is None
    trainer.accelerator.wait_for_everyone()
    with revival.watching(model, [part.look for part in (reviving, balance) if part]):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    for parameter_name, parameter in model.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(trainable[parameter_name])
    _write_model(trainer, documents.tokenizer, place / "model")
    model.eval()
    return _table(
        trainer.state.log_history,
        name,
        {
            "table": "training",
            "model": name,
            "model_hash": tables.model_hash(model),
            "start_hash": model_hash,
            "data": documents.name,
            "data_hash": documents.sha256,
            "eval_data": None if eval_documents is None else eval_documents.name,
            "unit": "nats/token",
            "tokens": steps * batch_size * documents.context,
            "parameters": {**recipe, **asked, "steps": steps, "batch_size": batch_size},
            **({"revived": reviving.revived} if reviving else {}),
            **({"usage": _usage_rows(trainer.state.log_history)} if log_usage else {}),
            "context": documents.context,
            "seed": seed,
            "versions": tables.versions(),
        },
    )


def _usage_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": entry["step"], **row} for entry in history for row in entry.get(USAGE, ())]


def usage_log(log: pd.DataFrame) -> pd.DataFrame:
    """Memory use along a training: run, step, block, coverage, effective slots (means over heads).

    `log` is the table of a training with `log_usage`. Raises MidusError for another.
    """
    rows = log.attrs.get("usage")
    if not rows:
        raise MidusError("this training logged no memory use; train with log_usage=True")
    table = pd.DataFrame(rows)
    table.insert(0, "run", log["run"].iloc[0])
    table.attrs = {key: value for key, value in log.attrs.items() if key != "usage"}
    table.attrs |= {"table": "usage_log", "data": log.attrs["eval_data"]}
    return table


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise MidusError(f"{name} is {value}; it must be at least 1")
    return int(value)


def _cadence(steps: int, eval_every: int | None, save_every: int | None) -> dict[str, int]:
    """Steps between evaluations, checkpoints and log rows.

    A log row never straddles a checkpoint, or the loss since the last row would be lost on resume;
    and every evaluation has a log row of its own step.
    """
    save = save_every or min(500, max(1, steps // 10))
    evaluation = eval_every or max(1, steps // 10)
    log = max(n for n in range(1, MOST_LOGGED + 1) if save % n == evaluation % n == 0)
    return {"eval": evaluation, "save": save, "log": log}


def _arguments(
    place: Path,
    steps: int,
    per_device: int,
    lr: float,
    every: dict[str, int],
    eval_documents: Documents | None,
    bf16: bool | str,
    seed: int,
    device: torch.device,
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(place / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * steps)),
        max_grad_norm=1.0,
        bf16=computes_in_bf16(device) if bf16 == "auto" else bool(bf16),
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=every["log"],
        save_steps=every["save"],
        save_total_limit=2,
        eval_strategy="no" if eval_documents is None else "steps",
        eval_steps=every["eval"],
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are torchrun's, not DataParallel's
    return arguments


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def training_device(device: str | torch.device) -> torch.device:
    """The device that a training is to run on; the Trainer takes the first of its kind."""
    found = resolve_device(device)
    if found.index:
        raise MidusError(
            f"device is {str(found)!r}, and a training takes the first {found.type} device that it "
            f"sees: give {found.type!r}, with CUDA_VISIBLE_DEVICES={found.index} in the environment"
        )
    return found


def bf16_of(dtype: str, device: torch.device) -> bool:
    """Whether a training asked for in `dtype` ("auto", "float32", "bfloat16") autocasts to bf16."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise MidusError(
            f"dtype is {dtype!r}; a training keeps float32 weights and computes in auto, float32 "
            "or bfloat16"
        )
    return computes_in_bf16(device) if dtype == "auto" else dtype == "bfloat16"


def needed_bytes(model: Any, context: int, rows: int, train: str) -> int:
    """About what a training takes: weights, their gradients and Adam's sums, and activations."""
    new = new_parameter_names(model) if train == "new" else None
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(size for name, size in sizes.items() if new is None or name in new)
    return 4 * sum(sizes.values()) + 12 * trained + rows * activation_bytes(model, context)


# ---------------------------------------------------------------- files


def _claim(place: Path, about: dict[str, Any], resume: bool) -> None:
    """Make `place` this training's own: its description beside the checkpoints."""
    path, checkpoints = place / "training.json", place / "checkpoints"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not resume or known is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    elif known != about:
        differing = sorted(k for k in about | known if about.get(k) != known.get(k))
        raise RunError(
            f"{place} holds checkpoints of another training (other {', '.join(differing)}); "
            "give another folder, or --overwrite to start again"
        )
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {place}: {error.strerror or error}") from error


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the Trainer writes `trainer_state.json` last."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def _write_model(trainer: Trainer, tokenizer: Any, target: Path) -> None:
    """Save on every process (a sharded model is gathered); the first renames it into place."""
    draft = target.with_name(f".{target.name}.tmp")
    if trainer.is_world_process_zero():
        shutil.rmtree(draft, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(draft))
    if trainer.is_world_process_zero():
        (draft / "training_args.bin").unlink(missing_ok=True)
        write_card(trainer.model, draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        replace_folder(draft, target)
    trainer.accelerator.wait_for_everyone()


def replace_folder(draft: Path, target: Path) -> None:
    """Rename a finished folder into place; what lay there goes once the new one stands."""
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def save_model(model: Any, tokenizer: Any, target: str | os.PathLike[str]) -> Path:
    """Write weights, config and tokenizer to the folder `target`, whole or not at all."""
    place = Path(target).expanduser()
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(draft)
        write_card(model, draft, replacing=place)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        replace_folder(draft, place)
    except OSError as error:
        raise RunError(f"cannot write to {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _table(history: list[dict[str, Any]], name: str, attrs: dict[str, Any]) -> pd.DataFrame:
    """The Trainer's log as one row a step."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        row = steps.setdefault(int(entry["step"]), {})
        for column in ("loss", "eval_loss", "learning_rate"):
            if column in entry:
                row[column] = float(entry[column])
    rows = [
        {"run": name, "step": step, "loss": None, "eval_loss": None, "learning_rate": None} | row
        for step, row in sorted(steps.items())
        if row
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["loss", "eval_loss", "learning_rate"]
    table[numbers] = table[numbers].astype("float64")
    table.attrs = tables.json_attrs({"schema": tables.SCHEMA, **attrs})
    return table
