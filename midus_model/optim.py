"""Which parameters are trained, and how fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels.errors import UpscaleError
from midus_model.config import layer_map_of
from midus_model.intake import taken
from midus_model.memory import HeadwiseMemory


def new_parameter_names(model: Any) -> set[str]:
    """Names of the parameters of inserted blocks; empty for a model that was not up-scaled."""
    model = taken(model)
    inserted = [
        f"model.layers.{layer}."
        for layer, entry in enumerate(layer_map_of(model.config))
        if entry["kind"] != "base"
    ]
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(inserted))}


def param_groups(
    model: Any,
    lr: float,
    *,
    bank_lr_multiplier: float = 10.0,
    weight_decay: float = 0.1,
    train: str = "new",
) -> list[dict[str, Any]]:
    """Optimiser groups; parameters outside them get `requires_grad` False.

    Args:
        lr: learning rate of everything but the banks.
        bank_lr_multiplier: the banks' rate over `lr` (10 in Memory Layers at Scale, 2412.09764).
        weight_decay: of matrices; never of norms, biases, keys and banks.
        train: "new" (inserted blocks only) or "all".

    Returns:
        Groups named "decay", "no_decay" and "bank", empty ones left out.
    """
    if train not in ("new", "all"):
        raise UpscaleError(f"train is {train!r}; it must be 'new' or 'all'")
    model = taken(model)
    new = new_parameter_names(model)
    if train == "new" and not new:
        raise UpscaleError("train is 'new', but the model has no inserted blocks; use 'all'")
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "bank": []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train == "all" or name in new)
        if parameter.requires_grad:
            groups[_group(name, parameter)].append(parameter)
    rates = {"decay": lr, "no_decay": lr, "bank": lr * bank_lr_multiplier}
    decays = {"decay": weight_decay, "no_decay": 0.0, "bank": 0.0}
    return [
        {"params": params, "lr": rates[name], "weight_decay": decays[name], "name": name}
        for name, params in groups.items()
        if params
    ]


def row_sparse_optimizers(
    model: Any, lr: float, *, betas: tuple[float, float] = (0.9, 0.95), **options: Any
) -> list[torch.optim.Optimizer]:
    """For very large banks: AdamW for everything but the banks, and lazy Adam for the banks.

    Sets every memory's `bank_grad` to "sparse", so that a backward pass makes gradients of the
    rows read alone, and `torch.optim.SparseAdam` steps those alone: a step costs by the rows read,
    not by the size of the bank. An unread row keeps its moments, where Adam would let them decay.

    Args:
        lr, options: as `param_groups` takes them.
        betas: of both optimisers.
    """
    model = taken(model)
    groups = param_groups(model, lr, **options)
    for module in model.modules():
        if isinstance(module, HeadwiseMemory):
            module.bank_grad = "sparse"
    dense = [group for group in groups if group["name"] != "bank"]
    banks = [
        {name: value for name, value in group.items() if name != "weight_decay"}
        for group in groups
        if group["name"] == "bank"
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, betas=betas)] if dense else []
    return found + ([torch.optim.SparseAdam(banks, betas=betas)] if banks else [])


def _group(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("memory.bank"):
        return "bank"
    keys = name.endswith(("memory.row_keys", "memory.col_keys"))
    return "no_decay" if keys or parameter.ndim < 2 else "decay"
