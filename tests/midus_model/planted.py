"""Model folders that carry code, each of which writes a file where it is run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from midus_model import SHIPPED

CODE = """
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(model, *args, **more): pass
"""
AUTO = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
# What of a model's folder asks for its own code, as (config.json, tokenizer_config.json).
PLANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model": ({"auto_map": AUTO}, {}),
    "elsewhere": ({"auto_map": {key: f"owner/name--{value}" for key, value in AUTO.items()}}, {}),
    "config": ({"auto_map": AUTO, "model_type": "evil"}, {}),
    "tokenizer": ({}, {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}),
    "unknown tokenizer": (
        {},
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"},
    ),
    "all": (
        {"auto_map": AUTO, "model_type": "evil"},
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer"] * 2}, "tokenizer_class": "Evil"},
    ),
}
TAKEN = ("model", "elsewhere", "tokenizer")  # which transformers' own classes read


def plant(folder: Path, which: str, source: str | Path = SHIPPED["pico"]) -> tuple[Path, Path]:
    """A copy of a model with code planted in it, and the file that the code would write."""
    place, mark = folder / f"planted {which}", folder / f"run {which}"
    shutil.copytree(source, place)
    for name, changes in zip(("config.json", "tokenizer_config.json"), PLANTS[which], strict=True):
        change(place / name, **changes)
    code = CODE.format(mark=str(mark))
    (place / "evil.py").write_text(code)
    (place / "custom_generate").mkdir()
    (place / "custom_generate" / "generate.py").write_text(code)
    return place, mark


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Runs:
    """A pickle of it writes a file where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {shlex.quote(str(self.mark))}",)
