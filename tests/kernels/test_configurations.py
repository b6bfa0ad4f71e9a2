"""Configurations of launches: kept, and the same for every number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels import aot
from kernels.headwise_memory import gpu as headwise
from kernels.latent_bag import gpu as latent
from kernels.product_key_select import gpu as product_key

# What a launch passes that follows from how many tokens there are.
COUNTS = {"tokens", "split", "bags", "rows"}


def compiled_for(function: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton itself looks a compiled kernel up by, on an H100, without compiling."""
    if not isinstance(function, JITFunction):  # in the interpreter: the same function, not wrapped
        function = JITFunction(function.fn, **function.kwargs)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    return tuple(bind(**arguments)[1])


@pytest.mark.parametrize("kernel", aot.KERNELS)
def test_another_number_of_tokens_compiles_nothing(kernel: str) -> None:
    shape = aot.shape_of("head=64,n=16,k=4,r=16,dtype=fp32")
    case = next(case for case in aot.shape_cases(shape) if case.kernel == kernel)
    constants = {name: v for name, v in case.config.items() if name not in aot.OPTIONS}
    tensor = torch.zeros(16)
    fixed: dict[str, Any] = {name: 2048 for name, kind in case.types.items() if kind == "i32"}
    fixed |= {name: tensor for name, kind in case.types.items() if kind.startswith("*")}
    counts = COUNTS & fixed.keys()
    assert counts or kernel == "atomic_kernel"
    found = {
        compiled_for(case.function, constants | fixed | dict.fromkeys(counts, count))
        for count in (1, 2, 15, 16, 17, 512, 1000, 2**20)
    }
    assert len(found) == 1
    other = compiled_for(case.function, constants | fixed | {"K": 5}) if "K" in constants else None
    assert other not in found  # the key tells apart what is


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (headwise.headwise_config, (256, 64, 32, 128, (torch.bfloat16,) * 4, True)),
        (product_key.select_config, (256, 32, 32, torch.bfloat16, torch.float32)),
        (product_key.score_gradient_config, (256, 32, 32)),
        (product_key.key_gradient_config, (256, 32, 32)),
        (latent.read_config, (128, 32)),
        (latent.piece_config, (128, 32)),
        (latent.join_config, (128,)),
        (latent.atomic_config, (128, 32)),
    ],
)
def test_a_configuration_is_worked_out_once(config: Any, arguments: tuple[Any, ...]) -> None:
    assert config(*arguments) is config(*arguments)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 16, 33, 64])
def test_widths_that_gather_compiles_on(k: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tile = product_key.tile_config(64, 12, k, dtype, dtype)
        assert tile["KP"] >= max(16, k) and tile["PP"] >= max(tile["KP"], tile["PAIRS"])
        assert tile["NB"] >= tile["KP"]
        assert product_key.select_config(64, 12, k, dtype, dtype, 64)["num_warps"] <= 4
