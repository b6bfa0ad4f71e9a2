"""Head importance against a plain loop, a head and a window at a time, and finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import ablation, head_importance
from analysis.documents import Document, Documents, documents
from analysis.figure_data import interval_words
from analysis.intervals import by_document, shares_by_document, t_interval
from analysis.methods import METHODS
from analysis.subject import prepared
from analysis.tables import weights_of
from kernels.errors import MidusError, ModelError, UnsupportedArchitecture
from midus_model import head_sites, load, upscale
from tests.models import VOCABULARY, tiny
from tests.reference import Choices, fill_banks, float64_reference, watched

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

MODELS = ["llama", "qwen3", "qwen3-wide", "mistral", "midus", "midus-qwen3-wide", "midus-heads"]
MARGIN = 1e-5


def model_of(name: str) -> Any:
    """A tiny base of a family, or one with memory, its bank filled with random values."""
    if name == "pico":
        return load("pico")
    if not name.startswith("midus"):
        return tiny(name)
    small: dict[str, Any] = {"num_keys": 4, "top_k": 3, "latent_dim": 8}
    if name == "midus-heads":
        return fill_banks(upscale(tiny("mistral"), heads=[(0, 3), (2, 1), (2, 2)], **small))
    return fill_banks(upscale(tiny(name.removeprefix("midus-").replace("midus", "llama")), **small))


def data_of(lengths: list[int], context: int = 20, first_scored: int = 1) -> Documents:
    """Documents of random tokens, of the given lengths."""
    generator = torch.Generator().manual_seed(3)
    items = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        items.append(Document(str(number), ids, f"{number:064x}", None, first_scored))
    return Documents("random", items, context)


def pico_data() -> Documents:
    first = documents(model="pico", limit=2)
    items = [Document(d.id, d.ids[:n], d.sha256) for d, n in zip(first, (40, 23), strict=True)]
    return Documents("two short windows", items, 64)


# ---------------------------------------------------------------- the plain loop


def places(model: Any) -> list[tuple[int, int, Any, slice]]:
    """(layer, head, module, slice) of every head, found without `head_sites`."""
    found = []
    size = model.model.layers[0].self_attn.head_dim
    for layer, block in enumerate(model.model.layers):
        memory = getattr(block, "memory", None)
        module = block.self_attn.o_proj if memory is None else memory.out
        heads = range(model.config.num_attention_heads) if memory is None else memory.heads
        found += [(layer, h, module, slice(h * size, (h + 1) * size)) for h in heads]
    return found


@contextmanager
def gated(module: Any, span: slice, baseline: torch.Tensor, gate: float = 0.0) -> Iterator[None]:
    """The head's output b + gate * (z - b) inside the block."""

    def change(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        outputs = args[0].clone()
        b = baseline.to(outputs.dtype)
        outputs[..., span] = b + gate * (outputs[..., span] - b)
        return (outputs,)

    hook = module.register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def loss_of(model: Any, window: Any) -> float:
    """Summed loss of one window's scored tokens in nats."""
    logits = model(window.ids[None]).logits[0, :-1]
    logits = logits.double()
    return float(
        F.cross_entropy(logits[window.scored], window.ids[1:][window.scored], reduction="sum")
    )


@torch.no_grad()
def mean_by_hand(model: Any, data: Documents) -> dict[tuple[int, int], torch.Tensor]:
    """Mean output of every head over all positions, each token of a document counted once."""
    sums: dict[tuple[int, int], torch.Tensor] = {}
    counted = 0
    for number in range(len(data)):
        seen: set[int] = set()
        for window in (w for w in data.windows if w.document == number):
            kept: dict[int, torch.Tensor] = {}
            hooks = [
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer, kept=kept: kept.__setitem__(layer, args[0][0])
                )
                for layer, _, module, _ in places(model)
            ]
            model(window.ids[None])
            for hook in hooks:
                hook.remove()
            new = [t for t in range(len(window.ids)) if window.start + t not in seen]
            seen |= {window.start + t for t in new}
            counted += len(new)
            for layer, head, _, span in places(model):
                total = kept[layer][new][:, span].double().sum(0)
                sums[layer, head] = sums.get((layer, head), torch.zeros_like(total)) + total
    return {head: total / counted for head, total in sums.items()}


def baselines_by_hand(model: Any, data: Documents, kind: str) -> list[torch.Tensor]:
    if kind == "zero":
        return [torch.zeros(span.stop - span.start) for _, _, _, span in places(model)]
    means = mean_by_hand(model, data)
    return [means[layer, head] for layer, head, _, _ in places(model)]


def ablated_by_hand(model: Any, data: Documents, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Effect of every head on every unit [heads, units] in nats a token, and each head's margin."""
    tokens = np.array([unit["tokens"] for unit in data.units])
    effects = np.zeros((len(places(model)), len(tokens)))
    margins = np.full(len(effects), np.inf)
    with watched(model) as choices:
        clean = [loss_of(model, window) for window in data.windows]
    for row, ((_, _, module, span), baseline) in enumerate(
        zip(places(model), baselines_by_hand(model, data, kind), strict=True)
    ):
        with gated(module, span, baseline), watched(model) as ablated:
            for window, before in zip(data.windows, clean, strict=True):
                effects[row, window.unit] += loss_of(model, window) - before
        margins[row] = min(choices.margin, ablated.margin)
    return effects / tokens, margins


def matrix(table: Any) -> np.ndarray:
    return np.array(table["by_document"].tolist())


# ---------------------------------------------------------------- ablation


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("name", [*MODELS, "pico"])
def test_ablation_equals_the_plain_loop(name: str, baseline: str) -> None:
    model = model_of(name)
    data = pico_data() if name == "pico" else data_of([33, 9, 20, 2])
    table = head_importance(model, data, method="ablation", baseline=baseline)
    expected, margins = ablated_by_hand(model, data, baseline)
    assert list(zip(table["layer"], table["head"], strict=True)) == [p[:2] for p in places(model)]
    sure = margins > MARGIN  # within it two correct computations may choose different slots
    assert sure.mean() > 0.5
    assert np.abs(matrix(table) - expected)[sure].max() < 1e-5
    weights = np.array([unit["tokens"] for unit in data.units])
    scores = (expected * weights).sum(1) / weights.sum()
    assert np.abs(table["score"].to_numpy() - scores)[sure].max() < 1e-5
    assert np.abs(expected[sure]).max() > 1e-3
    clean = sum(loss_of(model, window) for window in data.windows) / weights.sum()
    assert abs(table.attrs["clean_loss"] - clean) < 1e-5


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_ablation_equals_the_plain_loop_in_float64(name: str, baseline: str) -> None:
    model = float64_reference(model_of(name))
    data = data_of([33, 9, 20, 2])
    table = head_importance(model, data, method="ablation", baseline=baseline)
    expected, margins = ablated_by_hand(model, data, baseline)
    assert margins.min() > 1e-10
    assert np.abs(matrix(table) - expected).max() < 1e-9


@pytest.mark.parametrize("name", ["mistral", "midus", "midus-heads"])
def test_folding_and_padding_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of many lengths in one batch, all heads folded: as each window and head alone."""
    model = float64_reference(model_of(name))
    data = data_of([33, 9, 20, 2, 17, 5, 12, 30])
    subject = prepared(model, data)
    assert len({len(window.ids) for window in data.windows}) > 4
    every = list(range(len(data.windows)))
    folded, together = subject.ablated(every)
    for column in every:
        effects, alone = subject.ablated([column])
        assert abs(alone[0] - together[column]) < 1e-9
        assert np.abs(effects[:, 0] - folded[:, column]).max() < 1e-9
    folds = []
    resume = ablation.Resumed.resume

    def counted(*args: Any) -> torch.Tensor:
        folds.append(len(args[3]))
        return resume(*args)

    monkeypatch.setattr(ablation.Resumed, "resume", counted)
    for most in (3, 1):
        subject.plan.most = most
        folds.clear()
        chunked, _ = subject.ablated(every)
        assert np.abs(chunked - folded).max() < 1e-9
        assert max(folds) == min(most, max(folds)) and sum(folds) == len(subject.units)
        assert most > 1 or set(folds) == {1}


def test_an_ablation_leaves_no_hook_behind() -> None:
    model, data = model_of("midus"), data_of([12])
    before = loss_of(model, data.windows[0])
    for method in METHODS:
        head_importance(model, data, method=method)
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert loss_of(model, data.windows[0]) == before


# ---------------------------------------------------------------- the mean


@pytest.mark.parametrize("name", ["llama", "midus-qwen3-wide", "midus-heads"])
@pytest.mark.parametrize("first_scored", [1, 25], ids=["texts", "tasks"])
def test_the_mean_counts_every_token_once(name: str, first_scored: int) -> None:
    model = float64_reference(model_of(name))
    lengths = [50, 27, 39, 40, 31] if first_scored > 1 else [50, 3, 39, 40, 2, 20, 21, 7, 11]
    data = data_of(lengths, first_scored=first_scored)
    assert len(data.windows) > len(data)
    means = prepared(model, data, baseline="mean").baseline.fixed
    for (layer, head), expected in mean_by_hand(model, data).items():
        size = len(expected)
        found = means[layer][0, 0, head * size : (head + 1) * size]
        assert (found - expected).abs().max() < 1e-12


# ---------------------------------------------------------------- gradients


def differences(model: Any, data: Documents, baseline: str, step: float = 1e-5) -> np.ndarray:
    """dL/dgate at 1 of every head and unit [heads, units], by central differences of the gate."""
    tokens = np.array([unit["tokens"] for unit in data.units])
    result = np.zeros((len(places(model)), len(tokens)))
    chosen: list[Choices] = []
    for row, ((_, _, module, span), b) in enumerate(
        zip(places(model), baselines_by_hand(model, data, baseline), strict=True)
    ):
        for sign in (1, -1):
            with gated(module, span, b, 1 + sign * step), watched(model) as choices:
                for window in data.windows:
                    result[row, window.unit] += sign * loss_of(model, window) / (2 * step)
            chosen.append(choices)
    assert all(chosen[0].same_slots(other) for other in chosen), "a step switched slots"
    return result / tokens


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_finite_differences(name: str, baseline: str) -> None:
    model = float64_reference(model_of(name))
    data = data_of([12, 29])
    expected = differences(model, data, baseline)
    table = head_importance(model, data, method="gradient", baseline=baseline)
    assert np.abs(matrix(table) - np.abs(expected)).max() < 1e-7
    # the mean over documents of the absolute value, documents counting alike
    assert np.abs(table["score"].to_numpy() - np.abs(expected).mean(1)).max() < 1e-7
    assert np.abs(expected).max() > 1e-2
    taylor = head_importance(model, data, method="taylor", baseline=baseline)
    assert np.abs(matrix(taylor) + expected).max() < 1e-7
    tokens = sum(unit["tokens"] for unit in data.units)
    clean = sum(loss_of(model, window) for window in data.windows) / tokens
    assert abs(taylor.attrs["clean_loss"] - clean) < 1e-9


def test_gradient_scores_take_absolute_values_per_document_not_per_window() -> None:
    """A long document's windows are summed before the absolute value; documents count alike."""
    model = float64_reference(tiny("llama"))
    data = data_of([50, 30, 8, *[4] * 17])
    assert data.unit == "document" and len(data.windows) > len(data)
    expected = np.abs(differences(model, data, "zero"))
    table = head_importance(model, data, method="gradient", baseline="zero")
    assert matrix(table).shape == (16, 20)
    assert np.abs(matrix(table) - expected).max() < 1e-7
    assert np.abs(table["score"].to_numpy() - expected.mean(1)).max() < 1e-7


def test_no_gradients_are_needed_of_the_caller() -> None:
    model, data = tiny("llama"), data_of([12])
    plain = head_importance(model, data, method="gradient")
    with torch.no_grad():
        quiet = head_importance(model, data, method="gradient")
    assert plain["score"].equals(quiet["score"])


# ---------------------------------------------------------------- the table, and what goes wrong


def test_the_table_says_how_it_was_made() -> None:
    calls: list[tuple[int, int, str]] = []
    model, data = model_of("midus-heads"), data_of([12, 29])
    table = head_importance(model, data, baseline="mean", progress=lambda *call: calls.append(call))
    sites = head_sites(model)
    for column in ("layer", "kind", "head", "source_layer"):
        assert table[column].tolist() == [getattr(site, column) for site in sites]
    assert (table["ci_low"] <= table["score"]).all() and (table["score"] <= table["ci_high"]).all()
    how = {"method": "ablation", "baseline": "mean", "metric": "loss", "bootstrap_unit": "document"}
    assert {key: table.attrs[key] for key in how} == how
    assert (table["unit"] == "document").all()
    assert (table["ci_low_all"] < table["ci_low"]).all()
    assert table.attrs["inserted_layers"] == [1, 4]
    assert table.attrs["documents"] == data.units
    every = len(data.windows) * len(sites)  # evaluations, a head on a window each
    assert calls[-1][:2] == (every, every)
    assert any(total == 0 and "about" in text for _, total, text in calls)  # told before
    again = head_importance(model, data, baseline="mean")
    assert table["score"].equals(again["score"]) and table["ci_low"].equals(again["ci_low"])


def test_a_single_document_is_measured_in_windows_by_name() -> None:
    with pytest.warns(UserWarning, match="one document, so intervals are over its windows"):
        table = head_importance(tiny("llama"), data_of([60]))
    assert (table["unit"] == "window").all() and table.attrs["bootstrap_unit"] == "window"
    assert "windows of a document are alike" in table.attrs["interval_note"]
    assert "95% t over windows" in interval_words(table)


@pytest.mark.parametrize("how", ["share", "layer"])
def test_a_quotients_interval_has_the_error_of_its_own_denominator(how: str) -> None:
    model, data = tiny("llama"), data_of([12, 29, 17, 22, 15, 19])
    plain = head_importance(model, data)
    table = head_importance(model, data, normalise=how)
    scores, weights = np.array(plain["by_document"].tolist()), weights_of(plain)
    layers = plain["layer"].to_numpy()

    def over_norms(mean: np.ndarray) -> np.ndarray:
        norms = [np.linalg.norm(mean[..., layers == layer], axis=-1) for layer in layers]
        return mean / np.stack(norms, -1)

    values = shares_by_document(scores, weights)
    if how == "layer":
        values = by_document(over_norms, [scores], weights)
    expected, least = t_interval(values, weights), 0 if how == "share" else -np.inf
    np.testing.assert_allclose(table["stderr"], expected.stderr)
    np.testing.assert_allclose(table["ci_low"], np.maximum(expected.low, least))
    np.testing.assert_allclose(table["ci_high_all"], np.maximum(expected.high_all, least))
    held = plain["stderr"] * (table["score"] / plain["score"]).abs()  # as if it had no error
    sure = (plain["score"] > 0).to_numpy()
    assert (np.abs(table["stderr"] / held - 1)[sure] > 0.01).all()


@pytest.mark.parametrize("method", ["ablation", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_losses_that_are_not_finite(method: str, value: float) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = value
    for baseline in ("zero", "mean"):
        with pytest.raises(ModelError, match="not finite") as caught:
            head_importance(model, data_of([12]), method=method, baseline=baseline)
        assert "\n" not in str(caught.value)


def test_a_model_without_weights_or_of_no_known_family() -> None:
    with torch.device("meta"):
        empty = type(tiny("llama"))(tiny("llama").config)
    with pytest.raises(ModelError, match="meta device"):
        head_importance(empty, data_of([12]))
    with pytest.raises(UnsupportedArchitecture):
        head_importance(torch.nn.Linear(2, 2), data_of([12]))
    with pytest.raises(ModelError, match="no model at"):
        head_importance("picoo", data_of([12]))


@pytest.mark.parametrize(
    "wrong",
    [{"method": "guess"}, {"baseline": "median"}, {"metric": "perplexity"}, {"method": None}],
)
def test_an_unknown_choice_names_the_known_ones(wrong: dict[str, Any]) -> None:
    with pytest.raises(MidusError, match=f"{next(iter(wrong))} is .*must be one of") as caught:
        head_importance(tiny("llama"), data_of([12]), **wrong)
    assert "\n" not in str(caught.value)


def test_tokens_outside_the_vocabulary() -> None:
    data = Documents("other", [Document("0", torch.tensor([5, VOCABULARY, 7]), "0" * 64)], 20)
    with pytest.raises(MidusError):
        head_importance(tiny("llama"), data)
