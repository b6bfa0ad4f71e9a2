"""Page: how the slots of every memory head are used."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analysis import figure_data, figures
from apps import shared
from midus_model.errors import DataError

INTRO = (
    "Every head of an inserted block reads a few slots of the block's memory bank for every token. "
    "Slots never read are dead weight; a head that reads a handful of slots only is a lookup table "
    "of that handful."
)
METHOD = """
The model reads the documents named in the caption, and every retrieval is counted.

**Hit.** A slot is hit when it is among the *k* slots that a token reads. **Weight.** The sum of the
softmax weights with which it was read.

**Coverage.** Slots hit at least once, over all slots. **Dead slots.** Those never hit.

**Effective slots.** exp(entropy of the weight over slots): the number of equally used slots with
that entropy. **KL to uniform.** How far that is from equal use of all slots, in nats.

**Effective k.** exp(entropy of a token's weights), mean over tokens: how many of its *k* slots a
token reads in earnest. **Top-1 weight.** The mean weight of a token's best slot.

Slot = row · n + column, because keys are products of *n* row and *n* column keys.
"""
SHOWN = 200


def main() -> None:
    run: shared.Run = st.session_state["run"]
    st.markdown(INTRO)
    with shared.messages("Memory slots"):
        usage = run.table("memory_usage")
        figure = figures.slot_usage(usage, width=shared.MAP_WIDTH)
        shared.draw(figure, "slot_usage", stretch=False)
        with st.expander("How is this computed"):
            st.markdown(METHOD)
        st.subheader("By block and head")
        _table(run, usage)
        st.subheader("One head's slots")
        with shared.messages("The slots"):
            _head(run, usage)


def _table(run: shared.Run, usage: pd.DataFrame) -> None:
    labels = {row.layer: row.label for row in figure_data.block_rows(usage)}
    shown = usage.assign(block=usage["layer"].map(labels))
    st.dataframe(
        shared.in_percent(shown, "coverage"),
        column_order=[
            "block", "head", "coverage", "dead", "slots", "effective_slots", "kl_uniform",
            "effective_k", "top1_weight", "hits", "tokens",
        ],
        column_config={
            "block": "Block",
            "head": "Head",
            "coverage": shared.percent_column("Coverage"),
            "dead": st.column_config.NumberColumn("Dead slots", format="localized"),
            "slots": st.column_config.NumberColumn("Slots", format="localized"),
            "effective_slots": st.column_config.NumberColumn("Effective slots", format="%.0f"),
            "kl_uniform": st.column_config.NumberColumn("KL to uniform (nats)", format="%.2f"),
            "effective_k": st.column_config.NumberColumn("Effective k", format="%.2f"),
            "top1_weight": st.column_config.NumberColumn("Top-1 weight", format="%.2f"),
            "hits": st.column_config.NumberColumn("Hits", format="localized"),
            "tokens": st.column_config.NumberColumn("Tokens", format="localized"),
        },
        hide_index=True,
        height=280,
        key="usage_table",
    )  # fmt: skip
    shared.download(shown, run, "memory_usage")


def _head(run: shared.Run, usage: pd.DataFrame) -> None:
    labels = {row.layer: row.label for row in figure_data.block_rows(usage)}
    left, right = st.columns(2)
    block = left.selectbox(
        "Block",
        list(labels),
        format_func=lambda b: f"block {b}: {labels[b]}",
        key="block",
        bind="query-params",
    )
    heads = sorted(int(h) for h in usage.loc[usage["layer"] == block, "head"].unique())
    head = right.selectbox("Head", heads, key="head", bind="query-params")
    row = usage[(usage["layer"] == block) & (usage["head"] == head)].iloc[0]
    _numbers(row)
    every = run.table("memory_slots")
    slots = every[(every["block"] == block) & (every["head"] == head)]
    if slots.empty:
        raise DataError(f"block {block}, head {head} hit no slot, or its slots were not recorded")
    slots = slots.sort_values(["hits", "slot"], ascending=[False, True], ignore_index=True)
    slots.attrs = {**usage.attrs, **every.attrs}
    total = int(row["slots"])
    shared.draw(figures.slot_histogram(slots, slots=total), "slot_histogram")
    side = math.isqrt(total)
    grid, listed = st.columns(2)
    with grid:
        if side * side == total:
            st.markdown(f"**Hits on the {side} × {side} grid of slots**")
            shared.draw(_grid(slots, side), "slot_grid")
            st.caption(
                "Rows and columns are the row keys and column keys. Colours are logarithmic; "
                "grey cells were never hit."
            )
    with listed:
        st.markdown("**Most-hit slots**")
        st.dataframe(
            slots.head(SHOWN),
            column_order=["slot", "row", "col", "hits", "weight"],
            column_config={
                "slot": "Slot",
                "row": "Row",
                "col": "Column",
                "hits": st.column_config.NumberColumn("Hits", format="localized"),
                "weight": st.column_config.NumberColumn("Weight", format="%.2f"),
            },
            hide_index=True,
            height=330,
            key="slots_table",
        )
        shared.download(slots, run, f"slots_block{block}_head{head}")


def _numbers(row: pd.Series) -> None:
    coverage, dead, effective, weight = st.columns(4)
    coverage.metric("Coverage", shared.percent(row["coverage"]))
    dead.metric("Dead slots", f"{int(row['dead']):,} of {int(row['slots']):,}")
    effective.metric("Effective slots", f"{row['effective_slots']:,.0f}")
    weight.metric("Top-1 weight", shared.number(row["top1_weight"], 2))


def _grid(slots: pd.DataFrame, side: int) -> go.Figure:
    """The head's hits laid out on its key grid, [side, side]; never-hit slots stay grey."""
    hits = np.full((side, side), np.nan)
    hits[slots["row"].to_numpy(int), slots["col"].to_numpy(int)] = slots["hits"].to_numpy(float)
    figure = go.Figure(
        go.Heatmap(
            z=np.log1p(hits),
            customdata=hits,
            colorscale=[list(stop) for stop in figure_data.sequential_stops()],
            hoverongaps=False,
            hovertemplate="row %{y}, column %{x}: %{customdata} hits<extra></extra>",
            colorbar={
                "title": {"text": "hits", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": [math.log1p(10**power) for power in range(10)],
                "ticktext": [f"{10**power:,}" for power in range(10)],
            },
            showlegend=False,
        )
    )
    axis = {"title": {"text": "column key"}, "constrain": "domain", "showgrid": False,
            "zeroline": False}  # fmt: skip
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 50, "r": 10, "t": 10, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(128,128,128,0.28)",
        xaxis=axis,
        yaxis={**axis, "title": {"text": "row key"}, "autorange": "reversed", "scaleanchor": "x"},
    )
    return figure


if __name__ == "__main__":
    main()
