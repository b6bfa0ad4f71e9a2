"""A search over how the kernels cut up their work: tokens, warps, columns and pieces a program.

All choices are compiled on all cores and each is launched once there, so that one which does not
compile or run is left out; then they are timed alone, against the numbers written in the kernels.
What wins is written to DIR/tuning.json, which the stages after this one read (`kernels.tuning`),
and is verified against float64 before it stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch

from kernels import files, tuning
from kernels.backend import interpreted
from midus_model.bench.device import pool
from midus_model.bench.device.stage import TUNING, Run
from midus_model.bench.shapes import SHAPES, Inputs, Shape, slots_of

Choice = dict[str, int]
COMPILING = 0.6  # of the stage's time, at most
GAIN = 0.97  # of the written numbers' time, above which a choice is not worth having
ALIKE = 5e-3  # relative RMS difference allowed: near ties of scores may be settled otherwise

# By kernel, what is tried of each constant; the numbers as written are tried besides.
GRIDS: dict[str, dict[str, tuple[int, ...]]] = {
    "read": {"RB": (64, 128), "KC": (4, 8, 16, 32), "BR": (1, 2, 4), "num_warps": (2, 4)},
    "piece": {"CH": (64, 128, 256), "EC": (8, 16, 32), "num_warps": (2, 4)},
    "join": {"EC": (16, 64), "RB": (32, 64, 128)},
    "atomic": {"KC": (4, 8, 16), "num_warps": (2, 4)},
    "score_gradient": {"BT": (8, 16, 32), "KC": (16, 32), "num_warps": (2, 4, 8)},
    "key_gradient": {"BT": (16, 32, 64), "NB": (32, 64, 128), "num_warps": (4, 8)},
    "headwise": {"num_warps": (4, 8), "BT": (16, 32), "RB": (64, 128), "NB": (128, 256)},
    "select": {"num_warps": (4, 8), "BT": (16, 32), "NB": (128, 256)},
}
BY_WIDTH = ("read", "piece", "join", "atomic")  # that know nothing of a head's size
FORWARD = ("headwise", "select", "read")  # that few tokens run too
TOKENS = {"few": 1, "many": 4096}


@dataclass(frozen=True)
class Group:
    """One kernel in one case."""

    kernel: str
    shape: str
    dtype: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.kernel}, {self.shape}, {self.dtype}, {self.tokens} tokens"


def groups(tiny: bool) -> Iterator[Group]:
    """Every case, those that weigh most first."""
    if tiny:  # in Triton's interpreter
        yield Group("read", "tiny", "float32", 1)
        return
    one, eight, half = "llama-3.2-1b", "llama-3.1-8b", "bfloat16"
    for kernel in GRIDS:
        for shape in (one,) if kernel in BY_WIDTH else (one, eight):
            for bucket in ("many", "few") if kernel in FORWARD else ("many",):
                yield Group(kernel, shape, half, TOKENS[bucket])
    for kernel in ("headwise", "select"):
        yield Group(kernel, one, "float32", TOKENS["many"])


def choices(group: Group) -> list[Choice]:
    """What is tried: the written numbers, {}, first; of the grid, what fits the shape."""
    if group.shape == "tiny":
        return [{}, {"RB": 16, "num_warps": 2}]
    shape, grid = SHAPES[group.shape], GRIDS[group.kernel]
    made = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    fits = [choice for choice in made if _fits(group.kernel, choice, shape)]
    return [{}, *fits]


def _fits(kernel: str, choice: Choice, shape: Shape) -> bool:
    """Whether a choice is no more than the shape has, and its tile fits the registers."""
    if choice.get("KC", 1) > shape.top_k:
        return False
    if kernel in ("headwise", "select"):
        return shape.top_k <= choice["NB"] <= shape.num_keys
    tile = choice.get("BR", 1) * choice.get("KC", 1) * choice.get("RB", 1)
    return kernel != "read" or 1024 <= tile <= 8192


def text(choice: Choice) -> str:
    return " ".join(f"{name}={value}" for name, value in choice.items()) or "as written"


class Call:
    """One kernel's launch through the function that users reach it by."""

    def __init__(self, group: Group, device: str):
        shape, k = SHAPES[group.shape], SHAPES[group.shape].top_k
        given = Inputs(shape, group.tokens, getattr(torch, group.dtype), device)
        slots = slots_of("zipf", shape, group.tokens, device)
        weights = torch.rand(slots.shape, device=device)
        grad = torch.randn(group.tokens, shape.heads, shape.latent, device=device).to(given.dtype)
        calls: dict[str, Callable[[], Any]] = {}

        if group.kernel in ("headwise",):
            from kernels.headwise_memory import gpu as headwise

            calls["headwise"] = lambda: headwise.headwise_memory(*given.memory, k, given.query)
        elif group.kernel in ("select", "score_gradient", "key_gradient"):
            from kernels.product_key_select import gpu as product_key

            backward = (torch.rand_like(weights), weights, slots, *given.selection)
            calls["select"] = lambda: product_key.select(*given.selection, k)[0]
            calls["score_gradient"] = lambda: product_key.select_backward(*backward)[0]
            calls["key_gradient"] = lambda: product_key.select_backward(*backward)[1]
        else:
            from kernels.latent_bag import gpu as latent

            def read() -> torch.Tensor:
                found = latent.bag(given.bank, slots, weights)
                if group.tokens > tuning.FEW or group.shape == "tiny":
                    latent.weight_gradient(grad, given.bank, slots)
                return found

            def gradient(mode: str) -> Callable[[], torch.Tensor]:
                return lambda: latent.bank_gradient(grad, slots, weights, shape.slots, mode)

            calls["read"] = read
            calls["piece"] = calls["join"] = gradient("sorted")
            calls["atomic"] = gradient("atomic")
        self.kernel, self.run = group.kernel, calls[group.kernel]

    def under(self, choice: Choice) -> tuple[torch.Tensor, tuple[int | str, ...]]:
        """What the call gives under a choice, and the case it was launched for."""
        with torch.no_grad(), tuning.trying({self.kernel: choice}) as seen:
            return self.run(), seen[self.kernel]


def compiled(group: Group, choice: Choice, device: str) -> None:
    """Compiles one choice and launches it once, in a worker."""
    torch.set_num_threads(1)  # beside as many other workers
    Call(group, device).under(choice)
    if device == "cuda":
        torch.cuda.synchronize()


def run(run: Run) -> None:
    if find_spec("triton") is None:
        run.line("left out", count=1, keys=["all"], error="triton is not installed")
        return
    if run.device != "cuda" and not interpreted():
        hint = "no GPU; TRITON_INTERPRET=1 rehearses the search"
        run.line("left out", count=1, keys=["all"], error=hint)
        return
    started = run.left()
    known = {line["key"] for line in run.found(kind="row")}
    waiting = [group for group in groups(run.tiny) if str(group) not in known]
    broken = _compile(run, waiting, lambda: run.left() - (1 - COMPILING) * started)

    run.each((str(group), partial(searched, run, group, broken)) for group in waiting)
    table = winners(run)
    if table:
        _write(run, table)
        _verify(run)


def _compile(run: Run, waiting: list[Group], left: Callable[[], float]) -> set[tuple[str, str]]:
    """Compiles all choices of all groups; gives those (group, choice) not to be timed."""
    jobs, names = [], {}
    for group in waiting:
        for choice in choices(group):
            key = f"{group}: {text(choice)}"
            names[key] = str(group), text(choice)
            jobs.append((key, (group, choice, run.device)))
    good = set()
    for result in pool.results(compiled, jobs, context=run.context, left=left, longest=60):
        if result.error is None:
            good.add(result.key)
        else:
            run.line("not compiled", choice=result.key, error=result.error)
    run.line("compiled", choices=len(good), of=len(jobs))
    # What was not reached for want of time would be compiled while others are timed.
    return {names[key] for key, _ in jobs if key not in good}


def searched(run: Run, group: Group, broken: set[tuple[str, str]]) -> dict[str, Any]:
    """Times of all choices, the best of them, and its gain over the numbers as written."""
    from midus_model.bench.device.clocks import Clock

    call, clock = Call(group, run.device), Clock(run.device, 0.01 if run.device == "cuda" else 0.0)
    want, case = call.under({})
    tried: dict[str, tuple[float, Choice]] = {}
    unlike = []
    for choice in choices(group):
        if run.left() < 1 or (choice and (str(group), text(choice)) in broken):
            continue
        got, _ = call.under(choice)
        difference = (got.double() - want.double()).square().mean().sqrt()
        if not float(difference) <= ALIKE * float(want.double().square().mean().sqrt()):
            unlike.append(text(choice))
            continue
        with torch.no_grad(), tuning.trying({group.kernel: choice}):
            call.run()
            tried[text(choice)] = clock.cold(call.run), choice
    written = tried[text({})][0]
    if run.device != "cuda" and len(tried) > 1:  # a rehearsal goes all the way
        del tried[text({})]
    best, (fastest, choice) = min(tried.items(), key=lambda entry: entry[1][0])
    keeps = fastest > GAIN * written and run.device == "cuda"
    return {
        "kernel": group.kernel,
        "case": list(case),
        "written_ms": written,
        "ms": fastest,
        "gain": written / fastest,
        "choice": {} if keeps else choice,
        "best": best,
        "tried": {name: ms for name, (ms, _) in tried.items()},
        "unlike": unlike,
    }


def winners(run: Run) -> tuning.Table:
    """This device's table, of all groups searched so far; the shipped file's devices beside it."""
    found: dict[str, dict[tuning.Key, Choice]] = {}
    for line in run.found(kind="row"):
        if line.get("choice"):
            found.setdefault(line["kernel"], {})[tuple(line["case"])] = line["choice"]
    if not found:
        return {}
    shipped = tuning.read(tuning.SHIPPED) if tuning.SHIPPED.exists() else {}
    return {**shipped, tuning.device_name(): found}


def _write(run: Run, table: tuning.Table) -> None:
    with files.replacing(run.out / TUNING) as draft:
        draft.write_text(json.dumps(tuning.as_json(table), indent=1) + "\n", encoding="utf-8")
        tuning.read(draft)


def _verify(run: Run) -> None:
    """The file must give right results; it is taken away where it does not."""
    from midus_model.bench.verify import verify

    os.environ["MIDUS_TUNING"] = str(run.out / TUNING)
    try:
        for group in {(g.shape, g.dtype) for g in groups(run.tiny)}:
            if run.device == "cuda":
                verify(SHAPES[group[0]], getattr(torch, group[1]), run.device)
            else:  # the whole would take the interpreter minutes
                assert Call(Group("read", *group, 1), run.device).run().isfinite().all()
    except Exception:
        os.replace(run.out / TUNING, run.out / f"refused-{TUNING}")
        raise
    run.line("verified", file=TUNING)
