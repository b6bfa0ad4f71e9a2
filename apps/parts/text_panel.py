"""What every memory head reads at every token of a text that the user gives."""

from __future__ import annotations

from typing import Any

import streamlit as st

from analysis import figures
from apps.parts import drawn, head_panel, live, page
from apps.parts.access import Run

METHOD = """
The model reads the text once. At every token each memory head reads its *k* best slots; a cell
shows the one with the most weight, its colour how much of the weight that slot has. Click a cell to
open that slot.
"""
AT_ONCE = 24  # tokens shown


def show(run: Run, block: int) -> None:
    """The map of slots by head and token, of one block."""
    name = page.model_of(run, "after", "before")
    if name is None:
        return
    text = head_panel.text_area("text")
    model = live.ready(name)
    if model is None:
        return
    view = live.memory_view(model, text)
    tokens = int(view["position"].max()) + 1
    first = _first(tokens)

    def pick(point: dict[str, Any]) -> None:
        _, head, _, slot = point["customdata"]
        st.session_state["head"], st.session_state["slot"] = str(head), int(slot)
        st.session_state["look"], st.session_state["slot_picked"] = "slots", True

    given: dict[str, Any] = {"block": block, "first": first, "tokens": AT_ONCE}
    drawn.map(
        lambda: figures.memory_view(view, **given, width=drawn.MAP_WIDTH),
        "memory_view",
        clicked=pick,
        paper=drawn.on_paper("memory_view", view, **given),
        table=view,
    )
    page.computed(METHOD)


def _first(tokens: int) -> int:
    """The first token shown, of a text that is longer than what is shown at once."""
    most = max(0, tokens - AT_ONCE)
    if not most:
        return 0
    if st.session_state.get("first_token", 0) > most:  # of a longer text
        st.session_state.pop("first_token")
    bind = page.bound("first_token", "a first token", (0, most), most)
    return int(st.slider("First token", 0, most, most, key="first_token", bind=bind))
