"""Every kernel at the shapes that are measured, compiled on all cores at once.

A job calls an op once, in a process of its own; what Triton makes lies in its cache on disk for
all stages after this one. So a kernel that does not compile or launch is named here, first.
"""

from __future__ import annotations

import torch

from kernels import headwise_memory, latent_bag, product_key_select
from kernels.backend import resolve
from kernels.product_key_select import op
from midus_model.bench.device import pool
from midus_model.bench.device.stage import TUNING, Run
from midus_model.bench.shapes import SHAPES, Inputs, slots_of

# One token, a number that 16 does not divide, and one that it does: Triton tells them apart.
TOKENS = (1, 200, 2048)
TIMED = (1, 16, 2048)
PARTS = ("layer", "selection", "selection backward", "read")


def run(run: Run) -> None:
    _all(run, jobs(run.device, run.tiny, TOKENS))


def tuned(run: Run) -> None:
    """The same once more as the search left them, at the sizes that are timed most."""
    wanted = jobs(run.device, run.tiny, TIMED) if (run.out / TUNING).exists() else []
    _all(run, [job for job in wanted if "float32" not in job[0] or run.tiny])


def _all(run: Run, listed: list[pool.Job]) -> None:
    known = {line["key"] for line in run.found(kind="row")}
    listed = [job for job in listed if job[0] not in known]
    for result in pool.results(one, listed, context=run.context, left=run.left, longest=90):
        if result.error is None:
            run.line("row", key=result.key, seconds=round(result.seconds, 2))
        else:
            run.line("failure", key=result.key, error=result.error)
    settled = {line["key"] for line in run.found() if "key" in line}
    rest = [key for key, _ in listed if key not in settled]
    if rest:
        run.left_out += len(rest)
        run.line("left out", count=len(rest), keys=rest[:20])


def jobs(device: str, tiny: bool, tokens: tuple[int, ...]) -> list[pool.Job]:
    """The jobs, those that later stages cannot do without first."""
    shapes = ("tiny",) if tiny else ("llama-3.2-1b", "llama-3.1-8b")
    return [
        (f"{part}, {shape}, {dtype}, {count} tokens", (part, shape, dtype, count, device))
        for dtype in ("bfloat16", "float32")
        for count in ((1,) if tiny else reversed(tokens))
        for shape in shapes
        for part in PARTS
    ]


def one(part: str, shape_name: str, dtype_name: str, tokens: int, device: str) -> None:
    """Calls one op at one shape, in the directions that it has."""
    torch.set_num_threads(1)  # beside as many other workers
    shape, dtype = SHAPES[shape_name], getattr(torch, dtype_name)
    given = Inputs(shape, tokens, dtype, device)
    with torch.no_grad():
        if part == "layer":
            headwise_memory(*given.memory, shape.top_k)
            headwise_memory(*given.memory, shape.top_k, residual=given.query)
        elif part == "selection":
            product_key_select(*given.selection, shape.top_k)
        elif part == "selection backward":
            slots = slots_of("uniform", shape, tokens, device)
            weights = torch.rand(slots.shape, device=device)
            operands = (torch.rand_like(weights), weights, slots, *given.selection)
            op.select_backward(*operands, resolve(given.query))
    if part == "read":
        slots = slots_of("zipf", shape, tokens, device)
        weights = torch.rand(slots.shape, device=device, requires_grad=True)
        given.bank.requires_grad_()
        for mode in ("sorted", "atomic"):
            latent_bag(given.bank, slots, weights, bank_grad=mode).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
