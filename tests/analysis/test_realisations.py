"""Realisations under fixed retrieval against edited models run with the retrieval held by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import subspace_angles

from analysis import head_importance, tables
from analysis.causes import memory_effects
from analysis.causes.frozen import as_outputs, resumed, watched
from analysis.documents import Documents
from analysis.realisations import (
    REALISATIONS,
    head_geometry,
    memory_realisations,
    residual_updates,
)
from analysis.realisations.fixed import derangement
from analysis.realisations.geometry import cosines, linear_cka
from analysis.realisations.moments import Moments, effective_rank
from analysis.subject import prepared
from kernels.errors import HeadError, MidusError
from kernels.headwise_memory import realised
from midus_model import load, upscale
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import HEADS, tiny
from tests.reference import fill_banks, float64_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")

LENGTHS = [12, 33, 9, 20]
MODELS: dict[str, dict[str, Any]] = {
    "two blocks": {"blocks": [0, 2]},
    "linear mixing": {"family": "qwen3-wide", "blocks": [1]},
    "chosen heads": {"family": "mistral", "heads": [(0, 0), (0, 3), (2, 1)]},
}


def memories(model: Any) -> dict[int, Any]:
    stack = enumerate(model.model.layers)
    return {at: block.memory for at, block in stack if hasattr(block, "memory")}


def matrix(table: pd.DataFrame) -> np.ndarray:
    return np.array(table["by_document"].tolist())


# ---------------------------------------------------------------- the retrieval held by hand


@contextmanager
def holding(model: Any, retrieved: dict[int, Any]) -> Iterator[None]:
    """Memory reads what is given, by block: weights and slots [P, M, any k]."""
    hooks = [
        memories(model)[at].retrieved.register_forward_hook(lambda *_, found=found: found)
        for at, found in retrieved.items()
    ]
    yield
    for hook in hooks:
        hook.remove()


def retrieval(model: Any, ids: torch.Tensor) -> dict[int, Any]:
    """What every memory retrieves in a plain pass."""
    found: dict[int, Any] = {}
    hooks = [
        memory.retrieved.register_forward_hook(
            lambda _, __, output, at=at: found.__setitem__(at, output)
        )
        for at, memory in memories(model).items()
    ]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    return found


def of_all_heads(retrieved: Any) -> Any:
    """Every head reads what all heads read, each a share: the mean over heads, as one retrieval."""
    weights, slots = retrieved  # [P, M, k]
    heads = weights.shape[1]
    return tuple(
        part.flatten(1)[:, None].expand(-1, heads, -1) for part in (weights / heads, slots)
    )


Edit = Callable[[int, Any], Any]


@torch.no_grad()
def by_hand(
    model: Any, data: Documents, places: list[int], edit: Edit, mean_read: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Loss increase and KL by unit of an edited copy that reads what the model retrieved."""
    other = copy.deepcopy(model)
    for at in places:
        edit(at, memories(other)[at])
    increase, kl = np.zeros(len(data.units)), np.zeros(len(data.units))
    for window in data.windows:
        kept = retrieval(model, window.ids)
        if mean_read:
            kept |= {at: of_all_heads(kept[at]) for at in places}
        held = {at: kept[at] for at in places}
        clean = model(window.ids[None]).logits[0, :-1][window.scored].double()
        with holding(other, held):
            changed = other(window.ids[None]).logits[0, :-1][window.scored].double()
        targets = window.ids[1:][window.scored]
        losses = [F.cross_entropy(x, targets, reduction="sum") for x in (clean, changed)]
        increase[window.unit] += float(losses[1] - losses[0])
        before, after = clean.log_softmax(-1), changed.log_softmax(-1)
        kl[window.unit] += float((before.exp() * (before - after)).sum())
    tokens = np.array([unit["tokens"] for unit in data.units])
    return increase / tokens, kl / tokens


def shared(_: int, memory: Any) -> None:
    memory.head_proj.copy_(memory.head_proj.mean(0, keepdim=True).expand_as(memory.head_proj))


def shared_scaled(_: int, memory: Any) -> None:
    own = [torch.linalg.matrix_norm(p) for p in memory.head_proj]
    mean = memory.head_proj.mean(0)
    for head, norm in enumerate(own):
        memory.head_proj[head] = mean / torch.linalg.matrix_norm(mean) * norm


def nothing(*_: Any) -> None: ...


def off(_: int, memory: Any) -> None:
    memory.bank.zero_()


def swapped(orders: dict[str, list[int]]) -> Edit:
    return lambda at, memory: memory.head_proj.copy_(memory.head_proj[orders[str(at)]].clone())


@pytest.mark.parametrize("name", MODELS)
def test_realisations_equal_edited_models_with_the_retrieval_held(name: str) -> None:
    model, data = memory_model(**MODELS[name]), random_texts([14, 9])
    table = memory_realisations(model, data)
    blocks, tokens = list(memories(model)), [unit["tokens"] for unit in data.units]
    places = {str(at): [at] for at in blocks} | {"all": blocks}
    assert list(dict.fromkeys(table["block"])) == list(places)
    edits: dict[str, list[Any]] = {
        "clean": [nothing], "shared": [shared], "shared_scaled": [shared_scaled],
        "swapped": [swapped(orders) for orders in table.attrs["swapped"]],
        "averaged": [nothing], "off": [off],
    }  # fmt: skip
    for place, part in table.groupby("block"):
        assert part["realisation"].tolist() == list(REALISATIONS)
        for row, scores in zip(part.itertuples(), matrix(part), strict=True):
            found = [
                by_hand(model, data, places[place], edit, row.realisation == "averaged")
                for edit in edits[row.realisation]
            ]
            increase, kl = np.mean(found, axis=0)
            np.testing.assert_allclose(scores, increase, atol=1e-9)
            assert row.score == pytest.approx(np.average(increase, weights=tokens), abs=1e-9)
            assert row.kl == pytest.approx(np.average(kl, weights=tokens), abs=1e-9)
    assert table.loc[table["realisation"] == "shared", "kl"].max() > 1e-3


def with_budgets(double: bool) -> Any:
    """One block whose heads differ in the slots they read and the columns they see."""
    sizes = {"top_k": (1, 3, 2, 3), "latent_dim": (8, 2, 5, 8)}
    by_head = {name: {(1, h): size for h, size in enumerate(each)} for name, each in sizes.items()}
    model = fill_banks(upscale(tiny(), blocks=[1], num_keys=4, **by_head))
    return float64_reference(model) if double else model


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", [*MODELS, "budgets"])
def test_the_clean_realisation_is_the_clean_run_bit_for_bit(name: str, double: bool) -> None:
    options = MODELS.get(name, {})
    model = memory_model(double=double, **options) if options else with_budgets(double)
    data = random_texts(LENGTHS)
    subject = prepared(model, data)
    with watched(model) as seen, torch.no_grad():
        run = subject.clean(subject.batch(range(len(data.windows))))
        outputs = {}
        for at, (weights, slots) in seen.items():
            memory = memories(model)[at]
            read = realised(weights, slots, memory.bank, memory.projections)
            outputs[at] = as_outputs(memory, read, run.heads[at])
            assert torch.equal(outputs[at], run.heads[at])
        for places in ([min(outputs)], [max(outputs)], list(outputs)):
            assert torch.equal(resumed(model, run, {at: outputs[at] for at in places}), run.hidden)
    table = memory_realisations(model, data)
    clean = table[table["realisation"] == "clean"]
    assert table.attrs["exact"] is True
    assert (clean[["score", "ci_low", "ci_high", "kl"]] == 0).all().all()
    assert not matrix(clean).any()


def test_the_retrieval_is_really_held() -> None:
    """The same edit with the retrieval free gives something else: later blocks read other slots."""
    model, data = memory_model(blocks=[0, 2]), random_texts(LENGTHS)
    table = memory_realisations(model, data).set_index(["block", "realisation"])
    held, _ = by_hand(model, data, list(memories(model)), shared)
    free = copy.deepcopy(model)
    with torch.no_grad():
        for at, memory in memories(free).items():
            shared(at, memory)
    change = head_importance(free, data).attrs["clean_loss"]
    change -= head_importance(model, data).attrs["clean_loss"]
    assert abs(change - table.loc[("all", "shared"), "score"]) > 1e-5
    np.testing.assert_allclose(table.loc[("all", "shared"), "by_document"], held, atol=1e-9)


def test_off_is_what_switching_the_block_off_costs() -> None:
    """Other blocks retrieve anew where one block alone is realised otherwise."""
    model, data = memory_model(double=False, blocks=[0, 2]), random_texts(LENGTHS)
    table = memory_realisations(model, data, seed=2)
    whole = table[table["realisation"] == "off"]
    expected = [memory_effects(model, data, of=of, seed=2) for of in ("blocks", "all")]
    scores = pd.concat(expected)
    for column in ("score", "stderr", "ci_low", "ci_high"):
        np.testing.assert_allclose(whole[column], scores[column], atol=1e-7)


def test_one_block_alone_and_tasks() -> None:
    model = memory_model(blocks=[0, 2])
    data = random_tasks([12, 9, 15, 11], [2, 3, 1, 2], [2, 3, 1, 2])
    table = memory_realisations(model, data, metric="logit_difference", block=4)
    assert table["block"].tolist() == ["4"] * len(REALISATIONS)
    both = memory_realisations(model, data, metric="logit_difference")
    pd.testing.assert_frame_equal(
        table.reset_index(drop=True), both[both["block"] == "4"].reset_index(drop=True)
    )
    effects = memory_effects(model, data, of="blocks", metric="logit_difference")
    assert table["score"].iloc[-1] == pytest.approx(effects["score"].iloc[-1])
    assert table.attrs["unit"] == "logits/task"


def test_one_memory_head_has_no_other_to_take_from() -> None:
    model, data = memory_model(double=False, heads=[(1, 2)]), random_texts(LENGTHS)
    table = memory_realisations(model, data).set_index(["block", "realisation"])
    same = table.loc[[("all", name) for name in ("shared", "swapped", "averaged")]]
    assert (same["kl"].abs() < 1e-9).all() and table.loc[("all", "off"), "kl"] > 1e-4


def test_derangements_leave_nothing_in_place() -> None:
    rng = np.random.default_rng(0)
    drawn = [derangement(4, rng) for _ in range(300)]
    assert all(place != at for order in drawn for at, place in enumerate(order))
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert len({tuple(order) for order in drawn}) == 9, "every derangement of four is drawn"
    assert derangement(1, rng) == [0] and derangement(2, rng) == [1, 0]


def test_the_seed_sets_the_swaps() -> None:
    model, data = memory_model(double=False), random_texts(LENGTHS)
    one, same, other = (memory_realisations(model, data, seed=seed) for seed in (1, 1, 2))
    assert one.attrs["swapped"] == same.attrs["swapped"] != other.attrs["swapped"]
    pd.testing.assert_frame_equal(one, same)


def test_tables_survive_the_disc(tmp_path: Any) -> None:
    model, data = memory_model(double=False, blocks=[0, 2]), random_texts(LENGTHS)
    made = {
        "realisations": memory_realisations(model, data),
        "geometry": head_geometry(model, data),
        "updates": residual_updates(model, data),
    }
    for name, table in made.items():
        tables.save(table, tmp_path / name)
        again = tables.load(tmp_path / name)
        assert again.attrs == table.attrs
        pd.testing.assert_frame_equal(again, table)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0


# ---------------------------------------------------------------- geometry


def test_effective_rank_of_known_spectra() -> None:
    spectra = torch.tensor([[1.0, 1, 1, 1], [5, 5, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]).double()
    found = effective_rank(spectra)
    np.testing.assert_allclose(found, [4, 2, 1, np.nan])
    half = effective_rank(torch.tensor([0.75, 0.25]).double())
    assert float(half) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_moments_are_numpys_however_the_rows_come() -> None:
    rows = torch.randn(50, 6).double() + 100
    moments = Moments(6, torch.device("cpu"))
    for part in rows.split(7):
        moments.add(part)
    np.testing.assert_allclose(moments.covariance / 49, np.cov(rows.T.numpy()), atol=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(12, 5), (5, 12), (6, 6)])
def test_cosines_are_those_of_scipys_angles(rows: int, columns: int) -> None:
    matrices = torch.randn(4, rows, columns).double()
    matrices[3, :, 2:] = matrices[3, :, :1]  # of rank 2
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    for bases, spaces in ((left, matrices), (right.mT, matrices.mT)):
        found = cosines(bases, values)
        for i in range(4):
            for j in range(4):
                one, two = (spaces[k].numpy() for k in (i, j))
                one, two = (np.linalg.svd(x)[0][:, : np.linalg.matrix_rank(x)] for x in (one, two))
                expected = np.cos(subspace_angles(one, two)).mean()
                assert float(found[i, j]) == pytest.approx(expected, abs=1e-7)


def cka(one: np.ndarray, two: np.ndarray) -> float:
    """From centred Gram matrices over positions (Kornblith et al. 2019, eq. 3 and 4)."""
    centre = np.eye(len(one)) - 1 / len(one)
    first, second = (centre @ x @ x.T @ centre for x in (one, two))
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def test_linear_cka_is_that_of_gram_matrices() -> None:
    parts = [torch.randn(40, 5).double() for _ in range(2)]
    turn = torch.linalg.qr(torch.randn(5, 5).double()).Q
    parts.append(3 * parts[0] @ turn - 7)
    moments = Moments(15, torch.device("cpu"))
    moments.add(torch.cat(parts, 1))
    found = linear_cka(moments.covariance, 3)
    for i in range(3):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(cka(*(parts[k].numpy() for k in (i, j))))
    assert float(found[0, 2]) == pytest.approx(1), "blind to rotation, scale and shift"


@torch.no_grad()
def read_and_written(model: Any, data: Documents, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[P, M, r] and [P, M, D] at every token of the documents once, window by window."""
    memory, seen = memories(model)[block], set()
    read, written = [], []
    for window in data.windows:
        weights, slots = retrieval(model, window.ids)[block]
        for t in range(len(window.ids)):
            if (window.document, window.start + t) in seen:
                continue
            seen.add((window.document, window.start + t))
            latents = (weights[t][..., None] * memory.bank[slots[t]]).sum(1)  # [M, r]
            read.append(latents.numpy())
            written.append(torch.einsum("mr,mrd->md", latents, memory.head_proj).numpy())
    return np.array(read), np.array(written)


@pytest.mark.parametrize("name", MODELS)
def test_geometry_equals_plain_linear_algebra(name: str) -> None:
    model, data = memory_model(**MODELS[name]), random_texts(LENGTHS)
    table = head_geometry(model, data)
    for block, memory in memories(model).items():
        read, written = read_and_written(model, data, block)
        rows = table[table["block"] == block]
        pairs = [(h, g) for i, h in enumerate(memory.heads) for g in memory.heads[i:]]
        assert rows[["head", "other"]].values.tolist() == [list(pair) for pair in pairs]
        for row in rows.itertuples():
            i, j = (memory.heads.index(h) for h in (row.head, row.other))
            one, two = (memory.head_proj[k].detach().numpy() for k in (i, j))
            values = np.linalg.svd(one, compute_uv=False)
            share = values / values.sum()
            assert row.rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))
            read_cosine = np.cos(subspace_angles(one, two)).mean()
            assert row.read_cosine == pytest.approx(read_cosine, abs=1e-7)
            write_cosine = np.cos(subspace_angles(one.T, two.T)).mean()
            assert row.write_cosine == pytest.approx(write_cosine, abs=1e-7)
            assert row.cka_read == pytest.approx(cka(read[:, i], read[:, j]), abs=1e-7)
            assert row.cka_written == pytest.approx(cka(written[:, i], written[:, j]), abs=1e-7)
        assert table.attrs["positions"] == len(read) == sum(LENGTHS)


def test_planted_projections_have_planted_angles() -> None:
    """r = 8 of D = 16: two heads write into one half of their slices, two into the other."""
    model, data = memory_model(double=False), random_texts(LENGTHS)
    (memory,) = memories(model).values()
    with torch.no_grad():
        memory.head_proj.zero_()
        for head, start in enumerate((0, 0, 8, 8)):
            memory.head_proj[head, :, start : start + 8] = torch.randn(8, 8)
    table = head_geometry(model, data).set_index(["head", "other"])
    assert table.loc[(0, 1), "write_cosine"] == pytest.approx(1, abs=1e-6)
    assert table.loc[(2, 3), "write_cosine"] == pytest.approx(1, abs=1e-6)
    assert table.loc[(0, 2), "write_cosine"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(table["read_cosine"], 1, atol=1e-6)  # all of the latent space
    chance = table.attrs["chance"]["2"]
    assert chance["read_cosine"] == pytest.approx(1) and 0.5 < chance["write_cosine"] < 0.9


def test_an_empty_memory_has_no_geometry_of_reads() -> None:
    model = upscale(tiny(), blocks=[1], num_keys=4, top_k=2, latent_dim=8)
    table = head_geometry(model, random_texts(LENGTHS), block=2)
    assert table[["cka_read", "cka_written"]].isna().all().all()
    assert len(table) == HEADS * (HEADS + 1) // 2 and (table["rank"] > 1).all()


# ---------------------------------------------------------------- what blocks add


def trained_pro() -> Any:
    """A llama-pro model whose copies are not zero."""
    model = upscale(tiny(), "llama-pro", blocks=[0, 3])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for at in (1, 5):
            block = model.model.layers[at]
            for part in (block.self_attn.o_proj, block.mlp.down_proj):
                part.weight.copy_(0.1 * torch.randn(part.weight.shape, generator=generator))
    return model


@torch.no_grad()
def additions(model: Any, data: Documents, at: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By part, the block's input and what is added to it [P, d], each token once."""
    seen: set[tuple[int, int]] = set()
    rows: dict[str, list[Any]] = {}
    block = model.model.layers[at]
    for window in data.windows:
        kept: list[Any] = []
        hook = block.register_forward_hook(
            lambda _, args, output, kept=kept: kept.append((args[0][0], output[0]))
        )
        attended: list[Any] = []
        inner = block.self_attn.register_forward_hook(
            lambda _, __, output, attended=attended: attended.append(output[0][0])
        )
        model(window.ids[None])
        hook.remove()
        inner.remove()
        stream, output = kept[0]
        parts = {"block": output - stream}
        if hasattr(block, "mlp"):
            parts["attention"] = attended[0]
            middle = stream + attended[0]
            parts["ffn"] = block.mlp(block.post_attention_layernorm(middle))
        for t in range(len(window.ids)):
            if (window.document, window.start + t) not in seen:
                seen.add((window.document, window.start + t))
                for name, added in parts.items():
                    rows.setdefault(name, []).append((stream[t].numpy(), added[t].numpy()))
    return {
        name: tuple(np.array(side, dtype=float) for side in zip(*found, strict=True))  # type: ignore[misc]
        for name, found in rows.items()
    }


@pytest.mark.parametrize("kind", ["memory", "copy"])
def test_updates_equal_plain_linear_algebra(kind: str) -> None:
    model = trained_pro() if kind == "copy" else memory_model(double=False, blocks=[0, 3])
    data = random_texts(LENGTHS)
    table = residual_updates(model, data)
    parts = ["block", "attention", "ffn"] if kind == "copy" else ["block"]
    assert table["part"].tolist() == parts * 2 and set(table["kind"]) == {kind}
    assert table["source_layer"].tolist() == [0] * len(parts) + [3] * len(parts)
    for row in table.itertuples():
        stream, added = additions(model, data, row.block)[row.part]
        ratio = np.linalg.norm(added, axis=1) / np.linalg.norm(stream, axis=1)
        assert row.norm_ratio == pytest.approx(ratio.mean(), rel=1e-5)
        assert row.ci_low <= row.norm_ratio <= row.ci_high
        values = np.linalg.svd(added - added.mean(0), compute_uv=False) ** 2
        share = values[values > 0] / values.sum()
        expected = np.exp(-(share * np.log(share)).sum())
        assert row.effective_rank == pytest.approx(expected, rel=1e-4)


def test_untrained_blocks_add_nothing() -> None:
    base, data = tiny(), random_texts(LENGTHS)
    for model in (
        upscale(base, blocks=1, num_keys=4, top_k=2, latent_dim=8),
        upscale(base, "llama-pro", blocks=1),
    ):
        table = residual_updates(model, data)
        assert (table["norm_ratio"] == 0).all() and table["effective_rank"].isna().all()


# ---------------------------------------------------------------- errors and the shipped model


def test_models_that_have_no_memory_or_no_inserted_blocks() -> None:
    base, data = tiny(), random_texts(LENGTHS)
    for ask in (memory_realisations, head_geometry):
        with pytest.raises(MidusError, match="has no memory blocks.*pico-midus"):
            ask(base, data)
        with pytest.raises(HeadError, match="block 0 is no memory block.*block 2"):
            ask(memory_model(double=False), data, block=0)
    with pytest.raises(MidusError, match="has no inserted blocks; .*'pico-midus'"):
        residual_updates(base, data)


def test_the_shipped_model_is_realised_exactly() -> None:
    model = load("pico-midus")
    last = max(memories(model))
    table = memory_realisations(model, ["def f(x):\n    return x + 1\n" * 8], block=last)
    scores = table.set_index("realisation")["score"]
    assert table.attrs["exact"] and scores["clean"] == 0 and (scores.drop("clean") != 0).all()
