"""TransformerLens bridges and nnsight models of MIDUS, and back from them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

import analysis
from analysis import adapters
from kernels.errors import MidusError, ModelError, UnsupportedArchitecture
from kernels.product_key_select import naive
from midus_model import MidusForCausalLM, head_sites, load_tokenizer, upscale
from tests.models import FAMILIES, tiny, tokens
from tests.reference import fill_banks, memories

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
CHOSEN = [(0, 3), (2, 1), (2, 2)]
# Heads of different sizes, and key-value heads used once and twice.
UNEVEN: dict[str, Any] = {
    "heads": [(0, 0), (0, 2), (0, 3)],
    "top_k": {(0, 0): 2, (0, 2): 3, (0, 3): 1},
    "latent_dim": {(0, 0): 8, (0, 2): 3, (0, 3): 5},
}
IDS = tokens(2, 20)
TEXTS = tokens(20, 9).tolist()

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


def midus(family: str = "llama", **options: Any) -> Any:
    return fill_banks(upscale(tiny(family), **(SMALL | options)))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < tolerance)


def seen(model: Any) -> dict[str, torch.Tensor]:
    """What goes in and comes out of the first memory of a plain model, by hand."""
    memory = memories(model)[0][1]
    found: dict[str, torch.Tensor] = {}
    hooks = [
        memory.register_forward_pre_hook(lambda _, args: found.update(queries=args[0])),
        memory.out.register_forward_pre_hook(lambda _, args: found.update(heads=args[0])),
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    found = {name: value.unflatten(-1, (memory.num_heads, -1)) for name, value in found.items()}
    asked = found["queries"][:, :, memory.heads].flatten(0, 1)
    weights, slots = naive.product_key_select(asked, memory.row_keys, memory.col_keys, memory.top_k)
    for head, k in enumerate(memory.head_top_k or []):  # a softmax of the first k is what is left
        weights[:, head, k:] = 0
    weights = weights / weights.sum(-1, keepdim=True)
    shape = IDS.shape
    return found | {"slots": slots.unflatten(0, shape), "weights": weights.unflatten(0, shape)}


def changed(model: Any, change: Any, at: str = "") -> torch.Tensor:
    """Logits of a plain model, what its first memory (or `memory.out`) is called with changed."""
    memory = memories(model)[0][1]
    module = memory.get_submodule(at)

    def hook(_: Any, args: tuple) -> torch.Tensor:
        return change(args[0].unflatten(-1, (memory.num_heads, -1))).flatten(-2)

    handle = module.register_forward_pre_hook(hook)
    found = logits(model)
    handle.remove()
    return found


# ---------------------------------------------------------------- TransformerLens


@pytest.mark.parametrize(
    "options", [{}, {"heads": CHOSEN}, UNEVEN], ids=["all", "chosen", "uneven"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_gives_the_models_logits(family: str, options: dict[str, Any]) -> None:
    model = midus(family, **options)
    implementation, before = model.config._attn_implementation, model.state_dict()
    bridge = adapters.bridge(model)
    assert near(bridge(IDS), logits(model))
    bridge.enable_compatibility_mode()  # folds norms, centres the unembedding
    assert near(bridge(IDS).log_softmax(-1), logits(model).log_softmax(-1))
    # the model itself is as it was
    assert model.config._attn_implementation == implementation
    assert not any(type(m).__module__.startswith("transformer_lens") for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_bridge_shows_what_a_memory_does() -> None:
    for model in (midus(), midus("qwen3-wide", heads=CHOSEN), midus(**UNEVEN)):
        layer, memory = memories(model)[0]
        _, cache = adapters.bridge(model).run_with_cache(IDS)
        names = {"queries": "query", "slots": "slots", "weights": "weights", "heads": "head_out"}
        for name, value in seen(model).items():
            assert near(cache[f"blocks.{layer}.memory.hook_{names[name]}"], value), name
        query = cache[f"blocks.{layer}.memory.hook_query"][:, :, memory.heads]
        assert near(query, cache[f"blocks.{layer}.attn.hook_z"])
        size = memory.head_dim
        assert cache[f"blocks.{layer}.attn.hook_q"].shape[2:] == (len(memory.heads), size)
        before, after = (cache[f"blocks.{layer}.hook_resid_{when}"] for when in ("pre", "post"))
        assert near(after - before, cache[f"blocks.{layer}.hook_attn_out"])
        missing = {"hook_mlp_out", "hook_resid_mid", "attn.hook_result"}
        assert not {f"blocks.{layer}.{name}" for name in missing} & set(cache)


@pytest.mark.parametrize(
    "options", [{}, {"heads": CHOSEN}, UNEVEN], ids=["all", "chosen", "uneven"]
)
def test_writing_to_a_hook_changes_the_model(options: dict[str, Any]) -> None:
    model = midus(**options)
    layer, memory = memories(model)[0]
    bridge, clean = adapters.bridge(model), logits(model)
    head = memory.heads[-1]

    def written(name: str, value: Any) -> torch.Tensor:
        def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            return value(tensor)

        name = f"blocks.{layer}.memory.hook_{name}"
        found = bridge.run_with_hooks(IDS, fwd_hooks=[(name, hook)])
        assert not near(found, clean, 1e-2)
        return found

    def scaled(tensor: torch.Tensor, by: float = 0.0) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, :, head] *= by
        return tensor

    assert near(
        written("query", partial(scaled, by=-2.0)), changed(model, partial(scaled, by=-2.0))
    )
    assert near(written("head_out", scaled), changed(model, scaled, "out"))
    # every head reads slot 5 alone
    one = torch.zeros(3).index_fill(0, torch.tensor(0), 1.0)

    def fifth(heads: torch.Tensor) -> torch.Tensor:
        values = torch.einsum("r,mrd->md", memory.bank[5], memory.projections)
        every = torch.zeros_like(heads)
        every[:, :, memory.heads] = values
        return every

    with bridge.hooks(
        fwd_hooks=[(f"blocks.{layer}.memory.hook_weights", lambda w, hook: one + 0 * w)]
    ):
        assert near(
            written("slots", lambda slots: torch.full_like(slots, 5)), changed(model, fifth, "out")
        )
    assert near(bridge(IDS), clean)


@pytest.mark.parametrize("options", [{}, {"heads": CHOSEN}], ids=["all", "chosen"])
def test_results_a_head_where_there_is_an_output_projection(options: dict[str, Any]) -> None:
    model = midus("mistral", **options)
    bridge = adapters.bridge(model)
    with pytest.warns(UserWarning, match="use_attn_result"):  # which blocks have none
        bridge.set_use_attn_result(True)
    found, cache = bridge.run_with_cache(IDS)
    assert near(found, logits(model))
    results = {name for name in cache if name.endswith("attn.hook_result")}
    inserted = {layer for layer, _ in memories(model)}
    every = set(range(len(model.model.layers)))
    assert results == {f"blocks.{i}.attn.hook_result" for i in every - inserted}
    assert near(cache["blocks.0.attn.hook_result"].sum(2), cache["blocks.0.hook_attn_out"])


FRESH = """
import sys
import torch, analysis, midus_model
from analysis import adapters
from kernels.errors import MidusError

model = midus_model.load("pico-midus")
assert adapters.unwrap(model) is model
assert not {"transformer_lens", "nnsight"} & set(sys.modules)
for name, wrap in {"transformer_lens": adapters.bridge, "nnsight": adapters.envoy}.items():
    sys.modules[name] = None  # as if it were not installed
    try:
        wrap(model)
    except MidusError as error:
        print(error)
    del sys.modules[name]

from transformer_lens.model_bridge.sources import build_bridge_from_module

ids = torch.arange(3, 20)[None]
expected = model(ids).logits
bridge = build_bridge_from_module(model, "MidusForCausalLM", hf_config=model.config)
print(float((bridge(ids) - expected).abs().max()) < 1e-3, len(bridge.blocks))
print(adapters.bridge(adapters.unwrap(bridge)).cfg.architecture)
"""


def test_in_a_fresh_interpreter(tmp_path: Path) -> None:
    """The libraries are asked for late; TransformerLens finds the adapter by the entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    group = "transformer_lens.architectures"
    ((name, target),) = project["entry-points"][group].items()
    folder = tmp_path / f"midus_workbench-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: midus-workbench\nVersion: {project['version']}\n")
    (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:transformer_lens", "-c", FRESH],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lens, nnsight, *rest = done.stdout.splitlines()
    assert lens.startswith("this needs transformer-lens==4.*: ") and "pip install" in lens
    assert nnsight.startswith("this needs nnsight==0.8.*: ") and "pip install" in nnsight
    assert rest == ["True 9", "MidusForCausalLM"]


# ---------------------------------------------------------------- nnsight


def test_nnsight_shows_what_a_memory_does_and_changes_it() -> None:
    for model in (midus(), midus("qwen3-wide", heads=CHOSEN), midus(**UNEVEN)):
        expected, clean = seen(model), logits(model)
        layer, memory = memories(model)[0]
        head = memory.heads[-1]

        def scaled(heads: torch.Tensor, head: int = head) -> torch.Tensor:
            heads = heads.clone()
            heads[:, :, head] *= -2
            return heads

        by_hand = changed(model, scaled), changed(model, scaled, "out")
        traced = adapters.envoy(model)
        inside = traced.model.layers[layer].memory
        with torch.no_grad(), traced.trace(IDS):
            queries = inside.queries.save()
            slots, weights = inside.slots.save(), inside.weights.save()
            heads = inside.heads.save()
            same = traced.output.logits.save()
        found = {"queries": queries, "slots": slots, "weights": weights, "heads": heads}
        assert all(near(value, expected[name]) for name, value in found.items())
        assert near(same, clean, 1e-6)
        with torch.no_grad(), traced.trace(IDS):
            inside.queries[:, :, head] *= -2
            asked = traced.output.logits.save()
        with torch.no_grad(), traced.trace(IDS):
            inside.heads[:, :, head] *= -2
            wrote = traced.output.logits.save()
        for result, wanted in zip((asked, wrote), by_hand, strict=True):
            assert near(result, wanted) and not near(result, clean, 1e-3)
        assert near(logits(model), clean, 1e-6)  # the model itself is as it was


@pytest.mark.parametrize("name", ["slots", "weights"])
def test_what_nnsight_cannot_write(name: str) -> None:
    traced = adapters.envoy(midus())
    inside = traced.model.layers[2].memory
    with pytest.raises(MidusError, match="cannot be written") as caught, traced.trace(IDS):
        setattr(inside, name, 0)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- back again


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_model_of_a_bridge(family: str) -> None:
    for model in (tiny(family), midus(family), midus(family, heads=CHOSEN)):
        bridge = adapters.bridge(model)
        plain = adapters.unwrap(bridge)
        assert type(plain) is type(model) and not plain.training
        assert plain.config.to_dict() == model.config.to_dict()
        assert [s.module_name for s in head_sites(plain)] == [
            s.module_name for s in head_sites(model)
        ]
        assert near(logits(plain), logits(model), 1e-6)
        held = {parameter.data_ptr() for parameter in bridge.parameters()}
        assert all(parameter.data_ptr() in held for parameter in plain.parameters())
        assert near(logits(plain), bridge(IDS).detach())  # the bridge is as it was
        bridge.enable_compatibility_mode()
        processed = adapters.unwrap(bridge)
        assert not near(logits(processed), logits(model), 1e-3)  # the unembedding is centred
        assert near(logits(processed).log_softmax(-1), logits(model).log_softmax(-1))


def test_a_model_that_was_bridged_in_place() -> None:
    model = tiny("llama", tie_word_embeddings=True)
    expected = logits(model)
    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    plain = adapters.unwrap(model)
    assert near(logits(plain), expected, 1e-6)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    bridge.enable_compatibility_mode()  # parts the two
    plain = adapters.unwrap(model)
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
    assert not plain.config.tie_word_embeddings
    assert near(logits(plain).log_softmax(-1), expected.log_softmax(-1))


def test_what_is_no_bridge_stays_as_it_is() -> None:
    model = tiny("llama")
    for thing in (model, "pico", None, torch.nn.Linear(2, 2)):
        assert adapters.unwrap(thing) is thing
    assert adapters.unwrap(adapters.envoy(model)) is model


def test_what_a_bridge_computes_beside_its_weights() -> None:
    bridge = adapters.bridge(midus())
    bridge.run_with_cache(IDS)  # leaves no hook behind
    adapters.unwrap(bridge)
    bridge.add_hook(
        "blocks.2.memory.hook_head_out", lambda heads, hook: 0 * heads, is_permanent=True
    )
    with pytest.raises(
        ModelError, match=r"hooks at blocks\.2\.memory\.hook_head_out, .*reset_hooks"
    ):
        adapters.unwrap(bridge)
    bridge.reset_hooks(including_permanent=True)
    adapters.unwrap(bridge)
    bridge.original_model.model.layers[3].self_attn.scaling = 1.0
    with pytest.raises(ModelError, match="block 3 .*cannot hold") as caught:
        adapters.unwrap(bridge)
    assert "\n" not in str(caught.value)
    bridge = adapters.bridge(midus())
    bridge.original_model.model.layers[1].mlp.original_component.act_fn = torch.nn.GELU()
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.act_fn .* GELU"):
        adapters.unwrap(bridge)


def test_what_an_nnsight_model_computes_beside_its_weights() -> None:
    traced = adapters.envoy(midus())
    with traced.edit(inplace=True):
        traced.model.layers[2].memory.heads[:, :, 0] = 0
    with pytest.raises(ModelError, match="edits.*clear_edits") as caught:
        adapters.unwrap(traced)
    assert "\n" not in str(caught.value)
    traced.clear_edits()
    adapters.unwrap(traced)


@pytest.mark.parametrize("wrap", [adapters.bridge, adapters.envoy], ids=["bridge", "nnsight"])
@pytest.mark.parametrize("model", [tiny("qwen3"), midus()], ids=["base", "midus"])
def test_a_ranking_of_what_they_hold(model: Any, wrap: Any) -> None:
    expected = analysis.head_importance(model, TEXTS, baseline="zero")
    wrapped = wrap(model)
    found = analysis.head_importance(wrapped, TEXTS, baseline="zero")
    assert (found["score"] - expected["score"]).abs().max() < 1e-6
    assert found[["layer", "kind", "head"]].equals(expected[["layer", "kind", "head"]])
    assert found.attrs["model_hash"] == expected.attrs["model_hash"]
    ranking = analysis.rank_heads(wrapped, TEXTS, baseline="zero", top=4)
    best = expected.sort_values("score", ascending=False).head(4)
    assert set(zip(ranking["layer"][:4], ranking["head"][:4], strict=True)) == set(
        zip(best["layer"], best["head"], strict=True)
    )


def test_text_is_read_with_the_tokenizer_of_a_bridge() -> None:
    tokenizer = load_tokenizer("pico")
    model = tiny("llama", vocab_size=len(tokenizer))
    bridge = adapters.bridge(model, tokenizer=tokenizer)
    assert isinstance(bridge, TransformerBridge)
    texts = ["def f(x):\n    return x\n"] * 20
    found = analysis.head_importance(bridge, texts, method="taylor")
    ids = [tokenizer(text)["input_ids"] for text in texts]
    expected = analysis.head_importance(model, ids, method="taylor")
    assert (found["score"] - expected["score"]).abs().max() < 1e-6


# ---------------------------------------------------------------- families, and the documentation


def test_only_known_families() -> None:
    for wrap in (adapters.bridge, adapters.envoy):
        with pytest.raises(UnsupportedArchitecture):
            wrap(torch.nn.Linear(2, 2))


def test_the_examples_of_the_documentation(tmp_path: Path, capsys: Any) -> None:
    text = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    script = tmp_path / "adapters.py"  # a file: nnsight reads the body of a trace from its source
    script.write_text("\n".join(blocks), encoding="utf-8")
    names = runpy.run_path(str(script))
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    length = names["tokens"].shape[1]
    assert first == f"torch.Size([1, {length}, 8, 8])"
    assert second == f"torch.Size([1, {length}, 8, 8]) True"
    assert float(third) < 1e-4
    assert type(names["plain"]) is type(names["merged"]) is MidusForCausalLM
