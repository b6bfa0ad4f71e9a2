"""Every kind of file that is read: where its sample lies, how a user reads it, what may come of it.

What a reader returns has two parts. `result` is what a user works with. `identity` is what the
product says that it read: what stands in a table's attrs, or the values themselves where a file
holds nothing else.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import analysis
from analysis import tables
from analysis.tokens import decoded
from kernels.errors import MidusError
from midus_model import load, load_config, load_tokenizer
from tests.damage import samples
from workbench import jobs
from workbench.runs import RunFolder

SEALED = "sealed"  # carries its checksum: refused, or the same result
FOREIGN = "foreign"  # a user's own: refused, the same result, or one that says it is another
APART = "apart"  # one of several: never refused, and the others are as they were
LENGTH = 12


class Reading(NamedTuple):
    """What was read, and what the product says of it."""

    result: str
    identity: str


@dataclass(frozen=True)
class Kind:
    """A file below a folder of samples, and how it is read."""

    name: str
    folder: str  # which is copied for every mutation
    file: str
    form: str
    rule: str
    read: Callable[[Path], Reading]
    command: Callable[[Path], list[str]] | None = None  # what reads it on the command line

    @property
    def writes(self) -> bool:
        """Whether reading goes on with what was begun, and so writes."""
        return self.read in (sweep_in, training_in)


def digest(*parts: Any) -> str:
    """A hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


# ---------------------------------------------------------------- models


def model_in(folder: Path, inner: str = "") -> Reading:
    """A model's logits; weights and configuration say which it is."""
    model = load(folder / inner)
    load_config(folder / inner)
    size = model.config.vocab_size
    ids = (torch.arange(LENGTH) % size)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    config = {key: value for key, value in model.config.to_dict().items() if key[0] != "_"}
    made = model.generation_config.to_dict() if model.generation_config else {}
    return Reading(digest(logits.tolist()), digest(tables.model_hash(model), config, made))


def tokenizer_in(folder: Path) -> Reading:
    """Token ids, which nothing but themselves tells of."""
    tokenizer = load_tokenizer(folder)
    docs = analysis.documents(samples.TEXTS, model=folder)
    chats = analysis.documents(samples.QUESTIONS, model=folder, chat=True)
    ids = [item.ids.tolist() for item in [*docs, *chats]]
    names = [decoded(tokenizer, item.ids.tolist()) for item in docs]
    str(docs)
    return Reading(digest(ids, names, docs.context), digest(ids, names, docs.context))


# ---------------------------------------------------------------- data


def data_at(folder: Path, file: str, model: str = "", chat: bool = False) -> Reading:
    """Documents; the attrs of a table say which, by the hash of their texts."""
    reads = folder / model if model else "pico"
    docs = analysis.documents(folder / file, model=reads, context=32, chat=chat)
    ids = [item.ids.tolist() for item in docs]
    return Reading(digest(ids, docs.units), digest(docs.sha256, docs.units))


# ---------------------------------------------------------------- what was written by us


def table_in(folder: Path, name: str) -> Reading:
    """A table and its attrs, as the run folder gives it."""
    table = RunFolder.open(folder).load_table(name)
    return _only(table.to_json(double_precision=15), table.attrs)


def older_table(folder: Path) -> Reading:
    """A table in two files; its attrs, which no checksum covers, say what it is."""
    table = tables.load(folder / "planted")
    shown = table.to_json(double_precision=15)
    return Reading(digest(shown), digest(shown, table.attrs))


def rows_in(folder: Path) -> Reading:
    """Some rows of a table of slots."""
    found = RunFolder.open(folder).load_table("memory_slots")
    some = tables.load_rows(folder / "tables" / "memory_slots", {"block": 2, "head": 1})
    return _only(some.to_json(double_precision=15), some.attrs, len(found))


def run_in(folder: Path) -> Reading:
    """All that a manifest says, and the table that it leads to."""
    run = RunFolder.open(folder)
    table = run.load_table("importance_before")
    return _only(run.manifest, run.model_path("before"), table.to_json(double_precision=15))


def sweep_in(folder: Path) -> Reading:
    """The table of a sweep that goes on from what a killed one kept."""
    path = folder / "kept.safetensors"
    table = analysis.head_importance(
        samples.deeper(), samples.texts(), checkpoint=path, memory_budget=100_000
    )
    return _only(table.to_json(double_precision=15))


def training_in(folder: Path) -> Reading:
    """Weights and log of a training that goes on from its checkpoints."""
    from workbench.training.train import train

    model = samples.deeper()
    table = train(model, samples.texts(), folder, **samples.TRAINING)
    written = tables.model_hash(load(folder / "model"))
    return _only(tables.model_hash(model), written, table.to_json(double_precision=15))


def heads_in(folder: Path) -> Reading:
    """Heads of a ranking's JSON, with their scores."""
    from midus_model.sites import chosen_heads
    from workbench.cli.models import _scored

    path = str(folder / "ranking.json")
    scored = _scored(path)
    return _only(chosen_heads(path), scored.to_json(double_precision=15))


def jobs_in(folder: Path) -> Reading:
    """Every job as a page shows it; the damaged one is the first."""
    found = {}
    for job in jobs.jobs(folder):
        found[job.name] = (job.status, job.progress, job.message, job.about)
        shlex.split(job.command)
        jobs.one(folder, job.name)
    return _only(found.get("second"))


def tuning_in(folder: Path) -> Reading:
    from kernels import tuning

    return _only(tuning.as_json(tuning.read(folder / "tuning.json")))


def bench_in(folder: Path) -> Reading:
    from matplotlib import pyplot

    from analysis.benchmark_figure import benchmark_ratios

    figure = benchmark_ratios(folder / "benchmark.json")
    texts = [] if figure is None else [line.get_xydata().tolist() for line in figure.axes[0].lines]
    pyplot.close("all")
    return _only(texts, (folder / "benchmark.json").read_text(encoding="utf-8"))


def study_in(folder: Path) -> Reading:
    from workbench.key_study import report
    from workbench.key_study.__main__ import ROWS, _kept

    found = _kept(folder / ROWS)
    if not found["about"]:
        raise MidusError(f"{ROWS} is not there, and the study is begun")
    return _only(found, report.setting(found), report.coverage(found), report.training(found))


def _only(*parts: Any) -> Reading:
    """Where what is read is all that there is to tell it by."""
    return Reading(digest(*parts), digest(*parts))


# ---------------------------------------------------------------- all of them


def _kinds() -> list[Kind]:
    def measures(folder: Path) -> list[str]:
        return ["costs", str(folder)]

    def documents(file: str) -> Callable[[Path], list[str]]:
        return lambda folder: ["documents", str(folder / file), "--model", "pico"]

    found = [
        Kind("config", "model", "config.json", "json", FOREIGN, model_in, measures),
        Kind("midus config", "midus", "config.json", "json", FOREIGN, model_in, measures),
        Kind("generation config", "model", "generation_config.json", "json", FOREIGN, model_in),
        Kind("weights", "model", "model.safetensors", "safetensors", FOREIGN, model_in, measures),
        Kind("midus weights", "midus", "model.safetensors", "safetensors", FOREIGN, model_in),
        Kind("index", "sharded", "model.safetensors.index.json", "json", FOREIGN, model_in),
        Kind("shard", "sharded", "model-00001-of-*.safetensors", "safetensors", FOREIGN, model_in),
    ]
    adapted = partial(model_in, inner="adapter")
    for file, form in (
        ("adapter_config.json", "json"),
        ("adapter_model.safetensors", "safetensors"),
    ):
        found.append(Kind(file, "adapted", f"adapter/{file}", form, FOREIGN, adapted))
    for folder, file, form in (
        ("model", "tokenizer.json", "json"),
        ("model", "tokenizer_config.json", "json"),
        ("model", "special_tokens_map.json", "json"),
        ("model", "chat_template.jinja", "text"),
        ("slow", "vocab.json", "json"),
        ("slow", "merges.txt", "text"),
    ):
        reads = tokenizer_in if folder == "model" else _plain_tokenizer
        found.append(
            Kind(
                file,
                folder,
                file,
                form,
                FOREIGN,
                reads,
                lambda at: ["documents", "--model", str(at)],
            )
        )
    for file, form, rule in (
        ("plain.txt", "text", FOREIGN),
        ("rows.csv", "text", FOREIGN),
        ("rows.tsv", "text", FOREIGN),
        ("rows.json", "json", FOREIGN),
        ("rows.jsonl", "lines", FOREIGN),
        ("rows.parquet", "bytes", FOREIGN),
        ("plain.txt.gz", "bytes", SEALED),
        ("rows.jsonl.gz", "bytes", SEALED),
    ):
        reads = partial(data_at, file=file)
        found.append(Kind(file, "data", file, form, rule, reads, documents(file)))
    chats = partial(data_at, file="chats.jsonl", model="model", chat=True)
    found.append(Kind("chats.jsonl", "chats", "chats.jsonl", "lines", FOREIGN, chats))
    table = partial(table_in, name="importance_before")
    found += [
        Kind("table", "run", "tables/importance_before.parquet", "bytes", SEALED, table, _figures),
        Kind("slots", "run", "tables/memory_slots.parquet", "bytes", SEALED, rows_in),
        Kind("older table", "older", "planted.parquet", "bytes", SEALED, older_table),
        Kind("older table's attrs", "older", "planted.json", "json", FOREIGN, older_table),
        Kind("manifest", "run", "manifest.json", "json", SEALED, run_in, _figures),
        Kind("sweep", "sweep", "kept.safetensors", "safetensors", SEALED, sweep_in),
        Kind("ranking", "run", "ranking.json", "json", FOREIGN, heads_in),
        Kind("tuning", "tuning", "tuning.json", "json", FOREIGN, tuning_in),
        Kind("benchmark", "bench", "benchmark.json", "json", FOREIGN, bench_in),
        Kind("study", "study", "keys.json", "json", SEALED, study_in),
    ]
    for file, form in (
        ("job.json", "json"), ("progress.json", "json"), ("code", "text"), ("output.txt", "text"),
    ):  # fmt: skip
        found.append(Kind(f"job's {file}", "jobs", f".jobs/first/{file}", form, APART, jobs_in))
    for file, form in (
        ("model.safetensors", "safetensors"), ("optimizer.pt", "bytes"), ("scheduler.pt", "bytes"),
        ("rng_state.pth", "bytes"), ("trainer_state.json", "json"), ("config.json", "json"),
        ("sha256.json", "json"),
    ):  # fmt: skip
        at = f"checkpoints/checkpoint-4/{file}"
        found.append(Kind(f"training's {file}", "training", at, form, SEALED, training_in))
    found.append(Kind("training.json", "training", "training.json", "json", SEALED, training_in))
    return found


def _plain_tokenizer(folder: Path) -> Reading:
    tokenizer = load_tokenizer(folder)
    docs = analysis.documents(samples.TEXTS, model=folder)
    ids = [item.ids.tolist() for item in docs]
    return _only(ids, [decoded(tokenizer, item.ids.tolist()) for item in docs])


def _figures(folder: Path) -> list[str]:
    return ["figures", str(folder), "--figure", "importance_map"]


KINDS = {kind.name: kind for kind in _kinds()}
