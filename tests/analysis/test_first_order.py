"""AtP* and RelP against exact ablation, brute force and rules written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance, rank_heads
from analysis.ablation import ablated_values
from analysis.documents import Documents
from analysis.engine import Batch, Replacement, batch_of, clean_run
from analysis.first_order import REGISTERED, atp_star, registered, relp
from analysis.gates import Gated, gate_gradients, gated_values
from analysis.memory_plan import plan_for
from analysis.methods import METHODS
from analysis.metrics import Metric
from kernels.errors import MidusError, ModelError
from midus_model import blocks, head_sites, upscale
from tests.analysis.samples import memory_model, random_texts
from tests.models import FAMILIES, tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 20 documents")

# Linear in the states: then nothing of a model but its blocks bends.
LOGIT = Metric("logit", lambda rows: -rows.logits.gather(-1, rows.targets[:, None])[:, 0], "")


def parts(
    model: Any, data: Documents, baseline: str = "random", stage: str = "output", **more: Any
) -> tuple[Gated, Batch, Replacement]:
    """The model through gates, a batch, and what replaces its heads: zero, or random."""
    sites = head_sites(model, stage)
    if stage == "query":
        sites = [site for site in sites if site.module_name.endswith(".memory")]
    batch = batch_of(data.windows, torch.device("cpu"))
    width = model.config.num_attention_heads * (sites[0].stop - sites[0].start)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(len(blocks(model)), 1, 1, width, generator=generator).double()
    base = {s.layer: drawn[s.layer] * (baseline == "random") for s in sites}
    view = Gated(model, [(site,) for site in sites], plan_for(model, 20), **more)
    return view, batch, base


def exact(view: Gated, batch: Batch, base: Replacement) -> torch.Tensor:
    """What ablating each unit adds, [G, W]."""
    run = clean_run(view.model, batch, view.sites, view.metric)
    found = ablated_values(view.model, run, view.units, base, view.plan, view.metric)
    return found - run.values


class _Linear:
    """Makes a model linear in its heads' outputs."""

    def __init__(self, model: Any, indirect: bool = True) -> None:
        """Norms only scale, patterns are even; `indirect`: heads read what heads wrote."""
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                kind = type(module)
                scale = lambda self, states: self.weight * states  # noqa: E731
                module.__class__ = type(kind.__name__, (kind,), {"forward": scale})
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.q_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
                if not indirect:
                    block.self_attn.v_proj.weight.zero_()
            if not indirect:  # a baseline to differ from
                for block in model.model.layers:
                    block.self_attn.o_proj.weight.copy_(
                        torch.randn_like(block.self_attn.o_proj.weight)
                    )
        self.model = model


def linear(layers: int = 3, indirect: bool = True) -> Any:
    return _Linear(float64_reference(tiny("llama", num_hidden_layers=layers)), indirect).model


# ---------------------------------------------------------------- a linear model


def test_taylor_is_exact_on_a_linear_model() -> None:
    view, batch, base = parts(linear(), random_texts([12, 9]), metric=LOGIT)
    found, _ = gate_gradients(view, batch, base)
    torch.testing.assert_close(-found, exact(view, batch, base), rtol=1e-9, atol=1e-12)


def test_atp_star_is_exact_where_heads_act_on_the_logits_alone() -> None:
    view, batch, base = parts(linear(indirect=False), random_texts([12, 9]), metric=LOGIT)
    found, _ = atp_star.effects(view, batch, base)
    truth = exact(view, batch, base)
    assert truth.abs().min() > 1e-6
    torch.testing.assert_close(found, truth.abs(), rtol=1e-9, atol=1e-12)


def test_relp_is_exact_where_norms_are_at_their_clean_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relp, "_norms", lambda model: [])  # those of this model only scale
    view, batch, base = parts(linear(), random_texts([12, 9]), metric=LOGIT)
    found, _ = relp.effects(view, batch, base)
    torch.testing.assert_close(found, exact(view, batch, base), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- AtP*


def held(view: Gated, batch: Batch, base: Replacement, block: int, step: float) -> torch.Tensor:
    """By finite difference: gradients at every gate with what `block` adds held, [G, W]."""
    stack = blocks(view.model)
    kept: list[torch.Tensor] = []
    count = len(view.units)

    def added(_: Any, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if not kept:
            kept.append(output - args[0])
            return None
        return args[0] + kept[0]

    hook = stack[block].register_forward_hook(added)
    try:
        ones = torch.ones(len(batch.ids), count, dtype=torch.float64)
        with torch.no_grad():
            gated_values(view, batch, base, ones)
            found = torch.empty(count, len(batch.ids), dtype=torch.float64)
            for unit in range(count):
                ends = []
                for sign in (1, -1):
                    gates = ones.clone()
                    gates[:, unit] += sign * step
                    ends.append(gated_values(view, batch, base, gates))
                found[unit] = (ends[0] - ends[1]) / (2 * step)
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3-wide", "midus"])
def test_graddrop_is_the_gradient_with_a_block_held(name: str) -> None:
    """Against finite differences of a forward pass in which the block adds what it added."""
    model = memory_model() if name == "midus" else float64_reference(tiny(name))
    view, batch, base = parts(model, random_texts([10]))
    plain, dropped, values = atp_star.dropped_gradients(view, batch, base)
    torch.testing.assert_close(plain, gate_gradients(view, batch, base)[0])
    layers = torch.tensor([site.layer for site in view.sites])
    total = torch.zeros_like(plain)
    for block, found in enumerate(dropped):
        expected = held(view, batch, base, block, 1e-4)
        below = layers < block
        torch.testing.assert_close(found[below], expected[below], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            plain[layers > block], expected[layers > block], rtol=1e-5, atol=1e-7
        )
        assert expected[layers == block].abs().max() < 1e-9
        total += expected.abs()
    score, again = atp_star.effects(view, batch, base)
    torch.testing.assert_close(score, total / (len(dropped) - 1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(values, again)


def test_graddrop_keeps_what_cancels() -> None:
    """Block 1 takes away again what head (0, 0) wrote: its gradient is 0, its AtP* is not."""
    model = linear(3)
    first, second, third = (block.self_attn for block in model.model.layers)
    width = model.config.hidden_size
    with torch.no_grad():
        for block in model.model.layers:
            block.input_layernorm.weight.fill_(1.0)
        third.v_proj.weight.zero_()
        second.v_proj.weight.zero_()
        second.o_proj.weight.zero_()
        size = width // model.config.num_attention_heads
        first.o_proj.weight[:, :size] = torch.eye(width, size, dtype=torch.float64)
        for group in range(model.config.num_key_value_heads):  # a kv head reads what was written
            second.v_proj.weight[group * size : (group + 1) * size, :size] = torch.eye(size)
        second.o_proj.weight[:size, :size] = -torch.eye(size, dtype=torch.float64)
    # Two tokens, the first of them alone predicts: there attention reads its own position.
    view, batch, base = parts(model, random_texts([2]), metric=LOGIT)
    plain, _ = gate_gradients(view, batch, base)
    score, _ = atp_star.effects(view, batch, base)
    assert plain[0].abs().max() < 1e-12
    assert exact(view, batch, base)[0].abs().max() < 1e-12
    with torch.no_grad():
        second.o_proj.weight.zero_()
    direct = exact(view, batch, base)[0].abs()
    assert direct.min() > 0.01
    # Held, block 1 takes nothing away; block 2 has nothing to do with it.
    torch.testing.assert_close(score[0], direct / 2, rtol=1e-9, atol=1e-12)


def test_the_query_fix_recomputes_what_is_retrieved() -> None:
    """With what follows linear, AtP* of a query is exact; a gradient at the query is not."""
    model = memory_model(blocks=[3])  # after the last block, so that only the norm follows
    with torch.no_grad():
        for _, memory in [(0, block.memory) for block in blocks(model) if hasattr(block, "memory")]:
            memory.bank.mul_(1e-3)  # what is small is linear
    view, batch, base = parts(model, random_texts([12]), stage="query")
    truth = exact(view, batch, base).abs()
    found, _ = atp_star.effects(view, batch, base)
    plain, _ = gate_gradients(view, batch, base)
    assert truth.max() > 1e-5
    torch.testing.assert_close(found, truth, rtol=5e-3, atol=1e-9)
    assert (plain.abs() - truth).abs().max() > 10 * (found - truth).abs().max()


# ---------------------------------------------------------------- RelP


def by_hand(
    model: Any, ids: torch.Tensor, gates: torch.Tensor, base: Replacement, held: bool
) -> torch.Tensor:
    """Summed loss of a Llama or Qwen3, each rule a `detach`: one window [T], gates [layers, H]."""
    config = model.config
    heads, size = config.num_attention_heads, config.head_dim
    shared = heads // config.num_key_value_heads

    def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        return module.weight * x * scale.detach()

    x = model.model.embed_tokens(ids)
    places = torch.arange(len(ids))[None]
    cos, sin = (part[0] for part in model.model.rotary_emb(x[None], places))

    def turned(part: torch.Tensor) -> torch.Tensor:
        half = size // 2
        return part * cos + torch.cat((-part[..., half:], part[..., :half]), -1) * sin

    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        y = norm(block.input_layernorm, x)
        outputs = []
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            group = slice(head // shared * size, (head // shared + 1) * size)
            query, key = y @ attention.q_proj.weight[rows].T, y @ attention.k_proj.weight[group].T
            if hasattr(attention, "q_norm"):
                query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
            scores = turned(query) @ turned(key).T * size**-0.5
            pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
            z = (pattern.detach() if held else pattern) @ (y @ attention.v_proj.weight[group].T)
            b = base[layer][0, 0, rows]
            outputs.append(b + gates[layer, head] * (z - b))
        x = x + torch.cat(outputs, -1) @ attention.o_proj.weight.T
        y = norm(block.post_attention_layernorm, x)
        gate, up = y @ mlp.gate_proj.weight.T, y @ mlp.up_proj.weight.T
        active = gate * torch.sigmoid(gate).detach()
        product = active * up
        x = x + (product / 2 + (product / 2).detach()) @ mlp.down_proj.weight.T
    logits = norm(model.model.norm, x) @ model.lm_head.weight.T
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum")


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_relp_is_the_rules_written_out(name: str, held: bool) -> None:
    model = float64_reference(tiny(name))
    data = random_texts([14])
    view, batch, base = parts(model, data)
    gates = torch.ones(4, 4, dtype=torch.float64, requires_grad=True)
    loss = by_hand(model, batch.ids[0], gates, base, held)
    (expected,) = torch.autograd.grad(loss, gates)
    found, values = relp.effects(view, batch, base, held=held)
    torch.testing.assert_close(values, loss.detach()[None], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[:, 0], -expected.flatten(), rtol=1e-9, atol=1e-12)
    plain, _ = gate_gradients(view, batch, base)
    assert (found + plain).abs().max() > 0.01 * plain.abs().max()  # not the gradient


@pytest.mark.parametrize("rule", ["_norm_rule", "_identity_rule", "_half_rule", "_held"])
def test_each_rule_matters(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one of them the coefficients are others; so none is dead."""
    model = float64_reference(tiny("llama"))
    view, batch, base = parts(model, random_texts([14]))
    whole, _ = relp.effects(view, batch, base, held=True)
    monkeypatch.setattr(relp, rule, lambda *_: None)
    less, _ = relp.effects(view, batch, base, held=True)
    assert (whole - less).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize("name", [*FAMILIES, "midus"])
@pytest.mark.parametrize("method", REGISTERED)
def test_it_works_on_every_family_and_leaves_the_model_as_it_was(name: str, method: str) -> None:
    model = memory_model(double=False) if name == "midus" else tiny(name)
    data = random_texts([20] * 3)
    view, batch, _ = parts(model, data)
    before = clean_run(model, batch, view.sites).values
    table = head_importance(model, data, method=method, agreement=False)
    assert np.isfinite(table["score"]).all() and (table["score"] != 0).any()
    assert table.attrs["method"] == method
    torch.testing.assert_close(clean_run(model, batch, view.sites).values, before, rtol=0, atol=0)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks and all(p.requires_grad for p in model.parameters())
    with torch.no_grad(), relp.relevance(model):
        same = clean_run(model, batch, view.sites).values
    torch.testing.assert_close(same, before, rtol=1e-6, atol=1e-6)


def test_a_norm_without_a_rule_is_refused() -> None:
    model = tiny("llama")
    norm = model.model.norm
    kind = type(norm)
    shifted = lambda self, states: (1 + self.weight) * kind.forward(self, states)  # noqa: E731
    norm.__class__ = type("OtherNorm", (kind,), {"forward": shifted})
    with pytest.raises(ModelError, match="OtherNorm is no norm .* rule"):
        head_importance(model, random_texts([20] * 2), method="relp")


def test_what_has_no_meaning_is_refused() -> None:
    model, data = memory_model(double=False), random_texts([20] * 2)
    for method in REGISTERED:
        with pytest.raises(MidusError, match="no first-order effect"):
            head_importance(model, data, method=method, metric="kl")
    assert set(REGISTERED) == {"atp_star", "relp"} and set(REGISTERED) <= set(METHODS)
    assert not registered("atp_star").signed and registered("relp").signed


@pytest.mark.parametrize("method", REGISTERED)
def test_they_rank_too(method: str) -> None:
    table = rank_heads(tiny("llama"), random_texts([20] * 24), method=method, top=3)
    assert table["score"].is_monotonic_decreasing and table.attrs["top"] == 3
    assert table.attrs["agreement"]["heads"] == 16


def test_upscaled_zero_memory_counts_nothing() -> None:
    model = upscale(tiny("llama"), num_keys=4, top_k=3, latent_dim=8, blocks=[1])
    for method in REGISTERED:
        table = head_importance(model, random_texts([20] * 2), method=method, baseline="zero")
        assert (table.loc[table["kind"] == "memory", "score"] == 0).all()
