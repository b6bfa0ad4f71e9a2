"""Every op against float64 at the shapes that are timed: what is wrong is not worth timing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from midus_model.bench.device.stage import Run
from midus_model.bench.shapes import SHAPES
from midus_model.bench.verify import verify


def run(run: Run) -> None:
    def one(shape: str, dtype: str) -> dict[str, Any]:
        errors = verify(SHAPES[shape], getattr(torch, dtype), run.device)
        return {"worst": max(errors.values()), "errors": errors}

    run.each(
        (f"{shape}, {dtype}", partial(one, shape, dtype))
        for shape in (("tiny",) if run.tiny else ("llama-3.2-1b", "llama-3.1-8b"))
        for dtype in ("bfloat16", "float32")
    )
    wrong = run.found(kind="failure")
    if wrong:
        raise AssertionError("; ".join(f"{line['key']}: {line['error']}" for line in wrong))


def verified(run: Run, shape: str, dtype: str) -> bool:
    """Whether this stage found the ops right at a shape: a row that is not says so in its table."""
    return f"{shape}, {dtype}" in {line["key"] for line in run.found("verify", "row")}
