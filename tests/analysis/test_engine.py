"""Batches, a metric's value by window, and what a clean run keeps, each against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from analysis.documents import Documents
from analysis.engine import batch_of, batches, clean_run, head_outputs, window_values
from analysis.metrics import ACCURACY, KL, LOGIT_DIFFERENCE, LOSS, Metric
from midus_model import blocks, head_sites
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import HIDDEN, VOCABULARY

CPU = torch.device("cpu")
WHOLE = Metric("whole", ACCURACY.function, "accuracy", "higher", "task", smooth=False, whole=True)


def test_a_batch_is_padded_on_the_right() -> None:
    data = random_tasks([9, 5, 7], [3, 1, 2], [3, 1, 2])
    batch = batch_of(data.windows, CPU)
    assert batch.ids.shape == (3, 9) and batch.tokens == 27
    for row, (window, item) in enumerate(zip(data.windows, data, strict=True)):
        size = len(item.ids)
        assert batch.ids[row].tolist() == item.ids.tolist() + [0] * (9 - size)
        assert batch.real[row].tolist() == [True] * size + [False] * (9 - size)
        counted = [item.scored_from <= t + 1 < size for t in range(8)]
        assert batch.scored[row].tolist() == counted
        place, wrong = item.decision  # type: ignore[misc]
        assert batch.foils[row].tolist() == [wrong if t == place - 1 else -1 for t in range(8)]
        assert batch.units[row] == window.unit == row


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_hold_windows_of_like_length_each_once(size: int) -> None:
    windows = random_texts([4, 19, 7, 11, 7]).windows
    found = batches(windows, size)
    assert [i for part in found for i in part] == [1, 3, 2, 4, 0]
    assert [len(part) for part in found] == [size] * (5 // size) + [5 % size] * (5 % size > 0)


class Unembedding:
    """Logits are a product, so that any hidden states will do."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(HIDDEN, VOCABULARY, generator=generator).double()

    def lm_head(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.weight


def looped(
    metric: Metric, data: Documents, hidden: torch.Tensor, clean: torch.Tensor
) -> list[float]:
    """The metric of each window with the sign of a loss, position by position."""
    model, found = Unembedding(), []
    for row, states in enumerate(hidden):
        window, item = data.windows[row % len(data.windows)], data[row % len(data.windows)]
        after = (states @ model.weight).log_softmax(-1)
        before = (clean[row % len(data.windows)] @ model.weight).log_softmax(-1)
        total, right = 0.0, True
        for t in range(len(item.ids) - 1):
            token = int(item.ids[t + 1])
            right &= bool(after[t].argmax() == token) or not window.scored[t]
            if metric.name == "logit_difference":
                place, wrong = item.decision  # type: ignore[misc]
                total -= float(after[t, token] - after[t, wrong]) if t + 1 == place else 0.0
            elif window.scored[t]:
                total += {
                    "loss": -after[t, token],
                    "kl": sum(p.exp() * (p - q) for p, q in zip(before[t], after[t], strict=True)),
                    "accuracy": -float(after[t].argmax() == token),
                    "whole": 0.0,
                }[metric.name]
        found.append(-float(right) if metric.name == "whole" else float(total))
    return found


@pytest.mark.parametrize("rows", [1, 4, 5, 4096])
@pytest.mark.parametrize(
    "metric", [LOSS, KL, ACCURACY, LOGIT_DIFFERENCE, WHOLE], ids=lambda m: m.name
)
def test_a_metric_by_window_is_the_loops(metric: Metric, rows: int) -> None:
    """Two copies of three windows, whatever the number of logits held at once."""
    data, model = random_tasks([9, 5, 7], [3, 1, 3], [3, 1, 3]), Unembedding()
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(6, 9, HIDDEN, generator=generator).double()
    clean = torch.randn(3, 9, HIDDEN, generator=generator).double()
    for row in (0, 2, 4):  # answers that are right: whole, of the last one all but a token
        ids = data[row % 3].ids
        answer = torch.arange(len(ids) - {0: 3, 2: 2, 4: 1}[row], len(ids))
        hidden[row, answer - 1] = model.weight[:, ids[answer]].T * 3
    found = window_values(model, hidden, batch_of(data.windows, CPU), metric, clean, rows)
    expected = torch.tensor(looped(metric, data, hidden, clean), dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if metric in (ACCURACY, WHOLE):
        assert len(set(expected.tolist())) > 1


def test_where_nothing_counts_the_metric_is_zero() -> None:
    data = random_texts([5, 6])
    batch = batch_of(data.windows, CPU)
    batch.scored[:] = False
    found = window_values(Unembedding(), torch.zeros(4, 6, HIDDEN).double(), batch)
    assert found.tolist() == [0, 0, 0, 0] and found.dtype == torch.float64


def kept_by_hooks(model: Any, ids: torch.Tensor, sites: Any) -> tuple[dict[int, Any], list[Any]]:
    heads: dict[int, Any] = {}
    inputs: list[Any] = []
    handles = [
        site.module.register_forward_pre_hook(
            lambda _, args, at=site.layer: heads.__setitem__(at, args[0].clone())
        )
        for site in sites
    ]
    for block in blocks(model):
        keep = lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return heads, inputs


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


def test_head_outputs_are_those_of_the_sites_asked_for_and_no_block_runs_after() -> None:
    model, data = memory_model(), random_texts([9, 5])
    batch, sites = batch_of(data.windows, CPU), head_sites(model)
    expected, _ = kept_by_hooks(model, batch.ids, sites)
    ran: list[int] = []
    for layer, block in enumerate(blocks(model)):
        block.register_forward_pre_hook(lambda _, args, at=layer: ran.append(at))
    before = hooks_of(model)
    for chosen in ({1, 2}, {3, 0}):
        ran.clear()
        found = head_outputs(model, batch, [site for site in sites if site.layer in chosen])
        assert set(found) == chosen and ran == list(range(max(chosen) + 1))
        for layer in chosen:
            torch.testing.assert_close(found[layer], expected[layer])
    assert hooks_of(model) == before


def test_a_clean_run_keeps_what_went_through_every_block() -> None:
    model, data = memory_model(), random_texts([9, 5])
    batch, sites = batch_of(data.windows, CPU), head_sites(model)
    heads, inputs = kept_by_hooks(model, batch.ids, sites)
    before = hooks_of(model)
    run = clean_run(model, batch, sites)
    assert hooks_of(model) == before and run.batch is batch
    assert len(run.inputs) == len(run.calls) == len(inputs) and set(run.heads) == set(heads)
    for kept, expected in zip(run.inputs, inputs, strict=True):
        torch.testing.assert_close(kept, expected)
    for layer, expected in heads.items():
        torch.testing.assert_close(run.heads[layer], expected)
    assert all("hidden_states" not in call and "position_embeddings" in call for call in run.calls)
    with torch.no_grad():
        whole = model.model(batch.ids, use_cache=False).last_hidden_state
        output = blocks(model)[-1](run.inputs[-1], **run.calls[-1])
    torch.testing.assert_close(run.hidden, whole)
    torch.testing.assert_close(model.model.norm(output), whole)
    torch.testing.assert_close(run.values, window_values(model, whole, batch))
    part = clean_run(model, batch, [site for site in sites if site.layer == 2], None)
    assert set(part.heads) == {2} and len(part.values) == 0 and len(part.inputs) == len(inputs)
    assert clean_run(model, batch, sites, KL).values.abs().max() < 1e-12
