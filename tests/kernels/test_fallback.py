"""A kernel that fails: an error under "triton"; one warning, and PyTorch, under "auto"."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernels import backend, fallback, headwise_memory, latent_bag, product_key_select, use_backend
from kernels.errors import DataError
from kernels.headwise_memory import gpu as headwise
from kernels.headwise_memory import naive
from kernels.latent_bag import gpu as latent
from kernels.product_key_select import gpu as product_key

K = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has failed yet, and "auto" takes Triton, in its interpreter where there is no GPU."""
    monkeypatch.setattr(fallback, "_failed", set())
    monkeypatch.setattr(backend, "_resolved", lambda device, wide: backend.current_backend())
    with use_backend("auto"):
        yield


def draw(n: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(3, 1, 16), (1, n, 8), (1, n, 8), (n * n, 16), (1, 16, 16)]
    return [(0.5 * torch.randn(s)).to(DEVICE, dtype) for s in shapes]


# Kernel, what runs it, and the operation that the warning names.
FORWARD = {
    "_headwise_kernel": (headwise, "headwise_memory"),
    "_select_kernel": (product_key, "product_key_select.select"),
    "_bag_kernel": (latent, "latent_bag.bag"),
}
BACKWARD = {
    ("_score_gradient_kernel", "sorted"): (product_key, "product_key_select.select_backward"),
    ("_key_gradient_kernel", "sorted"): (product_key, "product_key_select.select_backward"),
    ("_weight_gradient_kernel", "sorted"): (latent, "latent_bag.weight_gradient"),
    ("_weight_gradient_kernel", "sparse"): (latent, "latent_bag.weight_gradient"),
    ("_piece_kernel", "sorted"): (latent, "latent_bag.bank_gradient"),
    ("_piece_kernel", "sparse"): (latent, "latent_bag.unique_row_gradient"),
    ("_atomic_kernel", "atomic"): (latent, "latent_bag.bank_gradient"),
}


def breaks(monkeypatch: pytest.MonkeyPatch, module: Any, kernel: str, error: Exception) -> list:
    """Every launch of a kernel raises; how often that was, in a list."""
    launches: list[int] = []

    def run(*_: Any, **__: Any) -> None:
        launches.append(1)
        raise error

    monkeypatch.setattr(getattr(module, kernel), "run", run)
    return launches


def values_and_gradients(inputs: list[torch.Tensor], mode: str) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = headwise_memory(*leaves, K, bank_grad=mode)
    out.square().sum().backward()
    return [out.detach(), *(x.grad.to_dense() for x in leaves)]


def out_of_shared_memory() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300000, 232448, "shared memory")


@pytest.mark.parametrize("kernel", FORWARD)
def test_forward_goes_on_in_pytorch(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    module, operation = FORWARD[kernel]
    launches = breaks(monkeypatch, module, kernel, out_of_shared_memory())
    inputs = draw()
    want = naive.headwise_memory(*inputs, K)

    def call(tokens: int) -> torch.Tensor:
        if kernel == "_headwise_kernel":
            return headwise_memory(inputs[0][:tokens], *inputs[1:], K)
        weights, slots = product_key_select(inputs[0][:tokens], *inputs[1:3], K)
        read = latent_bag(inputs[3], slots, weights)
        return torch.einsum("thr,hrd->thd", read, inputs[4])

    with pytest.warns(RuntimeWarning) as told:
        torch.testing.assert_close(call(3), want, rtol=1e-4, atol=1e-5)
    assert len(told) == 1
    text = str(told[0].message)
    assert operation in text and "OutOfResources" in text and "shared memory" in text
    assert "\n" not in text and "MIDUS_KERNELS=triton" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokens in (3, 2):  # nor is it tried again, whatever the number of tokens
            torch.testing.assert_close(call(tokens), want[:tokens], rtol=1e-4, atol=1e-5)
    assert len(launches) == 1


def test_other_sizes_and_dtypes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = breaks(monkeypatch, product_key, "_select_kernel", RuntimeError("no"))
    for inputs in (draw(), draw(4), draw(dtype=torch.bfloat16)):
        with pytest.warns(RuntimeWarning, match=r"product_key_select.select failed.*no"):
            product_key_select(*inputs[:3], K)
    assert len(launches) == 3


@pytest.mark.parametrize(("kernel", "mode"), BACKWARD)
def test_backward_goes_on_in_pytorch(
    monkeypatch: pytest.MonkeyPatch, kernel: str, mode: str
) -> None:
    module, operation = BACKWARD[kernel, mode]
    inputs = draw()
    with use_backend("torch"):
        want = values_and_gradients(inputs, mode)
    breaks(monkeypatch, module, kernel, RuntimeError("PassManager::run failed\nand more"))
    with pytest.warns(RuntimeWarning, match=operation) as told:
        got = values_and_gradients(inputs, mode)
    assert len(told) == 1
    for mine, truth in zip(got, want, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "mode"), [*((kernel, "sorted") for kernel in FORWARD), *BACKWARD]
)
def test_asked_for_triton_the_error_stays(
    monkeypatch: pytest.MonkeyPatch, kernel: str, mode: str
) -> None:
    module = FORWARD[kernel][0] if kernel in FORWARD else BACKWARD[kernel, mode][0]
    breaks(monkeypatch, module, kernel, RuntimeError("no such instruction"))
    with use_backend("triton"), pytest.raises(RuntimeError, match="no such instruction"):
        if kernel == "_headwise_kernel":
            headwise_memory(*draw(), K)
        else:
            values_and_gradients(draw(), mode)


def test_a_kernel_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a launch that raises in its stead: sizes that Triton itself refuses."""
    true = product_key.select_config(3, 8, K, torch.float32, torch.float32)
    monkeypatch.setattr(product_key, "select_config", lambda *_: true | {"PP": 24})
    inputs = draw()
    want = naive.product_key_select(*inputs[:3], K)
    with pytest.warns(RuntimeWarning, match=r"product_key_select\.select failed"):
        got = product_key_select(*inputs[:3], K)
    assert torch.equal(got[1], want[1])
    with use_backend("triton"), pytest.raises(Exception, match="power of 2|24"):
        product_key_select(*inputs[:3], K)


def test_slots_beyond_31_bits_run_in_pytorch() -> None:
    keys = torch.zeros(1, 1, 1, device=DEVICE).expand(1, 46341, 1)
    query = torch.zeros(1, 1, 2, device=DEVICE)
    with pytest.warns(RuntimeWarning, match="31 bits"):
        assert product_key_select(query, keys, keys, 1)[1].item() == 0


def test_memory_that_runs_out_is_no_failed_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, product_key, "_select_kernel", torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        product_key_select(*draw()[:3], K)


def test_a_tuning_file_that_cannot_be_read_is_no_failed_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIDUS_TUNING", "no such file.json")
    with pytest.raises(DataError, match=r"no such file\.json is no tuning file"):
        product_key_select(*draw()[:3], K)
