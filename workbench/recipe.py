"""The study in steps: measure, choose, up-scale, train, measure again. One recipe, any length.

`workbench.demo` runs it short, `workbench.make_study` long. Every step leaves its table or model in
the run folder and is not done again when the run is gone on with.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis import (
    amplification,
    amplification_by_role,
    amplification_contrast,
    costs,
    dose_response,
    evidence,
    head_importance,
    head_roles,
    memory_effects,
    memory_realisations,
    memory_usage,
    prune_curve,
    rank_heads,
    tables,
)
from analysis.documents import Document, Documents, documents
from analysis.ties import best_first
from kernels.errors import Diverged, NoOverlap
from midus_model import load, load_tokenizer, upscale
from midus_model.optim import new_parameter_names
from workbench import choice
from workbench.drawing import draw
from workbench.inputs import inputs_of
from workbench.runs import RunFolder
from workbench.summary import summarise
from workbench.training.evaluation import evaluate
from workbench.training.saving import save_model
from workbench.training.settings import bf16_of, training_device
from workbench.training.train import train

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """What a study is asked; two runs with equal recipes measure and train on the same rows.

    Attributes:
        steps, batch_size: optimiser steps, rows a step.
        lr: learning rate by method; banks get ten times it.
        train_documents: at most that many training documents.
        excerpts, windows: documents measured, and windows of the context of each.
        top: heads in the ranking's top set.
        memory_heads: "all" gives every head of the inserted blocks memory, in blocks after every
            other layer; "top" the ranking's top set alone, in blocks after its layers.
        num_keys, top_k, latent_dim: the memory's size.
        baseline: whether LLaMA Pro is trained on the same rows beside MIDUS.
        evidence: whether roles, prune curves, the agreement of methods, dose-response curves and
            the effects of memory are measured too.
        choice_seeds: how often memory for the top heads is trained against memory for random heads
            and for all, at equal parameters; choice_steps: how long each.
    """

    steps: int = 150
    batch_size: int = 16
    lr_midus: float = 8e-3
    lr_llama_pro: float = 5e-3
    train_documents: int | None = 400
    excerpts: int = 48
    windows: int = 2
    top: int = 8
    memory_heads: str = "all"
    num_keys: int = 64
    top_k: int = 8
    latent_dim: int = 64
    baseline: bool = False
    evidence: bool = False
    choice_seeds: int = 0
    choice_steps: int = 100
    seed: int = 0
    base: str = "pico"
    data: str = "packages"

    def parameters(self) -> dict[str, Any]:
        return asdict(self)


def excerpts(source: Documents, count: int, windows: int, name: str) -> Documents:
    """`windows` windows' worth of consecutive tokens from each of `count` documents.

    Long files would otherwise be most of a small sample. Where an excerpt starts follows from its
    document's hash; documents too short for one come last, whole.
    """
    length = windows * (source.context - 1) + 1
    order = sorted(source, key=lambda item: (len(item.ids) < length, item.sha256))[:count]
    return Documents(
        name, [_excerpt(item, length) for item in order], source.context, source.tokenizer
    )


def _excerpt(item: Document, length: int) -> Document:
    room = max(0, len(item.ids) - length)
    start = int(item.sha256[:8], 16) % (room + 1)
    ids = item.ids[start : start + length]
    digest = hashlib.sha256(" ".join(map(str, ids.tolist())).encode()).hexdigest()
    return Document(f"{item.id}@{start}", ids, digest)


class Study:
    """One run of the recipe; `run(folder)` does what is not done yet in a run folder."""

    folder: RunFolder

    def __init__(
        self,
        recipe: Recipe,
        progress: Progress | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ):
        self.recipe, self.progress = recipe, progress
        self.device, self.dtype = device, dtype
        self.trained_on = training_device(device or "auto")
        self.bf16 = bf16_of(dtype or "auto", self.trained_on)
        self.stage = 0
        self.stages = 9 + 2 * recipe.baseline + recipe.evidence + bool(recipe.choice_seeds)

    def inputs(self) -> dict[str, str]:
        """What the study is made of, by hash, for its run folder."""
        first, second = self.measured
        texts = {"the ranking's half": first, "the measured half": second}
        texts |= {"heldout": self.heldout, "training": self.training_texts}
        return inputs_of({self.recipe.base: self.base}, texts)

    def run(self, folder: RunFolder, html: bool = True) -> dict[str, Any]:
        """Every step in order; returns the summary, which is also written to the manifest.

        A training that diverges ends the study: every later step compares its model.
        """
        self.folder = folder
        self.folder.add_model("before", self.recipe.base)
        self._ranking()
        self._importance("importance_before", lambda: self.base)
        self._train("midus")
        self._importance("importance_after", lambda: self.model("midus"))
        if self.recipe.baseline:
            self._train("llama-pro")
            self._importance("importance_baseline", lambda: self.model("llama-pro"))
        self._amplification()
        self._memory()
        self._losses()
        self._costs()
        if self.recipe.evidence:
            self._evidence()
        if self.recipe.choice_seeds:
            self._choice()
        self._stage("drawing figures")
        draw(self.folder, html=html)
        self._forget_training()
        summary = summarise(self.folder)
        self.folder.finish(summary)
        return summary

    # ------------------------------------------------------------ data and models

    @cached_property
    def base(self) -> Any:
        return load(self.recipe.base, device=self.device, dtype=self.dtype)

    @cached_property
    def measured(self) -> tuple[Documents, Documents]:
        """Two halves of the excerpts: heads are chosen on the first and measured on the second."""
        recipe = self.recipe
        source = documents(recipe.data, model=recipe.base, split="test", limit=3 * recipe.excerpts)
        name = f"{recipe.data} (test), {recipe.excerpts} excerpts"
        chosen = excerpts(source, recipe.excerpts, recipe.windows, name)
        return chosen.halves(recipe.seed)

    @cached_property
    def heldout(self) -> Documents:
        """Text of the kind that the base was trained on, to see what is forgotten."""
        source = documents("heldout", model=self.recipe.base, limit=3 * self.recipe.excerpts)
        return excerpts(source, self.recipe.excerpts, self.recipe.windows, "heldout excerpts")

    @cached_property
    def training_texts(self) -> Documents:
        recipe = self.recipe
        return documents(
            recipe.data, model=recipe.base, split="train", limit=recipe.train_documents
        )

    def model(self, method: str) -> Any:
        label = "after" if method == "midus" else "baseline"
        return load(self.folder.model_path(label), device=self.device, dtype=self.dtype)

    # ------------------------------------------------------------ steps

    def _ranking(self) -> None:
        self._stage("ranking heads on one half")
        if not self.folder.has_table("ranking"):
            ranking = rank_heads(
                self.base,
                self.measured[0],
                top=self.recipe.top,
                seed=self.recipe.seed,
                progress=self.progress,
            )
            self.folder.save_table("ranking", ranking)
        if not (self.folder.path / "ranking.json").exists():
            heads = top_set(self.folder.load_table("ranking"))
            self.folder.write_json("ranking.json", {"heads": heads})

    def _importance(self, name: str, model: Callable[[], Any]) -> None:
        self._stage(name.replace("_", " ") + " on the other half")
        if not self.folder.has_table(name):
            table = head_importance(
                model(), self.measured[1], seed=self.recipe.seed, progress=self.progress
            )
            self.folder.save_table(name, table)

    def _train(self, method: str) -> None:
        self._stage(f"training {method}")
        recipe, place = self.recipe, self.folder.path / "models" / method
        label = "after" if method == "midus" else "baseline"
        if label in self.folder.manifest["models"] and self._trained(method):
            return
        heads = None if recipe.memory_heads == "all" else self.folder.load_table("ranking")
        model = upscaled(self.base, recipe, method, heads)
        model.name_or_path = method
        lr = recipe.lr_midus if method == "midus" else recipe.lr_llama_pro
        log = self._trained_on(model, method, lr, recipe.seed, recipe.steps)
        save_model(model, self.training_texts.tokenizer or load_tokenizer(recipe.base), place)
        self.folder.add_model(label, f"models/{method}")
        self._add_log(log)
        self._forget_training()

    def _forget_training(self) -> None:
        """Remove the checkpoints of what is trained, measured and entered."""
        shutil.rmtree(self.folder.path / "training", ignore_errors=True)

    def _trained_on(
        self, model: Any, name: str, lr: float, seed: int, steps: int, evaluated: bool = True
    ) -> pd.DataFrame:
        """Train a model in place on the recipe's rows; the log."""
        try:
            return train(
                model,
                self.training_texts,
                self.folder.path / "training" / name,
                steps=steps,
                batch_size=self.recipe.batch_size,
                lr=lr,
                eval_documents=self.measured[1] if evaluated else None,
                seed=seed,
                device=self.trained_on,
                bf16=self.bf16,
                run=name,
                progress=self.progress,
            )
        except Diverged as error:
            self.folder.log("diverged", arm=name, step=error.step, message=str(error))
            raise

    def _trained(self, method: str) -> bool:
        return self.folder.has_table("training") and method in set(
            self.folder.load_table("training")["run"]
        )

    def _add_log(self, log: pd.DataFrame) -> None:
        attrs = dict(log.attrs)
        if self.folder.has_table("training"):
            known = self.folder.load_table("training")
            known.attrs = {}
            log.attrs = {}
            log = pd.concat([known[~known["run"].isin(log["run"])], log], ignore_index=True)
        log.attrs = attrs
        self.folder.save_table("training", log)

    def _amplification(self) -> None:
        self._stage("amplification")
        before, after = map(self.folder.load_table, ("importance_before", "importance_after"))
        grown = set(after.loc[after["kind"] == "memory", "source_layer"])
        ranked = top_set(self.folder.load_table("ranking"))
        chosen = [(layer, head) for layer, head in ranked if layer in grown] or None
        table = amplification(before, after, chosen=chosen, seed=self.recipe.seed)
        self.folder.save_table("amplification", table)

    def _memory(self) -> None:
        self._stage("memory usage")
        if not (self.folder.has_table("memory_usage") and self.folder.has_table("memory_slots")):
            usage = memory_usage(self.model("midus"), self.measured[1], progress=self.progress)
            self.folder.save_table("memory_slots", usage.all_slots())
            self.folder.save_table("memory_usage", usage)

    def _losses(self) -> None:
        self._stage("losses")
        if not self.folder.has_table("losses"):
            models = {self.recipe.base: self.base, "midus": self.model("midus")}
            if self.recipe.baseline:
                models["llama-pro"] = self.model("llama-pro")
            self.folder.save_table("losses", losses(models, self._texts))

    def _costs(self) -> None:
        self._stage("costs")
        models: dict[str, Callable[[], Any]] = {
            "costs_before": lambda: self.base,
            "costs_after": lambda: self.model("midus"),
        }
        if self.recipe.baseline:
            models["costs_baseline"] = lambda: self.model("llama-pro")
        for name, model in models.items():
            if not self.folder.has_table(name):
                self.folder.save_table(name, costs(model(), latency=True))

    def _evidence(self) -> None:
        """How far to trust the ranking, and what amplification and memory are due to."""
        self._stage("roles, evidence and causes")
        base, midus = self.base, self.model("midus")
        first, second = self.measured
        importance = self.folder.load_table("importance_before")
        ordered = importance.iloc[best_first(importance["score"])]
        ranking, amplified = map(self.folder.load_table, ("ranking", "amplification"))
        given: dict[str, Any] = {"seed": self.recipe.seed, "progress": self.progress}
        others = {"heldout": self.heldout}
        makers: dict[str, Callable[[], pd.DataFrame]] = {
            "roles": lambda: head_roles(base, **given),
            "prune_curve": lambda: prune_curve(base, ordered, first, **given),
            "evidence": lambda: evidence(base, second, top=self.recipe.top, others=others, **given),
            "role_slopes": lambda: amplification_by_role(
                amplified, self.folder.load_table("roles")
            ),
            "dose_response": lambda: dose_response(base, ranking, second, draws=4, **given),
            "memory_effects": lambda: memory_effects(midus, second, **given),
            "realisations": lambda: memory_realisations(midus, second, **given),
        }
        for name, make in makers.items():
            if not self.folder.has_table(name):
                self.folder.save_table(name, make())
        if not self.folder.has_table("contrast"):
            # The study's page says which heads had no control where there is no such table.
            with suppress(NoOverlap):
                contrast = amplification_contrast(amplified, seed=self.recipe.seed)
                self.folder.save_table("contrast", contrast)

    def _choice(self) -> None:
        self._stage("memory for chosen heads, random heads and all")
        arms = [(arm, seed) for seed in range(self.recipe.choice_seeds) for arm in choice.ARMS]
        rows = []
        if self.folder.has_table("choice"):
            rows = self.folder.load_table("choice").to_dict("records")
        for arm, seed in arms[len(rows) :]:
            rows.append(self._arm(arm, seed))
            self.folder.save_table("choice", choice.choice_table(rows, self._texts))
            self._forget_training()
        table = self.folder.load_table("choice")
        self.folder.save_table("choice_contrast", choice.choice_contrast(table))

    def _arm(self, arm: str, seed: int) -> dict[str, Any]:
        """One model of the comparison, trained and measured; the model itself is not kept."""
        recipe = self.recipe
        top = [(layer, head) for layer, head in top_set(self.folder.load_table("ranking"))]
        sizes = {"num_keys": recipe.num_keys, "top_k": recipe.top_k}
        model, heads = choice.arm_model(
            self.base, arm, top, seed, latent_dim=recipe.latent_dim, **sizes
        )
        model.name_or_path = f"{arm} {seed}"
        steps = recipe.choice_steps
        self._trained_on(model, f"{arm}-{seed}", recipe.lr_midus, seed, steps, evaluated=False)
        before = self.folder.load_table("importance_before")
        row = choice.arm_row(arm, seed, model, heads, self._texts, before)
        return row

    @property
    def _texts(self) -> dict[str, Documents]:
        return {"new": self.measured[1], "heldout": self.heldout}

    def _stage(self, text: str) -> None:
        self.stage += 1
        self.folder.log("stage", name=text)
        if self.progress:
            self.progress(0, 0, f"step {self.stage} of {self.stages}: {text}")


# ---------------------------------------------------------------- what the steps share


def upscaled(base: Any, recipe: Recipe, method: str, heads: pd.DataFrame | None = None) -> Any:
    """The base made deeper by the recipe's memory, or by copies after every other layer."""
    if method == "llama-pro":
        return upscale(base, "llama-pro")
    return upscale(
        base,
        heads=heads,
        num_keys=recipe.num_keys,
        top_k=recipe.top_k,
        latent_dim=recipe.latent_dim,
        seed=recipe.seed,
    )


def top_set(ranking: pd.DataFrame) -> list[list[int]]:
    """[layer, head] of a ranking's top heads, best first."""
    top = ranking.iloc[: ranking.attrs.get("top") or len(ranking)]
    return [[int(r.layer), int(r.head)] for r in top.itertuples()]


def losses(models: dict[str, Any], texts: dict[str, Documents]) -> pd.DataFrame:
    """Token-weighted loss of every model on every text: columns model, data, tokens, loss."""
    rows = []
    for name, model in models.items():
        new = new_parameter_names(model)
        added = sum(p.numel() for n, p in model.named_parameters() if n in new)
        for label, text in texts.items():
            nats, tokens = evaluate(model, text)
            rows.append(
                {"model": name, "data": label, "tokens": tokens, "loss": nats / tokens,
                 "new_parameters": added}
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs = {
        "table": "losses",
        "unit": "nats/token",
        "data": {label: text.name for label, text in texts.items()},
        "data_hash": {label: text.sha256 for label, text in texts.items()},
        "versions": tables.versions(),
    }
    return table
