"""Losses by document against Hugging Face's own."""

from __future__ import annotations

import pytest
import torch

from analysis import documents
from analysis.quality import document_values
from tests.models import tiny


def test_losses_are_hugging_face_s() -> None:
    model = tiny("llama")
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(128, (size,), generator=generator).tolist() for size in (9, 40, 25)]
    found = document_values(model, documents(texts, model=model))
    for ids, value in zip(texts, found, strict=True):
        row = torch.tensor(ids)[None]
        with torch.no_grad():
            expected = model(input_ids=row, labels=row).loss.item()
        assert value == pytest.approx(expected, abs=1e-5)
