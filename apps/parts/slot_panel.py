"""One slot from near: what reads it, what its value says, its neighbours, and life without it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps.parts import drawn, live, page, tables

TEXTS = {"a little": 24, "more": 96, "much": 384}
METHOD = """
**Contexts** are the tokens at which this head read the slot with the most weight, over a window of
up to 256 tokens from each held-out document searched. **Promoted and suppressed tokens**: the
slot's value goes through this head's projection to the stream, and from there through the final
norm's weights to the unembedding, past all later blocks: a logit lens, an approximation.
**Neighbours**: the slots whose values, as this head realises them, have the largest cosine.
**Switched off**: the text is read with every read of this slot by this head set to zero, the others
keeping their weights.
"""


def show(model: live.Loadable, block: int, head: int, slot: int, slots: pd.DataFrame) -> None:
    """The panel of a slot as one head of a block reads it."""
    with st.container(border=True, key="slot_panel"):
        st.markdown(f"**Slot {slot}**, read by block {block}, head {head}")
        found = slots[slots["slot"] == slot]
        hits = int(found["hits"].iloc[0]) if len(found) else 0
        st.caption(f"{hits:,} hits in the run's documents" + ("." if hits else ": a dead slot."))
        searched = page.toggle("Text searched for contexts", tuple(TEXTS), "searched")
        contexts = pd.DataFrame()
        with page.messages("The slot's contexts"):
            contexts = _contexts(model, block, head, slot, TEXTS[searched])
        words, near = st.columns(2)
        with words, page.messages("The slot's tokens"):
            _words(model, block, head, slot)
        with near, page.messages("The slot's neighbours"):
            _neighbours(model, block, head, slot)
        with page.messages("The slot switched off"):
            _switched(model, block, head, slot, contexts)
    page.computed(METHOD)


def _contexts(model: live.Loadable, block: int, head: int, slot: int, texts: int) -> pd.DataFrame:
    table = live.slot_contexts(model, block, head, slot, texts)
    if table.empty:
        st.info(f"Nothing read this slot in {texts} short texts; search more of them above.")
        return table
    st.dataframe(
        table.assign(
            text=[_line(b, t, a) for b, t, a in zip(table["before"], table["token"], table["after"],
                                                    strict=True)],
        ),
        column_order=["weight", "text", "document", "position"],
        column_config={
            "weight": st.column_config.NumberColumn("Weight", format="%.2f"),
            "text": st.column_config.TextColumn("Context, the reading token in ⟦ ⟧", width="large"),
            "document": "Document",
            "position": "Position",
        },
        hide_index=True,
        key="contexts_table",
    )  # fmt: skip
    drawn.download(table, f"slot_{block}_{head}_{slot}_contexts")
    return table


def _line(before: str | None, token: str | None, after: str | None) -> str:
    parts = [repr(part or "")[1:-1] for part in (before, token, after)]
    return f"{parts[0]}⟦{parts[1]}⟧{parts[2]}"


def _words(model: live.Loadable, block: int, head: int, slot: int) -> None:
    found = live.slot_tokens(model, block, head, slot)
    if found.empty:
        st.info("The slot's value is zero: it writes nothing.")
        return
    sides = {
        side: found[found["direction"] == side].set_index("rank")
        for side in ("promotes", "suppresses")
    }
    shown = pd.concat(
        {
            f"{side} {what}": rows[what]
            for side, rows in sides.items()
            for what in ("token", "logit")
        },
        axis=1,
    )
    st.dataframe(
        shown.map(lambda value: repr(value)[1:-1] if isinstance(value, str) else value),
        column_config={
            "promotes token": "Promotes",
            "promotes logit": st.column_config.NumberColumn("logit", format="%+.2f"),
            "suppresses token": "Suppresses",
            "suppresses logit": st.column_config.NumberColumn("logit ", format="%+.2f"),
        },
        hide_index=True,
        key="words_table",
    )


def _neighbours(model: live.Loadable, block: int, head: int, slot: int) -> None:
    found = live.nearest_slots(model, block, head, slot)
    st.dataframe(
        found,
        column_order=["nearest", "row", "col", "cosine"],
        column_config={
            "nearest": "Nearest slots",
            "row": "Row key",
            "col": "Column key",
            "cosine": st.column_config.NumberColumn("Cosine", format="%.3f"),
        },
        hide_index=True,
        key="neighbours_table",
    )


def _switched(
    model: live.Loadable, block: int, head: int, slot: int, contexts: pd.DataFrame
) -> None:
    """The next token after the slot's top context, with and without it."""
    if contexts.empty or not st.toggle("Switch it off", key="switch_off", bind="query-params"):
        return
    text = contexts.iloc[0]["text"]
    found = live.switched_off(model, text, block, head, slot, 0.0)
    st.markdown("After this context, with the slot and without it:")
    st.code(text, language=None)
    if found.empty:
        st.info("The prediction does not move.")
        return
    st.caption(f"KL of the prediction before from that after: {found.attrs['kl']:.2g} nats.")
    shown = found.assign(token=[repr(t)[1:-1] for t in found["token"]])
    st.dataframe(
        tables.in_percent(shown, "probability_before", "probability_after"),
        column_order=["token", "probability_before", "probability_after", "difference"],
        column_config={
            "token": "Next token",
            "probability_before": tables.percent_column("With the slot"),
            "probability_after": tables.percent_column("Without"),
            "difference": st.column_config.NumberColumn("Logit change", format="%+.3f"),
        },
        hide_index=True,
        key="switched_table",
    )
