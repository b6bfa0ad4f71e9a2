"""A training stops at the first loss, gradient or weight that is no finite number."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from analysis.distributed import agreed
from kernels.errors import Diverged
from workbench.training.checkpoints import logged_loss, newest


class Watch(TrainerCallback):
    """Raises Diverged, in every process at the same step, before anything non-finite is kept.

    The loss and the gradient's norm are looked at before the optimiser's step, the weights after
    it, and all that a checkpoint holds before it is saved.
    """

    def __init__(self, name: str, steps: int, lr: float, checkpoints: Path) -> None:
        self.name, self.steps, self.lr, self.checkpoints = name, steps, lr, checkpoints
        self._loss: torch.Tensor | None = None

    def lost(self, loss: torch.Tensor) -> None:
        """The loss of one backward pass; there are several in a step where gradients add up."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def before_step(self, step: int, norm: Any) -> None:
        """The gradient is there, its norm being `norm`, and the weights are as they were."""
        values = {} if self._loss is None else {"loss": self._loss}
        self._loss = None
        # A checkpoint of the step before is where this loss comes from.
        self.check(step, values if norm is None else values | {"gradient norm": norm}, step - 2)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        self.check(state.global_step, {"largest trained weight": largest(trained)})

    def before_saving(self, step: int, model: Any, optimizer: Any) -> None:
        """All numbers of the model and of the optimiser's state."""
        kept = (value for state in optimizer.state.values() for value in state.values())
        self.check(
            step,
            {
                "largest weight": largest([*model.parameters(), *model.buffers()]),
                "optimiser's largest number": largest(kept),
            },
        )

    def check(self, step: int, values: Mapping[str, Any], good: int | None = None) -> None:
        """Raises Diverged where one of the named numbers is not finite in any process.

        `good` is the last step after which the weights were good, by default the one before.
        """
        found = [float(value) for value in values.values()]
        bad = [index for index, value in enumerate(found) if not math.isfinite(value)]
        first = agreed(bad[0] if bad else len(found))
        if first < len(found):
            own = not math.isfinite(found[first])
            value = f"{found[first]}" if own else "not finite in another process"
            good = step - 1 if good is None else good
            raise self._diverged(step, f"the {list(values)[first]} is {value}", good)

    def _diverged(self, step: int, what: str, good: int) -> Diverged:
        """What was found at which step, and how to go on from where."""
        last = newest(self.checkpoints, good)
        less = f"with a smaller lr than {self.lr:g} and --overwrite or another folder"
        if last is None:
            hint = f"there is no good checkpoint before it; start again {less}"
        else:
            line = f"midus train {shlex.quote(str(last))} --lr {self.lr / 10:g}"
            loss = logged_loss(last)
            had = "" if loss is None else f" (loss {loss:.4g})"
            hint = (
                f"last good checkpoint: {last}{had}; go on from it by `{line}`, or start again "
                f"{less}"
            )
        return Diverged(
            f"the training of {self.name} diverged at step {step} of {self.steps}: {what}; {hint}",
            step=step,
            checkpoint=None if last is None else str(last),
        )


def check_start(model: Any) -> None:
    """Raises Diverged for a model that holds a number which is not finite, before a first step."""
    for name, tensor in _named(model):
        if not math.isfinite(float(largest([tensor]))):
            count = int((~torch.isfinite(tensor.detach())).sum())
            raise Diverged(
                f"{count:,} of the {tensor.numel():,} numbers of {name} are not finite (nan or "
                "inf), so no training can begin with this model; restore its weights or take "
                "another model"
            )


def largest(tensors: Iterable[Any]) -> torch.Tensor:
    """The largest size of a number in floating-point tensors; nan or inf where one holds that.

    0 for none. Of a sharded tensor the shard of this process counts.
    """
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if torch.is_tensor(t)]
    counted = [t.detach() for t in local if t.is_floating_point() and t.numel()]
    return get_total_norm(counted, float("inf"))


def _named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
