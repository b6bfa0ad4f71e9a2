"""Tiny models whose layers are no plain matrices, in every way that users bring them."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.models import tiny

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
READABLE = (
    "plain", "8-bit", "4-bit", "4-bit common", "lora", "two loras", "lora everywhere",
    "lora on 8-bit", "lora on 4-bit", "saved head", "disk", "memory", "parametrised",
)  # fmt: skip
SMALL = {"num_hidden_layers": 2, "intermediate_size": 128}  # 4-bit blocks are of 64


@lru_cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    tiny(**SMALL).save_pretrained(folder.name)
    return folder


def quantised(bits: int, **more: Any) -> Any:
    """The tiny model in bitsandbytes' 8 or 4 bits, but for its embeddings and `lm_head`."""
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    how = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True} | options
    return AutoModelForCausalLM.from_pretrained(
        _folder().name, quantization_config=BitsAndBytesConfig(**(how | more)), dtype=torch.float32
    ).eval()


def adapted(model: Any, *, active: str = "default", **more: Any) -> Any:
    """The model with live LoRA layers in it, large enough to matter."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
    wrapped = get_peft_model(model, LoraConfig(**(options | more)))
    if active != "default":
        wrapped.add_adapter(active, LoraConfig(**(options | {"r": 2, "lora_alpha": 3} | more)))
        wrapped.base_model.set_adapter(["default", active])
    generator = torch.Generator().manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return wrapped.get_base_model().eval()


class Scaled(nn.Module):
    """A parametrisation: the weight times a number."""

    by = 1.5

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.by * weight


def made(kind: str) -> Any:
    """A tiny Llama of two layers whose layers are of that kind."""
    if kind in ("8-bit", "4-bit"):
        return quantised(int(kind[0]))
    if kind == "4-bit common":  # the kernel of processors without AVX-512 BF16
        model = quantised(4)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    if kind.startswith("lora on "):
        return adapted(quantised(int(kind.removeprefix("lora on ")[0])))
    model = tiny(**SMALL)
    if kind == "lora":
        return adapted(model)
    if kind == "two loras":
        return adapted(model, active="second")
    if kind == "lora everywhere":
        return adapted(model, target_modules=[*LINEAR, "embed_tokens", "lm_head"])
    if kind == "dora":
        return adapted(model, use_dora=True)
    if kind == "saved head":
        return adapted(model, modules_to_save=["lm_head", "norm"])
    if kind == "disk":
        disk_offload(model, Path(_offloaded()) / str(id(model)), execution_device="cpu")
    elif kind == "memory":
        cpu_offload(model, execution_device="cpu")
    elif kind == "parametrised":
        for part in model.modules():
            if isinstance(part, nn.Linear):
                parametrize.register_parametrization(part, "weight", Scaled())
    elif kind == "weight norm":
        for part in list(model.modules()):
            if isinstance(part, nn.Linear):
                torch.nn.utils.weight_norm(part)
    elif kind == "pruned":
        for part in list(model.modules()):
            if isinstance(part, nn.Linear):
                prune.l1_unstructured(part, "weight", 0.3)
    return model


@lru_cache
def _offloads() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _offloaded() -> str:
    return _offloads().name
