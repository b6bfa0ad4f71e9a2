"""The exact effect of replacing heads: a clean run resumed at the block where they are replaced.

Shape letters: W windows in a batch, T tokens, H heads, D head size, d hidden size, F units folded
into one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import nn

from analysis.engine import CleanRun, Replacement, window_values
from analysis.memory_plan import Plan, is_out_of_memory
from analysis.metrics import LOSS, METRICS, Metric
from analysis.workers import side_by_side, worker_count
from midus_model import BlockEnd, Change, HeadSite, blocks, is_watched, lean_blocks
from midus_model.maps import obstacle

Units = Sequence[Sequence[HeadSite]]


@torch.no_grad()
def ablated_values(
    model: Any,
    run: CleanRun,
    units: Units,
    replacement: Replacement,
    plan: Plan,
    metric: Metric = LOSS,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The metric of each window with each unit's heads replaced, exactly: [len(units), W], float64.

    A unit's heads are replaced where they are made: its first block is finished with what the clean
    run left, and the later blocks run. Units that start in one block are folded into the batch,
    fewer at a time where memory does not hold them (`plan` remembers it). On a CPU several such
    batches run side by side (`analysis.workers`). `progress` is told, in the calling thread, how
    many evaluations, a unit on a window each, were added.
    """
    windows, folds = run.batch.ids.shape[0], plan.folds(run.batch)
    resumed = Resumed(model, run, units, replacement, plan, metric)
    waiting = {
        indices[start]: (layer, indices[start : start + folds])
        for layer, indices in sorted(resumed.by_layer.items())
        for start in range(0, len(indices), folds)
    }
    result = torch.empty(len(units), windows, dtype=torch.float64)
    count = _workers(model, units, plan, metric)
    with lean_blocks(blocks(model)), _memory_watched(model):
        while waiting:
            try:
                with side_by_side(resumed.values, list(waiting.values()), count) as found:
                    for indices, values in found:
                        result[indices] = values
                        del waiting[indices[0]]
                        if progress:
                            progress(len(indices) * windows)
            except (RuntimeError, MemoryError) as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                count = plan.workers = 1  # what is left has the memory for itself
    return result


def _workers(model: Any, units: Units, plan: Plan, metric: Metric) -> int:
    """How many threads may run the model at once: one where somebody else's code would run too."""
    if any(site.layer != unit[0].layer for unit in units for site in unit):
        return 1  # the later heads are replaced by hooks, which all threads would meet
    if not any(metric.function is known.function for known in METRICS.values()):
        return 1
    parts = (*blocks(model), model.model.norm, model.lm_head)
    modules = [module for part in parts for module in part.modules()]
    if is_watched(*modules) or any(m._compiled_call_impl is not None for m in modules):
        return 1
    if any(obstacle(module) is not None for module in modules):
        return 1  # another library's code for quantised or adapted layers
    return min(plan.workers, worker_count())


@contextmanager
def _memory_watched(model: Any) -> Iterator[None]:
    """Inside, memory takes the same way as in the clean run: unwatched, it fuses."""
    with ExitStack() as stack:
        for block in blocks(model):
            if hasattr(block, "memory"):
                unseen = block.memory.out.register_forward_pre_hook(lambda *_: None)
                stack.callback(unseen.remove)
        yield


@dataclass
class Resumed:
    """Resumes a clean run with units replaced; several threads may ask at once."""

    model: Any
    run: CleanRun
    units: Units
    replacement: Replacement
    plan: Plan
    metric: Metric
    by_layer: dict[int, list[int]] = field(init=False)  # the units that start in a block

    def __post_init__(self) -> None:
        self.by_layer = {}
        for index, unit in enumerate(self.units):
            self.by_layer.setdefault(min(site.layer for site in unit), []).append(index)
        self._left = {layer: set(indices) for layer, indices in self.by_layer.items()}
        self._ends: dict[int, BlockEnd] = {}
        self._lock = Lock()

    def values(self, layer: int, indices: Sequence[int]) -> tuple[Sequence[int], torch.Tensor]:
        """The metric with each of these units replaced, which start in block `layer`: [F, W]."""
        windows = self.run.batch.ids.shape[0]
        found: list[torch.Tensor] = []
        while len(found) < len(indices):
            most = self.plan.folds(self.run.batch)
            chosen = [self.units[i] for i in indices[len(found) : len(found) + most]]
            try:
                values = self.resume(self._end(layer), layer, chosen)
            except (RuntimeError, MemoryError) as error:
                self._fewer(len(chosen), error)
                continue
            found.extend(values.view(len(chosen), windows).cpu())
        self._done(layer, indices)
        return indices, torch.stack(found)

    def _end(self, layer: int) -> BlockEnd:
        with self._lock:
            if layer not in self._ends:
                first = self.units[self.by_layer[layer][0]][0]
                stage = "query" if first.module_name.endswith(".memory") else "output"
                block, run = blocks(self.model)[layer], self.run
                self._ends[layer] = BlockEnd(block, run.inputs[layer], run.heads[layer], stage)
            return self._ends[layer]

    def _done(self, layer: int, indices: Sequence[int]) -> None:
        """A block's products go with the last of its units."""
        with self._lock:
            self._left[layer].difference_update(indices)
            if not self._left[layer]:
                self._ends.pop(layer, None)

    def _fewer(self, folds: int, error: Exception) -> None:
        """Halve the folds after an out-of-memory error; another error, or one fold's, is raised."""
        if not is_out_of_memory(error) or folds == 1:
            raise error
        with self._lock:
            self.plan.most = min(self.plan.most, folds // 2)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def resume(self, end: BlockEnd, layer: int, units: Units) -> torch.Tensor:
        """The metric with the units replaced that start in block `layer`: [F*W]."""
        folds, windows = len(units), self.run.batch.ids.shape[0]
        model, stack = self.model, blocks(self.model)
        hidden = end.changed([self._changes(unit, layer) for unit in units])
        with self._replacing_later(layer, units):
            for later in range(layer + 1, len(stack)):
                hidden = stack[later](hidden, **_folded(self.run.calls[later], folds, windows))
        final = model.model.norm(hidden)
        return window_values(
            model, final, self.run.batch, self.metric, self.run.hidden, self.plan.rows
        )

    def _changes(self, unit: Sequence[HeadSite], layer: int) -> list[Change]:
        """What a unit replaces in block `layer`."""
        spans = [slice(site.start, site.stop) for site in unit if site.layer == layer]
        return [Change(span, self.replacement[layer][..., span]) for span in spans]

    @contextmanager
    def _replacing_later(self, layer: int, units: Units) -> Iterator[None]:
        """Replaces, inside the block, the heads of units that reach into blocks after `layer`."""
        later = [site for unit in units for site in unit if site.layer > layer]
        modules = {site.layer: site.module for site in later}

        def hook(at: int) -> Callable[[nn.Module, tuple], tuple]:
            def change(_: nn.Module, args: tuple) -> tuple:
                heads = args[0].clone()
                windows = heads.shape[0] // len(units)
                for fold, unit in enumerate(units):
                    for part in self._changes(unit, at):
                        target = heads[fold * windows : (fold + 1) * windows, :, part.span]
                        target.copy_(part.values.expand_as(target))
                return (heads, *args[1:])

            return change

        with ExitStack() as stack:
            for at, module in modules.items():
                stack.callback(module.register_forward_pre_hook(hook(at)).remove)
            yield


def _folded(call: dict[str, Any], folds: int, windows: int) -> dict[str, Any]:
    """A block's keyword arguments for the folded batch: what has a row a window is repeated."""

    def widen(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(widen(part) for part in value)
        if isinstance(value, torch.Tensor) and windows > 1 and value.shape[:1] == (windows,):
            return value.repeat(folds, *[1] * (value.ndim - 1))
        return value

    return {name: widen(value) for name, value in call.items()}
