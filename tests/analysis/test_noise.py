"""Half precision: its difference from fp32 is reported, and scores within it are marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis import head_importance, prune_curve
from analysis.noise import WINDOWS
from tests.analysis.samples import memory_model, random_texts
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
LENGTHS = [20, 12, 15, 18, 9]  # fewer than WINDOWS, so that the sample is all of them


@pytest.mark.parametrize("method", ["ablation", "gradient", "taylor"])
@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
def test_the_difference_from_fp32_is_reported(method: str, baseline: str) -> None:
    model, data = tiny("llama", torch.bfloat16), random_texts(LENGTHS)
    assert len(data.windows) <= WINDOWS
    given = {"method": method, "baseline": baseline}
    half = head_importance(model, data, **given)
    whole = head_importance(tiny("llama", torch.bfloat16).float(), data, **given)
    noise = half.attrs["dtype_noise"]
    if baseline != "mean":  # both see the mean that the half-precision model has
        difference = np.abs(half["score"] - whole["score"])
        assert noise["median"] == pytest.approx(float(np.median(difference)), abs=2e-5)
        assert noise["p95"] == pytest.approx(float(np.quantile(difference, 0.95)), abs=2e-5)
    assert 0 < noise["median"] <= noise["p95"] < 0.05 and noise["windows"] == len(data.windows)
    assert half["below_noise"].tolist() == (half["score"].abs() < noise["p95"]).tolist()
    assert half.attrs["dtype"] == "bfloat16" and "below_noise" not in whole.columns
    assert "dtype_noise" not in whole.attrs


def test_open_gates_are_the_clean_run_in_half_precision() -> None:
    model, data = tiny("llama", torch.bfloat16), random_texts(LENGTHS)
    clean = head_importance(model, data).attrs["clean_loss"]
    assert head_importance(model, data, method="taylor").attrs["clean_loss"] == clean
    curve = prune_curve(model, None, data, steps=1, draws=1)
    assert curve["score"][0] == clean


def test_a_head_without_effect_is_below_the_noise() -> None:
    model = memory_model(double=False).to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, :16] *= 1e-3
    table = head_importance(model, random_texts([20] * 24))
    assert table["below_noise"].iloc[0] and not table["below_noise"].all()
    assert table.attrs["dtype_noise"]["windows"] == WINDOWS
