"""What is timed must be right: every op against float64 before any clock runs."""

from __future__ import annotations

import torch

from kernels import headwise_memory, latent_bag, product_key_select
from kernels.headwise_memory import naive
from midus_model.bench.shapes import Inputs, Memory, Shape

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
NAMES = ("query", "row_keys", "col_keys", "bank", "head_proj")
SIZES = (1, 8, 200)  # tokens: decoding, a few, and more than one chunk or program


class WrongResult(RuntimeError):
    """An op disagrees with float64."""


def verify(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Relative RMS errors by name, of values and gradients given the chosen slots.

    The greatest over a few token counts. Raises WrongResult where the slots are not the best by
    score (to 1e-6 of the scores' scale), or an error exceeds 2e-6 (fp32) or 1e-2 (bf16).
    """
    worst: dict[str, float] = {}
    for tokens in SIZES:
        for name, error in _errors(Inputs(shape, tokens, dtype, device)).items():
            if not error <= TOLERANCE[dtype]:  # also where it is NaN
                raise WrongResult(
                    f"{name}: relative RMS error {error:.1e} at {tokens} tokens in {dtype}, "
                    f"{TOLERANCE[dtype]:.0e} allowed"
                )
            worst[name] = max(error, worst.get(name, 0.0))
    return worst


def _relative_rms(got: torch.Tensor | None, want: torch.Tensor | None) -> float:
    assert got is not None and want is not None
    scale = float(want.square().mean().sqrt()) or 1.0
    return float((got.double() - want).square().mean().sqrt()) / scale


def _half_scores(
    query: torch.Tensor, row_keys: torch.Tensor, col_keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of both halves, [T, H, n] each."""
    half = row_keys.shape[-1]
    row = torch.einsum("thd,hnd->thn", query[..., :half], row_keys)
    return row, torch.einsum("thd,hnd->thn", query[..., half:], col_keys)


def _check_slots(row: torch.Tensor, col: torch.Tensor, slots: torch.Tensor) -> None:
    """The slots' float64 scores must be the k best, and no slot may come twice."""
    n, k = row.shape[-1], slots.shape[-1]
    # A pair among the k best has both its halves among the k best of theirs.
    pairs = row.topk(k).values[..., :, None] + col.topk(k).values[..., None, :]
    best = pairs.flatten(-2).topk(k).values
    if not 0 <= int(slots.min()) <= int(slots.max()) < n * n:
        raise WrongResult("product_key_select returns slots that do not exist")
    chosen = row.gather(-1, slots // n) + col.gather(-1, slots % n)
    worst = float((chosen - best).abs().max() / best.abs().max())
    if not worst <= 1e-6:
        raise WrongResult(
            f"product_key_select misses the best scores by {worst:.1e} of their scale"
        )
    if k > 1 and (slots.sort(-1).values.diff(dim=-1) == 0).any():
        raise WrongResult("product_key_select returns a slot twice")


def _leaves(memory: Memory, dtype: torch.dtype) -> Memory:
    query, row_keys, col_keys, bank, head_proj = (
        tensor.detach().to(dtype).requires_grad_() for tensor in memory
    )
    return query, row_keys, col_keys, bank, head_proj


def _errors(given: Inputs) -> dict[str, float]:
    """Relative RMS error of everything, for one set of inputs."""
    k, n = given.shape.top_k, given.shape.num_keys
    weights, slots = product_key_select(*given.selection, k)
    exact, leaves = _leaves(given.memory, torch.float64), _leaves(given.memory, given.dtype)
    row, col = _half_scores(*exact[:3])
    _check_slots(row.detach(), col.detach(), slots)
    picked = (row.gather(-1, slots // n) + col.gather(-1, slots % n)).softmax(-1)
    read = naive.latent_bag(exact[3], slots, picked)
    want = torch.einsum("thr,hrd->thd", read, exact[4])
    got = headwise_memory(*leaves, k)
    grad = _gradient_like(got)
    got.backward(grad)
    want.backward(grad.double())
    values, stream = want.detach(), given.stream.view(got.shape)
    with torch.no_grad():
        fused = headwise_memory(*given.memory, k)
        added = headwise_memory(*given.memory, k, residual=stream)
    errors = {
        "weights": _relative_rms(weights, picked.detach()),
        "latent_bag": _relative_rms(latent_bag(given.bank, slots, weights), read.detach()),
        "values": _relative_rms(got.detach(), values),
        "inference": _relative_rms(fused, values),
        "inference with residual": _relative_rms(added, values + stream.double()),
    }
    for name, mine, truth in zip(NAMES, leaves, exact, strict=True):
        errors[f"gradient of {name}"] = _relative_rms(mine.grad, truth.grad)
    return errors | _bag_errors(given, slots, weights)


def _bag_errors(given: Inputs, slots: torch.Tensor, weights: torch.Tensor) -> dict[str, float]:
    """Gradients of the read alone, by each way of making the bank's."""
    bank, exact = given.bank.detach().double().requires_grad_(), weights.double().requires_grad_()
    read = naive.latent_bag(bank, slots, exact)
    grad = _gradient_like(read).to(given.dtype)
    read.backward(grad.double())
    errors = {}
    for mode in ("sorted", "atomic"):
        mine, parts = given.bank.detach().requires_grad_(), weights.detach().requires_grad_()
        latent_bag(mine, slots, parts, bank_grad=mode).backward(grad)
        errors[f"latent_bag, {mode}: gradient of bank"] = _relative_rms(mine.grad, bank.grad)
        errors[f"latent_bag, {mode}: gradient of weights"] = _relative_rms(parts.grad, exact.grad)
    return errors


def _gradient_like(output: torch.Tensor) -> torch.Tensor:
    drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return drawn.to(output.device, output.dtype)
