"""Models that pages run themselves, loaded once a server, and what they compute from a text.

Everything here imports torch when it is called, never when it is read: the first page is drawn
without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from apps.parts import access

LARGEST = 2**31  # bytes of weights that a page loads without being asked twice
MOST = 3  # models held
_models: dict[tuple[str, int], Any] = {}
_warmed: list[threading.Thread] = []
_locks: dict[str, threading.RLock] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def using(name: str) -> Iterator[Any]:
    """The model of that name, for one page at a time: switches and gains are hooks on it."""
    allowed = access.given().check_model(name)
    with _lock(allowed):
        if (allowed, _stamp(allowed)) in _models:
            model = _loaded(allowed)
        else:
            with st.spinner("Loading the model"):
                model = _loaded(allowed)
        yield model


def _lock(allowed: str) -> threading.RLock:
    with _guard:
        return _locks.setdefault(allowed, threading.RLock())


def weight_bytes(name: str) -> int:
    """Size of a local model's weights on disc; 0 where they are not on this machine."""
    folder = _folder(access.given().check_model(name))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder else 0


def ready(name: str) -> bool:
    """Whether the model may be run here: at once where it is small, else when the user says so."""
    size = weight_bytes(name)
    if size <= LARGEST:
        return True
    return st.toggle(
        f"Load the model {Path(name).name} ({size / 2**30:.1f} GiB of weights)", key=f"load_{name}"
    )


def config(name: str) -> Any:
    """The model's configuration, without its weights."""
    from midus_model import load_config

    return load_config(access.given().check_model(name))


def _folder(allowed: str) -> Path | None:
    if allowed in access.SHIPPED_MODELS:
        from midus_model import SHIPPED

        return Path(SHIPPED[allowed])
    return Path(allowed) if Path(allowed).is_dir() else None


def _stamp(allowed: str) -> int:
    """Changes whenever a local model's weights do."""
    folder = _folder(allowed)
    files = list(folder.glob("*.safetensors")) if folder else []
    return sum(p.stat().st_mtime_ns for p in files)


def _loaded(allowed: str) -> Any:
    """The model, from the last few that were loaded or from the disc."""
    key = allowed, _stamp(allowed)
    if key not in _models:
        from midus_model import load

        _models[key] = load(allowed)
        while len(_models) > MOST:
            _models.pop(next(iter(_models)))
    return _models[key]


def warm() -> None:
    """Begin to import torch and to load what is shipped, beside the first page; once a server."""

    def work() -> None:
        for name in access.SHIPPED_MODELS:
            with contextlib.suppress(Exception), _lock(name):
                _loaded(name)  # a page that needs it will say what is wrong

    if not _warmed:
        _warmed.append(threading.Thread(target=work, name="warm", daemon=True))
        _warmed[0].start()


# ---------------------------------------------------------------- what a page asks of a model


@st.cache_data(show_spinner="Reading the text", max_entries=64)
def head_view(name: str, text: str, layer: int, head: int) -> pd.DataFrame:
    """`analysis.head_view` of one head on a text."""
    from analysis import head_view as view

    with using(name) as model:
        return view(model, text, layer, head)


@st.cache_data(show_spinner=False, max_entries=256)
def next_tokens(
    name: str, text: str, gains: tuple[tuple[int, int, float], ...], top: int
) -> pd.DataFrame:
    """`analysis.next_tokens` with the gains of (layer, head, gain)."""
    from analysis import next_tokens as compare

    with using(name) as model:
        return compare(model, text, {(b, h): gain for b, h, gain in gains}, top=top)


@st.cache_data(show_spinner="Reading the text", max_entries=64)
def memory_view(name: str, text: str) -> pd.DataFrame:
    """`analysis.memory_view`: the slots that every memory head reads at every token."""
    from analysis import memory_view as view

    with using(name) as model:
        return view(model, text)


@st.cache_data(show_spinner="Looking for what reads this slot", max_entries=128)
def slot_contexts(name: str, block: int, head: int, slot: int, texts: int) -> pd.DataFrame:
    """`analysis.memory_contents` of one slot as one head reads it, over so many short texts."""
    from analysis import memory_contents

    with using(name) as model:
        return memory_contents(model, _excerpts(model, texts), block=block, slots=[slot], head=head)


def _excerpts(model: Any, count: int) -> Any:
    """A window from each of so many held-out documents."""
    from analysis import documents
    from workbench.recipe import excerpts

    context = min(256, model.config.max_position_embeddings)
    return excerpts(documents(model=model, context=context), count, 1, "held-out excerpts")


@st.cache_data(show_spinner=False, max_entries=256)
def slot_tokens(name: str, block: int, head: int, slot: int) -> pd.DataFrame:
    """`analysis.slot_tokens`: what the slot's value promotes and suppresses through the head."""
    from analysis import slot_tokens as tokens

    with using(name) as model:
        return tokens(model, block, slot, head=head)


@st.cache_data(show_spinner=False, max_entries=256)
def nearest_slots(name: str, block: int, head: int, slot: int) -> pd.DataFrame:
    """`analysis.nearest_slots` through the head's projection."""
    from analysis import nearest_slots as nearest

    with using(name) as model:
        return nearest(model, block, slot, head=head)


@st.cache_data(show_spinner=False, max_entries=256)
def switched_off(
    name: str, text: str, block: int, head: int | None, slot: int | None, gain: float
) -> pd.DataFrame:
    """`analysis.token_effects`: the next token with a part of memory scaled by `gain`."""
    from analysis import token_effects

    with using(name) as model:
        return token_effects(model, text, block=block, head=head, slot=slot, gain=gain)


@st.cache_data(show_spinner="Measuring doses", max_entries=64)
def dose(name: str, layer: int, head: int, texts: int) -> pd.DataFrame:
    """`analysis.dose_response` of one head over so many short held-out texts."""
    from analysis import dose_response

    with using(name) as model:
        return dose_response(
            model, [(layer, head)], _excerpts(model, texts), controls=("random",), draws=4
        )


# A few lines to begin with; what comes next is a name that stands above.
SAMPLE = """import os

class Reader:
    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = encoding

    def read(self):
        with open(self.path, encoding=self."""
