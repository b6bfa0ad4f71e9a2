"""Next-token predictions with gains on heads, against plain forward passes of folded weights."""

from __future__ import annotations

import pytest
import torch

from analysis.amplify import amplify
from analysis.next_tokens import next_tokens
from kernels.errors import DataError, HeadError, MidusError
from midus_model import load

TEXT = "import os\nimport sys\n\ndef main(argv):\n    return os.path.join("
GAINS = {(1, 3): 0.0, (2, 0): 1.7}


@pytest.mark.parametrize("name", ["pico", "pico-midus"])
def test_predictions_are_those_of_the_folded_model(name: str) -> None:
    model = load(name)
    table = next_tokens(model, TEXT, GAINS, top=6)
    ids = torch.tensor(table.attrs["ids"])[None]
    folded = amplify(model, list(GAINS), GAINS).folded()
    for side, network in (("before", model), ("after", folded)):
        with torch.no_grad():
            logs = network(input_ids=ids).logits[0].double().log_softmax(-1)
        found = table[f"probability_{side}"].to_numpy()
        want = logs[-1].exp()[table["token_id"].tolist()]
        torch.testing.assert_close(torch.tensor(found), want, atol=1e-6, rtol=1e-4)
        assert set(logs[-1].topk(6).indices.tolist()) <= set(table["token_id"])
        losses = torch.nn.functional.cross_entropy(logs[:-1], ids[0, 1:], reduction="none")
        assert table.attrs[f"losses_{side}"] == pytest.approx(losses.tolist(), abs=1e-5)
        assert table.attrs[f"loss_{side}"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert table.attrs["kl"] > 1e-4 and table["probability_before"].is_monotonic_decreasing
    assert table.attrs["gains"] == [[1, 3, 0.0], [2, 0, 1.7]]


def test_without_gains_both_sides_are_the_same_and_the_model_is_left_alone() -> None:
    model = load("pico")
    before = next_tokens(model, TEXT)
    assert (before["difference"] == 0).all() and before.attrs["kl"] == 0 and len(before) == 10
    next_tokens(model, TEXT, GAINS)
    assert next_tokens(model, TEXT).equals(before)


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(HeadError, match="head"):
        next_tokens("pico", TEXT, {(99, 0): 1.0})
    with pytest.raises(MidusError, match="finite"):
        next_tokens("pico", TEXT, {(0, 0): float("nan")})
    with pytest.raises(DataError, match="model holds"):
        next_tokens("pico", list(range(5)) * 400)
    with pytest.raises(DataError):
        next_tokens("pico", "")
