"""Memory blocks in other people's hands: pickled, copied, compiled, and adapted by LoRA."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from midus_model import MidusConfig, head_sites, load, upscale
from midus_model.config import SUPPORTED_BASES
from midus_model.errors import UnsupportedArchitecture
from midus_model.memory_blocks import MEMORY_BLOCKS
from midus_model.modeling import backbone_class
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
EVEN = {"heads": [(1, 0), (1, 1), (3, 2)]}  # of two groups of two heads each
UNEVEN = {"heads": [(1, 0), (1, 1), (1, 2), (3, 1), (3, 3)]}
MADE: dict[str, dict[str, Any]] = {
    "all": {}, "even": EVEN, "uneven": UNEVEN, "mixed": {"output_mixing": "linear"},
}  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
USUAL = [("llama", made) for made in MADE] + [(family, "uneven") for family in FAMILIES]
EVERY = [
    pytest.param(f, made, marks=() if (f, made) in USUAL else pytest.mark.verify)
    for f in FAMILIES
    for made in MADE
]


def grown(family: str = "llama", made: str = "all", **fields: Any) -> Any:
    base, options = tiny(family, **fields), dict(MADE[made])
    if "heads" in options:
        options["heads"] = [at for at in options["heads"] if at[0] < len(base.model.layers)]
    return fill_banks(upscale(base, **SMALL, **options))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=tokens()).logits


# ---------------------------------------------------------------- classes


def test_a_class_for_every_family_found_by_its_name() -> None:
    assert set(MEMORY_BLOCKS) == set(SUPPORTED_BASES)
    for family, block in MEMORY_BLOCKS.items():
        recorded = backbone_class(family)._can_record_outputs
        for kind, base in ((block, "hidden_states"), (block.attention_class, "attentions")):
            assert issubclass(kind, recorded[base])
            home = importlib.import_module(kind.__module__)
            assert vars(home)[kind.__qualname__] is kind


PICKLED = """
import sys, torch
models = {made: torch.load(made, weights_only=False) for made in sys.argv[1:]}
import pickle
from safetensors.torch import load_file, save_file
ids, found = load_file("ids")["ids"], {}
for made, model in models.items():
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        found |= {f"{made} read": model(ids).logits, f"{made} again": again(ids).logits}
    found[f"{made} text"] = model.generate(ids, do_sample=False, max_new_tokens=4)
save_file(found, "found")
"""


def test_pickled_and_read_where_nothing_is_imported(tmp_path: Path) -> None:
    models = {made: grown("qwen3", made) for made in ("uneven", "all")}
    for made, model in models.items():
        torch.save(model, tmp_path / made)
    save_file({"ids": tokens()}, tmp_path / "ids")
    command = [sys.executable, "-c", PICKLED, *models]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "found")
    for made, model in models.items():
        assert torch.equal(found[f"{made} read"], logits(model))
        assert torch.equal(found[f"{made} again"], logits(model))
        text = model.generate(tokens(), do_sample=False, max_new_tokens=4)
        assert torch.equal(found[f"{made} text"], text)


@pytest.mark.parametrize(("family", "made"), EVERY)
def test_a_deep_copy_is_a_model_of_its_own(family: str, made: str) -> None:
    model = grown(family, made)
    expected, copied = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(copied), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("made", [pytest.param("all", marks=pytest.mark.verify), "uneven"])
def test_a_whole_graph_is_compiled(made: str) -> None:
    model = grown("llama", made, num_hidden_layers=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled), logits(model))


def test_parameter_names_are_those_of_the_contract() -> None:
    for made in ("all", "uneven"):
        model = grown("qwen3", made, attention_bias=True)
        block = model.model.layers[2]
        attention = {f"self_attn.{p}_proj.{w}" for p in "qkv" for w in ("weight", "bias")}
        attention |= {f"self_attn.{p}_norm.weight" for p in "qk"} | {"input_layernorm.weight"}
        memory = {f"memory.{name}" for name in ("row_keys", "col_keys", "bank", "head_proj")}
        assert {name for name, _ in block.named_parameters()} == attention | memory
        assert not [name for name, _ in block.named_modules() if name.endswith("o_proj")]


# ---------------------------------------------------------------- adapters


def adapted(model: Any, **how: Any) -> Any:
    """A PeftModel of a copy, its adapter live with random weights."""
    torch.manual_seed(1)
    given = LoraConfig(r=4, init_lora_weights=False, **({"target_modules": PROJECTIONS} | how))
    return get_peft_model(copy.deepcopy(model), given).eval()


def merged_is_live(peft: Any, model: Any) -> Any:
    """Checks that the adapter does something, and that merged it does the same; the merged one."""
    live = logits(peft)
    assert (live - logits(model)).abs().max() > 0.1
    merged = copy.deepcopy(peft).merge_and_unload()
    assert type(merged) is type(model)
    assert (logits(merged) - live).abs().max() < 2e-5
    return merged


@pytest.mark.parametrize(("family", "made"), EVERY)
def test_lora_on_q_k_v_and_o_where_there_is_one(family: str, made: str) -> None:
    model = grown(family, made)
    peft = adapted(model)
    touched = {name.split(".lora_A")[0] for name, _ in peft.named_parameters() if "lora_A" in name}
    for layer, entry in enumerate(model.config.layer_map):
        mine = {name.rsplit(".", 1)[1] for name in touched if f".layers.{layer}." in name}
        assert mine == set(PROJECTIONS) - ({"o_proj"} if entry["kind"] == "memory" else set())
    merged = merged_is_live(peft, model)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize(
    "made", ["uneven", *(pytest.param(made, marks=pytest.mark.verify) for made in ("all", "mixed"))]
)
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["memory"]},
        {"target_modules": ["q_proj"], "target_parameters": ["memory.bank"]},
        {"use_dora": True},
    ],
    ids=["all-linear", "whole memory", "bank", "dora"],
)
def test_other_adapters(how: dict[str, Any], made: str) -> None:
    model = grown("llama", made)
    peft = adapted(model, **how)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "modules_to_save" in name and name.endswith("bank"):
                parameter.mul_(3)  # what is trained in the memory's place is what runs
    merged_is_live(peft, model)


def test_a_lora_trains_and_is_saved_and_read(tmp_path: Path) -> None:
    grown("llama", "uneven").save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=PROJECTIONS))
    optimiser = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        losses.append(peft(input_ids=tokens(), labels=tokens()).loss)
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0]
    trained = [n for n, p in peft.named_parameters() if p.requires_grad and p.abs().max() > 0]
    assert len([n for n in trained if ".layers.2." in n]) == 6  # A and B of q, k and v
    peft.eval().save_pretrained(tmp_path / "adapter")
    read = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(read), logits(peft))
    merged = peft.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), logits(merged))


def test_a_memory_that_is_wrapped_is_not_taken_for_a_memory() -> None:
    peft = adapted(grown(), target_modules=["q_proj"], modules_to_save=["memory"])
    with pytest.raises(UnsupportedArchitecture, match=r"layers\.2 is wrapped .*merge_and_unload"):
        head_sites(peft)
    assert len(head_sites(peft.merge_and_unload())) == 6 * 4


def test_keys_and_values_of_unevenly_shared_groups_are_plain_maps() -> None:
    attention = grown("llama", "uneven").model.layers[2].self_attn
    assert type(attention.k_proj) is type(attention.v_proj) is nn.Linear
    assert attention.k_proj.out_features == 2 * 16 and attention.group_of == [0, 0, 1]
    assert isinstance(attention.config, MidusConfig)
