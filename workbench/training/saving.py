"""Models written to folders, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer

from kernels.errors import RunError
from midus_model.card import write_card


def write_model(trainer: Trainer, tokenizer: Any, target: Path) -> None:
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
