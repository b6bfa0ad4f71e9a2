"""How a training is set up: cadence, device, precision, what it takes, the Trainer's arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from analysis.documents import Documents
from analysis.memory_plan import activation_bytes
from kernels.errors import MidusError
from midus_model.optim import new_parameter_names
from midus_model.placement import resolve_device

MOST_LOGGED = 10  # optimiser steps a logged loss is the mean of, at most


def at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise MidusError(f"{name} is {value}; it must be at least 1")
    return int(value)


def check_rates(lr: float, bank_lr_multiplier: float, weight_decay: float) -> None:
    """Raises MidusError for rates that are no numbers, or that float32 does not hold."""
    given = {"lr": lr, "bank_lr_multiplier": bank_lr_multiplier}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise MidusError(f"{name} is {value}; it must be a number above 0")
    if not 0 <= weight_decay < math.inf:
        raise MidusError(f"weight_decay is {weight_decay}; it must be 0 or more")
    most = torch.finfo(torch.float32).max / 10  # the optimiser divides by its first steps' sums
    if lr * max(1, bank_lr_multiplier) > most:
        raise MidusError(
            f"lr {lr:g} and bank_lr_multiplier {bank_lr_multiplier:g} are out of all bounds; they "
            f"must be at most {most:.0e} together"
        )


def cadence(steps: int, eval_every: int | None, save_every: int | None) -> dict[str, int]:
    """Steps between evaluations, checkpoints and log rows.

    A log row never straddles a checkpoint, or the loss since the last row would be lost on resume;
    and every evaluation has a log row of its own step.
    """
    save = save_every or min(500, max(1, steps // 10))
    evaluation = eval_every or max(1, steps // 10)
    log = max(n for n in range(1, MOST_LOGGED + 1) if save % n == evaluation % n == 0)
    return {"eval": evaluation, "save": save, "log": log}


def trainer_arguments(
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
        eval_strategy="no" if eval_documents is None else "steps",
        eval_steps=every["eval"],
        logging_nan_inf_filter=False,
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
