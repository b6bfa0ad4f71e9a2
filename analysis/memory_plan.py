"""How much of the work is done at once: windows a batch, heads folded, and logits held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from analysis.metrics import LOSS, Metric
from kernels.errors import MidusError
from midus_model import blocks
from midus_model.config import head_dim_of
from midus_model.placement import dtype_of, free_bytes, input_device

if TYPE_CHECKING:
    from analysis.engine import Batch

MIB = 2**20
CPU_BUDGET = 1024 * MIB
CACHE_BYTES = 16 * MIB  # on a CPU: more at once streams through memory, and is slower
BATCH = 8
LOGIT_ROWS = 4096


@dataclass
class Plan:
    """Sizes that keep the arrays of a measurement within a budget of bytes.

    windows: a batch; rows: positions whose logits are held at once; `folds(batch)`: copies of a
    batch in one forward pass; workers: how many such passes the budget holds side by side; most:
    fold limit, lowered after an out-of-memory error.
    """

    windows: int
    rows: int
    budget: int
    fold_bytes: int
    token_bytes: int
    workers: int = 1
    most: int = 2**31

    def folds(self, batch: Batch) -> int:
        """How many copies of the batch one forward pass takes."""
        return max(1, min(self.most, self.fold_bytes // (batch.tokens * self.token_bytes)))


def plan_for(
    model: Any,
    context: int,
    metric: Metric = LOSS,
    budget: int | None = None,
    gradients: bool = False,
    resample: bool = False,
) -> Plan:
    """A plan for windows of up to `context` tokens.

    Args:
        budget: bytes that arrays may take beside the weights; by default 1 GiB on a CPU and half
            of what is free on a GPU.
        gradients: whether a backward pass keeps every block's activations and the logits.
        resample: whether another document's head outputs are held beside.

    Raises MidusError where the budget does not hold one window.
    """
    device = input_device(model)
    working, kept, row = _bytes_a_token(model, metric, gradients, resample)
    given, budget = budget, _default(device) if budget is None else _whole(budget)
    least = context * (kept + working) + row
    if given is None:
        budget = max(budget, least)
    elif least > budget:
        raise MidusError(
            f"memory_budget is {given} bytes; one window of {context} tokens takes about "
            f"{least:,}: give that much, or documents with a smaller context"
        )
    at_once = CACHE_BYTES if device.type == "cpu" else budget
    rows = max(1, min(LOGIT_ROWS, budget // 4 // row, max(64, at_once // 2 // row)))
    free = budget - rows * row
    windows = free // 2 // (context * (kept if gradients else kept + working))
    windows = max(1, min(BATCH, windows, at_once // (context * working)))
    free -= windows * context * kept
    fold_bytes = min(max(free, context * working), at_once)
    plan = Plan(windows, rows, budget, fold_bytes, working)
    if device.type == "cpu":
        one = max(fold_bytes, windows * context * working)
        beside = one + rows * row + windows * context * _end_bytes(model)
        plan.workers = 1 + max(0, free - one) // beside
    return plan


def arrays_bytes(model: Any, context: int, gradients: bool = False) -> int:
    """About what the arrays of a measurement take beside the weights, windows of `context` tokens.

    On an accelerator more heads at a time take more, as far as memory allows.
    """
    plan = plan_for(model, context, gradients=gradients)
    working, kept, row = _bytes_a_token(model, LOSS, gradients, resample=False)
    once = plan.rows * row + plan.windows * context * working
    return plan.windows * context * kept + min(plan.workers, torch.get_num_threads()) * once


def activation_bytes(model: Any, context: int) -> int:
    """About what a backward pass keeps of one window of `context` tokens, its logits too."""
    return context * _bytes_a_token(model, LOSS, gradients=True, resample=False)[1]


def _bytes_a_token(
    model: Any, metric: Metric, gradients: bool, resample: bool
) -> tuple[int, int, int]:
    """What a token takes at the widest point of a block, what is kept of it, and its logits."""
    config, item, layers = model.config, dtype_of(model).itemsize, len(blocks(model))
    heads = config.num_attention_heads * head_dim_of(config)
    wide = max(item, 4)
    working = (6 * config.hidden_size + 2 * heads + 3 * config.intermediate_size) * item
    working += 2 * config.hidden_size * wide  # norms are computed in fp32
    row = config.vocab_size * (wide * metric.copies + (item if item < wide else 0))
    if gradients:
        kept = layers * (working + 2 * config.hidden_size * wide) + row
    else:
        kept = layers * (config.hidden_size + heads) * item + _end_bytes(model)  # the clean run
    if resample:
        kept += layers * heads * item
    return working, kept, row


def _end_bytes(model: Any) -> int:
    """What `BlockEnd` makes once a block and keeps, a token."""
    config, item = model.config, dtype_of(model).itemsize
    return 2 * (config.hidden_size + config.intermediate_size) * item


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on a GPU or a CPU, found no memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _default(device: torch.device) -> int:
    free = None if device.type == "cpu" else free_bytes(device)
    return CPU_BUDGET if free is None else free // 2


def _whole(budget: Any) -> int:
    if isinstance(budget, bool) or not hasattr(budget, "__index__") or int(budget) < 1:
        raise MidusError(
            f"memory_budget is {budget!r}; it must be a number of bytes, such as {256 * MIB}"
        )
    return int(budget)
