"""Units replaced and the rest of the model run, against the whole model with a hook a head."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from analysis import ablation
from analysis.ablation import ablated_values
from analysis.engine import CleanRun, batch_of, clean_run, window_values
from analysis.memory_plan import Plan, plan_for
from analysis.metrics import KL, LOSS, Metric
from midus_model import blocks, head_sites
from tests.analysis.samples import memory_model, random_texts
from tests.models import VOCABULARY

CPU = torch.device("cpu")
OWN = Metric("own", lambda rows: rows.logits.logsumexp(-1), "own", known=False)


def parts(stage: str = "output", windows: int = 2) -> tuple[Any, CleanRun, list[Any], Any, Plan]:
    """A model with memory in block 2, its clean run, units of every kind, replacements, a plan."""
    model, data = memory_model(), random_texts([12, 9][:windows])
    sites = head_sites(model, stage)
    by = {(site.layer, site.head): site for site in sites}
    pairs = [[(4, 3)], [(0, 1)], [(2, 0)], [(2, 1), (2, 3)], [(0, 0), (0, 2)], [(2, 2)],
             [(3, 1), (1, 0), (4, 2)], [(0, 3)], [(2, 0), (4, 1)], [(2, 3)]]  # fmt: skip
    units = [tuple(by[at] for at in sorted(unit)) for unit in pairs]
    batch = batch_of(data.windows, CPU)
    generator = torch.Generator().manual_seed(5)
    base = {
        layer: torch.randn(*(shape if layer % 2 else (1, 1)), 64, generator=generator).double()
        for layer, shape in zip(range(5), 5 * [batch.ids.shape], strict=True)
    }
    return model, clean_run(model, batch, sites), units, base, plan_for(model, 20)


@torch.no_grad()
def hooked(model: Any, run: CleanRun, unit: Any, base: Any, metric: Metric) -> torch.Tensor:
    """The metric by window with a unit's heads replaced in the whole model: [W]."""
    with ExitStack() as stack:
        for site in unit:

            def put(_: Any, args: tuple, site: Any = site) -> tuple:
                outputs, span = args[0].clone(), slice(site.start, site.stop)
                outputs[..., span] = base[site.layer][..., span]
                return (outputs, *args[1:])

            stack.callback(site.module.register_forward_pre_hook(put).remove)
        hidden = model.model(input_ids=run.batch.ids, use_cache=False).last_hidden_state
    return window_values(model, hidden, run.batch, metric, run.hidden)


@pytest.mark.parametrize("folds", [1, 2, 3, 64])
@pytest.mark.parametrize("metric", [LOSS, KL, OWN], ids=lambda metric: metric.name)
def test_every_unit_is_replaced_whatever_is_folded(metric: Metric, folds: int) -> None:
    model, run, units, base, plan = parts()
    plan.most, told = folds, []
    found = ablated_values(model, run, units, base, plan, metric, told.append)
    expected = torch.stack([hooked(model, run, unit, base, metric) for unit in units])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    clean = window_values(model, run.hidden, run.batch, metric, run.hidden)
    assert ((found - clean).abs() > 1e-6).all()
    assert sum(told) == 2 * len(units) and max(told) <= 2 * folds
    sizes = {1: 10, 2: 2 + 1 + 3 + 1, 3: 1 + 1 + 2 + 1, 64: 4}  # by first block: 3, 1, 5, 1 units
    assert len(told) == sizes[folds]
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_of_one_window_too_and_of_a_query() -> None:
    for given in ({"windows": 1}, {"stage": "query"}):
        model, run, units, base, plan = parts(**given)
        found = ablated_values(model, run, units, base, plan)
        expected = torch.stack([hooked(model, run, unit, base, LOSS) for unit in units])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_memory_does_not_hold_is_halved_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, run, units, base, plan = parts()
    expected = ablated_values(model, run, units, base, plan)
    resume, tried = ablation.Resumed.resume, []

    def scarce(self: Any, end: Any, layer: int, chosen: Any) -> torch.Tensor:
        tried.append(len(chosen))
        if len(chosen) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resume(self, end, layer, chosen)

    monkeypatch.setattr(ablation.Resumed, "resume", scarce)
    torch.testing.assert_close(ablated_values(model, run, units, base, plan), expected)
    assert tried[:2] == [3, 1] and max(tried[2:]) == 1 and plan.most == 1

    def never(*_: Any) -> torch.Tensor:
        tried.append(0)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried.clear()
    monkeypatch.setattr(ablation.Resumed, "resume", never)
    with pytest.raises(torch.OutOfMemoryError):
        ablated_values(model, run, units, base, plan)
    assert tried == [0], "one alone does not fit"


def test_folds_are_halved() -> None:
    model, run, units, base, plan = parts()
    resumed = ablation.Resumed(model, run, units, base, plan, LOSS)
    full = torch.OutOfMemoryError("CUDA out of memory")
    for folds, most in ((7, 3), (9, 3), (2, 1)):
        resumed._fewer(folds, full)
        assert plan.most == most
    for folds, error in ((1, full), (4, ValueError("shapes do not fit"))):
        with pytest.raises(type(error)):
            resumed._fewer(folds, error)


def test_memory_goes_the_same_way_as_in_the_clean_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midus_model.memory.can_fuse", lambda *_: True)
    model = memory_model()
    (memory,) = [block.memory for block in blocks(model) if hasattr(block, "memory")]
    outputs = torch.zeros(1, 3, 64).double()
    with ablation._memory_watched(model):
        assert not memory._unseen(outputs)
    assert memory._unseen(outputs)


def test_a_blocks_products_go_with_the_last_of_its_units() -> None:
    model, run, units, base, plan = parts()
    resumed = ablation.Resumed(model, run, units, base, plan, LOSS)
    assert {layer: sorted(found) for layer, found in resumed.by_layer.items()} == {
        0: [1, 4, 7], 1: [6], 2: [2, 3, 5, 8, 9], 4: [0]
    }  # fmt: skip
    with torch.no_grad():
        resumed.values(2, [2, 3])
        end = resumed._end(2)
        resumed.values(2, [5])
        assert resumed._end(2) is end and set(resumed._ends) == {2}
        resumed.values(2, [8, 9])
    assert not resumed._ends


def test_how_many_threads_may_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, units, _, plan = parts()
    monkeypatch.setattr(ablation, "worker_count", lambda: 6)
    plan.workers = 4
    own = [unit for unit in units if len({site.layer for site in unit}) == 1]
    assert len(own) == 8 and ablation._workers(model, own, plan, LOSS) == 4
    plan.workers = 8
    assert ablation._workers(model, own, plan, KL) == 6
    assert ablation._workers(model, units, plan, LOSS) == 1, "hooks that all threads would meet"
    assert ablation._workers(model, own, plan, OWN) == 1, "somebody else's code"
    for part in (model.lm_head, model.model.norm, blocks(model)[3].mlp.up_proj):
        hook = part.register_forward_hook(lambda *_: None)
        assert ablation._workers(model, own, plan, LOSS) == 1
        hook.remove()
    assert ablation._workers(model, own, plan, LOSS) == 6


def test_keyword_arguments_of_folds() -> None:
    rows, other = torch.arange(2 * 3).view(2, 3), torch.arange(VOCABULARY)
    call = {"a": rows, "pair": (rows, other), "none": None, "flag": True, "one": rows[:1]}
    found = ablation._folded(call, 3, 2)
    assert torch.equal(found["a"], torch.cat([rows, rows, rows]))
    assert torch.equal(found["pair"][0], found["a"]) and found["pair"][1] is other
    assert found["none"] is None and found["flag"] is True and found["one"] is call["one"]
    assert ablation._folded({"one": rows[:1]}, 3, 1)["one"] is not None
    assert torch.equal(ablation._folded({"one": rows[:1]}, 3, 1)["one"], rows[:1])
