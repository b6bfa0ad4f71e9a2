"""Every command that writes, on tiny random models: what it needs, and what it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import tiny
from tests.reference import fill_banks

TEXT = "import os\n\nfor name in sorted(os.listdir('.')):\n    print(name, len(name))\n"
ACTIONS = "tests.crash.actions:"


@dataclass(frozen=True)
class Case:
    """A command, and commands that run undisturbed before it."""

    command: list[str]
    before: list[list[str]] = field(default_factory=list)
    every: int = 1  # of so many points one is tried, where they are over a thousand


def make_inputs(root: Path) -> None:
    """The models `base` and `grown`, and documents, in the folder `root`."""
    from midus_model import upscale

    base = tiny(vocab_size=260, num_hidden_layers=2, hidden_size=32, intermediate_size=48,
                num_attention_heads=2, num_key_value_heads=1, head_dim=16)  # fmt: skip
    grown = fill_banks(upscale(base, num_keys=4, top_k=2, latent_dim=4), scale=0.3, seed=1)
    words = {
        letter: at + 4 for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    special = {name: at for at, name in enumerate(["<pad>", "<s>", "</s>", "<unk>"])}
    made = Tokenizer(models.BPE(vocab=special | words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>",
                                        pad_token="<pad>", unk_token="<unk>")  # fmt: skip
    for name, model in (("base", base), ("grown", grown)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = [json.dumps({"text": f"# {n}\n{TEXT * (1 + n % 3)}"}) for n in range(24)]
    (root / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "few.jsonl").write_text("\n".join(rows[:4]) + "\n", encoding="utf-8")


def words(text: str) -> list[str]:
    return text.split()


FEW = "--data few.jsonl --context 32"
ALL = "--data texts.jsonl --context 32"
RANK = f"rank base {FEW} --top 2 -o run"
IMPORTANCE = f"importance base {FEW} -o run"
TRAIN = (f"train grown {ALL} --steps 3 --batch-size 2 --save-every 1 --eval-data few.jsonl "
         "--eval-every 1 -o run")  # fmt: skip
UPSCALE = "upscale base -o model --num-keys 4 --top-k 2 --latent-dim 4"
COSTS = "costs grown --against base -o run"
MEMORY = f"memory grown {FEW} --against texts.jsonl --slots 2:0 -o run"


def _again(line: str, changed: str = "") -> Case:
    """A finished run, replaced."""
    return Case(words(f"{changed or line} --overwrite"), [words(line)])


BROKEN = Case([f"{ACTIONS}broken"], [[f"{ACTIONS}settled"]])  # what the harness must see
CASES: dict[str, Case] = {
    "rank exact": Case(words(f"{RANK} --budget all --evidence")),
    "rank racing": Case(words(f"rank base {ALL} --top 2 --budget 60 -o run")),
    "rank shapley": Case(words(f"{RANK} --method shapley --budget all")),
    "rank taylor": Case(words(f"{RANK} --method taylor")),
    "importance": Case(words(f"{IMPORTANCE} --after grown")),
    "importance gradient": Case(words(f"{IMPORTANCE} --method gradient")),
    "importance overwrite": _again(IMPORTANCE, f"{IMPORTANCE} --baseline zero"),
    "roles": Case(words(f"roles base {FEW} --importance measured -o run"),
                  [words(f"importance base {FEW} -o measured")]),
    "train": Case(words(f"{TRAIN} --log-usage --revive-every 2")),
    "train overwrite": _again(TRAIN, f"{TRAIN} --lr 0.001"),
    "amplify": Case(words(f"amplify base --heads 0:1 --gain 1.5 {FEW} -o run")),
    "amplify dose and save": Case(
        words(f"amplify base --heads 0:1 --gain 1.5 {FEW} --dose --draws 1 --save louder -o run")),
    "memory": Case(words(MEMORY)),
    "memory overwrite": _again(MEMORY, f"memory grown {FEW} -o run"),
    "costs": Case(words(COSTS)),
    "costs overwrite": _again(COSTS, "costs base -o run"),
    "doctor": Case(words(f"doctor grown --before base {FEW} --no-timing -o run")),
    "upscale": Case(words(UPSCALE)),
    "upscale overwrite": _again(UPSCALE, f"{UPSCALE} --seed 1"),
    "figures": Case(words("figures run --figure importance_map --format svg --format html"),
                    [words(IMPORTANCE)]),
    "figures again": Case(words("figures run --figure costs --format pdf --format png"),
                          [words(COSTS), words("figures run --figure costs --format pdf")]),
    "study": Case([f"{ACTIONS}study"], every=10),
    "ship": Case([f"{ACTIONS}ship"], [[f"{ACTIONS}study", "baseline"]]),
    "table": Case([f"{ACTIONS}table"]),
    "table again": Case([f"{ACTIONS}table", "1"], [[f"{ACTIONS}table"]]),
    "sweep": Case([f"{ACTIONS}sweep"]),
    "conversion": Case([f"{ACTIONS}conversion"]),
    "job": Case([f"{ACTIONS}job"]),
    "job again": Case([f"{ACTIONS}job_again"], [[f"{ACTIONS}job"]]),
    "job removed": Case([f"{ACTIONS}job_removed"], [[f"{ACTIONS}job"]]),
}  # fmt: skip
