"""Gates and what follows from them on a tiny model with memory, against hooks and sums by hand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from analysis import gates
from analysis.engine import Batch, batch_of, clean_run, window_values
from analysis.gates import Gated
from analysis.memory_plan import plan_for
from analysis.metrics import ACCURACY, KL, LOSS, Metric
from kernels.errors import MidusError
from midus_model import head_sites
from tests.analysis.samples import memory_model, random_texts

# Heads (layer, head) of each gate; a gate may have several, in several blocks.
UNITS = [[(0, 1)], [(2, 0), (2, 2)], [(1, 3), (4, 1)], [(2, 1)], [(0, 0)]]


def parts(metric: Metric = LOSS, own: bool = False) -> tuple[Gated, Batch, dict[int, Any]]:
    """Gates, a batch of two windows, and replacements, `own`: one at every window and position."""
    model, batch = memory_model(), batch_of(random_texts([9, 6]).windows, torch.device("cpu"))
    by = {(site.layer, site.head): site for site in head_sites(model)}
    units = [[by[at] for at in unit] for unit in UNITS]
    generator = torch.Generator().manual_seed(4)
    shape = (*batch.ids.shape, 64) if own else (1, 1, 64)
    base = {layer: torch.randn(shape, generator=generator).double() for layer in range(5)}
    return Gated(model, units, plan_for(model, 20, metric), metric), batch, base


@torch.no_grad()
def by_hooks(view: Gated, batch: Batch, base: Any, gates_: torch.Tensor) -> torch.Tensor:
    """The metric of each window with every gate [W, G] or [W, T, G] applied by a hook a head."""
    clean = view.model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    with ExitStack() as stack:
        for place, unit in enumerate(view.units):
            for site in unit:

                def gate(_: Any, args: tuple, site: Any = site, place: int = place) -> tuple:
                    heads, span = args[0].clone(), slice(site.start, site.stop)
                    share = gates_[..., place]
                    share = share[:, None, None] if share.ndim == 1 else share[..., None]
                    b = base[site.layer][..., span]
                    heads[..., span] = b + share * (heads[..., span] - b)
                    return (heads, *args[1:])

                stack.callback(site.module.register_forward_pre_hook(gate).remove)
        hidden = view.model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return window_values(view.model, hidden, batch, view.metric, clean)


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("own", [False, True], ids=["fixed", "resampled"])
@torch.no_grad()
def test_gates_lie_between_the_clean_head_and_its_baseline(own: bool) -> None:
    view, batch, base = parts(own=own)
    assert view.owner == [0, 1, 1, 2, 2, 3, 4]
    folded = drawn(6, 5)  # three settings of two windows
    found = gates.gated_values(view, batch, base, folded)
    expected = torch.cat([by_hooks(view, batch, base, part) for part in folded.split(2)])
    torch.testing.assert_close(found, expected)
    placed = drawn(2, 9, 5)
    found = gates.gated_values(view, batch, base, placed)
    torch.testing.assert_close(found, by_hooks(view, batch, base, placed))
    assert not any(m._forward_pre_hooks for m in view.model.modules())
    for most in (1, 2, 99):
        view.plan.most = most
        states = drawn(3, 5)
        rows = [by_hooks(view, batch, base, state.expand(2, -1)) for state in states]
        torch.testing.assert_close(
            gates.folded_values(view, batch, base, states), torch.stack(rows)
        )


@pytest.mark.parametrize("at", [1.0, 0.3])
def test_gradients_are_finite_differences(at: float) -> None:
    view, batch, base = parts(own=True)
    parameters = list(view.model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number % 3 == 0)
    found, values = gates.gate_gradients(view, batch, base, at)
    assert [p.requires_grad for p in parameters] == [n % 3 == 0 for n in range(len(parameters))]
    assert not found.requires_grad and not values.requires_grad
    middle = torch.full((2, 5), at, dtype=torch.float64)
    torch.testing.assert_close(values, by_hooks(view, batch, base, middle))
    for gate in range(5):
        step = torch.zeros(2, 5, dtype=torch.float64)
        step[:, gate] = 1e-6
        ends = [by_hooks(view, batch, base, middle + sign * step) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(found[gate], slope, rtol=1e-4, atol=1e-7)


def test_what_has_no_gradient_is_refused() -> None:
    view, batch, base = parts(ACCURACY)
    with pytest.raises(MidusError, match="'accuracy' has no gradient"):
        gates.gate_gradients(view, batch, base)
    assert all(parameter.requires_grad for parameter in view.model.parameters())


@pytest.mark.parametrize("metric", [LOSS, KL], ids=["loss", "kl"])
@pytest.mark.parametrize("retrieval", ["frozen", "free"])
def test_integrated_gradients_are_a_sum_over_nodes(retrieval: str, metric: Metric) -> None:
    view, batch, base = parts(metric)
    kept = gates.clean_retrieval(view, batch) if retrieval == "frozen" else None
    assert kept is None or set(kept) == {2}
    clean = clean_run(view.model, batch, view.sites, metric)
    points = [0.5 - 15**0.5 / 10, 0.5, 0.5 + 15**0.5 / 10]  # of Gauss and Legendre, on 0 to 1
    expected: Any = 0
    for point, weight in zip(points, (5 / 18, 8 / 18, 5 / 18), strict=True):
        slopes, _ = gates.gate_gradients(view, batch, base, point, kept, clean.hidden)
        expected = expected - weight * slopes
    found, before, gap = gates.integrated_gradients(
        view, batch, base, retrieval=retrieval, nodes=3, clean=clean.hidden
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(before, clean.values)
    with torch.no_grad():
        off = torch.zeros(2, 5)
        ablated = gates.gated_values(view, batch, base, off, kept, clean.hidden)
    torch.testing.assert_close(gap, found.sum(0) - (ablated - clean.values))
    assert gap.abs().max() > 1e-6


def test_frozen_slots_are_those_of_the_clean_run() -> None:
    """What memory reads stays, whatever the gates before it: only its own gates move it."""
    view, batch, base = parts()
    kept = gates.clean_retrieval(view, batch)
    seen: list[torch.Tensor] = []
    memory = next(site for site in view.sites if site.layer == 2)
    torch.testing.assert_close(kept[2], clean_run(view.model, batch, view.sites).heads[2])
    with gates.gated(
        view, base, torch.ones(2, 5).double().index_fill(1, torch.tensor([0]), 0), kept
    ):
        memory.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            view.model.model(input_ids=batch.ids, use_cache=False)
    torch.testing.assert_close(seen[0], kept[2])
    plain = [unit for unit in view.units if unit[0].layer == 0]
    assert gates.clean_retrieval(Gated(view.model, plain, view.plan), batch) == {}


@pytest.mark.parametrize("metric", [LOSS, KL], ids=["loss", "kl"])
def test_shapley_orders_are_ablation_one_after_the_other(metric: Metric) -> None:
    view, batch, base = parts(metric)
    clean = clean_run(view.model, batch, view.sites, metric)
    orders = [np.array([3, 0, 4, 2, 1]), np.arange(5)]
    found, before = gates.shapley_values(view, batch, base, orders, clean.hidden)
    assert not found.requires_grad
    torch.testing.assert_close(before, clean.values)
    for which, order in enumerate(orders):
        state, last = torch.ones(2, 5, dtype=torch.float64), clean.values
        for unit in order:
            state[:, unit] = 0
            value = by_hooks(view, batch, base, state)
            torch.testing.assert_close(found[which, unit], value - last)
            last = value
