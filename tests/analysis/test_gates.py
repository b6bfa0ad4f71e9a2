"""Path integrals, Shapley values, direct effects and normalisations against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import gates, head_importance, rank_heads
from analysis.ablation import ablated_values
from analysis.direct import direct_effects
from analysis.documents import Document, Documents
from analysis.engine import Batch, Replacement, batch_of, clean_run, window_values
from analysis.gates import Gated
from analysis.memory_plan import plan_for
from analysis.methods import METHODS
from kernels.errors import MidusError
from midus_model import head_sites, upscale
from tests.models import VOCABULARY, tiny
from tests.reference import fill_banks, float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


def model_of(name: str, **changes: Any) -> Any:
    if not name.startswith("midus"):
        return float64_reference(tiny(name, **changes))
    options: dict[str, Any] = {"num_keys": 4, "top_k": 3, "latent_dim": 8, "blocks": [1]}
    base = tiny("qwen3-wide" if name == "midus-mixed" else "llama", **changes)
    return float64_reference(fill_banks(upscale(base, **options)))


def data_of(lengths: list[int]) -> Documents:
    generator = torch.Generator().manual_seed(3)
    items = [
        Document(str(n), torch.randint(3, VOCABULARY, (length,), generator=generator), f"{n:064x}")
        for n, length in enumerate(lengths)
    ]
    return Documents("random", items, 20)


def parts(model: Any, data: Documents, baseline: str = "zero") -> tuple[Gated, Batch, Replacement]:
    """The model through gates, a batch, and what replaces its heads: zero, or random."""
    sites = head_sites(model)
    batch = batch_of(data.windows, torch.device("cpu"))
    width = model.config.num_attention_heads * (sites[0].stop - sites[0].start)
    draw = torch.zeros if baseline == "zero" else torch.randn
    base = {layer: draw(1, 1, width).double() for layer in sorted({s.layer for s in sites})}
    return Gated(model, [(site,) for site in sites], plan_for(model, 20)), batch, base


def value(model: Any, data: Documents, replacement: Replacement, off: set[int]) -> float:
    """Summed loss with some heads ablated, each by a hook of its own."""
    sites = head_sites(model)
    hooks = []
    for i in off:

        def change(_: Any, args: tuple, i: int = i) -> tuple:
            outputs = args[0].clone()
            span = slice(sites[i].start, sites[i].stop)
            outputs[..., span] = replacement[sites[i].layer][..., span]
            return (outputs,)

        hooks.append(sites[i].module.register_forward_pre_hook(change))
    with torch.no_grad():
        batch = batch_of(data.windows, torch.device("cpu"))
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        total = float(window_values(model, hidden, batch).sum())
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "midus", "midus-mixed"])
def test_integrated_gradients_are_complete(name: str) -> None:
    """Retrieval frozen; the sum is the loss of ablating every head, computed by other hooks."""
    model, data = model_of(name), data_of([12, 20])
    view, batch, baselines = parts(model, data, "random")
    scores, clean, gap = gates.integrated_gradients(view, batch, baselines)
    everything = set(range(len(view.units)))
    total = value(model, data, baselines, everything) - value(model, data, baselines, set())
    assert float(scores.sum()) == pytest.approx(total, rel=1e-3)
    assert float(gap.abs().max()) < 1e-3 * abs(total)
    assert float(clean.sum()) == pytest.approx(value(model, data, baselines, set()), abs=1e-9)


def test_completeness_is_reported_and_free_retrieval_leaves_a_gap() -> None:
    model, data = model_of("midus"), data_of([12, 20])
    frozen = head_importance(model, data, method="integrated_gradients", baseline="zero")
    assert frozen.attrs["completeness"]["relative_gap"] < 1e-3
    tokens = sum(unit["tokens"] for unit in data.units)
    view, _, baselines = parts(model, data)
    off = value(model, data, baselines, set(range(len(view.units)))) - value(
        model, data, baselines, set()
    )
    assert frozen.attrs["completeness"]["total"] == pytest.approx(off / tokens, rel=1e-6)
    free = head_importance(
        model, data, method="integrated_gradients", baseline="zero", retrieval="free"
    )
    gap = free.attrs["completeness"]["relative_gap"]
    assert gap > frozen.attrs["completeness"]["relative_gap"] and free.attrs["retrieval"] == "free"


def test_frozen_retrieval_changes_nothing_in_a_clean_run() -> None:
    model, data = model_of("midus"), data_of([12])
    view, batch, baselines = parts(model, data)
    kept = gates.clean_retrieval(view, batch)
    assert list(kept) == [site.layer for site in view.sites if site.kind == "memory"][:1]
    ones = torch.ones(len(batch.ids), len(view.units), dtype=torch.float64)
    with torch.no_grad():
        values = gates.gated_values(view, batch, baselines, ones, kept)
    assert torch.equal(values, clean_run(model, batch, view.sites).values)


@pytest.fixture(scope="module")
def eight() -> tuple[Any, Documents, Replacement, np.ndarray]:
    """A model of eight heads, and exact Shapley values over its 256 coalitions."""
    model, data = model_of("llama", num_hidden_layers=2), data_of([9, 14])
    view, _, baselines = parts(model, data)
    count = len(view.units)
    assert count == 8
    values = {
        off: value(model, data, baselines, set(off))
        for size in range(count + 1)
        for off in itertools.combinations(range(count), size)
    }
    exact = np.zeros(count)
    for head in range(count):
        for off, before in values.items():
            if head in off:
                continue
            weight = math.factorial(len(off)) * math.factorial(count - len(off) - 1)
            after = values[tuple(sorted((*off, head)))]
            exact[head] += weight / math.factorial(count) * (after - before)
    return model, data, baselines, exact


def test_shapley_values_lie_near_exact_enumeration(eight: Any) -> None:
    """Each within four of its standard errors, and the sum exact in every order."""
    model, data, baselines, exact = eight
    table = head_importance(model, data, method="shapley", baseline="zero", permutations=40)
    tokens = sum(unit["tokens"] for unit in data.units)
    score, stderr = table["score"].to_numpy(), table["stderr"].to_numpy()
    assert (stderr > 0).all() and (stderr < np.abs(exact).max() / tokens).all()
    assert (np.abs(score - exact / tokens) <= 4 * stderr).all()
    assert (table["ci_low"] <= score).all() and (score <= table["ci_high"]).all()
    total = value(model, data, baselines, set(range(8))) - value(model, data, baselines, set())
    assert table["score"].sum() == pytest.approx(total / tokens, abs=1e-6)
    assert exact.sum() == pytest.approx(total, abs=1e-6)
    view, batch, _ = parts(model, data)
    orders = [np.random.default_rng(0).permutation(8), np.arange(8)]
    shares, _ = gates.shapley_values(view, batch, baselines, orders)
    assert (shares.sum((1, 2)) - total).abs().max() < 1e-6


def test_folds_of_shapley_change_nothing(eight: Any) -> None:
    model, data, baselines, _ = eight
    view, batch, _ = parts(model, data)
    orders = [np.arange(8)]
    whole, _ = gates.shapley_values(view, batch, baselines, orders)
    assert view.plan.folds(batch) > 1
    view.plan.most = 1
    single, _ = gates.shapley_values(view, batch, baselines, orders)
    assert (whole - single).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["llama", "midus", "midus-mixed"])
def test_direct_effects_make_up_the_logit(name: str) -> None:
    """Heads (zero baseline), embeddings and FFNs add up to the target's logit exactly."""
    model, data = model_of(name), data_of([15])
    view, batch, baselines = parts(model, data)
    kept: dict[str, Any] = {"rest": []}
    hooks = [
        model.model.embed_tokens.register_forward_hook(lambda m, a, out: kept["rest"].append(out)),
        model.model.norm.register_forward_pre_hook(lambda m, a: kept.update(last=a[0])),
    ]
    hooks += [
        block.mlp.register_forward_hook(lambda m, a, out: kept["rest"].append(out))
        for block in model.model.layers
        if hasattr(block, "mlp")
    ]
    with torch.no_grad():
        logits = model(batch.ids).logits[:, :-1]
    for hook in hooks:
        hook.remove()
    targets = batch.ids[:, 1:]
    want = logits.gather(-1, targets[..., None]).sum()
    norm = model.model.norm
    rms = (kept["last"].square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    rest = sum(kept["rest"]) / rms * norm.weight
    others = (rest[:, :-1] * model.lm_head.weight[targets]).sum()
    effects, _ = direct_effects(view, batch, baselines)
    assert float(effects.sum() + others) == pytest.approx(float(want), abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "midus"])
def test_taylor_and_fisher_are_the_gradient_signed_and_squared(name: str) -> None:
    model, data = model_of(name), data_of([12, 20, 7])
    tables = {
        method: np.array(
            head_importance(model, data, method=method, baseline="zero")["by_document"].tolist()
        )
        for method in ("gradient", "taylor", "fisher")
    }
    np.testing.assert_allclose(np.abs(tables["taylor"]), tables["gradient"], atol=1e-12)
    np.testing.assert_allclose(tables["fisher"], tables["gradient"] ** 2, atol=1e-12)
    # To first order it is the ablation effect: on a head whose output is nearly its baseline.
    assert (tables["taylor"] < 0).any() and (tables["taylor"] > 0).any()


def test_taylor_is_ablation_where_a_head_hardly_counts() -> None:
    """With a head's columns of o_proj made 1e-4 of what they were, the first order is all."""
    model, data = model_of("llama"), data_of([16])
    view, batch, baselines = parts(model, data, "random")
    site = view.sites[5]
    with torch.no_grad():
        site.module.weight[:, site.start : site.stop] *= 1e-4
    run = clean_run(model, batch, view.sites)
    values = ablated_values(model, run, [(site,)], baselines, view.plan)
    exact = float((values - run.values).sum())
    gradients, _ = gates.gate_gradients(view, batch, baselines)
    assert exact != 0 and -float(gradients[5].sum()) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ranks(method: str) -> None:
    model, data = model_of("midus"), data_of([12] * 20)
    table = head_importance(model, data, method=method)
    assert np.isfinite(table["score"]).all() and table.attrs["method"] == method
    ranking = rank_heads(model, data, method=method, top=3)
    assert ranking["score"].is_monotonic_decreasing
    assert ranking["p_top"].sum() == pytest.approx(3)


def test_normalisations() -> None:
    model, data = model_of("llama"), data_of([12, 20])
    plain = head_importance(model, data)
    layer = head_importance(model, data, normalise="layer")
    share = head_importance(model, data, normalise="share")
    norms = layer.groupby("layer")["score"].apply(np.linalg.norm)
    assert np.allclose(norms, 1) and layer.attrs["normalise"] == "layer"
    assert share["score"].sum() == pytest.approx(1) and (share["score"] >= 0).all()
    assert (share["ci_low"] <= share["score"]).all() and (share["score"] <= share["ci_high"]).all()
    negative = -plain["score"].clip(upper=0).sum()
    assert share.attrs["negative_mass"] == pytest.approx(negative)
    positive = plain["score"] > 0
    ratio = share["score"][positive] / plain["score"][positive]
    assert np.allclose(ratio, ratio.iloc[0])
    pd.testing.assert_series_equal(share["by_document"], plain["by_document"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "lrp"}, "method is 'lrp'.*shapley"),
        ({"normalise": "max"}, "normalise is 'max'.*share"),
        ({"retrieval": "none"}, "retrieval is 'none'.*frozen"),
        ({"method": "shapley", "permutations": 3}, "permutations is 3.*even"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], named: str) -> None:
    with pytest.raises(MidusError, match=named):
        head_importance(tiny("llama"), data_of([9]), **options)
