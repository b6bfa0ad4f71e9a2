"""Every reader of weights on every kind of layer: what calling the modules gives, or one line."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import amplify, costs, head_importance, head_roles, head_view, memory_usage
from analysis.dose import dose_response, moved
from analysis.memory import slot_tokens
from analysis.tables import model_hash
from kernels.errors import ModelError
from midus_model import BlockEnd, Change, finish_block, head_sites, load, upscale
from tests.analysis.samples import random_texts
from tests.maps import READABLE, adapted, made
from tests.models import tiny, tokens
from tests.reference import fill_banks

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*one document, so intervals", "ignore:the model's 8-bit layers"
)
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

OFFLOADED = ("disk", "memory")
LONGER = ("two loras", "lora everywhere", "lora on 4-bit", "memory")  # like others: `make verify`
KINDS = [
    pytest.param(kind, marks=pytest.mark.verify) if kind in LONGER else kind for kind in READABLE
]
# Relative to the largest score. 8-bit activations are rounded to one part in 127 of their largest,
# 4-bit products to bf16 where the processor has a kernel for it.
ROUNDED = {"8-bit": 0.08, "4-bit": 0.04}
HEADS = 4


def allowed(kind: str) -> float:
    return next((value for name, value in ROUNDED.items() if name in kind), 2e-5)


@lru_cache
def model_of(kind: str) -> Any:
    return made(kind)


def texts() -> Any:
    return random_texts([20, 20, 12])


def refused(kind: str, measure: Callable[[], Any]) -> Any:
    """What is measured; of an offloaded model, or a kernel without gradient, one line may come."""
    try:
        return measure()
    except ModelError as error:
        assert "\n" not in str(error)
        if kind in OFFLOADED or (kind.endswith("4-bit") and "gradient" in str(error)):
            pytest.skip(f"refused: {error}")
        raise


@contextmanager
def heads_changed(model: Any, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Inside, what one block's output projection is called with is changed, by a plain hook."""
    module = model.model.layers[layer].self_attn.o_proj
    hook = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def gated(head: int, gate: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(heads: torch.Tensor) -> torch.Tensor:
        factor = torch.ones(HEADS, 1, dtype=heads.dtype)
        factor = factor.index_put((torch.tensor(head),), torch.as_tensor(gate, dtype=heads.dtype))
        return (heads.unflatten(-1, (HEADS, -1)) * factor).flatten(-2)

    return change


def loss(model: Any) -> torch.Tensor:
    """Mean next-token loss over the documents, one at a time."""
    losses = [
        F.cross_entropy(
            model(text.ids[None]).logits[0, :-1].double(), text.ids[1:], reduction="sum"
        )
        for text in texts()
    ]
    return torch.stack(losses).sum() / sum(len(text.ids) - 1 for text in texts())


def close(found: Any, want: Any, kind: str) -> None:
    found, want = np.asarray(found, float), np.asarray(want, float)
    assert np.abs(found - want).max() <= allowed(kind) * np.abs(want).max()


EVERY = list(itertools.product(range(2), range(HEADS)))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_exact_ablation(kind: str) -> None:
    model = model_of(kind)
    found = refused(kind, lambda: head_importance(model, texts(), baseline="zero"))
    clean, want = loss(model), []
    for layer, head in EVERY:
        with heads_changed(model, layer, gated(head, 0.0)):
            want.append(float(loss(model) - clean))
    close(found["score"], want, kind)
    assert found.attrs.get("batch_dependent", False) == ("8-bit" in kind)


@pytest.mark.parametrize("kind", KINDS)
def test_first_order(kind: str) -> None:
    model = model_of(kind)
    measure = lambda: head_importance(model, texts(), method="taylor", baseline="zero")  # noqa: E731
    found, want = refused(kind, measure), []
    for layer, head in EVERY:
        gate = torch.ones((), requires_grad=True)
        with heads_changed(model, layer, gated(head, gate)):
            (gradient,) = torch.autograd.grad(loss(model), gate)
        want.append(-float(gradient))
    close(found["score"], want, kind)


@torch.no_grad()
def direct(model: Any, ids: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """Logits [T, V] that a head adds by its own path, by calling modules alone."""
    kept: dict[str, torch.Tensor] = {}
    mixing, norm = model.model.layers[layer].self_attn.o_proj, model.model.norm
    hooks = [
        mixing.register_forward_pre_hook(lambda _, args: kept.__setitem__("heads", args[0])),
        norm.register_forward_hook(lambda _, args, out: kept.update(stream=args[0], normed=out)),
    ]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    alone = torch.zeros_like(kept["heads"]).unflatten(-1, (HEADS, -1))
    alone[:, :, head] = kept["heads"].unflatten(-1, (HEADS, -1))[:, :, head]
    written = mixing(alone.flatten(-2)) - mixing(torch.zeros_like(kept["heads"]))
    return model.lm_head(written * (kept["normed"] / kept["stream"]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_direct_effects(kind: str) -> None:
    model = model_of(kind)
    measure = lambda: head_importance(model, texts(), method="dla", baseline="zero")  # noqa: E731
    found, want = refused(kind, measure), []
    for layer, head in EVERY:
        parts = [
            direct(model, text.ids, layer, head)[:-1].gather(1, text.ids[1:, None]).sum()
            for text in texts()
        ]
        want.append(float(sum(parts)) / sum(len(text.ids) - 1 for text in texts()))
    close(found["score"], want, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_writes(kind: str) -> None:
    model, ids = model_of(kind), texts()[0].ids
    found = refused(kind, lambda: head_view(model, ids, 1, 2))
    with torch.no_grad():
        logits = direct(model, ids, 1, 2)
    coming = logits[:-1].gather(1, ids[1:, None])[:, 0] - logits[:-1].mean(-1)
    close(found["next"][:-1], coming, kind)
    close(found["raises"].map(max), logits.max(-1).values, kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_amplified(kind: str, tmp_path: Path) -> None:
    """Live, as a plain hook does it; saved and loaded again, as live; or refused in one line."""
    model, ids = model_of(kind), tokens()
    with amplify(model, [(1, 2)], 1.7) as louder:
        live = louder.model(ids).logits
    with heads_changed(model, 1, gated(2, 1.7)):
        close(live, model(ids).logits, kind)
    if kind == "plain":
        place = amplify(model, [(1, 2)], 1.7).save(tmp_path / "louder")
        close(load(place)(ids).logits, live, kind)
        return
    with pytest.raises(ModelError, match="cannot be changed or saved") as caught:
        amplify(model, [(1, 2)], 1.7).save(tmp_path / "louder")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dose(kind: str) -> None:
    """Gains as a hook makes them; a change of the same norm, by calling the projection."""
    model = model_of(kind)
    options: dict[str, Any] = {"gains": [0.0, 1.5], "controls": ("matched_norm",)}
    table = refused(kind, lambda: dose_response(model, [(1, 2)], texts(), **options))
    clean, chosen = loss(model), table[table["arm"] == "chosen"].set_index("gain")["change"]
    want = []
    for gain in (0.0, 1.5):
        with heads_changed(model, 1, gated(2, gain)):
            want.append(float(loss(model) - clean))
    close(chosen[[0.0, 1.5]], want, kind)

    sites = [site for site in head_sites(model) if (site.layer, site.head) == (1, 2)]
    module, seen = sites[0].module, []
    ids, base = tokens(), {1: torch.zeros(1, 1, 64)}
    towards = lambda _: torch.randn(2, 24, 64)  # noqa: E731
    keep = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    keep.remove()
    with moved(model, sites, base, torch.tensor([0.5, -1.0]), towards):
        keep = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(ids)
        keep.remove()
    alone = seen[0] - gated(2, 0.0)(seen[0])
    zero = module(torch.zeros_like(alone))
    step = (module(seen[1] - seen[0]) - zero).norm(dim=-1)
    close(step, (module(alone) - zero).norm(dim=-1) * torch.tensor([[0.5], [1.0]]), kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*KINDS, "dora", "weight norm", "pruned"])
def test_a_block_is_finished_by_its_modules(kind: str) -> None:
    """The end that saves arithmetic reads weights: not where these are not the map."""
    model = model_of(kind)
    block = model.model.layers[1]
    hidden, heads = torch.randn(2, 40, 64), torch.randn(2, 40, 64)
    end = BlockEnd(block, hidden, heads, low_rank=True)
    assert end.low_rank == (kind == "plain")
    change = Change(slice(16, 32), torch.randn(1, 1, 16))
    changed = heads.clone()
    changed[..., 16:32] = change.values
    want = finish_block(block, hidden, changed)
    assert (end.changed([[change]]) - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("kind", ["lora", "lora everywhere", "saved head"])
def test_roles_are_those_of_the_merged_model(kind: str) -> None:
    from peft.utils import ModulesToSaveWrapper

    model = made(kind)
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        place, _, last = name.rpartition(".")
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            module.merge()
            setattr(merged.get_submodule(place), last, module.base_layer)
        elif isinstance(module, ModulesToSaveWrapper):
            setattr(merged.get_submodule(place), last, module.modules_to_save["default"])
    options: dict[str, Any] = {"sequences": 2, "windows": 2}
    found, want = (head_roles(network, texts(), **options) for network in (model, merged))
    for column in found.select_dtypes("number"):
        np.testing.assert_allclose(found[column], want[column], atol=1e-4, err_msg=column)


@pytest.mark.parametrize("kind", [*KINDS, "dora"])
def test_costs_are_those_of_the_plain_model(kind: str) -> None:
    """Of what adapters add no account is given; packed weights take the bytes that they take."""
    model = made(kind)
    if "lora" in kind or kind in ("dora", "saved head"):
        with pytest.raises(ModelError, match="merge_and_unload") as caught:
            costs(model)
        assert "\n" not in str(caught.value)
        return
    found, want = (costs(m).set_index("component") for m in (model, made("plain")))
    same = ["parameters", "flops_per_token", "kv_bytes_per_token"]
    assert found[same].equals(want[same])
    share = {"8-bit": 1 / 4, "4-bit": 1 / 8}.get(kind[:5], 1)
    parts = found["weight_bytes_per_token"] / want["weight_bytes_per_token"]
    assert parts["ffn"] == share and parts["lm_head"] == 1


def memory_with_adapter() -> tuple[Any, Any]:
    """A model with linear mixing whose output projection carries a LoRA, and it merged."""
    model = fill_banks(upscale(tiny("qwen3-wide"), blocks=[1], num_keys=4, top_k=2, latent_dim=8))
    model = adapted(model, target_modules=["out_proj"])
    merged = copy.deepcopy(model)
    for block in merged.model.layers:
        if hasattr(block, "memory"):
            block.memory.out_proj.merge()
            block.memory.out_proj = block.memory.out_proj.base_layer
    return model, merged


def test_memory_behind_an_adapter() -> None:
    model, merged = memory_with_adapter()
    (first, want), at = (memory_usage(m, texts()) for m in (model, merged)), 2
    np.testing.assert_allclose(first["read_ratio"], want["read_ratio"], rtol=1e-5)
    ours, theirs = (slot_tokens(m, at, 3, top=4) for m in (model, merged))
    np.testing.assert_allclose(ours["logit"], theirs["logit"], rtol=1e-4)
    assert ours["token_id"].equals(theirs["token_id"])


def test_a_hash_tells_maps_apart() -> None:
    """By scales, adapters that are on, and made weights; not by where weights lie."""
    hashes = {kind: model_hash(made(kind)) for kind in (*READABLE, "pruned")}
    plain = hashes["plain"]
    assert [kind for kind, found in hashes.items() if found == plain] == ["plain", *OFFLOADED]
    assert len(set(hashes.values())) == len(hashes) - 3  # and the two of 4 bits
    eight, adapter, scaled = made("8-bit"), made("lora"), made("parametrised")
    eight.model.layers[0].mlp.up_proj.weight.SCB.mul_(2)
    assert model_hash(eight) != hashes["8-bit"]
    adapter.model.layers[0].mlp.up_proj.enable_adapters(False)
    assert model_hash(adapter) != hashes["lora"]
    scaled.model.layers[0].mlp.up_proj.parametrizations.weight[0].by = 2.0
    assert model_hash(scaled) != hashes["parametrised"]


def test_eight_bits_say_that_they_depend_on_the_batch() -> None:
    with pytest.warns(UserWarning, match="8-bit layers round by what else is in a batch") as caught:
        table = head_importance(made("8-bit"), texts())
    assert table.attrs["batch_dependent"] is True
    assert sum("8-bit layers" in str(warning.message) for warning in caught) == 1


def test_noise_of_a_half_that_is_quantised_is_left_out() -> None:
    model = made("8-bit")
    with ExitStack() as stack:
        stack.enter_context(pytest.warns(UserWarning, match="noise of half precision was not"))
        model.model.embed_tokens.to(torch.bfloat16)
        table = head_importance(model, texts())
    assert "below_noise" not in table
