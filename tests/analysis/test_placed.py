"""Measuring where weights lie on disk, on two devices, or in half precision: the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import analysis
from analysis.memory import memory_contents, memory_view, nearest_slots, slot_tokens
from analysis.metrics import LOSS
from midus_model import load, upscale
from tests.devices import split
from tests.midus_model.test_placement import parts_on_disk
from tests.models import tiny, tokens

DOCUMENTS = tokens(6, 24).tolist()
HEADS = [(1, 0), (3, 2)]
METHODS = ("ablation", "gradient", "taylor", "integrated_gradients", "fisher", "shapley")

Measured = Callable[[Any], pd.DataFrame]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*one document, so intervals", "ignore:.*noise of half"
)


def trained(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with memory that reads something."""
    model = upscale(tiny(family), blocks=2, num_keys=8, top_k=4, latent_dim=8)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in model.model.layers:
            if hasattr(block, "memory"):
                bank = block.memory.bank
                bank.copy_(0.3 * torch.randn(bank.shape, generator=generator))
    return model.to(dtype)


def importance(method: str, **options: Any) -> Measured:
    return lambda model: analysis.head_importance(model, DOCUMENTS, method=method, **options)


MEASUREMENTS: dict[str, Measured] = {
    **{method: importance(method) for method in METHODS},
    "resample": importance("ablation", baseline="resample"),
    "zero, kl": importance("ablation", baseline="zero", metric="kl"),
    "query": importance("ablation", stage="query"),
    "groups": importance("ablation", group="kv"),
    "michel": importance("gradient", baseline="zero", convention="michel"),
    "rank": lambda model: analysis.rank_heads(model, DOCUMENTS, top=4).sort_values(
        ["layer", "kind", "head"], ignore_index=True
    ),
    "prune": lambda model: analysis.prune_curve(model, None, DOCUMENTS, steps=3, draws=2),
    "dose": lambda model: analysis.dose_response(
        model, HEADS, DOCUMENTS, gains=(0, 1, 1.5), controls=("random",), draws=2
    ),
    "usage": lambda model: pd.DataFrame(analysis.memory_usage(model, DOCUMENTS)),
    "effects": lambda model: analysis.memory_effects(model, DOCUMENTS),
    "next tokens": lambda model: analysis.next_tokens(model, DOCUMENTS[0], {HEADS[0]: 0.0}, top=128)
    .sort_values("token_id", ignore_index=True),
}  # fmt: skip
# What reads weights itself: of the head's map, the unembedding and the final norm.
READING: dict[str, Measured] = {
    "dla": importance("dla"),
    "roles": lambda model: analysis.head_roles(model, DOCUMENTS),
    "head view": lambda model: analysis.head_view(model, DOCUMENTS[0], 1, 2),
    "moved": lambda model: analysis.dose_response(
        model, HEADS, DOCUMENTS, gains=(0, 1), controls=("matched_norm",)
    ),
}


def cases(every: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """All of them, those that are not quick being for `make verify`."""
    slow = pytest.mark.verify
    return [pytest.param(name, marks=() if name in quick else slow, id=name) for name in every]


def numbers(table: pd.DataFrame) -> np.ndarray:
    """What a table says of heads, intervals left out: they hang on ties."""
    kept = [c for c in table.select_dtypes("number") if c not in ("exact", "p_top", "evaluations")]
    return table[kept].to_numpy(dtype=float)


# ---------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """One model in memory, all on disk, and in part."""
    place = tmp_path_factory.mktemp("away")
    trained().save_pretrained(place)
    whole = load(place)
    parts = parts_on_disk(whole) | {"model.layers.2": "disk"}  # a memory block
    return whole, load(place, device_map="disk"), load(place, device_map=parts)


@pytest.mark.parametrize(
    "name", cases(MEASUREMENTS, ("ablation", "gradient", "query", "dose", "usage", "next tokens"))
)
def test_offloaded_models_are_measured_like_models_in_memory(
    away: tuple[Any, Any, Any], name: str
) -> None:
    whole, *others = away
    expected = MEASUREMENTS[name](whole)
    for model in others:
        found = MEASUREMENTS[name](model)
        np.testing.assert_allclose(numbers(found), numbers(expected), atol=2e-6, rtol=2e-5)
        assert found.attrs.get("model_hash") == expected.attrs.get("model_hash")
        assert all(p.requires_grad for p in model.parameters()), "flags are put back"


@pytest.mark.parametrize("name", cases(READING, ("dla", "head view")))
def test_offloaded_models_whose_weights_are_read(away: tuple[Any, Any, Any], name: str) -> None:
    expected, *found = [numbers(READING[name](model)) for model in away]
    for table in found:
        np.testing.assert_allclose(table, expected, atol=2e-6, rtol=2e-5)


def test_an_offloaded_memory_can_be_looked_into(away: tuple[Any, Any, Any]) -> None:
    looks: list[Measured] = [
        lambda m: memory_contents(m, DOCUMENTS, block=2, contexts=2),
        lambda m: memory_view(m, DOCUMENTS[0]),
        lambda m: nearest_slots(m, 2, 3, top=4),
        lambda m: nearest_slots(m, 2, 3, top=4, by="key", head=1),
    ]
    whole, *others = away
    for look in looks:
        for model in others:
            pd.testing.assert_frame_equal(look(model), look(whole))
    assert len(slot_tokens(whole, 2, 3))


# ---------------------------------------------------------------- on two devices

NO_GRADIENTS = (  # what pretended tensors can do: no backward pass, no inference mode
    "ablation", "shapley", "resample", "zero, kl", "query", "groups", "prune", "dose", "effects",
)  # fmt: skip


@pytest.mark.parametrize("name", cases(NO_GRADIENTS, ("ablation", "query", "prune")))
def test_a_model_split_over_two_devices_is_measured_like_one_in_memory(name: str) -> None:
    expected = numbers(MEASUREMENTS[name](trained()))
    with split(trained()) as model:
        found = numbers(MEASUREMENTS[name](model))
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=2e-5)


# ---------------------------------------------------------------- in half precision

HALF = {torch.bfloat16: 0.95, torch.float16: 0.99}  # least correlation over rows
COLUMNS = ("score", "change", "effective_k", "probability_after", "norm", "induction")
QUICK = ("ablation", "gradient", "dla", "usage", "head view", "dose")


def rounded(name: str, dtype: torch.dtype) -> Any:
    """A model in half precision; with memory, whose slots may switch, where it is about that."""
    of_memory = name in ("usage", "effects", "query")
    return trained(dtype=dtype) if of_memory else tiny("llama", dtype, initializer_range=0.3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", cases({**MEASUREMENTS, **READING}, QUICK))
def test_half_precision_is_measured_and_near_fp32_with_the_same_weights(
    name: str, dtype: torch.dtype
) -> None:
    measure = {**MEASUREMENTS, **READING}[name]
    half, wide = measure(rounded(name, dtype)), measure(rounded(name, dtype).float())
    column = next(c for c in COLUMNS if c in wide)
    found, expected = (table[column].to_numpy(dtype=float) for table in (half, wide))
    assert np.isfinite(found).all() and np.isfinite(expected).all()
    assert np.corrcoef(found, expected)[0, 1] > HALF[dtype], (found, expected)
    assert 0.8 < np.linalg.norm(found) / np.linalg.norm(expected) < 1.25


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_loss_of_half_precision_is_the_models_own(dtype: torch.dtype) -> None:
    model, ids = trained(dtype=dtype), torch.tensor(DOCUMENTS)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    found = analysis.head_importance(model, DOCUMENTS, baseline="zero", metric=LOSS)
    assert abs(found.attrs["clean_loss"] - float(expected)) < 2e-3
