"""Every finding is provoked on purpose and found; a healthy model has none."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pandas as pd
import pytest
import torch

from analysis import documents, memory_usage
from analysis.doctor import ADVICE, CHECKS, LIMITS, doctor
from kernels.errors import MidusError
from midus_model import blocks, upscale
from tests.models import tiny
from tests.reference import fill_banks, memories

examined = importlib.import_module("analysis.doctor")  # the name is the function

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")


def grown(num_keys: int = 8, **sizes: Any) -> Any:
    """A base and what was grown from it: one memory block of random, useless values."""
    sizes = {"top_k": 2, "latent_dim": 16} | sizes
    return fill_banks(upscale(tiny("llama"), blocks=1, num_keys=num_keys, **sizes))


def own_text(model: Any, count: int = 12, length: int = 48) -> Any:
    """Texts sampled from the model: nothing predicts them better than it does."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(128, (count, 1), generator=generator)
    with torch.no_grad():
        for _ in range(length):
            chance = model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chance, 1, generator=generator)], 1)
    return documents(ids.tolist(), model=model)


def findings(table: pd.DataFrame) -> set[str]:
    return set(table["finding"])


def test_names_go_together() -> None:
    assert list(CHECKS) == list(ADVICE) == list(LIMITS)


def test_a_bank_too_small() -> None:
    model = grown(num_keys=2)
    for _, memory in memories(model):  # all slots alike: which two of four is chance
        memory.row_keys.data.mul_(1e-3)
        memory.col_keys.data.mul_(1e-3)
    table = doctor(model, own_text(model), timing=False)
    row = table[table["finding"] == "bank too small"].iloc[0]
    assert row["block"] == 4 and row["value"] > row["limit"] == LIMITS["bank too small"]
    assert "4 slots" in row["evidence"] and row["advice"] == ADVICE["bank too small"]


def test_a_bank_too_large() -> None:
    model = grown(num_keys=16)
    for _, memory in memories(model):
        memory.row_keys.data.zero_()  # rows tie, and the two slots read are of rows 0 and 1
    table = doctor(model, own_text(model, count=20), timing=False)
    row = table[table["finding"] == "bank too large"].iloc[0]
    dead = 256 - 2 * 16
    assert row["value"] >= dead / 256 and "of 256 slots were never read" in row["evidence"]


def test_few_reads_leave_no_slot_dead() -> None:
    model = grown(num_keys=16)
    for _, memory in memories(model):
        memory.row_keys.data.zero_()
    table = doctor(model, own_text(model, count=2, length=20), timing=False)
    assert "bank too large" not in findings(table)


def test_memory_that_is_not_used() -> None:
    model = upscale(tiny("llama"), blocks=1, num_keys=8, top_k=2, latent_dim=16)  # banks are zero
    table = doctor(model, own_text(model), timing=False)
    row = table[table["finding"] == "memory unused"].iloc[0]
    assert row["value"] == 0 and pd.isna(row["block"])
    assert "less than 0.005 either way" in row["evidence"]
    assert "0.00% of the stream" in row["evidence"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.004, 0.004, "unused"),
        (-0.02, 0.03, "unclear"),  # was called unused for the zero in it
        (0.001, 0.004, "unused"),  # not zero, and nothing
        (0.004, 0.02, "unclear"),
        (0.006, 0.02, ""),
        (-0.02, -0.006, ""),  # hurts
    ],
)
def test_unused_is_said_of_an_interval_inside_the_margin(
    low: float, high: float, said: str, monkeypatch: Any
) -> None:
    effect = pd.DataFrame([{"score": (low + high) / 2, "ci_low": low, "ci_high": high}])
    monkeypatch.setattr(examined, "memory_effects", lambda *_, **__: effect)
    case = examined.Case(None, [], None, None, 0, None)
    case.__dict__["blocks"] = pd.DataFrame({"read_ratio": [0.01]})
    found = list(CHECKS["memory unused"](case))
    assert [row.finding for row in found] == ["memory unused"] * (said == "unused")
    assert ("memory unused" in case.unclear) == (said == "unclear")


def test_what_was_lost_in_training() -> None:
    base, model = tiny("llama"), grown()
    text = own_text(base)
    table = doctor(model, text, before=base, timing=False)
    row = table[table["finding"] == "general ability lost"].iloc[0]
    with torch.no_grad():
        losses = []
        for network in (base, model):
            ids = torch.stack([window.ids for window in text.windows])
            losses.append(network(input_ids=ids, labels=ids).loss.item())
    assert row["value"] == pytest.approx(losses[1] - losses[0], abs=1e-4)
    assert "general ability lost" not in findings(doctor(model, text, timing=False))


def test_over_specialisation() -> None:
    base, model = tiny("llama"), grown()
    for layer in range(1, 4):  # all heads but one of each layer write next to nothing
        blocks(model)[layer].self_attn.o_proj.weight.data[:, 16:] *= 1e-3
    for _, memory in memories(model):
        memory.head_proj.data[1:] *= 1e-3
    table = doctor(model, own_text(base), before=base, timing=False)
    row = table[table["finding"] == "over-specialised"].iloc[0]
    assert row["value"] > LIMITS["over-specialised"] and "Gini" in row["evidence"]


def test_a_factorisation_too_narrow() -> None:
    model = grown()
    text, ((_, memory),) = own_text(model), memories(model)
    used = torch.tensor(memory_usage(model, text).counts[0].weight.sum(0))  # [64], of any bank
    even = torch.eye(16).repeat(4, 1) / used.clamp(min=1e-6).sqrt()[:, None]
    memory.bank.data.copy_(even)  # what is read fills every column alike
    assert "factorisation too narrow" in findings(doctor(model, text, timing=False))
    memory.bank.data[:, 8:] = 0  # eight of sixteen columns hold it all
    assert "factorisation too narrow" not in findings(doctor(model, text, timing=False))


def test_a_slow_memory() -> None:
    model = grown()
    for _, memory in memories(model):
        memory.retrieved.register_forward_hook(lambda *_: time.sleep(0.2))
    table = doctor(model, own_text(model, count=2, length=20))
    row = table[table["finding"] == "memory slow"].iloc[0]
    assert row["block"] == 4 and "512 tokens take 2" in row["evidence"]


def test_a_healthy_model() -> None:
    """The shipped model, on the kind of text that its memory was trained on."""
    files = documents("packages", model="pico-midus", split="test", limit=8)
    texts = documents([item.ids[:300].tolist() for item in files], model="pico-midus")
    table = doctor("pico-midus", texts, before="pico", timing=False)
    assert table.empty, table.to_string()
    assert len(table.attrs["checked"]) == 6 and list(table.attrs["skipped"]) == ["memory slow"]


def test_a_model_without_memory() -> None:
    with pytest.raises(MidusError, match="no memory"):
        doctor(tiny("llama"), [[1, 2, 3]])
