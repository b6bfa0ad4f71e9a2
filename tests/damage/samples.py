"""One small, whole sample of everything that the workbench reads, in folders of their own."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import analysis
from analysis import tables
from midus_model import SHIPPED, load, upscale
from tests.apps.planted import plant_run
from tests.models import tiny
from workbench.jobs import FOLDER
from workbench.records import sealed
from workbench.runs import RunFolder
from workbench.training.saving import save_model
from workbench.training.train import train

TEXTS = [
    f"def f{n}(x):\n    return x + {n}  # caf\u00e9\n" + "for i in range(3):\n    print(i)\n" * 2
    for n in range(6)
]
QUESTIONS = [{"prompt": "two plus two is", "answer": " four"}, {"prompt": "a b", "answer": " c"}]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SMALL = {"num_hidden_layers": 2, "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 24,
         "head_dim": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}  # fmt: skip
TRAINING = {"steps": 4, "batch_size": 2, "lr": 1e-2, "save_every": 2, "bf16": False}


def tokenizer() -> Any:
    """pico's tokenizer with a chat template."""
    from midus_model import load_tokenizer

    found = load_tokenizer("pico")
    found.chat_template = TEMPLATE
    return found


def deeper() -> Any:
    """A tiny model with memory that is read: a new one's values are zero."""
    model = upscale(tiny(**SMALL), num_keys=4, top_k=2, latent_dim=4)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in sorted(model.named_parameters()):
            if "memory" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def texts() -> Any:
    """Documents for a tiny model."""
    return analysis.documents(TEXTS, model="pico", context=32)


def make(root: Path) -> None:
    """Write all samples below `root`."""
    _models(root)
    _data(root / "data")
    _run(root / "run")
    _older(root / "older", root / "run")
    _sweep(root / "sweep")
    _training(root / "training")
    _jobs(root / "jobs")
    _small_files(root)


def _models(root: Path) -> None:
    base = tiny(**SMALL)
    save_model(base, tokenizer(), root / "model")
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (root / "model" / "special_tokens_map.json").write_text(json.dumps(special))
    save_model(deeper(), tokenizer(), root / "midus")
    base.save_pretrained(root / "sharded", max_shard_size="60KB")
    _two_file_tokenizer(root / "slow", base)
    shutil.copytree(root / "model", root / "adapted" / "model")
    _adapter(root / "adapted")


def _two_file_tokenizer(folder: Path, model: Any) -> None:
    """A tokenizer of vocab.json and merges.txt."""
    model.save_pretrained(folder)
    found = json.loads((SHIPPED["pico"] / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["merges"]]
    (folder / "vocab.json").write_text(json.dumps(found["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]), encoding="utf-8")
    about = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}
    about |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def _adapter(folder: Path) -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(load(folder / "model"), config)
    adapted.save_pretrained(folder / "adapter")
    path = folder / "adapter" / "adapter_config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(about | {"base_model_name_or_path": "../model"}, indent=1))


def _data(folder: Path) -> None:
    folder.mkdir()
    rows = [{"id": f"row-{n}", "text": text, "size": n} for n, text in enumerate(TEXTS)]
    frame = pd.DataFrame(rows)
    (folder / "plain.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = [json.dumps(row) for row in [*rows, *QUESTIONS]]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    frame.to_csv(folder / "rows.csv", index=False)
    frame.to_csv(folder / "rows.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "rows.parquet")
    chats = [[{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]] * 3
    talk = [json.dumps({"messages": chat}) for chat in chats]
    apart = folder.with_name("chats")  # with a model that has a template
    shutil.copytree(folder.with_name("model"), apart / "model")
    (apart / "chats.jsonl").write_text("\n".join(talk), encoding="utf-8")
    for name in ("plain.txt", "rows.jsonl"):
        packed = gzip.compress((folder / name).read_bytes(), mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)


def _run(folder: Path) -> None:
    """A finished run whose tables are planted, written as commands write theirs."""
    planted = plant_run(folder.with_name("planted"))
    with RunFolder.create(folder, "demo", ["midus", "demo"], {"seed": 0}) as run:
        for name in RunFolder.open(planted).tables:
            run.save_table(name, tables.load(planted / "tables" / name))
        run.add_model("before", "pico")
        run.log("began", seed=0)
        found = run.load_table("importance_before")
        best = found.sort_values("score", ascending=False)[:4]
        heads = [[int(row.layer), int(row.head)] for row in best.itertuples()]
        scores = [float(score) for score in best["score"]]
        run.write_json("ranking.json", {"heads": heads, "scores": scores})
        run.finish({"heads": 16})
    shutil.rmtree(planted)


def _older(folder: Path, run: Path) -> None:
    """A table as it was once written, in two files."""
    folder.mkdir()
    table = RunFolder.open(run).load_table("importance_before")
    attrs, table.attrs = table.attrs, {}
    table.to_parquet(folder / "planted.parquet", index=False)
    checksum = hashlib.sha256((folder / "planted.parquet").read_bytes()).hexdigest()
    (folder / "planted.json").write_text(json.dumps(attrs | {"parquet_sha256": checksum}))


class Killed(Exception):
    """In place of a killed process."""


def killer(after: int) -> Callable[..., None]:
    """A progress report that ends the work after so many calls."""
    calls = 0

    def report(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed

    return report


def _sweep(folder: Path) -> None:
    """What a killed sweep leaves."""
    from analysis import sweep

    folder.mkdir()
    sweep.SAVE_SECONDS, usual = 0.0, sweep.SAVE_SECONDS
    try:
        analysis.head_importance(
            deeper(), texts(), checkpoint=folder / "kept.safetensors", progress=killer(60),
            memory_budget=100_000,
        )  # fmt: skip
    except Killed:
        pass
    finally:
        sweep.SAVE_SECONDS = usual


def _training(folder: Path) -> None:
    """A training killed after its last checkpoint."""
    train(deeper(), texts(), folder, **TRAINING)
    shutil.rmtree(folder / "model")


def _jobs(folder: Path) -> None:
    for name in ("first", "second"):
        place = folder / FOLDER / name
        place.mkdir(parents=True)
        about = {"arguments": ["importance", "pico"], "pid": 1, "process": "none", "started": 2.0,
                 "cancelled": False}  # fmt: skip
        told = {"done": 3, "total": 9, "first": 0, "spent": 10.0, "text": "sweep"}
        (place / "job.json").write_text(json.dumps(about, indent=1))
        (place / "progress.json").write_text(json.dumps(told))
        (place / "output.txt").write_text("a line\nmidus: note: n\nmidus: it failed\n")
        (place / "code").write_text("1 2")


def _small_files(root: Path) -> None:
    (root / "tuning").mkdir()
    cases = {"N=4 K=2 HALF=2 NATIVE=1, many": {"BT": 32, "num_warps": 4}}
    given = {"schema": 1, "devices": {"interpreter": {"select": cases}}}
    (root / "tuning" / "tuning.json").write_text(json.dumps(given))
    (root / "bench").mkdir()
    rows = [
        {"op": "headwise_memory", "direction": "forward", "dtype": dtype, "tokens": tokens,
         "shape": "pico", "x_ffn": 0.5, "x_ffn_min": 0.4, "x_ffn_max": 0.6}
        for dtype in ("float32", "bfloat16") for tokens in (64, 256)
    ]  # fmt: skip
    about = {"rows": rows, "machine": {"device": "CPU", "threads": 1, "torch": "2"}}
    (root / "bench" / "benchmark.json").write_text(json.dumps(about))
    (root / "study").mkdir()
    kept = Path(__file__).parents[2] / "docs" / "keys.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))
    (root / "study" / "keys.json").write_text(json.dumps(sealed(rows)))
