"""What stands in for a head: another document's output at the same position, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import head_importance
from analysis.baselines import donors
from analysis.documents import Documents
from kernels.errors import DataError
from midus_model import head_sites
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny
from tests.reference import float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


@torch.no_grad()
def output_of(model: Any, site: Any, ids: torch.Tensor) -> torch.Tensor:
    """A head's output on one text, [T, D]."""
    kept: list[torch.Tensor] = []
    hook = site.module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(ids[None])
    hook.remove()
    return kept[0][0, :, site.start : site.stop]


@torch.no_grad()
def by_hand(model: Any, data: Documents, seed: int) -> np.ndarray:
    chosen = donors(data, seed)
    effects = np.zeros((len(head_sites(model)), len(data.windows)))
    for row, site in enumerate(head_sites(model)):
        for column, window in enumerate(data.windows):
            other = data.windows[chosen[column]].ids
            given = output_of(model, site, other)
            places = [t % len(other) for t in range(len(window.ids))]

            def swap(
                _: Any, args: tuple, given: torch.Tensor = given[places], site: Any = site
            ) -> tuple:
                outputs = args[0].clone()
                outputs[..., site.start : site.stop] = given
                return (outputs,)

            def loss(window: Any = window) -> float:
                logits = model(window.ids[None]).logits[0, :-1]
                nats = F.cross_entropy(logits, window.ids[1:], reduction="none")
                return float(nats[window.scored].sum())

            clean = loss()
            hook = site.module.register_forward_pre_hook(swap)
            effects[row, column] = loss() - clean
            hook.remove()
    units = [window.unit for window in data.windows]
    summed = np.zeros((len(effects), len(data.units)))
    np.add.at(summed.T, units, effects.T)
    return summed / np.array([unit["tokens"] for unit in data.units])


@pytest.mark.parametrize("lengths", [[33, 9, 20, 7], [18, 5, 7]], ids=["usual", "none as long"])
def test_resampled_outputs(lengths: list[int]) -> None:
    model, data = memory_model(), random_texts(lengths)
    table = head_importance(model, data, baseline="resample", seed=5)
    expected = by_hand(model, data, 5)
    assert np.abs(np.array(table["by_document"].tolist()) - expected).max() < 1e-9
    assert table.attrs["baseline"] == "resample"
    other = head_importance(model, data, baseline="resample", seed=6)
    assert not np.allclose(other["score"], table["score"])


def test_resampling_goes_with_every_method() -> None:
    model, data = memory_model(), random_texts([33, 9, 20, 7])
    given = {"baseline": "resample", "seed": 5}
    total = head_importance(model, data, method="integrated_gradients", **given)
    assert total.attrs["completeness"]["relative_gap"] < 1e-3
    base = float64_reference(tiny("llama"))
    whole = head_importance(base, data, method="integrated_gradients", **given)
    order = head_importance(base, data, method="shapley", permutations=4, **given)
    # Both sum to the loss of replacing every head at once.
    assert order["score"].sum() == pytest.approx(whole.attrs["completeness"]["total"], abs=1e-9)
    taylor = head_importance(model, data, method="taylor", **given)
    gradient = head_importance(model, data, method="gradient", **given)
    assert np.allclose(
        np.abs(np.array(taylor["by_document"].tolist())),
        np.array(gradient["by_document"].tolist()),
    )
    direct = head_importance(model, data, method="dla", **given)
    assert np.isfinite(direct["score"]).all()


def test_donors_are_other_documents_and_long_enough() -> None:
    data = random_texts([33, 9, 20, 7, 20])
    for window, donor in zip(data.windows, donors(data, 0), strict=True):
        other = data.windows[donor]
        assert other.document != window.document
        longest = max(len(w.ids) for w in data.windows if w.document != window.document)
        assert len(other.ids) >= min(len(window.ids), longest)
    assert donors(data, 0) == donors(data, 0) != donors(data, 1)


def test_one_document_has_no_other() -> None:
    with pytest.raises(DataError, match="'resample'.*random has one.*'mean'"):
        head_importance(memory_model(), random_texts([12]), baseline="resample")
