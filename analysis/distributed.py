"""Several processes as one: each takes its share of the batches, sums are put together.

Started by `torchrun` or `accelerate launch`, which set WORLD_SIZE; alone, nothing happens. What is
shared out are whole batches, the same as one process would make, so the numbers are the same too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

Item = TypeVar("Item")


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are; joins them where that was not done yet."""
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0, 1
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    return dist.get_rank(), dist.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank_and_size()[0] == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every n-th of the items."""
    rank, size = rank_and_size()
    return items[rank::size]


@cache
def _group() -> Any:
    """Processes that exchange arrays in main memory, whatever the default backend is."""
    return dist.new_group(backend="gloo")


def agreed(number: int) -> int:
    """The least of the numbers that the processes have: what all of them can do."""
    if rank_and_size()[1] == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=_group())
    return int(least)


def barrier() -> None:
    """Waits until every process is here."""
    if rank_and_size()[1] > 1:
        dist.barrier(group=_group())


def reduced(array: np.ndarray) -> np.ndarray:
    """The sum over all processes of a float64 array; every process gets it."""
    if rank_and_size()[1] == 1:
        return array
    total = torch.tensor(array, dtype=torch.float64)
    dist.all_reduce(total, group=_group())
    return total.numpy()
