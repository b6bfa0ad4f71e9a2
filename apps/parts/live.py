"""Models that pages run themselves, loaded once a server, and what they compute from a text.

Everything here imports torch when it is called, never when it is read: the first page is drawn
without it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import streamlit as st

from analysis.escapes import markdown
from apps.parts import access, placing

LARGEST = 2**31  # bytes of weights that a page loads without being asked twice
MOST = 3  # models held
WAIT = 4.0  # seconds in which the browser draws the first page and needs the processor


class Loadable(NamedTuple):
    """A model that a page may run: its name or folder, and a stamp that changes with its weights.

    Where it runs and in what precision belongs to it; whatever is kept of what a model computed is
    kept under all four.
    """

    name: str
    stamp: int
    device: str = "auto"
    dtype: str = "auto"


_models: dict[Loadable, Any] = {}
_warmed: list[threading.Timer] = []
_guard = threading.RLock()
# One page computes at a time: hooks are on the model itself, and while a bf16 model is loaded bf16
# is torch's default for every thread.
_alone = threading.RLock()


def ready(name: str) -> Loadable | None:
    """The model as it lies on disc now; None where it is large and the user has not said yes."""
    found, size = _on_disc(access.given().check_model(name))
    device, dtype = placing.chosen()
    found = found._replace(device=device, dtype=dtype)
    words = f"Load the model {markdown(Path(name).name)} ({size / 2**30:.1f} GiB of weights)"
    return found if size <= LARGEST or st.toggle(words, key=f"load_{name}") else None


@contextlib.contextmanager
def using(model: Loadable) -> Iterator[Any]:
    """The model itself, for one page at a time: switches and gains are hooks on it."""
    with _alone:
        network = _models.get(model)
        if network is None:
            with st.spinner("Loading the model"):
                network = _loaded(model)
        yield network


def config(name: str) -> Any:
    """The model's configuration, without its weights."""
    from midus_model import load_config

    return load_config(access.given().check_model(name))


def _on_disc(allowed: str) -> tuple[Loadable, int]:
    """The model as it lies there, and how many bytes of weights it has."""
    folder = Path(allowed)
    if allowed in access.NAMED_MODELS:
        from midus_model.loading import resolve

        folder = Path(resolve(allowed))
    files = [path.stat() for path in folder.glob("*.safetensors")]
    return Loadable(allowed, sum(f.st_mtime_ns for f in files)), sum(f.st_size for f in files)


def _loaded(model: Loadable) -> Any:
    """The model from the disc; older weights of it, and the one loaded first, are let go."""
    from midus_model import load

    network = load(model.name, device=model.device, dtype=model.dtype)
    with _guard:
        older = [m for m in _models if m.name == model.name and m.stamp != model.stamp]
        for known in older:
            del _models[known]
        _models[model] = network
        while len(_models) > MOST:
            del _models[next(iter(_models))]
    return network


def warm() -> None:
    """Import torch and load what is shipped, once the first page is drawn; once a server."""

    def work() -> None:
        for name in access.SHIPPED_MODELS:
            with contextlib.suppress(Exception):  # a page that needs it will say what is wrong
                model, _ = _on_disc(name)
                with _alone:
                    if model not in _models:
                        _loaded(model)
        # What is loaded now stays: looking through all of it for garbage stops a page for half a
        # second.
        gc.collect()
        gc.freeze()

    with _guard:
        if _warmed:
            return
        _warmed.append(threading.Timer(WAIT, work))
        _warmed[0].daemon = True
    _warmed[0].start()


# ---------------------------------------------------------------- what a page asks of a model


@st.cache_data(show_spinner="Reading the text", max_entries=64)
def head_view(model: Loadable, text: str, layer: int, head: int) -> pd.DataFrame:
    """`analysis.head_view` of one head on a text."""
    from analysis import head_view as view

    with using(model) as network:
        return view(network, text, layer, head)


@st.cache_data(show_spinner=False, max_entries=256)
def next_tokens(
    model: Loadable, text: str, gains: tuple[tuple[int, int, float], ...], top: int
) -> pd.DataFrame:
    """`analysis.next_tokens` with the gains of (layer, head, gain)."""
    from analysis import next_tokens as compare

    with using(model) as network:
        return compare(network, text, {(b, h): gain for b, h, gain in gains}, top=top)


@st.cache_data(show_spinner="Reading the text", max_entries=64)
def memory_view(model: Loadable, text: str) -> pd.DataFrame:
    """`analysis.memory_view`: the slots that every memory head reads at every token."""
    from analysis import memory_view as view

    with using(model) as network:
        return view(network, text)


@st.cache_data(show_spinner="Looking for what reads this slot", max_entries=128)
def slot_contexts(model: Loadable, block: int, head: int, slot: int, texts: int) -> pd.DataFrame:
    """`analysis.memory_contents` of one slot as one head reads it, over so many short texts."""
    from analysis import memory_contents

    with using(model) as network:
        return memory_contents(
            network, _excerpts(network, texts), block=block, slots=[slot], head=head
        )


def _excerpts(model: Any, count: int) -> Any:
    """A window from each of so many held-out documents."""
    from analysis import documents
    from workbench.recipe import excerpts

    context = min(256, model.config.max_position_embeddings)
    return excerpts(documents(model=model, context=context), count, 1, "held-out excerpts")


@st.cache_data(show_spinner=False, max_entries=256)
def slot_tokens(model: Loadable, block: int, head: int, slot: int) -> pd.DataFrame:
    """`analysis.slot_tokens`: what the slot's value promotes and suppresses through the head."""
    from analysis import slot_tokens as tokens

    with using(model) as network:
        return tokens(network, block, slot, head=head)


@st.cache_data(show_spinner=False, max_entries=256)
def nearest_slots(model: Loadable, block: int, head: int, slot: int) -> pd.DataFrame:
    """`analysis.nearest_slots` through the head's projection."""
    from analysis import nearest_slots as nearest

    with using(model) as network:
        return nearest(network, block, slot, head=head)


@st.cache_data(show_spinner=False, max_entries=256)
def switched_off(
    model: Loadable, text: str, block: int, head: int | None, slot: int | None, gain: float
) -> pd.DataFrame:
    """`analysis.token_effects`: the next token with a part of memory scaled by `gain`."""
    from analysis import token_effects

    with using(model) as network:
        return token_effects(network, text, block=block, head=head, slot=slot, gain=gain)


@st.cache_data(show_spinner="Measuring doses", max_entries=64)
def dose(model: Loadable, layer: int, head: int, texts: int) -> pd.DataFrame:
    """`analysis.dose_response` of one head over so many short held-out texts."""
    from analysis import dose_response

    with using(model) as network:
        return dose_response(
            network, [(layer, head)], _excerpts(network, texts), controls=("random",), draws=4
        )


# A few lines to begin with; what comes next is a name that stands above.
SAMPLE = """import os

class Reader:
    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = encoding

    def read(self):
        with open(self.path, encoding=self."""
