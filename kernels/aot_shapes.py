"""The sizes that `kernels.aot` compiles for: real models', small, odd, large, or one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MAX_K = 64  # beyond, PyTorch selects


@dataclass(frozen=True)
class Shape:
    """One layer's sizes: head size, sub-keys a half, slots read, latent size, dtype."""

    label: str
    size: int
    n: int
    k: int
    width: int
    dtype: torch.dtype
    query: torch.dtype | None = None  # where it is not the parameters': under autocast
    seen_elsewhere: tuple[str, ...] = ()  # kernels that other shapes show at no less


SHAPES = (
    Shape("1B,bf16", 64, 256, 32, 128, torch.bfloat16),
    Shape("1B,fp32", 64, 256, 32, 128, torch.float32),
    Shape("1B,bf16/fp32", 64, 256, 32, 128, torch.float32, torch.bfloat16),
    # A wider bank is the same code run over more columns.
    Shape("r512,bf16", 64, 256, 32, 512, torch.bfloat16, None, ("headwise_kernel",)),
    # A larger head's selection is seen in the whole.
    Shape("8B,bf16", 128, 256, 32, 128, torch.bfloat16, None, ("select_kernel",)),
)


def shape_of(text: str) -> Shape:
    """A shape from `head=64,n=256,k=32,r=128,dtype=bf16`, any of it left out.

    Raises:
        ValueError: in one line, where it cannot be read, or no kernel takes such sizes.
    """
    numbers = {"head": 64, "n": 256, "k": 32, "r": 128}
    dtype = "bf16"
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name == "dtype":
            dtype = value
        elif name not in numbers:
            raise ValueError(f"{part!r} is none of head=, n=, k=, r= and dtype=")
        elif not value.isascii() or not value.isdigit() or int(value) < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        else:
            numbers[name] = int(value)
    query, _, parameters = dtype.partition("/")
    parameters = parameters or query
    if query not in DTYPES or parameters not in DTYPES or dtype.endswith("/"):
        raise ValueError(
            f"dtype is {dtype!r}; it must be {', '.join(DTYPES)}, or two of them: bf16/fp32"
        )
    size, n, k, width = numbers.values()
    if size % 2:
        raise ValueError(f"head is {size}; it must be even, as each half has its keys")
    if k > min(n, MAX_K):
        raise ValueError(
            f"k is {k}; it must be at most n = {n}"
            if k > n
            else f"k is {k}; the kernels take up to {MAX_K}, beyond which PyTorch selects"
        )
    if n * n >= 2**31:
        raise ValueError(f"n is {n}; {n} * {n} slots do not fit 31 bits, so PyTorch selects")
    return _shape(size, n, k, width, query, parameters)


def _shape(
    size: int, n: int, k: int, width: int, query: str, parameters: str, **more: Any
) -> Shape:
    dtype = query if query == parameters else f"{query}/{parameters}"
    label = f"head={size},n={n},k={k},r={width},dtype={dtype}"
    return Shape(label, size, n, k, width, DTYPES[parameters], DTYPES[query], **more)


def _matrix() -> tuple[Shape, ...]:
    """Every k with every pair of dtypes and every n that holds it, the halves in turn.

    The whole has the selection in it, which is compiled by itself at the smallest n; what the
    gradients and reads are compiled for depends on few of the sizes.
    """
    shapes, halves = [], (12, 8, 64, 16, 20, 32, 13)
    for i, k in enumerate((1, 2, 3, 4, 5, 8, 10, 16, 32, 64)):
        counts = [n for n in (16, 64, 100, 256, 1024) if n >= k]
        for j, n in enumerate(counts):
            for dtypes in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
                size, width = 2 * halves[(i + j) % len(halves)], (64, 21, 128)[(i + j) % 3]
                hidden = () if n == counts[0] else ("select_kernel", "score_gradient_kernel")
                shapes.append(_shape(size, n, k, width, *dtypes, seen_elsewhere=hidden))
    return tuple(shapes)


MATRIX = _matrix()
