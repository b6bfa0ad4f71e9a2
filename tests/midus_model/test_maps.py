"""The guard over weights: what it reads is what the module does, for every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kernels.errors import MidusError, ModelError
from midus_model import check_writable, depends_on_batch, is_plain, upscale, weight_of
from midus_model.maps import by_unit_vectors, check_gradients, obstacle
from midus_model.stored import settings, stored_tensors
from tests.maps import READABLE, adapted, made, quantised
from tests.models import FAMILIES, tiny, tokens
from tests.reference import float64_reference

ROUNDED = {"8-bit": 0.02, "4-bit": 0.01}  # of the activations, and of bf16 kernels on some CPUs


def allowed(kind: str) -> float:
    return next((value for name, value in ROUNDED.items() if name in kind), 3e-6)


def parts(model: Any) -> list[Any]:
    block = model.model.layers[1]
    return [block.self_attn.o_proj, block.self_attn.k_proj, block.mlp.down_proj, model.lm_head]


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a pass"])
@pytest.mark.parametrize("kind", READABLE)
def test_what_is_read_is_what_the_module_does(kind: str, ran: bool) -> None:
    model = made(kind)
    if ran:
        model(tokens())
    for module in parts(model):
        weight = weight_of(module).float()
        assert is_plain(module) == (weight_of(module) is module._parameters.get("weight"))
        given = torch.randn(7, weight.shape[1])
        want = module(given)
        assert (given @ weight.T - want).norm() <= allowed(kind) * want.norm()
    stream = torch.randn(3, 64)
    norm = model.model.norm
    scale = torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    torch.testing.assert_close(stream * scale * weight_of(norm), norm(stream))


def test_a_plain_layers_own_parameter_is_handed_out() -> None:
    model = tiny()
    assert weight_of(model.lm_head) is model.lm_head.weight


@pytest.mark.parametrize("kind", ["lora", "two loras"])
def test_adapters_are_merged_as_peft_merges_them(kind: str) -> None:
    model = made(kind)
    for module in parts(model)[:3]:
        mine = weight_of(module)
        module.merge()
        torch.testing.assert_close(mine, module.get_base_layer().weight.detach())
        torch.testing.assert_close(weight_of(module), mine)  # not added a second time


def test_an_adapter_that_is_switched_off_is_not_read() -> None:
    model, plain = made("lora"), made("plain")
    for module in parts(model)[:3]:
        module.enable_adapters(False)
    want = plain.model.layers[1].self_attn.o_proj.weight
    torch.testing.assert_close(weight_of(model.model.layers[1].self_attn.o_proj), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["lora", "parametrised"])
def test_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    module = made(kind).to(dtype).model.layers[1].self_attn.o_proj
    given = torch.randn(7, 64, dtype=dtype)
    want = module(given).double()
    found = given.double() @ weight_of(module).double().T
    assert (found - want).norm() <= max(4 * torch.finfo(dtype).eps, 1e-14) * want.norm()


@torch.no_grad()
def test_four_bits_by_unit_vectors() -> None:
    """What is read where the packing is one that only the processor's own kernel knows."""
    module = quantised(4).model.layers[0].mlp.down_proj
    module.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(by_unit_vectors(module), weight_of(module))


class Doubled(nn.Linear):
    """Claims one map and applies another."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


class Packed(nn.Module):
    """As GPTQ's layers: a matrix of whole numbers, and none that is called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.ones(4, 8, dtype=torch.int32))


def hooked(kind: str) -> nn.Module:
    return made(kind).model.layers[0].self_attn.o_proj


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        (lambda: Doubled(8, 8), "plain weights"),
        (lambda: Packed(), "bfloat16"),
        (lambda: nn.Linear(8, 8, device="meta"), "load the model whole"),
        (lambda: hooked("dora"), "merge_and_unload"),
        (lambda: hooked("weight norm"), "plain weight"),
        (lambda: hooked("pruned"), "plain weight"),
        (lambda: nn.Embedding(8, 8), "plain weight"),
        (lambda: nn.LayerNorm(8), "plain weight"),
        (lambda: nn.Conv1d(8, 8, 1), "plain weight"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(module: Any, remedy: str) -> None:
    with pytest.raises(ModelError, match=remedy) as caught:
        weight_of(module())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*READABLE, "dora", "weight norm", "pruned"])
def test_only_plain_weights_are_written(kind: str) -> None:
    model = made(kind)
    if kind == "plain":
        check_writable(model)
        return
    for change in (check_writable, upscale, lambda m: upscale(m, method="llama-pro")):
        with pytest.raises(MidusError, match="merge|whole|plain weight|in bfloat16") as caught:
            change(model)
        assert "\n" not in str(caught.value)


def test_models_that_are_plain_are_written() -> None:
    for family in FAMILIES:
        for model in (tiny(family), upscale(tiny(family), heads=[(0, 3)], num_keys=4, top_k=2)):
            check_writable(model)
    check_writable(float64_reference(tiny()))
    check_writable(tiny().to("meta"))


def test_a_model_on_the_meta_device_is_still_upscaled() -> None:
    assert upscale(tiny().to("meta")).device.type == "meta"


def test_packed_and_unknown_layers_are_no_plain_ones() -> None:
    assert obstacle(Packed()).kind == "quantised"
    assert obstacle(Doubled(2, 2)).kind == "unknown"
    assert obstacle(nn.Linear(2, 2)) is None


def test_eight_bit_layers_round_by_what_is_in_the_batch() -> None:
    assert depends_on_batch(made("8-bit")) and depends_on_batch(made("lora on 8-bit"))
    assert not depends_on_batch(made("4-bit")) and not depends_on_batch(made("lora"))


@pytest.mark.parametrize("kind", ["plain", "8-bit", "lora", "lora on 8-bit", "saved head"])
def test_gradients_pass(kind: str) -> None:
    check_gradients(made(kind))


def test_a_kernel_without_gradient_is_refused() -> None:
    """As bitsandbytes' own 4-bit one is on processors with AVX-512 BF16."""
    model = adapted(quantised(8))
    inner = model.model.layers[1].mlp.up_proj.base_layer
    forward = type(inner).forward
    inner.forward = lambda states: forward(inner, states.detach())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*measure by ablation"):
        check_gradients(model)


def stored(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stored_tensors(model)}


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_stored_offloaded_is_what_is_stored_whole(tied: bool) -> None:
    from accelerate import cpu_offload

    model = tiny(tie_word_embeddings=tied)
    whole = stored(model)
    assert list(whole) == sorted(dict(model.named_parameters()))
    model.tie_weights()
    cpu_offload(model)
    found = stored(model)
    assert list(found) == list(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_scales_and_settings_are_part_of_what_is_stored() -> None:
    names = set(stored(made("8-bit")))
    assert "model.layers.0.self_attn.o_proj.weight.SCB" in names
    assert any("absmax" in name for name in stored(made("4-bit")))
    louder = made("lora")
    before = settings(louder)
    louder.model.layers[0].self_attn.o_proj.scaling["default"] = 3.0
    assert settings(louder) != before
    assert settings(tiny()) == []
