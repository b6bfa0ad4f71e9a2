"""Every metric against one forward pass at a time with a hook of its own, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from analysis import head_importance, prune_curve, rank_heads
from analysis.documents import Document, Documents, Window
from analysis.metrics import ACCURACY, METRICS, Metric, Rows, metric_of
from kernels.errors import DataError, MidusError, ModelError
from midus_model import head_sites
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import VOCABULARY, tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

Value = Callable[[torch.Tensor, torch.Tensor, Window], float]


@torch.no_grad()
def by_hand(model: Any, data: Documents, value: Value) -> np.ndarray:
    """What zeroing each head adds to `value(logits, clean logits, window)`: [heads, units]."""
    clean = [model(window.ids[None]).logits[0] for window in data.windows]
    effects = np.zeros((len(head_sites(model)), len(data.units)))
    for row, site in enumerate(head_sites(model)):

        def zero(_: Any, args: tuple, site: Any = site) -> tuple:
            outputs = args[0].clone()
            outputs[..., site.start : site.stop] = 0
            return (outputs,)

        hook = site.module.register_forward_pre_hook(zero)
        for column, window in enumerate(data.windows):
            logits = model(window.ids[None]).logits[0]
            before = value(clean[column], clean[column], window)
            effects[row, window.unit] += value(logits, clean[column], window) - before
        hook.remove()
    return effects


def kl(logits: torch.Tensor, clean: torch.Tensor, window: Window) -> float:
    p, q = clean[:-1].softmax(-1), logits[:-1].softmax(-1)
    return float((p * (p / q).log()).sum(-1)[window.scored].sum())


def accuracy(logits: torch.Tensor, _: torch.Tensor, window: Window) -> float:
    right = logits[:-1].argmax(-1) == window.ids[1:]
    return float(right[window.scored].sum())


def whole_answer(logits: torch.Tensor, _: torch.Tensor, window: Window) -> float:
    right = logits[:-1].argmax(-1) == window.ids[1:]
    return float(right[window.scored].all())


def matrix(table: Any) -> np.ndarray:
    return np.array(table["by_document"].tolist())


@pytest.mark.parametrize("name", ["kl", "accuracy", "own"])
def test_metrics_of_texts(name: str) -> None:
    model, data = memory_model(), random_texts([12, 33, 7])
    tokens = np.array([unit["tokens"] for unit in data.units])

    def own(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -(logits.softmax(-1).gather(1, targets[:, None])[:, 0] ** 2)

    def own_value(logits: torch.Tensor, _: torch.Tensor, window: Window) -> float:
        chance = logits[:-1].softmax(-1).gather(1, window.ids[1:, None])[:, 0]
        return float(-(chance**2)[window.scored].sum())

    given: dict[str, tuple[Any, Value, int]] = {
        "kl": ("kl", kl, 1), "accuracy": ("accuracy", accuracy, -1), "own": (own, own_value, 1)
    }  # fmt: skip
    metric, value, sign = given[name]
    table = head_importance(model, data, metric=metric, baseline="zero")
    expected = sign * by_hand(model, data, value) / tokens
    assert np.abs(matrix(table) - expected).max() < 1e-9 and np.abs(expected).max() > 0
    assert table.attrs["metric"] == name and table.attrs["weighting"] == "tokens"
    assert table["score"].to_numpy() == pytest.approx(expected @ tokens / tokens.sum())


def test_logit_difference_is_taken_where_answer_and_foil_part() -> None:
    model = memory_model()
    data = random_tasks([12, 9, 18, 30], [3, 1, 4, 2], [2, 1, 4, 1])
    apart = [item.decision[0] - item.scored_from for item in data]  # type: ignore[index]
    assert apart == [1, 0, 3, 0]

    def value(logits: torch.Tensor, _: torch.Tensor, window: Window) -> float:
        place, wrong = data[window.document].decision  # type: ignore[misc]
        here = logits[place - 1 - window.start]
        return float(here[data[window.document].ids[place]] - here[wrong])

    table = head_importance(model, data, metric="logit_difference", baseline="zero")
    expected = -by_hand(model, data, value)
    assert np.abs(matrix(table) - expected).max() < 1e-9
    # Tasks count alike, whatever the length of their answers.
    assert table["score"].to_numpy() == pytest.approx(expected.mean(1))
    assert table.attrs["unit"] == "logits/task"
    logits = [model(item.ids[None, -20:]).logits[0] for item in data]
    clean = np.mean([value(z, z, w) for z, w in zip(logits, data.windows, strict=True)])
    assert table.attrs["clean"] == pytest.approx(clean)


def test_a_bound_is_the_most_that_an_answer_moves_and_no_less() -> None:
    targets, logits = torch.tensor([1, 0, 2]), torch.eye(3)
    right, wrong = (
        ACCURACY.losses(Rows(logits[targets], targets)),
        ACCURACY.losses(Rows(logits[(targets + 1) % 3], targets)),
    )
    assert (right - wrong).abs().tolist() == [ACCURACY.bound] * 3
    assert [metric.name for metric in METRICS.values() if metric.bound is not None] == ["accuracy"]
    tasks = metric_of("accuracy", random_tasks([12, 9], [3, 1]))
    assert tasks.bound == 1 and tasks.whole and tasks.per == "task" and tasks.sign == -1


def test_accuracy_of_a_task_needs_its_whole_answer() -> None:
    model = memory_model()
    data = random_tasks([12, 9, 18, 15, 11, 10], [3, 1, 2, 1, 1, 2])
    with torch.no_grad():  # the model's own continuations, so that some answers are right
        for item in data.items[::2]:
            for place in range(item.scored_from, len(item.ids)):
                item.ids[place] = model(item.ids[None, :place]).logits[0, -1].argmax()
    data = Documents(data.name, data.items, data.context)
    table = head_importance(model, data, metric="accuracy", baseline="zero")
    expected = -by_hand(model, data, whole_answer)
    assert np.array_equal(matrix(table), expected) and expected.max() == 1
    assert 0.5 <= table.attrs["clean"] < 1


def test_logit_difference_has_gradients_and_direct_effects() -> None:
    model = memory_model()
    data = random_tasks([12, 9, 18], [3, 1, 4], [2, 1, 4])
    given = {"metric": "logit_difference", "baseline": "zero"}
    total = head_importance(model, data, method="integrated_gradients", **given)
    assert total.attrs["completeness"]["relative_gap"] < 1e-3
    order = head_importance(model, data, method="shapley", permutations=4, **given)
    assert np.isfinite(order["score"]).all()
    direct = head_importance(model, data, method="dla", **given)
    plain = head_importance(model, data, method="dla", baseline="zero")
    assert not np.allclose(direct["score"], plain["score"])


def test_direct_effect_on_the_difference_is_that_of_two_targets() -> None:
    """The last block's heads, nothing after them but the norm, whose scale is held."""
    model, data = memory_model(), random_tasks([12, 9], [1, 1], [1, 1])
    both = head_importance(model, data, method="dla", metric="logit_difference", baseline="zero")
    targets = []
    for wrong in (False, True):
        items = []
        for item in data:
            ids = item.ids.clone()
            if wrong:
                ids[-1] = item.decision[1]  # type: ignore[index]
            items.append(Document(item.id, ids, item.sha256, None, item.scored_from))
        one = Documents("one", items, data.context)
        targets.append(matrix(head_importance(model, one, method="dla", baseline="zero")))
    assert np.abs(matrix(both) - (targets[0] - targets[1])).max() < 1e-9


def test_kl_integrates_and_has_no_first_order() -> None:
    model, data = float64_reference(tiny("llama")), random_texts([12, 9])
    table = head_importance(model, data, method="integrated_gradients", metric="kl")
    assert table.attrs["completeness"]["relative_gap"] < 1e-3
    assert table.attrs["completeness"]["total"] > 0
    for method in ("gradient", "taylor", "fisher"):
        with pytest.raises(MidusError, match="'kl' has no first-order effect.*ablation"):
            head_importance(model, data, method=method, metric="kl")


def test_rankings_and_curves_take_tasks() -> None:
    model = memory_model()
    data = random_tasks([12] * 24, [2] * 24, [2] * 24)
    ranking = rank_heads(model, data, metric="logit_difference", top=4)
    exact = head_importance(model, data, metric="logit_difference").sort_values("score")[::-1]
    assert ranking.attrs["metric"] == "logit_difference"
    assert set(ranking.head(4).index) == set(range(4))
    full = rank_heads(model, data, metric="logit_difference", top=4, budget=10**9)
    measured = full[full["exact"] == 24]
    merged = measured.merge(exact, on=["layer", "kind", "head"])
    assert np.allclose(merged["score_x"], merged["score_y"])
    curve = prune_curve(model, ranking, data, metric="logit_difference", steps=3, draws=1)
    clean = curve[curve["removed"] == 0]["score"]
    assert np.allclose(clean, exact.attrs["clean"])


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda logits, targets: logits.sum(), r"gave \[\].*\[11\]"),
        (lambda logits, targets: logits, r"gave \[11, 128\]"),
        (lambda logits, targets: 1.0, "gave float"),
    ],
)
def test_a_metric_of_the_wrong_shape(function: Any, named: str) -> None:
    with pytest.raises(MidusError, match=f"metric '<lambda>' {named}") as caught:
        head_importance(tiny("llama"), random_texts([12]), metric=function)
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_finite() -> None:
    bad = Metric("bad", lambda rows: rows.logits.new_full(rows.targets.shape, torch.nan), "bad")
    with pytest.raises(ModelError, match="not finite"):
        head_importance(tiny("llama"), random_texts([12]), metric=bad)


def test_a_metric_says_what_it_is() -> None:
    for wrong in ({"better": "Lower"}, {"per": "tasks"}, {"wants": "foils"}):
        with pytest.raises(MidusError, match=f"a Metric's {next(iter(wrong))} is .*must be one"):
            Metric("own", lambda rows: rows.targets, "own", **wrong)
    with pytest.raises(MidusError, match=r"metric is \['loss'\]"):
        head_importance(tiny("llama"), random_texts([12]), metric=["loss"])

    def accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(-1) == targets).float()

    tasks = random_tasks([12, 9], [2, 1])
    table = head_importance(tiny("llama"), tasks, metric=accuracy)
    assert table.attrs["weighting"] == "tokens", "a user's own is not ours of that name"
    with pytest.raises(MidusError, match="'accuracy' has no gradient.*ablation"):
        head_importance(tiny("llama"), tasks, metric=accuracy, method="taylor")


def test_a_short_prompt_is_a_task_too_and_texts_are_none() -> None:
    tasks = random_tasks([12, 9, 3], [3, 1, 2])
    short = Document("short", tasks[2].ids, "0" * 64, task=True)
    data = Documents("tasks", [*tasks.items[:2], short], 20)
    table = head_importance(tiny("llama"), data, metric="accuracy")
    assert table.attrs["weighting"] == "documents"
    mixed = Documents("mixed", [*tasks.items[:2], *random_texts([12]).items], 20)
    with pytest.raises(DataError, match="mixed has 2 tasks and 1 texts"):
        head_importance(tiny("llama"), mixed, metric="accuracy")


def test_tasks_without_foils() -> None:
    for data, why in (
        (random_tasks([12, 9], [2, 1]), "no foil"),
        (random_texts([12]), "no foil"),
        (random_tasks([12], [1], [1]).subset([0]), None),
    ):
        if why is None:
            item = data[0]
            same = Document(item.id, item.ids, item.sha256, None, 10, item.ids[10:11].clone())
            data, why = Documents("same", [same], 20), "never parts"
        with pytest.raises(DataError, match=f"logit_difference.*{why}.*prompt, answer and foil"):
            head_importance(tiny("llama"), data, metric="logit_difference")


def test_an_answer_longer_than_a_window() -> None:
    data = random_tasks([40, 12], [30, 2], [30, 2])
    with pytest.raises(DataError, match="counts each document once.*'0' does not fit a window"):
        head_importance(tiny("llama"), data, metric="accuracy")
    assert head_importance(tiny("llama"), data, metric="loss") is not None


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "dla"])
def test_accuracy_has_no_gradient(method: str) -> None:
    with pytest.raises(MidusError, match="'accuracy'.*"):
        head_importance(tiny("llama"), random_texts([12]), method=method, metric="accuracy")


def test_rows_hold_what_was_asked_for() -> None:
    seen: list[Rows] = []

    def look(rows: Rows) -> torch.Tensor:
        seen.append(rows)
        return torch.zeros(rows.targets.shape)

    metric = Metric("look", look, "none", wants="clean", smooth=False)
    head_importance(tiny("llama"), random_texts([12]), metric=metric)
    assert all(rows.clean is not None and rows.foils is None for rows in seen)
    assert seen[0].logits.shape == (11, VOCABULARY) and set(METRICS) == {
        "loss", "logit_difference", "kl", "accuracy"
    }  # fmt: skip
