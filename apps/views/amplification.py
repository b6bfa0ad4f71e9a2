"""Page: which heads the inserted blocks amplified, and how much of it is the memory's own."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps import shared

INTRO = (
    "How each base head's importance changed by up-scaling. What the inserted memory holds on the "
    "head's behalf (the dose) is shown apart from the change of the head itself."
)
METHOD = """
**Amplification** of a head: importance after minus importance before, where *after* is the head's
own importance in the grown model plus that of every inserted head that came from it (memory or
copied attention). A positive value means that the head and its descendants matter more than it did.

**Interval.** Documents are drawn with both measurements of the head at once, so the difference is
paired.

**Share.** max(importance, 0) over its sum across the model. Importance as a whole may grow or
shrink; shares say whether a head gained on the others. **Ratio.** Share after over share before,
only where the share before is distinguishable from zero.

**Gini** is 0 when all heads matter alike and near 1 when one head is all; **effective heads** is
exp(entropy of the shares): the number of equally important heads with that entropy.

**Chosen heads** are those that were given memory on purpose. A head chosen for its high score tends
to score lower when measured again, so heads should be chosen on other documents than they are
measured on.
"""


def main() -> None:
    run: shared.Run = st.session_state["run"]
    st.markdown(INTRO)
    with shared.messages("Amplification"):
        table = run.table("amplification")
        with shared.messages("Concentration"):
            _concentration(table)
        top = st.segmented_control(
            "Heads shown",
            [10, 20, 0],
            default=20,
            required=True,
            key="top",
            format_func=lambda n: f"{n} most changed" if n else f"all {len(table)}",
        )
        shared.draw(figures.amplification(table, top or None), "amplification_bars")
        with st.expander("How is this computed"):
            st.markdown(METHOD)
        st.subheader("Where in the model")
        with shared.messages("The map"):
            _map(table)
        st.subheader("Every head")
        with shared.messages("The table of heads"):
            _table(run, table)


def _concentration(table: pd.DataFrame) -> None:
    """Spread of importance over heads, before and after, and how many heads were chosen."""
    spread = table.attrs.get("concentration") or {}
    before, after = spread.get("before") or {}, spread.get("after") or {}
    chosen = table.attrs.get("chosen")
    columns = st.columns(3)
    for column, name, label, digits in (
        (columns[0], "gini", "Gini of importance", 3),
        (columns[1], "effective_heads", "Effective heads", 1),
    ):
        old, new = before.get(name), after.get(name)
        column.metric(label, f"{shared.number(old, digits)} → {shared.number(new, digits)}")
    columns[2].metric(
        "Chosen heads", f"{len(chosen)} of {len(table)}" if chosen else "none: all heads alike"
    )


def _map(table: pd.DataFrame) -> None:
    what = st.segmented_control(
        "Change of",
        ["importance", "share"],
        default="importance",
        required=True,
        key="map_of",
        label_visibility="collapsed",
        format_func=lambda w: f"Change of {w}",
    )
    figure = figures.amplification_map(table, share=what == "share", width=shared.MAP_WIDTH)
    shared.draw(figure, f"amplification_map_{what}", stretch=False)


def _table(run: shared.Run, table: pd.DataFrame) -> None:
    heads = figure_data.amplified(table, None, "the table of heads")
    unit = figure_data.unit(table)
    columns = [
        "name", "is_chosen", "before", "after", "score", "ci_low", "ci_high", "own", "memory",
        "copy", "share_before", "share_after", "share_score", "ratio",
    ]  # fmt: skip
    if "copy" not in figure_data.shown_parts(heads):
        columns.remove("copy")
    st.dataframe(
        shared.in_percent(heads, "share_before", "share_after", "share_score"),
        column_order=columns,
        column_config={
            "name": "Head",
            "is_chosen": st.column_config.CheckboxColumn("Chosen"),
            "before": shared.score_column("Before", unit),
            "after": shared.score_column("After", unit),
            "score": shared.score_column("Change", f"after minus before, {unit}"),
            "ci_low": shared.score_column("Interval from", figure_data.interval_words(table)),
            "ci_high": shared.score_column("to"),
            "own": shared.score_column("Head itself", f"the base head's own change, {unit}"),
            "memory": shared.score_column("Inserted memory", f"the dose, {unit}"),
            "copy": shared.score_column("Copied attention", unit),
            "share_before": shared.percent_column("Share before"),
            "share_after": shared.percent_column("Share after"),
            "share_score": shared.percent_column("Change of share"),
            "ratio": st.column_config.NumberColumn("Ratio of shares", format="%.2f"),
        },
        hide_index=True,
        height=380,
        key="amplification_table",
    )
    shared.download(heads, run, "amplification")


if __name__ == "__main__":
    main()
