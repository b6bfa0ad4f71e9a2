"""Every error a user can cause, one line each: what is wrong, what was given, what would do.

`midus_model.errors` has the same names. They lie here, where nothing else is imported, so that
what reads tables alone need not wait for the model's libraries.
"""

from __future__ import annotations

LONGEST = 900  # characters of a message; what was given may be a file of any size


class MidusError(ValueError):
    """Base of the workbench's own exceptions; of a message that is too long the middle is cut."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_cut(x) if isinstance(x, str) else x for x in args))


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    end = LONGEST // 3
    return f"{text[: LONGEST - end - 3]} … {text[-end:]}"


class ModelError(MidusError):
    """A model directory that is missing, damaged, or no supported causal language model."""


class DamagedTokenizer(ModelError):
    """A tokenizer that lies there and cannot be read; where there is none, token ids still can."""


class UnsupportedArchitecture(ModelError):
    """A causal language model of a family that the workbench does not know."""


class UpscaleError(MidusError):
    """An up-scaling that cannot be done as asked."""


class HeadError(MidusError):
    """Heads that the model does not have."""


class NoOverlap(HeadError):
    """Chosen heads with which no other head can be compared."""


class DataError(MidusError):
    """Text or a task that cannot be used."""


class IncomparableTables(MidusError):
    """Two result tables that do not measure the same thing on the same documents."""


class RunError(MidusError):
    """A run folder that cannot be written, or cannot be read."""


class Diverged(RunError):
    """A training whose loss, gradient or weights are no longer finite numbers.

    step: the optimiser step at which that was seen, 0 before the first; checkpoint: the folder of
    the last one saved before it, all finite, or None.
    """

    def __init__(self, message: str, *, step: int = 0, checkpoint: str | None = None) -> None:
        super().__init__(message)
        self.step, self.checkpoint = step, checkpoint
