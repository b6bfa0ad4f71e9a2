"""Make pico, the shipped base model: a small Llama trained on the standard library's own source.

`python -m workbench.pico` does everything: it splits the running interpreter's standard library
into training and held-out files, trains a byte-level BPE tokenizer and the model, evaluates, and
writes `midus_model/pico/` (weights, tokenizer, card) and `analysis/data/heldout.jsonl`.
Interrupted, it goes on from its last checkpoint. The checksum of new weights is entered in
`midus_model.loading.WEIGHTS`.
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from analysis.sources import OVERLAP_LINES, standard_library, text_hash, without_overlap

ROOT = Path(__file__).resolve().parents[1]
MODEL_DIR = ROOT / "midus_model" / "pico"
HELDOUT = ROOT / "analysis" / "data" / "heldout.jsonl"

CONTEXT = 256
VOCABULARY = 2048
HELDOUT_BYTES = 1_050_000
END = "<|endoftext|>"


# ---------------------------------------------------------------- text


def split(files: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Training and held-out files. Whole files are held out, chosen by the hash of their path.

    A training file that equals a held-out one, or shares `OVERLAP_LINES` consecutive non-blank
    lines with it, is dropped.
    """
    heldout: dict[str, str] = {}
    size = 0
    for path in sorted(files, key=text_hash):
        if path.startswith("encodings/"):  # tables, many nearly the same
            continue
        if 3_000 <= len(files[path]) <= 30_000 and size < HELDOUT_BYTES:
            heldout[path] = files[path]
            size += len(files[path])
    others = {path: text for path, text in files.items() if path not in heldout}
    return without_overlap(others, heldout), heldout


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# ---------------------------------------------------------------- rows


class Mixture(Dataset):
    """Rows of `CONTEXT` tokens; of every sixteen, three are one short segment repeated.

    Two of the three repeat random tokens, one repeats real text. Without them no induction
    heads form at this size; with them they form within a few hundred steps.
    """

    def __init__(self, stream: np.ndarray, rows: int, seed: int = 0):
        self.stream, self.rows, self.seed = stream, rows, seed
        self.per_epoch = len(stream) // CONTEXT - 1

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, index))
        kind = index % 16
        if kind >= 3:
            ids = self._text(index)
        else:
            length = int(rng.integers(6, 65))
            if kind == 2:
                start = int(rng.integers(0, len(self.stream) - length))
                segment = self.stream[start : start + length]
            else:
                segment = rng.integers(1, VOCABULARY, length)
            ids = np.resize(segment, CONTEXT)
        row = torch.from_numpy(ids.astype(np.int64))
        return {"input_ids": row, "labels": row}

    def _text(self, index: int) -> np.ndarray:
        """The next window of the stream: each epoch its own order and its own offset."""
        number = index // 16 * 13 + index % 16 - 3
        epoch, position = divmod(number, self.per_epoch)
        offset, order = self._epoch(epoch)
        start = offset + int(order[position]) * CONTEXT
        return self.stream[start : start + CONTEXT]

    @lru_cache(maxsize=2)  # noqa: B019  one dataset a run
    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng((self.seed, 1, epoch))
        return int(rng.integers(0, CONTEXT)), rng.permutation(self.per_epoch)


# ---------------------------------------------------------------- measures


@torch.no_grad()
def heldout_scores(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """Loss [nats a token] and next-token accuracy; every token but a file's first, once."""
    nats, hits, count = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, CONTEXT - 1):
            window = torch.tensor([ids[start : start + CONTEXT]])
            logits = model(window).logits[0, :-1].float()
            targets = window[0, 1:]
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            hits += int((logits.argmax(-1) == targets).sum())
            count += len(targets)
    return {"loss": nats / count, "accuracy": hits / count, "tokens": count}


@torch.no_grad()
def induction_scores(
    model: Any, length: int = 64, rows: int = 64, seed: int = 0
) -> dict[str, float]:
    """Loss [nats a token] on the first and on the second copy of a random sequence."""
    generator = torch.Generator().manual_seed(seed)
    copy = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), copy, copy], 1)
    logits = model(ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    # The second copy's first token cannot be foreseen: nothing says that a copy begins.
    first, second = losses[:, :length].mean().item(), losses[:, length + 1 :].mean().item()
    return {"first_copy": first, "second_copy": second, "gain": first - second}


# ---------------------------------------------------------------- the run


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(model: Any, stream: np.ndarray, work: Path, steps: int) -> None:
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        save_steps=250,
        save_total_limit=2,
        logging_steps=25,
        report_to=[],
        seed=0,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Mixture(stream, 16 * steps))
    last = any((work / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=last)


def card(scores: dict, induction: dict, train_files: dict, stream: np.ndarray, steps: int) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
---
# pico

A small Llama: 6 layers, 8 query heads over 4 key-value heads of 24 dimensions, hidden size 192,
vocabulary {VOCABULARY:,} (byte-level BPE), context {CONTEXT}. It exists so that every figure of
this project can be made again on a laptop, offline, from real language-model behaviour.

| measure | value |
|---|---|
| held-out loss | {scores["loss"]:.3f} nats a token ({scores["tokens"]:,} tokens) |
| held-out next-token accuracy | {scores["accuracy"]:.1%} |
| loss on the first copy of a random sequence | {induction["first_copy"]:.2f} nats a token |
| loss on its second copy | {induction["second_copy"]:.2f} nats a token |
| induction score (first - second) | {induction["gain"]:.2f} nats a token |

**Data.** The standard library of CPython {platform.python_version()}: {len(train_files):,} files,
{len(stream):,} tokens. Held out are the whole files listed with their hashes in
`analysis/data/heldout.jsonl`; a training file that shares {OVERLAP_LINES} consecutive non-blank
lines with a held-out one was dropped.

**Mixed in.** Of every sixteen training rows three are one segment of 6-64 tokens repeated to fill
the context (two of random tokens, one of real text). Without them no induction heads form at this
size. Whoever studies induction here should know that it was taught.

**Training.** {steps:,} steps of 16 rows of {CONTEXT} tokens ({steps * 16 * CONTEXT / 1e6:.1f}M
tokens), AdamW, learning rate 3e-3 with 100 steps of warm-up and a cosine to zero, weight decay
0.1, bf16 autocast, seed 0, two CPU cores. `python -m workbench.pico` makes it again.

**Limits.** It knows the look of Python source and nothing else. No safety work was done.
"""


def write_heldout(heldout: dict[str, str]) -> None:
    HELDOUT.parent.mkdir(parents=True, exist_ok=True)
    with HELDOUT.open("w", encoding="utf-8") as file:
        for path, text in sorted(heldout.items()):
            row = {"id": path, "sha256": text_hash(text), "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--work", type=Path, default=Path("runs/pico"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    train_files, heldout = split(standard_library())
    write_heldout(heldout)
    if (options.work / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.work, trust_remote_code=False)
    else:
        tokenizer = train_tokenizer(list(train_files.values()))
        tokenizer.save_pretrained(options.work)
    order = sorted(train_files, key=text_hash)
    ids = [np.array(tokenizer(train_files[path])["input_ids"], dtype=np.uint16) for path in order]
    stream = np.concatenate(ids)
    print(f"{len(train_files)} training files, {len(stream):,} tokens; {len(heldout)} held out")

    model = new_model()
    train(model, stream, options.work, options.steps)
    model.float().eval()
    model.config.use_cache = model.generation_config.use_cache = True  # the Trainer turned it off
    scores = heldout_scores(model, tokenizer, list(heldout.values()))
    induction = induction_scores(model)
    print(json.dumps({"heldout": scores, "induction": induction}, indent=1))

    model.half().save_pretrained(MODEL_DIR)
    tokenizer.save_pretrained(MODEL_DIR)
    text = card(scores, induction, train_files, stream, options.steps)
    (MODEL_DIR / "README.md").write_text(text)
    (MODEL_DIR / "scores.json").write_text(json.dumps({**scores, **induction}, indent=1))


if __name__ == "__main__":
    main()
