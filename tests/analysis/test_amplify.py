"""Amplification: against values and banks scaled by hand, ablation, and its own folded copy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance
from analysis.amplify import amplify
from kernels.errors import HeadError, MidusError, ModelError, UnsupportedArchitecture
from midus_model import head_sites, load, load_tokenizer, upscale
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny, tokens
from tests.reference import fill_banks, float64_reference, memories

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

SUBSET = [(0, 3), (2, 1), (2, 2)]
# Name -> model in float32. Of the up-scaled ones the first has memory for some heads only (blocks 1
# and 4), the second an output projection after memory, its heads not filling the stream.
MODELS = {
    "llama": lambda: tiny("llama"),
    "llama-biased": lambda: tiny("llama", attention_bias=True),
    "qwen3": lambda: tiny("qwen3"),
    "qwen3-wide": lambda: tiny("qwen3-wide"),
    "mistral": lambda: tiny("mistral"),
    "midus-subset": lambda: memory_model("mistral", double=False, heads=SUBSET),
    "midus-linear": lambda: memory_model("qwen3-wide", double=False),
    "llama-pro": lambda: upscale(tiny("llama"), "llama-pro"),
}


def some_heads(model: Any) -> dict[tuple[int, int], float]:
    """Two attention heads and two memory heads, where there are any, with a gain each."""
    by_kind: dict[str, list[tuple[int, int]]] = {"attention": [], "memory": []}
    for site in head_sites(model):
        by_kind[site.kind].append((site.layer, site.head))
    heads = by_kind["attention"][1:12:9] + by_kind["memory"][:2]
    return dict(zip(heads, (1.7, 0.4, 3.0, -0.5), strict=False))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(tokens()).logits


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


# ---------------------------------------------------------------- what a gain is


def test_scaling_a_head_is_scaling_its_values() -> None:
    """With a value head for each query head, z is linear in the head's rows of v_proj."""
    model = float64_reference(tiny("llama", num_key_value_heads=4))
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.model.layers[2].self_attn.v_proj.weight[16:32] *= 1.7
    with amplify(model, [(2, 1)], 1.7):
        found = logits(model)
    assert not torch.allclose(found, logits(model))
    torch.testing.assert_close(found, logits(by_hand), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])
def test_scaling_all_heads_of_a_memory_is_scaling_its_bank(family: str) -> None:
    model = memory_model(family)
    layer, memory = memories(model)[0]
    by_hand = copy.deepcopy(model)
    memories(by_hand)[0][1].bank.data *= 2.5
    every = [(layer, head) for head in memory.heads]
    with amplify(model, every, 2.5):
        found = logits(model)
    torch.testing.assert_close(found, logits(by_hand), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, logits(model))
    torch.testing.assert_close(logits(amplify(model, every, 2.5).folded()), found)


@pytest.mark.parametrize("pair", [(0, 2), (2, 1), (4, 3)])  # block 2 holds memory
def test_gain_0_is_zero_ablation(pair: tuple[int, int]) -> None:
    model, texts = memory_model(), random_texts([9, 20, 14])
    table = head_importance(model, texts, baseline="zero").set_index(["layer", "head"])

    @torch.no_grad()
    def losses() -> list[float]:
        found = (model(document.ids[None]).logits[0, :-1] for document in texts)
        targets = (document.ids[1:] for document in texts)
        return [float(F.cross_entropy(*both)) for both in zip(found, targets, strict=True)]

    clean = losses()
    with amplify(model, [pair], 0):
        changes = [after - before for after, before in zip(losses(), clean, strict=True)]
    assert changes == pytest.approx(table.loc[pair, "by_document"], abs=1e-12)
    assert max(map(abs, changes)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gain_1_changes_nothing(dtype: torch.dtype) -> None:
    model = memory_model(double=False).to(dtype)
    before = logits(model)
    every = [(site.layer, site.head) for site in head_sites(model)]
    with amplify(model, every, 1):
        assert torch.equal(logits(model), before) and hooks_of(model) == 0
    assert torch.equal(logits(amplify(model, every, 1.0).folded()), before)
    # One head louder leaves the other heads of its layer as they are, bit for bit.
    seen: list[torch.Tensor] = []
    site = head_sites(model)[2]
    with amplify(model, [(0, 1), (0, 2)], [1, 2]):
        hook = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(model)
        hook.remove()
    hook = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model)
    hook.remove()
    changed = (seen[0] != seen[1]).any((0, 1))
    assert changed[site.start : site.stop].all() and changed.sum() == site.stop - site.start


# ---------------------------------------------------------------- folded and saved


@pytest.mark.parametrize("name", MODELS)
def test_the_folded_model_is_the_hooked_one(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    louder = amplify(model, list(some_heads(model)), some_heads(model))
    with louder:
        hooked = logits(model)
    assert not torch.allclose(hooked, before, atol=1e-3)
    torch.testing.assert_close(logits(louder.folded()), hooked, rtol=1e-4, atol=1e-5)
    back = load(louder.save(tmp_path / "louder"))
    assert torch.equal(logits(back), logits(louder.folded())) and type(back) is type(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    names = {path.name for path in (tmp_path / "louder").iterdir()}
    assert {"config.json", "model.safetensors", "amplified.json"} <= names
    described = json.loads((tmp_path / "louder" / "amplified.json").read_text())
    assert [tuple(pair) for pair in described["heads"]] == list(some_heads(model))
    assert described["gains"] == list(some_heads(model).values())
    assert [path.name for path in tmp_path.iterdir()] == ["louder"]


def test_a_half_precision_weight_is_rounded_once() -> None:
    model = tiny("llama", torch.bfloat16)
    folded = amplify(model, [(1, 2)], 1.1).folded()
    old, new = (one.model.layers[1].self_attn.o_proj.weight for one in (model, folded))
    exact = old[:, 32:48].double() * 1.1
    assert torch.equal(new[:, 32:48], exact.to(torch.bfloat16))
    assert torch.equal(new[:, :32], old[:, :32]) and torch.equal(new[:, 48:], old[:, 48:])


def test_a_loaded_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    place = amplify("pico", [(5, 1)], 1.5).save(tmp_path / "deep" / "louder")
    text = "def f(x):\n    return x\n"
    assert load_tokenizer(place)(text) == load_tokenizer("pico")(text)


def test_what_lies_at_the_path_is_safe(tmp_path: Path) -> None:
    model = tiny("llama")
    first, second = amplify(model, [(0, 0)], 2), amplify(model, [(0, 0)], 3)
    place = first.save(tmp_path / "model")
    with pytest.raises(ModelError, match="exists already"):
        second.save(place)
    assert torch.equal(logits(load(place)), logits(first.folded()))
    second.save(place, overwrite=True)
    assert torch.equal(logits(load(place)), logits(second.folded()))
    (tmp_path / "papers").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        first.save(tmp_path / "papers", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="cannot write"):
        first.save(tmp_path / "file" / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "papers", "file"}


def test_a_copy_made_inside_the_with_has_the_gains_once() -> None:
    model = memory_model(double=False)
    louder = amplify(model, [(1, 2), (2, 0)], 2)
    outside = logits(louder.folded())
    with louder, amplify(model, [(1, 2)], 5):
        inside = louder.folded()
    assert torch.equal(logits(inside), outside) and hooks_of(inside) == 0


# ---------------------------------------------------------------- inside the with


def test_leaving_puts_everything_back() -> None:
    model = memory_model(double=False)
    before = logits(model)
    kept = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda *_: None)
    louder = amplify(model, [(1, 2), (2, 0)], 2)
    with louder as same:
        once = logits(model)
        assert same is louder and louder.model is model
        with louder:
            assert torch.equal(logits(model), once)
        assert torch.equal(logits(model), once)
        with pytest.raises(ZeroDivisionError), louder, amplify(model, [(1, 2)], 3):
            raise ZeroDivisionError
        assert torch.equal(logits(model), once)
    assert torch.equal(logits(model), before) and hooks_of(model) == 1
    with louder:  # and once more
        assert torch.equal(logits(model), once)
    kept.remove()
    assert torch.equal(logits(model), before) and hooks_of(model) == 0


def test_two_gains_multiply() -> None:
    model = float64_reference(tiny("llama"))
    with amplify(model, [(1, 2)], 2), amplify(model, [(1, 2), (1, 3)], 3):
        both = logits(model)
    with amplify(model, {(1, 2), (1, 3)}, {(1, 3): 3, (1, 2): 6}):
        torch.testing.assert_close(logits(model), both, rtol=1e-12, atol=1e-12)


def test_generation_with_a_cache_has_the_gains() -> None:
    model = memory_model(double=False)
    model.generation_config.eos_token_id = None
    louder = amplify(model, [(0, 1), (2, 0), (4, 2)], 4)
    start = tokens(1, 6)
    told = {"max_new_tokens": 10, "do_sample": False}
    plain = model.generate(start, **told)
    with louder:
        cached = model.generate(start, use_cache=True, **told)
        anew = model.generate(start, use_cache=False, **told)
    assert cached.shape == (1, 16) and torch.equal(cached, anew) and not torch.equal(cached, plain)
    assert torch.equal(cached, louder.folded().generate(start, **told))


def test_heads_are_measured_on_the_folded_model() -> None:
    """Inside the `with` a gain would be applied twice; that is refused, not reported."""
    model, texts = tiny("llama"), random_texts([12])
    louder = amplify(model, [(1, 2)], 2)
    with louder, pytest.raises(UnsupportedArchitecture, match=r"model\.layers\.1"):
        head_importance(model, texts)
    assert len(head_importance(louder.folded(), texts)) == 16


# ---------------------------------------------------------------- what is given


def test_heads_and_gains_in_every_form(tmp_path: Path) -> None:
    model = tiny("llama")
    wanted = {(2, 1): 0.5, (0, 3): 2.0}
    ranking = pd.DataFrame({"layer": [2, 0, 1], "head": [1, 3, 1]})
    ranking.attrs["top"] = 2
    (tmp_path / "ranking.json").write_text(json.dumps({"heads": [[2, 1], [0, 3]]}))
    for heads in (list(wanted), iter(wanted), ranking, tmp_path / "ranking.json"):
        found = amplify(model, heads, [0.5, 2]).gains
        assert found == wanted and list(found) == list(wanted)
    for gain in (wanted, torch.tensor([0.5, 2.0]), pd.Series([0.5, 2.0])):
        assert amplify(model, list(wanted), gain).gains == wanted
    assert amplify(model, ranking, torch.tensor(2)).gains == {(2, 1): 2, (0, 3): 2}


@pytest.mark.parametrize(
    ("heads", "gain", "error", "words"),
    [
        ([(4, 0)], 2, HeadError, r"head \(4, 0\) does not exist"),
        ([(0, 4)], 2, HeadError, "does not exist"),
        ([(0, 1), (1, 1), (0, 1)], 2, HeadError, r"head \(0, 1\) is given twice"),
        ([], 2, HeadError, "no heads"),
        ("nowhere.json", 2, HeadError, "no ranking"),
        ([(0, 1)], float("nan"), MidusError, "a gain is nan"),
        ([(0, 1)], float("inf"), MidusError, "a gain is inf"),
        ([(0, 1)], "loud", MidusError, "gain is 'loud'"),
        ([(0, 1)], [1, 2], MidusError, "2 gains for 1 heads"),
        ([(0, 1)], {(0, 2): 2}, MidusError, r"differing: \[\(0, 1\), \(0, 2\)\]"),
    ],
)
def test_wrong_heads_and_gains_are_named(
    heads: Any, gain: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        amplify(tiny("llama"), heads, gain)
    assert "\n" not in str(caught.value)


def test_a_head_without_memory_does_not_exist() -> None:
    model = fill_banks(upscale(tiny("llama"), heads=[(1, 2)], num_keys=4, top_k=2, latent_dim=4))
    assert amplify(model, [(2, 2)], 2).gains
    with pytest.raises(HeadError, match=r"\(2, 1\) does not exist"):
        amplify(model, [(2, 1)], 2)
