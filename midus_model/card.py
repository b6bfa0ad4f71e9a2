"""The model card of an up-scaled model: what the folder is, and what must be imported first."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from midus_model.config import MidusConfig, layer_map_of

CARD = "README.md"
MARK = "<!-- Written by midus_model; a card without this line is never overwritten. -->"
METHODS = {
    "memory": "MIDUS memory blocks (arXiv 2512.13751)",
    "copy": "copied blocks, LLaMA Pro's (arXiv 2401.02415)",
}


def base_name(model: Any) -> str | None:
    """What a model is called: a hub id or a shipped name as it is, else its folder's name."""
    name = str(getattr(model, "name_or_path", "") or "")
    path = Path(os.path.expanduser(name))
    # A saved folder travels: it never carries a machine's folders along.
    if name and (path.exists() or path.is_absolute() or name.startswith((".", "~"))):
        return path.resolve().name
    return name or None


def write_card(
    model: Any, folder: str | os.PathLike[str], *, replacing: str | os.PathLike[str] | None = None
) -> None:
    """Write the card of an up-scaled model into `folder`, unless a card of somebody's lies there.

    Of a folder that is to be replaced by this one, `replacing`, such a card is kept.
    """
    if not getattr(model.config, "layer_map", None):
        return
    path = Path(folder) / CARD
    if replacing is not None and _is_anothers(Path(replacing) / CARD):
        shutil.copyfile(Path(replacing) / CARD, path)
    if not _is_anothers(path):
        path.write_text(card(model), encoding="utf-8")


def _is_anothers(path: Path) -> bool:
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def card(model: Any) -> str:
    """The text of an up-scaled model's card."""
    config = model.config
    entries = list(enumerate(layer_map_of(config)))
    inserted = [(at, entry) for at, entry in entries if entry["kind"] != "base"]
    base = getattr(config, "base_model_name", None)
    kinds = dict.fromkeys(entry["kind"] for _, entry in inserted)
    what = " and ".join(METHODS.get(kind, f"{kind} blocks") for kind in kinds) or "no new blocks"
    total = sum(parameter.numel() for parameter in model.parameters())
    new = sum(
        parameter.numel() for at, _ in inserted for parameter in model.model.layers[at].parameters()
    )
    base_layers = len(entries) - len(inserted)
    lines = [
        *_front_matter(base),
        MARK,
        "",
        f"# {base or 'A language model'}, up-scaled in depth",
        "",
        f"{base or 'A base model'} of {base_layers} layers with {len(inserted)} blocks inserted: "
        f"{what}. {new:,} of its {total:,} parameters are in the new blocks.",
        "",
        *_how_to_load(isinstance(config, MidusConfig)),
        "",
        "## How it was made",
        "",
        *_blocks(model, inserted),
        "",
        *_sizes(config),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _front_matter(base: str | None) -> list[str]:
    lines = ["---", "library_name: transformers", "tags: [midus, depth-up-scaling]"]
    if base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base):  # nothing else than a hub id
        lines.append(f"base_model: {base}")
    return [*lines, "---"]


def _how_to_load(ours: bool) -> list[str]:
    first = ["import midus_model  # first: transformers does not know the model type without it"]
    said = (
        "It needs the package `midus-workbench`, imported before the model is loaded:"
        if ours
        else "It is an ordinary model of its base's class; any tool that loads the base loads it:"
    )
    return [
        said,
        "",
        "```python",
        *(first if ours else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "where this file lies"',
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
    ]


def _blocks(model: Any, inserted: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """A row an inserted block; slots, k and r of memories, the largest where heads differ."""
    rows = [
        "| block | kind | source layer | heads | slots | k | r |",
        "|---|---|---|---|---|---|---|",
    ]
    for at, entry in inserted:
        memory = getattr(model.model.layers[at], "memory", None)
        sizes: tuple[Any, ...] = ("", "", "")
        if memory is not None:
            slots, r = memory.bank.shape
            sizes = f"{slots:,}", memory.top_k, r
        heads = "all" if entry["heads"] is None else ", ".join(map(str, entry["heads"]))
        sources = ", ".join(map(str, entry["source"]))
        cells = at, entry["kind"], sources, heads, *sizes
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def _sizes(config: Any) -> list[str]:
    if not isinstance(config, MidusConfig):
        return ["`layer_map` in config.json has the same for every block."]
    return [
        "Slots are those of a block's bank, of which each head reads k a token, r numbers wide. "
        f"Sub-keys started by `{config.key_init}`; output mixing is `{config.output_mixing}`. "
        "`layer_map` and `memory_sizes` in config.json have the same for every block.",
    ]
