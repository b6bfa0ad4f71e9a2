"""Training: resume equals a straight run, only new blocks move, the same rows for every model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from analysis import memory_usage
from analysis.documents import documents
from kernels import product_key_select
from kernels.errors import DataError, MidusError, RunError
from midus_model import load, param_groups, upscale
from midus_model.keys import halves, imbalance, loads, memories_of, queries_of
from midus_model.optim import new_parameter_names
from tests.workbench.trainings import CONTEXT, deeper, random_texts, tiny, weights
from workbench.training.log import usage_log
from workbench.training.rows import PackedRows
from workbench.training.train import train


@pytest.fixture(scope="module")
def texts():
    return random_texts()


def test_resume_equals_a_straight_run(texts, tmp_path):
    options = dict(steps=4, batch_size=2, lr=1e-2, eval_documents=texts, eval_every=2, save_every=2)
    straight = deeper()
    table = train(straight, texts, tmp_path / "a", bf16=False, **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    # What a kill leaves: the step-4 checkpoint half written, the step-2 checkpoint whole.
    (tmp_path / "b" / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text("{")
    seen = []
    resumed = deeper()
    again = train(
        resumed, texts, tmp_path / "b", bf16=False, **options, progress=lambda *p: seen.append(p)
    )
    assert seen[0][:2] == (2, 4)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert table.equals(again)
    assert list(table["step"]) == [0, 2, 4]
    loaded = load(tmp_path / "b" / "model")
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(loaded)[name]), name


def test_only_new_parameters_move(texts, tmp_path):
    model = deeper()
    before, new = weights(model), new_parameter_names(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    train(model, texts, tmp_path, steps=3, batch_size=2, lr=1e-2)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved and moved <= new
    assert any(name.endswith("memory.bank") for name in moved)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}


def test_all_parameters_of_a_base_can_be_trained(texts, tmp_path):
    model = tiny()
    before = weights(model)
    table = train(model, texts, tmp_path, steps=3, batch_size=2, lr=1e-2, train="all", run="base")
    assert all(not torch.equal(value, before[name]) for name, value in weights(model).items())
    assert set(table["run"]) == {"base"}
    assert not list(tmp_path.glob(".*"))


def test_new_blocks_of_a_base_are_refused_before_anything_is_written(texts, tmp_path):
    with pytest.raises(MidusError, match="no inserted blocks"):
        train(tiny(), texts, tmp_path / "x", steps=2)
    assert not (tmp_path / "x").exists()


def test_too_little_text_is_refused(tmp_path):
    short = documents([[1, 2, 3]], model=tiny(), context=CONTEXT)
    with pytest.raises(DataError, match="too few to train on"):
        train(deeper(), short, tmp_path / "x", steps=2)
    assert not (tmp_path / "x").exists()


def test_checkpoints_of_another_training_are_refused(texts, tmp_path):
    train(deeper(), texts, tmp_path, steps=1, batch_size=2)
    with pytest.raises(RunError, match="another training .other steps"):
        train(deeper(), texts, tmp_path, steps=2, batch_size=2)
    train(deeper(), texts, tmp_path, steps=2, batch_size=2, resume=False)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 2


# ---------------------------------------------------------------- revival and balance


def spoiled() -> torch.nn.Module:
    """A model with row keys between all others, which hardly any query selects."""
    model = upscale(tiny(), num_keys=12, top_k=2, latent_dim=4)
    with torch.no_grad():
        for memory in memories_of(model).values():
            memory.row_keys[:, 2:4] = 0
            memory.row_keys[:, 2:4] = memory.row_keys.mean(1, keepdim=True)
    return model


def test_with_both_off_nothing_is_hooked_and_the_numbers_are_those_of_a_plain_loop(texts, tmp_path):
    """The Trainer's steps by hand: AdamW on the same groups, rows and schedule."""
    model, plain = deeper(), deeper().float().train()
    train(model, texts, tmp_path, steps=3, batch_size=2, lr=1e-2, bf16=False)
    groups = param_groups(plain, 1e-2)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 3)
    rows = PackedRows(texts, 6, 0)
    for step in range(3):
        batch = [rows[2 * step], rows[2 * step + 1]]
        ids, labels = (torch.stack([row[k] for row in batch]) for k in ("input_ids", "labels"))
        counted = (labels[:, 1:] >= 0).sum()
        plain(input_ids=ids, labels=labels, num_items_in_batch=counted).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        plain.zero_grad()
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(model)[name]), name
    assert "revive_every" not in json.loads((tmp_path / "training.json").read_text())


def test_watching_alone_changes_nothing(texts, tmp_path):
    """A first revival that never comes leaves every weight and loss as it was, bit for bit."""
    options = dict(steps=3, batch_size=2, lr=1e-2, bf16=False)
    plain, watched = deeper(), deeper()
    table = train(plain, texts, tmp_path / "a", **options)
    again = train(watched, texts, tmp_path / "b", revive_every=100, **options)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(watched)[name]), name
    assert table.equals(again) and again.attrs["revived"] == []
    assert "revived" not in table.attrs and "revive_every" not in table.attrs["parameters"]


def test_a_training_with_revival_and_balance_resumes_as_it_would_have_gone(texts, tmp_path):
    options = dict(
        steps=6, batch_size=2, lr=1e-2, save_every=3, revive_every=2, balance_weight=0.01,
        bf16=False,
    )  # fmt: skip
    straight, resumed = spoiled(), spoiled()
    table = train(straight, texts, tmp_path / "a", **options)
    assert [step for step, _ in table.attrs["revived"]] == [2, 4]
    assert table.attrs["revived"][0][1] > 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "checkpoint-6")
    again = train(resumed, texts, tmp_path / "b", **options)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert table.equals(again) and table.attrs["revived"] == again.attrs["revived"]
    assert again.attrs["parameters"]["balance_weight"] == 0.01
    with pytest.raises(RunError, match="another training .other revive_every"):
        train(spoiled(), texts, tmp_path / "b", **{**options, "revive_every": 3})


def test_the_balance_loss_evens_the_load(texts, tmp_path):
    def unevenness(model):
        model.eval()
        found = []
        for memory, queries in zip(
            memories_of(model).values(),
            queries_of(model, [w.ids for w in texts.windows]).values(),
            strict=True,
        ):
            keys = memory.row_keys, memory.col_keys
            hits = loads(*product_key_select(queries, *keys, 2), 4)
            sides = zip(halves(queries), keys, hits, strict=True)
            found += [imbalance(*side).item() for side in sides]
        return np.mean(found)

    options = dict(steps=12, batch_size=4, lr=2e-2, bf16=False)
    plain, even = deeper(), deeper()
    train(plain, texts, tmp_path / "a", **options)
    train(even, texts, tmp_path / "b", balance_weight=1.0, **options)
    assert unevenness(even) < unevenness(plain)


def test_memory_use_along_a_training(texts, tmp_path):
    """The last row is what measuring the trained model gives; a resume has the rows before it."""
    options = dict(steps=4, batch_size=2, lr=1e-2, eval_documents=texts, eval_every=2, save_every=2)
    model = deeper()
    log = train(model, texts, tmp_path / "a", log_usage=True, bf16=False, run="x", **options)
    table = usage_log(log)
    assert list(table["step"]) == [0, 2, 4] and list(table["block"]) == [2, 2, 2]
    usage = memory_usage(model, texts)
    last = table.iloc[-1]
    assert last["coverage"] == pytest.approx(usage["coverage"].mean())
    assert last["effective_slots"] == pytest.approx(usage["effective_slots"].mean())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "checkpoint-4")
    again = train(deeper(), texts, tmp_path / "b", log_usage=True, bf16=False, run="x", **options)
    assert usage_log(again).equals(table)


def test_no_memory_use_was_logged(texts, tmp_path):
    log = train(deeper(), texts, tmp_path, steps=1, batch_size=2)
    with pytest.raises(MidusError, match="train with log_usage=True"):
        usage_log(log)
    with pytest.raises(MidusError, match="needs eval_documents"):
        train(deeper(), texts, tmp_path / "b", steps=1, batch_size=2, log_usage=True)
