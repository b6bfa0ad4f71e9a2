"""Runs a model over windows and shows every batch's retrievals, as the forward pass makes them.

Nothing is kept here: what a watcher keeps is its own affair, and its sizes are those of slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from analysis.engine import Batch, Enough, Progress, batch_of, batches
from analysis.estimates import did
from analysis.windows import Window, first_new
from kernels.errors import MidusError
from midus_model.memory import HeadwiseMemory
from midus_model.placement import device_of, input_device
from midus_model.sites import blocks

# Positions that go through the model at once; bounds the scores [positions, M, n] of a block.
BATCH_POSITIONS = 2048
READING = "reading memory"  # the stage


@dataclass(frozen=True)
class Positions:
    """The positions of a batch that count: every token once, and no padding.

    `index` int64 [P], ascending, into the batch flattened to [W*T]; `length` is T.
    """

    windows: list[Window]
    length: int
    index: torch.Tensor

    def origins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each position's document, its index in that, and where its window starts: int64 [P]."""
        index = self.index.cpu().numpy()
        row = index // self.length
        document = np.array([window.document for window in self.windows])[row]
        start = np.array([window.start for window in self.windows])[row]
        begins = np.array([window.start + window.repeated for window in self.windows])[row]
        return document, start + index % self.length, begins


class Watcher(ABC):
    """What looks at one memory block; `positions` are those of the batch in hand."""

    positions: Positions

    def __init__(self, layer: int, memory: HeadwiseMemory):
        device = device_of(memory)
        self.layer, self.heads, self.num_keys = layer, list(memory.heads), memory.row_keys.shape[1]
        # mps has no float64, in which is counted
        self.device = torch.device("cpu") if device.type == "mps" else device

    def hooks(self, block: Any) -> list[RemovableHandle]:
        """Hooks into the block, put there for one stream."""
        return [block.memory.retrieved.register_forward_hook(self._retrieved)]

    def _retrieved(self, _: nn.Module, __: tuple, found: tuple[torch.Tensor, torch.Tensor]) -> None:
        """The hook of `memory.retrieved`: hands on what is read at the positions that count."""
        self.see(*map(self.at_positions, found))

    def at_positions(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [W*T, ...] of the positions that count, [P, ...]."""
        return rows.index_select(0, self.positions.index.to(rows.device)).to(self.device)

    @abstractmethod
    def see(self, weights: torch.Tensor, slots: torch.Tensor) -> None:
        """Weights, best first, and slots, both [P, M, k]."""

    def not_finite(self) -> MidusError:
        """The error of weights that are NaN."""
        return MidusError(
            f"the head outputs of block {self.layer} are not finite, so its reads mean nothing; "
            "look at the model's weights, or load it in float32"
        )


def streamed(
    model: Any,
    windows: Sequence[Window],
    watchers: Mapping[int, Watcher],
    progress: Progress | None = None,
    text: str = READING,
) -> None:
    """Show every batch of the windows to the watchers, by block; the last one's block ends a pass.

    The model runs in eval mode; its mode is put back and the hooks are gone afterwards.
    """
    device, done = input_device(model), 0
    with _watching(model, watchers), torch.inference_mode():
        for batch, positions in batches_of(windows, device):
            for watcher in watchers.values():
                watcher.positions = positions
            with suppress(Enough):
                model.model(input_ids=batch.ids, use_cache=False)
            done += len(positions.windows)
            did(text, batch.tokens)
            if progress is not None:
                progress(done, len(windows), text)


def batches_of(
    windows: Sequence[Window], device: torch.device
) -> Iterator[tuple[Batch, Positions]]:
    """Windows of like length side by side, longest first, with the positions that count."""
    first = first_new(windows)
    longest = max(len(window.ids) for window in windows)
    for chosen in batches(windows, max(1, BATCH_POSITIONS // longest)):
        part = [windows[i] for i in chosen]
        batch = batch_of(part, device)
        length = batch.ids.shape[1]
        index = torch.cat(
            [
                row * length + torch.arange(first[i], len(windows[i].ids))
                for row, i in enumerate(chosen)
            ]
        )
        yield batch, Positions(part, length, index.to(device))


@contextmanager
def _watching(model: Any, watchers: Mapping[int, Watcher]) -> Iterator[None]:
    """The watchers' hooks in place, the model in eval mode; both undone at the end."""

    def enough(*_: Any) -> None:
        raise Enough

    training = model.training
    with ExitStack() as stack:
        undo: Callable[..., Any] = stack.callback
        for layer, watcher in watchers.items():
            for hook in watcher.hooks(blocks(model)[layer]):
                undo(hook.remove)
        undo(blocks(model)[max(watchers)].register_forward_hook(enough).remove)
        undo(model.train, training)
        model.eval()
        yield
