"""The Hugging Face Trainer, with our optimiser groups, evaluation, checkpoints and stops."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from analysis.documents import Documents
from kernels.files import writing
from midus_model import param_groups
from midus_model.placement import counting_device
from workbench.revival import Balance
from workbench.training import checkpoints
from workbench.training.divergence import Watch
from workbench.training.evaluation import Progress, evaluate
from workbench.training.log import USAGE, usage_of

BETAS = (0.9, 0.95)


class ContinualTrainer(Trainer):
    """The Trainer with our optimiser groups, a token-weighted evaluation, and a balance loss.

    It stops where `watch` says that the training diverged, and its checkpoints are sealed.
    """

    optimizer: Any
    control: Any

    def __init__(
        self,
        *,
        recipe: dict[str, Any],
        watch: Watch,
        tokenizer: Any,
        eval_documents: Documents | None,
        balance: Balance | None,
        log_usage: bool,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.recipe, self.eval_documents, self.balance = recipe, eval_documents, balance
        self.watch, self.tokenizer, self.log_usage = watch, tokenizer, log_usage
        self.add_callback(watch)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.watch.lost(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Called once a step, between the gradient's clipping and the optimiser's step."""
        norm = super()._get_grad_norm(*args, **kwargs)
        self.watch.before_step(self.state.global_step + 1, norm)
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        step, folder = self.state.global_step, Path(self.args.output_dir)
        self.watch.before_saving(step, self.model, self.optimizer)
        place = folder / f"checkpoint-{step}"
        if self.is_world_process_zero():
            shutil.rmtree(place, ignore_errors=True)  # what an earlier start left unfinished
        self.accelerator.wait_for_everyone()
        with writing(place):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                (place / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nothing reads
                if self.tokenizer is not None:  # so that a checkpoint can be trained as a model is
                    self.tokenizer.save_pretrained(place)
                checkpoints.seal(place)
                checkpoints.prune(folder)

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
        self.watch.check(self.state.global_step, {"held-out loss": metrics["eval_loss"]})
        self.log(metrics)
        if self.log_usage:  # among the Trainer's own logs, so that a resumed training has it all
            self.log({USAGE: usage_of(self.model, self.eval_documents)})  # type: ignore[dict-item]
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class Reporter(TrainerCallback):
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
