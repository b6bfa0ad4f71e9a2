"""What is timed must be right: every op against float64 before any clock runs."""

from __future__ import annotations

import torch

from kernels import headwise_memory, latent_bag, product_key_select
from kernels.headwise_memory import naive
from midus_model.bench.shapes import Inputs, Shape

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
NAMES = ("query", "row_keys", "col_keys", "bank", "head_proj")


class WrongResult(RuntimeError):
    """An op disagrees with float64."""


def _relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    scale = float(want.square().mean().sqrt()) or 1.0
    return float((got.double() - want).square().mean().sqrt()) / scale


def _pair_scores(given: Inputs) -> torch.Tensor:
    """All scores [T, H, N] in float64."""
    half = given.shape.head_dim // 2
    query = given.query.double()
    row = torch.einsum("thd,hnd->thn", query[..., :half], given.row_keys.double())
    col = torch.einsum("thd,hnd->thn", query[..., half:], given.col_keys.double())
    return (row[..., :, None] + col[..., None, :]).flatten(-2)


def verify(shape: Shape, dtype: torch.dtype, device: str, tokens: int = 8) -> dict[str, float]:
    """Relative RMS errors by name, of values and gradients given the chosen slots.

    Raises WrongResult where the slots are not the best by score (to 1e-6 of the scores' scale), or
    an error exceeds 2e-6 (fp32) or 1e-2 (bf16).
    """
    given, k = Inputs(shape, tokens, dtype, device), shape.top_k
    weights, slots = product_key_select(*given.memory[:3], k)
    scores = _pair_scores(given)
    chosen, best = scores.gather(-1, slots), scores.topk(k).values
    worst = float((chosen - best).abs().max() / scores.abs().max())
    if worst > 1e-6:
        raise WrongResult(
            f"product_key_select misses the best scores by {worst:.1e} of their scale"
        )

    exact = [x.detach().double().requires_grad_() for x in given.memory]
    leaves = [x.detach().requires_grad_() for x in given.memory]
    half = shape.head_dim // 2
    row = torch.einsum("thd,hnd->thn", exact[0][..., :half], exact[1])
    col = torch.einsum("thd,hnd->thn", exact[0][..., half:], exact[2])
    picked = row.gather(-1, slots // shape.num_keys) + col.gather(-1, slots % shape.num_keys)
    read = naive.latent_bag(exact[3], slots, picked.softmax(-1))
    want = torch.einsum("thr,hrd->thd", read, exact[4])
    got = headwise_memory(*leaves, k)
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    got.backward(grad)
    want.backward(grad.double())
    with torch.no_grad():
        fused = headwise_memory(*given.memory, k)
    errors = {
        "weights": _relative_rms(weights, picked.softmax(-1).detach()),
        "latent_bag": _relative_rms(latent_bag(given.bank, slots, weights), read.detach()),
        "values": _relative_rms(got.detach(), want.detach()),
        "inference": _relative_rms(fused, want.detach()),
    }
    for name, mine, truth in zip(NAMES, leaves, exact, strict=True):
        assert mine.grad is not None and truth.grad is not None
        errors[f"gradient of {name}"] = _relative_rms(mine.grad, truth.grad)
    for name, error in errors.items():
        if not error <= TOLERANCE[dtype]:
            raise WrongResult(
                f"{name}: relative RMS error {error:.1e} in {dtype}, {TOLERANCE[dtype]:.0e} allowed"
            )
    return errors
