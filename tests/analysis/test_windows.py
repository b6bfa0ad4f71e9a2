"""Windows with a start token of their own: every token predicted once, and by the right context."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from analysis.baselines import mean_outputs
from analysis.documents import Document, Documents
from analysis.engine import batch_of, head_outputs
from analysis.memory.stream import batches_of
from analysis.memory_plan import plan_for
from analysis.reader import Reading
from analysis.windows import first_new
from kernels.errors import DataError
from midus_model import head_sites
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals:UserWarning")
START = 1
LENGTHS = (2, 3, 7, 8, 9, 14, 15, 16, 17, 30, 31, 64)


def texts(context: int, bos: str, start: tuple[int, ...] = (START,), task: int = 0) -> Documents:
    """Documents of ids 10, 11, ... after the start tokens; of a task the last `task` are scored."""
    items = []
    for length in LENGTHS:
        ids = torch.tensor([*start, *range(10, 10 + length)])
        scored = 1 if not task else max(1, len(ids) - task)
        items.append(Document(str(length), ids, str(length), scored_from=scored, task=bool(task)))
    return Documents("counted", items, context, reading=Reading(bos, start))


@pytest.mark.parametrize("bos", ["first", "every"])
@pytest.mark.parametrize("context", [3, 4, 7, 16, 80])
@pytest.mark.parametrize("task", [0, 1, 3, 20])
def test_every_token_is_predicted_once_after_the_token_before_it(
    context: int, bos: str, task: int
) -> None:
    data = texts(context, bos, task=task)
    counts = [Counter[int]() for _ in data]
    for window in data.windows:
        item = data[window.document]
        assert 2 <= len(window.ids) <= context
        assert window.repeated == (bos == "every" and window.start + window.repeated > 0)
        assert window.ids[: window.repeated].tolist() == [START] * window.repeated
        here = window.ids[window.repeated :]
        at = window.start + window.repeated
        assert torch.equal(here, item.ids[at : at + len(here)])
        assert bos == "first" or window.ids[0] == START
        for place in torch.nonzero(window.scored).flatten().tolist():
            assert place >= window.repeated  # not from a start token given again
            counts[window.document][window.start + place + 1] += 1
    for item, count in zip(data, counts, strict=True):
        assert count == Counter(range(item.scored_from, len(item.ids)))
    assert sum(int(window.scored.sum()) for window in data.windows) == data.tokens


@pytest.mark.parametrize("start", [(START,), (2, START)])
def test_windows_hold_what_the_context_leaves(start: tuple[int, ...]) -> None:
    data = texts(8, "every", start)
    longest = [w for w in data.windows if w.document == len(LENGTHS) - 1]
    assert [len(w.ids) for w in longest[:-1]] == [8] * (len(longest) - 1)
    assert all(w.ids[: len(start)].tolist() == list(start) for w in longest)
    for before, after in zip(longest, longest[1:], strict=False):  # one token of overlap
        assert before.ids[-1] == after.ids[len(start)]
    with pytest.raises(DataError, match="holds no text beside the start token"):
        texts(len(start) + 1, "every", start)


def test_a_decision_is_found_where_it_stands() -> None:
    ids = torch.tensor([START, *range(10, 40)])
    item = Document("t", ids, "t", scored_from=26, foil=torch.tensor([35, 36, 99]), task=True)
    for bos in ("first", "every"):
        data = Documents("task", [item], 8, reading=Reading(bos, (START,)))
        (window,) = [one for one in data.windows if one.foil is not None]
        place, wrong = window.foil
        assert wrong == 99
        assert window.ids[place + 1] == ids[item.decision[0]]
        assert window.scored[place]


@pytest.mark.parametrize("bos", ["first", "every"])
def test_positions_that_count_are_every_token_once(bos: str) -> None:
    data = texts(8, bos)
    found = [Counter[int]() for _ in data]
    for batch, positions in batches_of(data.windows, torch.device("cpu")):
        flat = batch.ids.flatten()[positions.index]
        documents, places, starts = positions.origins()
        for one, document, place, start in zip(flat, documents, places, starts, strict=True):
            assert data[document].ids[place] == one
            assert start <= place
            found[document][int(place)] += 1
    for item, count in zip(data, found, strict=True):
        assert count == Counter(range(len(item.ids)))


@pytest.mark.parametrize("bos", ["first", "every"])
def test_mean_outputs_are_over_every_token_once(bos: str) -> None:
    model: Any = tiny("llama").double()
    data = texts(8, bos)
    sites = head_sites(model)
    found = mean_outputs(model, sites, data.windows, plan_for(model, 8))
    sums: dict[int, list[np.ndarray]] = {layer: [] for layer in found}
    for window, first in zip(data.windows, first_new(data.windows), strict=True):
        outputs = head_outputs(model, batch_of([window], torch.device("cpu")), sites)
        for layer, heads in outputs.items():
            sums[layer].append(heads[0, first:].numpy())
    for layer, mean in found.items():
        every = np.concatenate(sums[layer])
        assert len(every) == sum(len(item.ids) for item in data)
        assert np.allclose(mean[0, 0].numpy(), every.mean(0), atol=1e-12)


def test_subsets_keep_how_they_were_read() -> None:
    data = texts(8, "every")
    for part in (data.subset([3, 4]), data.halves()[0], data.with_context(9)):
        assert part.bos == "every"
        assert part.windows[-1].ids[0] == START
