"""Dose and response: against exact ablation, folded models, and changes measured in the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance
from analysis.amplify import amplify
from analysis.documents import Documents
from analysis.dose import _intervals, dose_response, moved
from analysis.intervals import t_interval
from analysis.subject import prepared
from analysis.tables import load, save
from kernels.errors import DataError, HeadError, MidusError
from midus_model import HeadSite, blocks, head_sites, upscale
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import tiny, tokens
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

TEXTS = random_texts([9, 33, 14])  # two windows of the second
CHOSEN = [(0, 2), (2, 1), (4, 3)]  # block 2 holds memory


@torch.no_grad()
def loss(model: Any, texts: Documents) -> float:
    """Nats a token, a window at a time."""
    total = 0.0
    for window in texts.windows:
        found = model(window.ids[None]).logits[0, :-1]
        total += float(F.cross_entropy(found, window.ids[1:], reduction="sum"))
    return total / texts.tokens


def curve(table: Any, arm: str) -> Any:
    return table[table["arm"] == arm].set_index("gain")


# ---------------------------------------------------------------- the chosen heads


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("pair", [(1, 2), (2, 1)])
def test_gain_0_of_one_head_is_its_ablation(baseline: str, pair: tuple[int, int]) -> None:
    model = memory_model()
    table = dose_response(model, [pair], TEXTS, gains=(0, 1), baseline=baseline, controls=())
    row = curve(table, "chosen").loc[0]
    exact = head_importance(model, TEXTS, baseline=baseline).set_index(["layer", "head"]).loc[pair]
    assert row["change"] == pytest.approx(exact["score"], abs=1e-12) and abs(row["change"]) > 1e-5
    assert row["by_document"] == pytest.approx(exact["by_document"], abs=1e-12)
    for name in ("stderr", "ci_low", "ci_high"):
        assert row[name] == pytest.approx(exact[name], abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen3-wide", "mistral"])
def test_every_gain_is_that_of_the_folded_model(family: str) -> None:
    model = memory_model(family)
    table = dose_response(model, CHOSEN, TEXTS, gains=(-1, 0, 0.5, 1, 2.5), controls=())
    assert table["gain"].tolist() == [-1, 0, 0.5, 1, 2.5] and (table["heads"] == 3).all()
    clean = loss(model, TEXTS)
    for row in table.to_dict("records"):
        folded = loss(amplify(model, CHOSEN, row["gain"]).folded(), TEXTS)
        assert row["loss"] == pytest.approx(folded, abs=1e-10)
        assert row["change"] == pytest.approx(folded - clean, abs=1e-10)
    at_1 = curve(table, "chosen").loc[1]
    assert at_1["change"] == at_1["ci_low"] == at_1["ci_high"] == 0
    assert table.attrs["clean_loss"] == pytest.approx(clean)


def test_tasks_and_other_metrics_keep_their_own_sign() -> None:
    model, tasks = memory_model(), random_tasks([9, 12, 15], [2, 3, 2], [2, 2, 3])
    for metric, texts in (("logit_difference", tasks), ("accuracy", TEXTS), ("kl", TEXTS)):
        table = dose_response(model, [(0, 1)], texts, gains=(0,), metric=metric, controls=())
        exact = head_importance(model, texts, baseline="zero", metric=metric)
        sign = 1 if exact.attrs["better"] == "lower" else -1
        row = curve(table, "chosen").loc[0]
        assert sign * row["change"] == pytest.approx(exact["score"][1], abs=1e-12)
        assert table["loss"].iloc[-1] == pytest.approx(exact.attrs["clean"], abs=1e-12)
        assert table.attrs["unit"] == exact.attrs["unit"]


# ---------------------------------------------------------------- random heads


def test_random_heads_are_others_of_the_same_layers() -> None:
    model = memory_model()
    table = dose_response(model, CHOSEN, TEXTS, gains=(0, 1, 2), controls=("random",), draws=5)
    sets = [tuple(map(tuple, heads)) for heads in table.attrs["random_heads"]]
    assert len(set(sets)) == 5 and not table.attrs["every_draw"]
    for heads in sets:
        assert [layer for layer, _ in heads] == [0, 2, 4] and not set(heads) & set(CHOSEN)
    rows = curve(table, "random")
    assert (rows["draws"] == 5).all() and (rows["heads"] == 3).all()
    for gain in (0, 2):
        found = [loss(amplify(model, heads, gain).folded(), TEXTS) for heads in sets]
        assert rows.loc[gain, "loss"] == pytest.approx(np.mean(found), abs=1e-10)
        assert rows.loc[gain, "change"] == pytest.approx(np.mean(found) - loss(model, TEXTS))
    assert rows.loc[1, "change"] == 0


def test_where_few_can_be_drawn_all_are() -> None:
    model = memory_model()
    table = dose_response(model, [(0, 2)], TEXTS, gains=(0,), controls=("random",))
    assert table.attrs["random_heads"] == [[[0, 0]], [[0, 1]], [[0, 3]]]
    assert table.attrs["every_draw"] and (curve(table, "random")["draws"] == 3).all()
    # A layer all chosen has none to give, and others make do with fewer.
    heads = [(0, h) for h in range(4)] + [(1, h) for h in range(3)]
    table = dose_response(model, heads, TEXTS, gains=(0,), controls=("random",))
    assert table.attrs["random_heads"] == [[[1, 3]]]
    assert (curve(table, "random")["heads"] == 1).all() and (
        curve(table, "chosen")["heads"] == 7
    ).all()


def test_intervals_hold_both_draws_and_documents() -> None:
    """With one of the two constant the error is that of the other alone."""
    rng = np.random.default_rng(0)
    weights = np.ones(40)
    by_document = np.tile(rng.normal(size=40), (6, 1, 1))
    alike = _intervals(by_document, weights, sampled=True)
    plain = t_interval(by_document[0], weights, together=False)
    for name, part in zip(("change", "stderr", "ci_low", "ci_high"), plain, strict=False):
        np.testing.assert_allclose(alike[name], part, atol=1e-12)
    by_draw = np.tile(rng.normal(size=(12, 1, 1)), (1, 1, 40))
    found = _intervals(by_draw, weights, sampled=True)
    draws = t_interval(by_draw[:, 0, 0], np.ones(12), together=False)
    for name, part in zip(("change", "stderr", "ci_low", "ci_high"), draws, strict=False):
        assert found[name] == pytest.approx(part)
    both = _intervals(by_document + by_draw[:6], weights, sampled=True)
    draws_only = _intervals(by_draw[:6], weights, sampled=True)
    assert both["stderr"] ** 2 == pytest.approx(plain.stderr**2 + draws_only["stderr"] ** 2)
    assert both["ci_high"] - both["change"] == pytest.approx(
        np.hypot(plain.high - plain.estimate, draws_only["ci_high"] - draws_only["change"])
    )
    held = _intervals(by_draw, weights, sampled=False)
    assert held["stderr"] == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------- changes of the same norm


def stream_changes(
    model: Any, sites: list[HeadSite], shifts: torch.Tensor, base: Any, towards: Any
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By block, its site's input before and after `moved`, [rows, T, H*D]."""
    seen: dict[int, list[torch.Tensor]] = {site.layer: [] for site in sites}
    modules = {site.layer: site.module for site in sites}

    def keep(layer: int) -> Any:
        return lambda _, args: seen[layer].append(args[0])

    before = [m.register_forward_pre_hook(keep(layer)) for layer, m in modules.items()]
    ids = tokens(2, 8).repeat(len(shifts) // 2, 1)
    with torch.no_grad(), moved(model, sites, base, shifts, towards):
        after = [m.register_forward_pre_hook(keep(layer)) for layer, m in modules.items()]
        model(ids)
    for hook in before + after:
        hook.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    return {layer: (pair[0], pair[1]) for layer, pair in seen.items()}


def written(model: Any, layer: int, outputs: torch.Tensor) -> torch.Tensor:
    """What head outputs add to the stream, [rows, T, d]."""
    block = blocks(model)[layer]
    memory = getattr(block, "memory", None)
    if memory is None:
        return outputs @ block.self_attn.o_proj.weight.T
    return outputs if memory.out_proj is None else outputs @ memory.out_proj.weight.T


@pytest.mark.parametrize("name", ["llama", "qwen3-wide", "subset"])
def test_the_stream_moves_as_far_in_another_direction(name: str) -> None:
    if name == "subset":  # memory in blocks 1 and 4, of heads 3 and 1, 2
        model = memory_model("mistral", heads=[(0, 3), (2, 1), (2, 2)])
        wanted = [(0, 1), (1, 3), (4, 2)]
    else:
        model, wanted = memory_model(name), CHOSEN
    every = head_sites(model)
    sites = [site for site in every if (site.layer, site.head) in wanted]
    width = sites[0].stop - sites[0].start
    base = {site.layer: torch.randn(1, 1, 4 * width).double() for site in every}
    generator = torch.Generator().manual_seed(1)
    drawn = {site.layer: torch.randn(2, 8, 4 * width, generator=generator) for site in sites}
    shifts = torch.tensor([-1.0, -1, 0.5, 0.5, 0, 0])
    found = stream_changes(model, sites, shifts, base, lambda layer: drawn[layer])
    for site in sites:
        before, after = found[site.layer]
        span = slice(site.start, site.stop)
        gated = torch.zeros_like(before)
        gated[..., span] = shifts[:, None, None] * (before - base[site.layer])[..., span]
        asked = written(model, site.layer, gated).norm(dim=-1)  # [rows, T]
        change = after - before
        made = written(model, site.layer, change)
        torch.testing.assert_close(made.norm(dim=-1), asked, rtol=1e-9, atol=1e-12)
        assert (asked[:4] > 1e-3).all() and (change[4:] == 0).all()
        # The direction is the one drawn, there and back, and not the gate's own.
        inside = [s for s in every if s.layer == site.layer]
        mask = torch.zeros(before.shape[-1]).double()
        for one in inside:
            mask[one.start : one.stop] = 1
        free = drawn[site.layer].double() * mask
        cosine = F.cosine_similarity(change[:4], free.repeat(2, 1, 1), dim=-1)
        torch.testing.assert_close(cosine, shifts[:4, None].sign().expand(4, 8).double())
        assert F.cosine_similarity(change[:4], gated[:4], dim=-1).abs().mean() < 0.7


def test_the_norm_control_is_the_same_however_it_is_batched() -> None:
    model = memory_model()
    given: dict[str, Any] = {"gains": (0, 0.5, 1.5), "controls": ("matched_norm",)}
    table = dose_response(model, CHOSEN, TEXTS, **given)
    least = prepared(model, TEXTS).plan
    small = dose_response(model, CHOSEN, TEXTS, memory_budget=400_000, **given)
    assert prepared(model, TEXTS, memory_budget=400_000).plan.windows < least.windows
    np.testing.assert_allclose(small["loss"], table["loss"], atol=1e-12)
    rows = curve(table, "matched_norm")
    assert rows.loc[1, "change"] == 0 and (rows["change"].drop(1).abs() > 1e-5).all()
    other = curve(dose_response(model, CHOSEN, TEXTS, seed=1, **given), "matched_norm")
    assert (other["change"] != rows["change"]).drop(1).all()


def test_a_block_that_writes_nothing_is_not_moved() -> None:
    model = upscale(tiny("llama"), "llama-pro")  # copies in blocks 2 and 5, o_proj zero
    table = dose_response(model, [(2, 1)], TEXTS, gains=(0, 2))
    assert len(table) == 9
    np.testing.assert_allclose(table["change"], 0, atol=1e-6)  # how it is batched may round


# ---------------------------------------------------------------- what is given


def test_by_default_heads_are_chosen_on_other_documents() -> None:
    model, texts = float64_reference(tiny("llama")), random_texts([12 + n for n in range(8)])
    table = dose_response(model, None, texts, gains=(0,), controls=())
    first, second = texts.halves(0)
    best = head_importance(model, first, baseline="zero").nlargest(4, "score")
    assert table.attrs["heads"] == sorted(map(list, zip(best["layer"], best["head"], strict=True)))
    assert table.attrs["chosen_on"] == first.name and table.attrs["data"] == second.name
    given = dose_response(model, best, second, gains=(0,), controls=())
    assert given["loss"].equals(table["loss"]) and given.attrs["chosen_on"] is None


def test_the_table_has_a_row_an_arm_and_gain_and_survives_the_disc(tmp_path: Any) -> None:
    table = dose_response(memory_model(), CHOSEN, TEXTS, gains=(2, 0, 2), draws=2)
    assert table["arm"].tolist() == ["chosen"] * 3 + ["random"] * 3 + ["matched_norm"] * 3
    assert table["gain"].tolist() == [0, 1, 2] * 3
    assert table["draws"].tolist() == [1] * 3 + [2] * 3 + [1] * 3
    assert (table["ci_low"] <= table["change"]).all() and (
        table["change"] <= table["ci_high"]
    ).all()
    save(table, tmp_path / "dose")
    assert load(tmp_path / "dose").attrs == table.attrs
    assert table.attrs["table"] == "dose_response" and table.attrs["baseline"] == "zero"
    alone = dose_response(memory_model(), CHOSEN, TEXTS, gains=())
    assert (alone["gain"] == 1).all() and (alone["change"] == 0).all() and len(alone) == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"heads": [(9, 0)]}, HeadError, "does not exist"),
        ({"heads": [(0, h) for h in range(4)]}, HeadError, "all that their layers have"),
        ({"gains": (0, float("nan"))}, MidusError, "gains has nan"),
        ({"gains": 2}, MidusError, "gains is 2"),
        ({"baseline": "resample"}, MidusError, "baseline is 'resample'"),
        ({"controls": ("shuffled",)}, MidusError, "controls is 'shuffled'"),
        ({"draws": 0}, MidusError, "draws is 0"),
        ({"metric": "bits"}, MidusError, "metric is 'bits'"),
        ({"heads": None, "data": random_texts([9])}, DataError, "cannot be halved"),
    ],
)
def test_wrong_arguments_are_named(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    given: dict[str, Any] = {"heads": [(0, 1)], "data": TEXTS} | options
    with pytest.raises(error, match=words):
        dose_response(tiny("llama"), **given)
