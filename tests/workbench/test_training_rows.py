"""Rows and evaluation: the same rows for every model, every scored token counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.documents import documents
from tests.workbench.trainings import CONTEXT, deeper, random_texts
from workbench.training.evaluation import evaluate
from workbench.training.rows import PackedRows


@pytest.fixture(scope="module")
def texts():
    return random_texts()


def test_rows_are_the_same_for_everyone_and_cover_an_epoch_once(texts):
    rows, again = PackedRows(texts, 200, seed=3), PackedRows(texts, 200, seed=3)
    order = np.random.default_rng(1).permutation(200)
    for index in order[:40].tolist():
        assert torch.equal(rows[index]["input_ids"], again[index]["input_ids"])
    epoch = torch.stack([rows[i]["input_ids"] for i in range(rows.per_epoch)]).flatten()
    offset = rows._epochs[0][0]
    span = rows.ids[offset : offset + rows.per_epoch * CONTEXT]
    assert torch.equal(epoch.bincount(minlength=50), span.bincount(minlength=50))
    other = PackedRows(texts, 200, seed=4)
    assert any(not torch.equal(rows[i]["input_ids"], other[i]["input_ids"]) for i in range(10))


def test_a_prompt_carries_no_loss():
    class Letters:
        model_max_length = CONTEXT

        def __call__(self, texts, **kwargs):
            return {"input_ids": [[ord(c) - 97 for c in text] for text in texts]}

        def __len__(self):
            return 26

    task = {"prompt": "aaaa", "answer": "bcde"}
    rows = PackedRows(documents([task] * 40, tokenizer=Letters(), context=CONTEXT), 4)
    counted = rows.labels[rows.labels >= 0]
    assert set(counted.tolist()) == {1, 2, 3, 4} and len(counted) == 160


def test_evaluation_is_weighted_by_tokens(texts):
    model = deeper()
    nats = count = 0.0
    for window in texts.windows:
        loss = model(window.ids[None], labels=window.ids[None]).loss.item()
        nats, count = nats + loss * (len(window.ids) - 1), count + len(window.ids) - 1
    found, tokens = evaluate(model, texts, batch_size=4)
    assert tokens == count == texts.tokens
    assert found / tokens == pytest.approx(nats / count, abs=1e-5)
    parts = [evaluate(model, texts, batch_size=4, rank=r, world=3) for r in range(3)]
    assert sum(n for n, _ in parts) == pytest.approx(found) and sum(c for _, c in parts) == count
