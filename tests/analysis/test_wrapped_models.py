"""Models in wrappers are measured as they compute: against a plain loop of hooks on the wrapper."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TextGenerationPipeline

import analysis
from kernels.errors import ModelError
from midus_model import head_sites, load, load_tokenizer, upscale
from tests.models import tiny, tokens
from tests.reference import fill_banks

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
IDS = tokens(3, 12)
TEXT = ["def mean(values):\n    return sum(values) / len(values)\n"] * 2


def lora(model: Any) -> Any:
    """A PeftModel around `model`, live with random weights on attention and MLP."""
    torch.manual_seed(1)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules=targets)
    return get_peft_model(model, adapter).eval()


def bases() -> dict[str, Any]:
    base = tiny("llama")
    uneven = [(1, 0), (1, 1), (1, 2), (2, 3)]
    return {
        "base": base,
        "midus": fill_banks(upscale(base, **SMALL)),
        "chosen": fill_banks(upscale(base, heads=uneven, **SMALL)),
        "llama-pro": upscale(base, "llama-pro"),
    }


@torch.no_grad()
def loss_of(model: Any) -> float:
    logits = model(input_ids=IDS).logits[:, :-1].double()
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()))


def looped(model: Any) -> list[float]:
    """Loss with each head's outputs zeroed by a hook, less the loss without, on the wrapper."""
    clean, found = loss_of(model), []
    for site in head_sites(model):
        span = slice(site.start, site.stop)

        def zeroed(_: nn.Module, args: tuple, span: slice = span) -> tuple:
            changed = args[0].clone()
            changed[..., span] = 0
            return (changed, *args[1:])

        hook = site.module.register_forward_pre_hook(zeroed)
        found.append(loss_of(model) - clean)
        hook.remove()
    return found


def measured(model: Any, **how: Any) -> Any:
    data = [row.tolist() for row in IDS]
    return analysis.head_importance(model, data, baseline="zero", **how)


@pytest.mark.parametrize("made", ["base", "midus", "chosen", "llama-pro"])
def test_a_live_adapter_is_measured_as_a_loop_of_hooks_measures_it(made: str) -> None:
    model = bases()[made]
    peft = lora(copy.deepcopy(model))
    expected = looped(peft)
    table = measured(peft)
    assert len(table) == len(expected) == len(head_sites(model))
    assert np.abs(table["score"].to_numpy() - expected).max() < 2e-6
    assert table.attrs["clean_loss"] == pytest.approx(loss_of(peft), abs=1e-6)
    without = measured(model)["score"].to_numpy()
    assert np.abs(table["score"].to_numpy() - without).max() > 1e-3
    merged = copy.deepcopy(peft).merge_and_unload()
    assert np.abs(measured(merged)["score"].to_numpy() - expected).max() < 2e-5
    gradient = measured(peft, method="taylor")["score"].to_numpy()
    assert np.abs(gradient - measured(merged, method="taylor")["score"].to_numpy()).max() < 2e-5


def test_other_wrappers_are_measured_as_what_they_hold(tmp_path: Path) -> None:
    model = bases()["midus"]
    expected = measured(model)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        table = measured(wrapped)
        assert (table["score"] == expected["score"]).all()
    lora(copy.deepcopy(model)).save_pretrained(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "base")
    peft = lora(load(tmp_path / "base"))
    peft.save_pretrained(tmp_path / "adapter")
    assert (measured(tmp_path / "adapter")["score"] == measured(peft)["score"]).all()


def test_a_pipeline_is_measured_on_text_by_its_own_tokenizer() -> None:
    model, tokenizer = load("pico"), load_tokenizer("pico")
    nameless = copy.deepcopy(model)
    nameless.name_or_path = nameless.config.name_or_path = ""
    expected = analysis.head_importance(model, TEXT, method="taylor")
    for held in (model, nameless):
        pipe = TextGenerationPipeline(model=held, tokenizer=tokenizer)
        table = analysis.head_importance(pipe, TEXT, method="taylor")
        assert (table["score"] == expected["score"]).all()
        assert table.attrs["context"] == expected.attrs["context"]


def test_what_is_no_model_is_refused_in_one_line() -> None:
    for thing in (tiny("llama").config, type(tiny("llama")), {"a": 1}, 3):
        with pytest.raises(ModelError, match="is a class|has no weights|is no model") as caught:
            measured(thing)
        assert "\n" not in str(caught.value)
