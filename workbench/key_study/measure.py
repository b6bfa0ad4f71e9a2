"""Coverage before training and loss after it, for each way to start and to keep sub-keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from analysis import memory_usage, tables
from analysis.documents import Document, Documents, documents
from midus_model import load, upscale
from midus_model.bench.report import machine_of
from midus_model.keys import halves, memories_of, queries_of
from midus_model.optim import new_parameter_names
from workbench.inputs import inputs_of
from workbench.recipe import excerpts
from workbench.training.evaluation import evaluate
from workbench.training.train import train

Progress = Callable[[int, int, str], None]
STARTS = ("uniform", "raw k-means", "queries")
TRAININGS = (("uniform", False), ("queries", False), ("queries", True), ("uniform", True))


@dataclass(frozen=True)
class Setting:
    """What is measured; the memory and the training are those of `workbench.recipe`.

    Attributes:
        windows: of the context, non-overlapping, of held-out text, on which coverage is counted.
        calibration: windows of training text from which keys are made.
        excerpts: test documents on whose excerpts (two windows each) losses are taken.
        revive_every: steps between revivals, where there are any.
        seeds: of keys, projections and row order; 0 to seeds - 1.
    """

    base: str = "pico"
    data: str = "packages"
    windows: int = 768
    calibration: int = 64
    num_keys: int = 64
    top_k: int = 8
    latent_dim: int = 64
    steps: int = 200
    batch_size: int = 16
    lr: float = 8e-3
    train_documents: int = 400
    excerpts: int = 48
    revive_every: int = 20
    seeds: int = 3

    def parameters(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(source: Documents, count: int) -> list[Document]:
    """`count` whole windows of the context, without overlap, spread evenly over the documents."""
    size = source.context
    every = [
        Document(f"{item.id}@{start}", item.ids[start : start + size], f"{item.sha256}@{start}")
        for item in source
        for start in range(0, len(item.ids) - size + 1, size)
    ]
    count = min(count, len(every))
    return [every[index * len(every) // count] for index in range(count)]


class Experiment:
    """The data, the models and the two measurements of a setting."""

    def __init__(self, setting: Setting, work: Path, progress: Progress | None = None) -> None:
        self.setting, self.work, self.progress = setting, work, progress

    # ------------------------------------------------------------ data and models

    @cached_property
    def base(self) -> Any:
        return load(self.setting.base)

    @cached_property
    def heldout(self) -> Documents:
        """Where coverage is counted: text held out from the base, and unlike the calibration's."""
        source = documents("heldout", model=self.setting.base)
        return Documents(
            "heldout", rows_of(source, self.setting.windows), source.context, source.tokenizer
        )

    @cached_property
    def training(self) -> Documents:
        setting = self.setting
        return documents(
            setting.data, model=setting.base, split="train", limit=setting.train_documents
        )

    @cached_property
    def calibration(self) -> list[torch.Tensor]:
        return [item.ids for item in rows_of(self.training, self.setting.calibration)]

    @cached_property
    def test(self) -> Documents:
        setting = self.setting
        source = documents(
            setting.data, model=setting.base, split="test", limit=3 * setting.excerpts
        )
        return excerpts(source, setting.excerpts, 2, f"{setting.data} (test)")

    def inputs(self) -> dict[str, str]:
        """What the study is made of, by hash, for its run folder."""
        texts = {"heldout": self.heldout, "training": self.training, "test": self.test}
        return inputs_of({self.setting.base: self.base}, texts)

    def model(self, keys: str, seed: int) -> Any:
        """The base with three blocks of memory, by default, and keys of that kind."""
        setting = self.setting
        queries = keys == "queries"
        model = upscale(
            self.base,
            num_keys=setting.num_keys,
            top_k=setting.top_k,
            latent_dim=setting.latent_dim,
            key_init="queries" if queries else "uniform",
            calibration=self.calibration if queries else None,
            seed=seed,
        )
        if keys == "raw k-means":
            set_raw_keys(model, self.calibration, seed=seed)
        return model

    # ------------------------------------------------------------ measurements

    def coverage(self, keys: str, seed: int) -> dict[str, Any]:
        """How much of the banks an untrained model reaches."""
        _ = self.base, self.calibration  # read once, and not what is timed
        begun = time.perf_counter()
        model = self.model(keys, seed)
        seconds = time.perf_counter() - begun
        return {"keys": keys, "seed": seed, "seconds": seconds, **self._usage(model)}

    def _usage(self, model: Any) -> dict[str, Any]:
        usage = memory_usage(model, self.heldout, progress=self.progress)
        worst = usage.loc[usage["coverage"].idxmin()]
        return {
            "tokens": int(usage["tokens"].max()),
            "slots": int(usage["slots"].max()),
            "coverage": float(usage["coverage"].mean()),
            "coverage_worst": float(worst["coverage"]),
            "worst": [int(worst["layer"]), int(worst["head"])],
            "coverage_blocks": usage.groupby("layer")["coverage"].mean().tolist(),
            "effective_slots": float(usage["effective_slots"].mean()),
            "effective_k": float(usage["effective_k"].mean()),
        }

    def trained(self, keys: str, revived: bool, seed: int) -> dict[str, Any]:
        """Losses, coverage and time after the same rows for every kind of keys."""
        setting = self.setting
        model = self.model(keys, seed)
        name = f"{keys.replace(' ', '-')}{'-revived' if revived else ''}-{seed}"
        _ = self.training
        begun = time.perf_counter()
        log = train(
            model,
            self.training,
            self.work / name,
            steps=setting.steps,
            batch_size=setting.batch_size,
            lr=setting.lr,
            revive_every=setting.revive_every if revived else None,
            seed=seed,
            run=name,
            progress=self.progress,
        )
        seconds = time.perf_counter() - begun
        row = {"keys": keys, "revived": revived, "seed": seed, "seconds": seconds}
        row["moved"] = sum(moved for _, moved in log.attrs.get("revived", []))
        for label, text in (("loss", self.test), ("loss_heldout", self.heldout)):
            nats, tokens = evaluate(model, text)
            row |= {label: nats / tokens, f"{label}_tokens": tokens}
        return row | self._usage(model)

    def about(self) -> dict[str, Any]:
        """Model, data and versions, as JSON."""
        new = new_parameter_names(self.model("uniform", 0))
        return {
            **self.setting.parameters(),
            "model": tables.display_name(self.base),
            "model_hash": tables.model_hash(self.base),
            "heldout_hash": self.heldout.sha256,
            "training": self.training.name,
            "training_hash": self.training.sha256,
            "calibration_tokens": sum(map(len, self.calibration)),
            "blocks": len({name.split(".")[2] for name in new}),
            "machine": machine_of("cpu"),
            "versions": tables.versions(),
        }


@torch.no_grad()
def set_raw_keys(model: Any, calibration: list[torch.Tensor], *, seed: int = 0) -> None:
    """Keys from a plain k-means of the halves of head outputs, as they are: what not to do."""
    memories = memories_of(model)
    rng = np.random.default_rng(seed)
    for layer, queries in queries_of(model, calibration).items():
        memory = memories[layer]
        sides = memory.row_keys, memory.col_keys
        for keys, points in zip(sides, halves(queries), strict=True):
            for head, cloud in enumerate(points):
                centres, _ = kmeans2(cloud.numpy(), keys.shape[1], minit="++", rng=rng)
                keys[head] = torch.from_numpy(centres)
