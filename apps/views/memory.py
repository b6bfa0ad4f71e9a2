"""Page: what the memory holds, how its slots are used, and what each of them does."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps.parts import drawn, grid, head_panel, live, page, slot_panel, tables, text_panel
from apps.parts.access import Run
from kernels.errors import DataError

INTRO = (
    "Every head of an inserted block reads a few slots of the block's memory bank for every token. "
    "Slots never read are dead weight; a head that reads a handful of slots only is a lookup table "
    "of that handful. Click a head on the map, then a slot."
)
METHOD = """
The model reads the documents named in the caption, and every retrieval is counted.

**Hit.** A slot is hit when it is among the *k* slots that a token reads. **Weight.** The sum of the
softmax weights with which it was read.

**Coverage.** Slots hit at least once, over all slots. **Dead slots.** Those never hit.

**Effective slots.** exp(entropy of the weight over slots): the number of equally used slots with
that entropy. **KL to uniform.** How far that is from equal use of all slots, in nats.

**Overlap.** How far the block's other heads read the same slots: 0 is none, 1 the same ones alike.
**Read ratio.** The size of what memory writes over that of the stream it writes into.

**Effective k.** exp(entropy of a token's weights), mean over tokens: how many of its *k* slots a
token reads in earnest. **Top-1 weight.** The mean weight of a token's best slot.

Slot = row · n + column, because keys are products of *n* row and *n* column keys.
"""
SHOWN = 500
LOOKS = ("slots", "a text")


def main() -> None:
    st.markdown(INTRO)
    _body(page.run())


@st.fragment
def _body(run: Run) -> None:
    """All that a click changes: it is drawn again without the rest of the page."""
    with page.messages("Memory"):
        usage = tables.table(run, "memory_usage")
        block, head = _picked(run, usage)
        _map(run, usage, block, head)
        look = page.toggle("Look at", LOOKS, "look")
        with page.messages(f"The view of {look}"):
            if look == "slots":
                _head(run, usage, block, head)
            else:
                text_panel.show(run, block)
        with st.expander("Every head's numbers"):
            _table(run, usage)


def _picked(run: Run, usage: pd.DataFrame) -> tuple[int, int]:
    """The head in view: the address', a click's, or at first the first."""
    left, right = st.columns(2)
    blocks = _blocks(run)
    layer = blocks[page.choose("Block", list(blocks), "block", place=left, what="block")]
    heads = [str(head) for head in sorted(usage.loc[usage["layer"] == layer, "head"].unique())]
    head = int(page.choose("Head", heads, "head", place=right, what="head"))
    # Another head: its own best slot, unless the click that chose it chose a slot as well.
    place, picked = (run.name, layer, head), st.session_state.pop("slot_picked", False)
    if st.session_state.setdefault("slot_of", place) != place:
        st.session_state["slot_of"] = place
        if not picked:
            st.session_state.pop("slot", None)
    return layer, head


def _blocks(run: Run) -> dict[str, int]:
    rows = tables.blocks(run, "memory_usage")
    return {f"{row.layer}: {row.label}": row.layer for row in rows}


def _map(run: Run, usage: pd.DataFrame, block: int, head: int) -> None:
    names = {layer: name for name, layer in _blocks(run).items()}
    here = (grid.ALL, head, list(names).index(block))

    def pick(point: dict[str, Any]) -> None:
        layer, _, head, _ = point["customdata"]
        st.session_state["block"], st.session_state["head"] = names[int(layer)], str(head)

    drawn.map(
        lambda: figures.memory_map(usage, width=drawn.MAP_WIDTH),
        "memory_map",
        same=tables.key(run, "memory_usage"),
        marks=[here],
        clicked=pick,
        paper=drawn.on_paper("memory_map", usage),
        table=usage,
    )
    page.computed(METHOD)


def _head(run: Run, usage: pd.DataFrame, block: int, head: int) -> None:
    row = usage[(usage["layer"] == block) & (usage["head"] == head)].iloc[0]
    st.subheader(f"Block {block}, head {head}")
    head_panel.use_of_slots(row)
    slots = tables.head_slots(run, block, head)
    if slots.empty:
        raise DataError(f"block {block}, head {head} hit no slot, or its slots were not recorded")
    slots = slots.copy(deep=False)  # the table is shared
    slots.attrs = {**usage.attrs, **slots.attrs, "block": block, "head": head}
    total = int(row["slots"])
    map_side, listed = st.columns([5, 4])
    with listed:
        slot = _choose_slot(slots, total)
        drawn.download(slots, f"{run.folder.name}-slots_block{block}_head{head}")
    same = (*tables.key(run, "memory_slots", "memory_usage"), block, head)
    with map_side:
        _grid(slots, total, slot, same)
    folded = st.expander("Hits from the most to the least hit slot", key="ranks", on_change="rerun")
    if folded.open:
        with folded:
            drawn.figure(
                lambda: figures.slot_histogram(slots, slots=total),
                "slot_histogram",
                same=same,
                paper=drawn.on_paper("slot_histogram", slots, slots=total),
                table=slots,
            )
    name = page.model_of(run, "after", "before")
    model = None if name is None else live.ready(name)
    if model is not None:
        slot_panel.show(model, block, head, slot, slots)


def _grid(slots: pd.DataFrame, total: int, slot: int, same: tuple[Any, ...]) -> None:
    """The bank as a square of row keys by column keys; a click on a slot opens it."""
    side = math.isqrt(total)
    if side * side != total:
        return

    def pick(point: dict[str, Any]) -> None:
        st.session_state["slot"] = point["row"] * side + point["column"]

    def words() -> grid.Words:
        hits = figure_data.slot_square(slots, side, "slot_grid")
        rows, columns = ([f"{key} {i}" for i in range(side)] for key in ("row", "column"))
        return grid.Words(rows, columns, "{row}, {column}\n{value} hits", hits)

    drawn.map(
        lambda: figures.slot_grid(slots, side=side),
        "slot_grid",
        same=same,
        marks=[(0, slot % side, slot // side)],
        clicked=pick,
        words=words,
        paper=drawn.on_paper("slot_grid", slots, side=side),
        table=slots,
    )


def _choose_slot(slots: pd.DataFrame, total: int) -> int:
    """The slot in view: a number that the address keeps, or a row that is clicked."""
    shown = slots.head(SHOWN)

    def pick() -> None:
        rows = st.session_state["slots_table"]["selection"]["rows"]
        if rows:
            st.session_state["slot"] = int(shown["slot"].iloc[rows[0]])

    first = int(shown["slot"].iloc[0])
    bind = page.bound("slot", "slot", (0, total - 1), first)
    if st.session_state.get("slot", 0) >= total:
        st.session_state.pop("slot")
    slot = st.number_input(
        "Slot", 0, total - 1, first, key="slot", bind=bind,
        help="Type a number, or click a row of the table.",
    )  # fmt: skip
    st.dataframe(
        shown,
        column_order=["slot", "row", "col", "hits", "weight"],
        column_config={
            "slot": "Slot",
            "row": "Row key",
            "col": "Column key",
            "hits": tables.whole_column("Hits"),
            "weight": st.column_config.NumberColumn("Weight", format="%.2f"),
        },
        hide_index=True,
        height=290,
        key="slots_table",
        on_select=pick,
        selection_mode="single-row",
    )
    return int(slot)


def _table(run: Run, usage: pd.DataFrame) -> None:
    labels = {row.layer: row.label for row in tables.blocks(run, "memory_usage")}
    shown = usage.assign(block=usage["layer"].map(labels))
    st.dataframe(
        tables.in_percent(shown, "coverage"),
        column_order=[
            "block", "head", "coverage", "dead", "slots", "effective_slots", "kl_uniform",
            "effective_k", "top1_weight", "hits", "tokens",
        ],
        column_config={
            "block": "Block",
            "head": "Head",
            "coverage": tables.percent_column("Coverage"),
            "dead": tables.whole_column("Dead slots"),
            "slots": tables.whole_column("Slots"),
            "effective_slots": st.column_config.NumberColumn("Effective slots", format="%.0f"),
            "kl_uniform": st.column_config.NumberColumn("KL to uniform (nats)", format="%.2f"),
            "effective_k": st.column_config.NumberColumn("Effective k", format="%.2f"),
            "top1_weight": st.column_config.NumberColumn("Top-1 weight", format="%.2f"),
            "hits": tables.whole_column("Hits"),
            "tokens": tables.whole_column("Tokens"),
        },
        hide_index=True,
        height=280,
        key="usage_table",
    )  # fmt: skip
    drawn.download(shown, f"{run.folder.name}-memory_usage")


if __name__ == "__main__":
    main()
