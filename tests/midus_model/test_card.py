"""The card in every saved folder: true numbers, the import that comes first, others' cards kept."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from midus_model import load, load_tokenizer, upscale
from midus_model.card import CARD, MARK, base_name, card, write_card
from tests.models import tiny
from workbench.training.saving import save_model

SMALL = {"num_keys": 4, "top_k": 3, "latent_dim": 8}


def grown(method: str = "midus", base: Any = None, **options: Any) -> Any:
    base = tiny("llama") if base is None else base
    return upscale(base, method, **(SMALL if method == "midus" else {}), **options)


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_what_it_says_is_what_the_model_has(tmp_path: Path) -> None:
    model = grown(heads=[(1, 0), (1, 3), (2, 2)], output_mixing="linear")
    model.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert rows_of(text) == [
        ["2", "memory", "1", "0, 3", "16", "3", "8"],
        ["4", "memory", "2", "2", "16", "3", "8"],
    ]
    new = sum(p.numel() for at in (2, 4) for p in model.model.layers[at].parameters())
    total = sum(p.numel() for p in model.parameters())
    assert f"{new:,} of its {total:,} parameters" in text
    assert "2512.13751" in text and "`uniform`" in text and "`linear`" in text
    assert text.index("import midus_model") < text.index("from transformers")
    assert "of 4 layers with 2 blocks inserted" in text
    copies = card(grown("llama-pro"))
    assert rows_of(copies) == [[at, "copy", s, "all", "", "", ""] for at, s in ("21", "53")]
    assert "2401.02415" in copies and "import midus_model" not in copies


def code_of(method: str, place: Path) -> str:
    """The card's code with the folder filled in, of a model that is saved at `place`."""
    save_model(grown(method, load("pico")), load_tokenizer("pico"), place)
    found = re.search(r"```python\n(.*?)```", (place / CARD).read_text(), re.DOTALL)
    assert found is not None
    return found[1].replace('"where this file lies"', repr(str(place)))


@pytest.mark.parametrize("method", ["midus", "llama-pro"])
def test_its_code_loads_the_folder(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(code_of(method, tmp_path / "model"))
    names = runpy.run_path(str(script))
    assert names["model"].config.num_hidden_layers == 9
    assert len(names["tokenizer"]) == len(load_tokenizer("pico"))


@pytest.mark.verify
@pytest.mark.parametrize("method", ["midus", "llama-pro"])
def test_its_code_loads_the_folder_where_nothing_is_imported(method: str, tmp_path: Path) -> None:
    code = code_of(method, tmp_path / "model") + "\nprint(model.config.num_hidden_layers)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "9"


NAMES = [
    ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"), ("pico", "pico"), ("", None),
    ("~/models/mine", "mine"), ("/somewhere/mine/", "mine"), ("./mine", "mine"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_the_base_by_name_and_never_by_folder(name: str, said: str | None, tmp_path: Path) -> None:
    base = tiny("llama")
    base.name_or_path = name
    assert base_name(base) == said
    for method in ("midus", "llama-pro"):
        model = grown(method, base)
        model.save_pretrained(tmp_path / method)
        write_card(model, tmp_path / method)
        again = load(tmp_path / method)
        assert again.config.base_model_name == said
        text = (tmp_path / method / CARD).read_text()
        assert (said or "A base model") in text and "/somewhere" not in text
        assert ("base_model: meta-llama/Llama-3.2-1B" in text) == ("/Llama" in name)
        assert card(again) == text  # a model that was read and saved again says the same


def test_a_base_that_is_no_hub_id_writes_no_front_matter() -> None:
    """A configuration's `base_model_name` may come from anybody."""
    model = grown()
    model.config.base_model_name = "owner/name\nlicense: none"
    assert "\nlicense:" not in card(model).split("---")[1]


def test_another_card_is_never_overwritten(tmp_path: Path) -> None:
    model = grown()
    for folder in ("direct", "whole"):
        place = tmp_path / folder
        place.mkdir()
        (place / CARD).write_text("# Mine\n")
        (place / "config.json").write_text("{}")
        if folder == "direct":
            model.save_pretrained(place)
        else:
            save_model(model, None, place)
        assert (place / CARD).read_text() == "# Mine\n"
        assert load(place).config.layer_map == model.config.layer_map
        (place / CARD).write_text(f"{MARK}\nolder")  # ours is renewed
        if folder == "direct":
            model.save_pretrained(place)
        else:
            save_model(model, None, place)
        assert (place / CARD).read_text() == card(model)


def test_what_is_not_up_scaled_or_only_an_adapter_gets_none(tmp_path: Path) -> None:
    save_model(tiny("llama"), None, tmp_path / "base")
    assert not (tmp_path / "base" / CARD).exists()
    model = grown()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "adapter" / CARD).exists()
    with torch.device("meta"):
        assert "memory" in card(grown(base=tiny("llama").to("meta")))
