"""The rows of the benchmark: verify, then time in turn; gradients; memory."""

from __future__ import annotations

import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis import documents, head_importance
from analysis.documents import Documents
from analysis.subject import prepared
from analysis.workers import worker_count
from midus_model import head_sites
from midus_model.bench.timing import Resident, Times, interleaved, peak_bytes, ratios
from midus_model.bench.verify import WrongResult
from workbench.importance_bench.cases import Case, windows_of
from workbench.importance_bench.peers import LOOPS, Head, Loop, clean_losses

TOLERANCE = 1e-5  # nats a token
SHORT = 16  # tokens of a sweep that is run for what a call does beside it
REQUIRED = {"compute-bound": 2.0, "overhead-bound": 5.0}  # times as fast as a peer's loop
REQUIRED_OF = ("transformer_lens", "nnsight")
FORWARDS = 3.5  # that gradient importance may cost
OVERHEAD_SHARE, COMPUTE_SHARE = 0.25, 0.5  # of a forward pass, spent on FLOPs

Row = dict[str, Any]


def measured(case: Case, device: str, rate: float, seconds: float) -> Row:
    """The row of one case.

    Args:
        rate: FLOPs a second of a matrix product, which says what a forward pass is bound by.
        seconds: about how long the comparison may take.

    Raises WrongResult where two scores of one head differ by more than TOLERANCE.
    """
    model = case.model.make().to(device)
    ids = windows_of(case, model).to(device)
    before = os.getloadavg()[0]
    if case.kind == "sweep":
        found = _sweep(model, ids, case.sample, device, rate, seconds)
    elif case.kind == "gradient":
        found = _gradient(model, ids, device, seconds)
    else:
        found = _memory(model, ids, device, case.budget)
    config = model.config
    return {
        "kind": case.kind,
        "model": case.model.name,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "vocabulary": config.vocab_size,
        "windows": case.windows,
        "tokens": case.tokens,
        **found,
        "load_before": before,
        "load_after": os.getloadavg()[0],
    }


def _importance(model: Any, docs: Documents, **options: Any) -> torch.Tensor:
    """Our scores of all heads in model order, by the call that any user makes: [heads]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*one document, so intervals")
        table = head_importance(model, docs, baseline="zero", **options)
    return torch.tensor(table["score"].to_numpy())


def _documents(model: Any, ids: torch.Tensor) -> Documents:
    """A document a window of `ids` [W, T]: what the loops take as it is."""
    return documents(ids.tolist(), model=model)


# ---------------------------------------------------------------- sweep


def _sweep(
    model: Any, ids: torch.Tensor, sample: int | None, device: str, rate: float, seconds: float
) -> Row:
    """Verify, then time ours and the peers in turn, and say what a forward pass is bound by."""
    heads = [(site.layer, site.head) for site in head_sites(model)]
    loops = {name: make(model) for name, make in LOOPS.items()}
    row = _verified(model, loops, ids[:1], heads)
    timed = sorted(random.Random(0).sample(range(len(heads)), sample or len(heads)))
    scores: dict[str, torch.Tensor] = {}
    docs = _documents(model, ids)

    def ours() -> None:
        scores["ours"] = _importance(model, docs)

    def peer(name: str) -> Callable[[], None]:
        def run() -> None:
            scores[name] = loops[name](ids, [heads[i] for i in timed])

        return run

    functions: dict[str, Callable[[], object]] = {"ours": ours}
    functions |= {name: peer(name) for name in loops}
    times = interleaved({**functions, "forward": lambda: clean_losses(model, ids)}, device, seconds)
    for name in loops:  # what was timed was right, too
        again = _agree(name, _as_scores(model, ids, scores[name]), scores["ours"][timed])
        row["largest_difference"] = max(again, row["largest_difference"])
    row |= _bound(model, ids, times["forward"], rate)
    row |= {"timed_heads": len(timed), "rounds": len(times["ours"].ms)}
    row |= _spread("", times["ours"])
    for name in loops:
        whole = Times([ms * len(heads) / len(timed) for ms in times[name].ms])
        row |= _spread(f"{name}_", whole) | _over(f"x_{name}", whole, times["ours"])
    if row["regime"] in REQUIRED:
        row["required"] = REQUIRED[row["regime"]]
        row["holds"] = all(row[f"x_{name}"] >= row["required"] for name in REQUIRED_OF)
    return row


def _verified(
    model: Any, loops: Mapping[str, Loop], ids: torch.Tensor, heads: Sequence[Head]
) -> Row:
    """Every head's score by every tool on `ids` [1, T], and what all these forward passes cost."""
    once = _once(model, ids[:, :SHORT])
    docs = _documents(model, ids)
    scores = _importance(model, docs)
    ours = _flops(lambda: _importance(model, docs))
    loop = len(heads) * _flops(lambda: clean_losses(model, ids))
    worst = 0.0
    for name, run in loops.items():
        found = _as_scores(model, ids, run(ids, heads))
        worst = max(worst, _agree(name, found, scores))
    return {
        "verified_heads": len(heads),
        "largest_difference": worst,
        "largest_score": float(scores.abs().max()),
        "flop_ratio": loop / ours,
        "once_ms": once,
    }


def _as_scores(model: Any, ids: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """What zeroing each head added, in nats a token: [heads], from a loop's [heads, W]."""
    return (losses - clean_losses(model, ids)).sum(1).cpu() / ids[:, 1:].numel()


def _agree(name: str, found: torch.Tensor, ours: torch.Tensor) -> float:
    """The largest difference of two columns of scores; WrongResult beyond TOLERANCE."""
    difference = float((found - ours).abs().max())
    if not difference <= TOLERANCE:  # also where it is NaN
        raise WrongResult(
            f"scores by {name} and ours differ by {difference:.1e} nats a token, "
            f"{TOLERANCE:.0e} allowed"
        )
    return difference


def _bound(model: Any, ids: torch.Tensor, forward: Times, rate: float) -> Row:
    """What a forward pass is bound by: the share of it that its FLOPs take at the measured rate."""
    flops = _flops(lambda: clean_losses(model, ids))
    share = 1e3 * flops / rate / min(forward.ms)  # the rate is of the fastest round, too
    low, high = OVERHEAD_SHARE, COMPUTE_SHARE
    regime = "overhead-bound" if share <= low else "compute-bound" if share >= high else "between"
    return {
        "regime": regime,
        "flop_share": share,
        "gflop": flops / 1e9,
        **_spread("forward_", forward),
    }


def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Two products, from the shapes [B, H, T, D] of queries and keys."""
    batch, heads, length, size = query
    return 4 * batch * heads * length * key[2] * size


# PyTorch's counter knows its attention on GPUs only.
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _OneModule:
    """Stands in for the counter's watch on modules: a watched block is not finished cheaply."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def _flops(function: Callable[[], object]) -> int:
    """FLOPs of what a call multiplies, by PyTorch's own count, attention's full square included."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    with counter:
        function()
    return counter.get_total_flops()


def _once(model: Any, ids: torch.Tensor) -> float:
    """Milliseconds of a call outside its sweep: checks, hashes, intervals; documents add little."""
    docs, found = _documents(model, ids), []
    for _ in range(3):
        marks: list[float] = []
        start = time.perf_counter()
        _importance(model, docs, progress=lambda *_: marks.append(time.perf_counter()))  # noqa: B023
        outside = time.perf_counter() - start - (marks[-1] - marks[0])
        start = time.perf_counter()
        clean_losses(model, ids).cpu()  # what the estimate that progress shows is made from
        found.append(1e3 * (outside - (time.perf_counter() - start)))
    return statistics.median(found)


def _spread(prefix: str, times: Times) -> Row:
    return {
        f"{prefix}ms": times.median,
        f"{prefix}ms_min": min(times.ms),
        f"{prefix}ms_max": max(times.ms),
    }


def _over(name: str, slow: Times, fast: Times) -> Row:
    """How many times as long `slow` takes: median, least and greatest over rounds."""
    return dict(zip((name, f"{name}_min", f"{name}_max"), ratios(slow, fast), strict=True))


# ---------------------------------------------------------------- gradients and memory


def _gradient(model: Any, ids: torch.Tensor, device: str, seconds: float) -> Row:
    """Gradient importance of all heads as a multiple of one clean forward pass with the loss.

    `x_forward` is of the whole call; `x_further` of what as many windows again add to it, which
    leaves out what a call does once (checks, hashes, intervals).
    """
    half = ids[: len(ids) // 2]
    docs, fewer = _documents(model, ids), _documents(model, half)
    times = interleaved(
        {
            "whole": lambda: _importance(model, docs, method="gradient"),
            "half": lambda: _importance(model, fewer, method="gradient"),
            "forward": lambda: clean_losses(model, ids),
            "half forward": lambda: clean_losses(model, half),
        },
        device,
        seconds,
    )
    row = _spread("", times["whole"]) | _spread("forward_", times["forward"])
    row |= _over("x_forward", times["whole"], times["forward"])
    further = [
        Times([a - b for a, b in zip(times[whole].ms, times[part].ms, strict=True)])
        for whole, part in (("whole", "half"), ("forward", "half forward"))
    ]
    row |= _over("x_further", *further)
    return row | {"required": FORWARDS, "holds": row["x_forward"] <= FORWARDS}


@torch.no_grad()
def _memory(model: Any, ids: torch.Tensor, device: str, budget: int | None) -> Row:
    """The most that a sweep takes at once, over the weights, with a budget of bytes.

    `peak`: what is allocated: of a CPU's `workers` side by side at most so many times what one
    allocates, the clean run, which they share, counted for each. `resident`: on a CPU, how much the
    process grows in the sweep.
    """
    docs = _documents(model, ids)
    begun: list[Resident] = []
    grown: list[int | None] = []

    def run() -> None:
        _importance(model, docs, memory_budget=budget)

    def progress(*_: Any) -> None:
        if begun:
            grown.append(begun[0].most())
        else:
            begun.append(Resident())

    plan = prepared(model, docs, baseline="zero", memory_budget=budget).plan
    workers = min(plan.workers, worker_count()) if device == "cpu" else 1
    peak, resident = workers * peak_bytes(run, device), None
    if device == "cpu":
        run()  # libraries make buffers at their first call
        _importance(model, docs, memory_budget=budget, progress=progress)
        resident = grown[-1]
    found: Row = {"budget": budget, "workers": workers, "peak": peak, "resident": resident}
    return found | {"holds": budget is None or peak <= budget}
