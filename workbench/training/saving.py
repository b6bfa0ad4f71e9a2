"""Models written to folders, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import Trainer

from kernels import files
from midus_model.card import write_card


def write_model(trainer: Trainer, tokenizer: Any, target: Path) -> None:
    """Save on every process (a sharded model is gathered); the first renames it into place."""
    if trainer.is_world_process_zero():
        with files.replacing(target) as draft:
            trainer.save_model(str(draft))
            (draft / "training_args.bin").unlink(missing_ok=True)
            write_card(trainer.model, draft)
            if tokenizer is not None:
                tokenizer.save_pretrained(draft)
    else:
        trainer.save_model(str(target))  # gathers, and writes nothing
    trainer.accelerator.wait_for_everyone()


def save_model(model: Any, tokenizer: Any, target: str | os.PathLike[str]) -> Path:
    """Write weights, config and tokenizer to the folder `target`, whole or not at all."""
    place = Path(target).expanduser()
    with files.replacing(place) as draft:
        model.save_pretrained(draft)
        write_card(model, draft, replacing=place)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
    return place
