"""Page: which heads matter, before and after up-scaling."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps import shared

INTRO = (
    "How much worse the model predicts when one head is ablated. Blue heads help, orange heads "
    "hurt; both models share one colour scale, and blocks inserted by up-scaling stand as rows of "
    "their own, marked +."
)
METHOD = """
**Score.** The head's output is replaced, before heads are mixed, by the *baseline* named in the
caption (its mean output over the evaluated documents, or zero). The score of an exact ablation is
the loss after that minus the loss before, in nats per token, weighted by tokens; a positive score
means that the head helps. Other methods estimate the same quantity; the caption names the one used.

**Interval.** A bootstrap over documents (the unit the caption names): the tokens of one document
are not independent, so whole documents are drawn.

**Share.** max(score, 0) over its sum across all heads of that model.

**Comparison.** Two models are set side by side only if metric, baseline, documents and token counts
agree.
"""


def main() -> None:
    run: shared.Run = st.session_state["run"]
    st.markdown(INTRO)
    with shared.messages("Head importance"):
        before = run.table("importance_before")
        after = _after(run)
        picked = _map(run, before, after)
        _panel(before, after, picked)
        with st.expander("How is this computed"):
            st.markdown(METHOD)
        st.subheader("Difference, after minus before")
        with shared.messages("The difference"):
            _difference(run)
        st.subheader("Sorted curves")
        with shared.messages("The sorted curves"):
            shared.draw(figures.importance_curves(before, after), "importance_curves")
        st.subheader("Every head")
        with shared.messages("The table of heads"):
            _table(run, before, after)


def _after(run: shared.Run) -> pd.DataFrame | None:
    """The table after up-scaling; None, with a message, when the run has none that can be read."""
    with shared.messages("Importance after up-scaling"):
        return run.table("importance_after")
    return None


def _map(
    run: shared.Run, before: pd.DataFrame, after: pd.DataFrame | None
) -> tuple[bool, list[Any]] | None:
    """Draw the map; returns a clicked cell: (of the model after?, [layer, kind, head, source])."""
    key = f"importance_map_{run.name}"
    figure = figures.importance_map(before, after, width=shared.MAP_WIDTH)
    point = shared.clicked(key)
    if point is not None:
        figure.add_shape(
            type="rect", line={"width": 2.5, "color": figure_data.MEMORY},
            x0=point["x"] - 0.5, x1=point["x"] + 0.5, y0=point["y"] - 0.5, y1=point["y"] + 0.5,
            row=1, col=int(point["curve_number"]) + 1,
        )  # fmt: skip
    shared.draw(figure, key, select=True, stretch=False)
    return None if point is None else (point["curve_number"] == 1, list(point["customdata"]))


def _panel(
    before: pd.DataFrame, after: pd.DataFrame | None, picked: tuple[bool, list[Any]] | None
) -> None:
    """One head's numbers: the clicked cell's, at first the most important head's."""
    grown = after is not None and (picked is None or picked[0])
    table = after if after is not None and grown else before
    heads = shared.ranked(table)
    row = heads.iloc[0]
    if picked is not None:
        layer, kind, head, _ = picked[1]
        same = (heads["layer"] == layer) & (heads["kind"] == kind) & (heads["head"] == head)
        if same.any():
            row = heads[same].iloc[0]
    with st.container(border=True, key="head_panel"):
        model = figure_data.model_name(table, "after" if grown else "before")
        st.markdown(
            f"**{shared.escape(row['block'])}, head {row['head']}** "
            f"in {shared.escape(model)} (block {row['layer']}, {row['kind']})"
        )
        _numbers(row, len(heads), table)
        lines = [] if row["inserted"] else _counterpart(row, before if grown else after)
        lines.append(
            "Click a cell of the map to see another head."
            if picked is not None
            else "This is the most important head; click a cell of the map to see another."
        )
        st.caption("  \n".join(lines))


def _numbers(row: pd.Series, count: int, table: pd.DataFrame) -> None:
    score, interval, rank, share, source = st.columns([3, 4, 2, 2, 2])
    score.metric(f"Score ({figure_data.unit(table)})", shared.number(row["score"]))
    interval.metric(
        "Interval",
        shared.interval(row["ci_low"], row["ci_high"]),
        help=figure_data.interval_words(table),
    )
    rank.metric("Rank", f"{row['rank']} of {count}")
    share.metric("Share", shared.percent(row["share"]), help="of the total of max(score, 0)")
    source.metric("Source layer", int(row["source_layer"]))


def _counterpart(row: pd.Series, other: pd.DataFrame | None) -> list[str]:
    """The same base head in the other model, as a line."""
    if other is None:
        return []
    heads = shared.ranked(other)
    same = (heads["source_layer"] == row["source_layer"]) & (heads["head"] == row["head"])
    found = heads[same & ~heads["inserted"]]
    if found.empty:
        return []
    twin = found.iloc[0]
    return [
        f"In {shared.escape(figure_data.model_name(other))}: "
        f"score {shared.number(twin['score'])}, "
        f"interval {shared.interval(twin['ci_low'], twin['ci_high'])}, "
        f"rank {twin['rank']} of {len(heads)}, share {shared.percent(twin['share'])}."
    ]


def _difference(run: shared.Run) -> None:
    st.markdown(
        "Each base head with the inserted heads that came from it, set against the head before. "
        "The page *Amplification* has the intervals."
    )
    figure = figures.amplification_map(run.table("amplification"), width=shared.MAP_WIDTH)
    shared.draw(figure, "difference_map", stretch=False)


def _table(run: shared.Run, before: pd.DataFrame, after: pd.DataFrame | None) -> None:
    sides = {"before": before} if after is None else {"before": before, "after": after}
    side = st.segmented_control(
        "Model",
        list(sides),
        default=list(sides)[-1],
        required=True,
        key="table_side",
        format_func=lambda s: f"{s}: {figure_data.model_name(sides[s])}",
        label_visibility="collapsed",
    )
    heads = shared.ranked(sides[side])
    columns = ["rank", "block", "head", "kind", "score", "ci_low", "ci_high", "stderr", "share"]
    st.dataframe(
        shared.in_percent(heads, "share"),
        column_order=[*columns, "layer", "source_layer"],
        column_config={
            "rank": "Rank",
            "block": "Block",
            "head": "Head",
            "kind": "Kind",
            "score": shared.score_column("Score", figure_data.unit(heads)),
            "ci_low": shared.score_column("Interval from", figure_data.interval_words(heads)),
            "ci_high": shared.score_column("to"),
            "stderr": shared.score_column("Std. error"),
            "share": shared.percent_column("Share", "of the total of max(score, 0)"),
            "layer": "Block number",
            "source_layer": "Source layer",
        },
        hide_index=True,
        height=380,
        key="heads_table",
    )
    shared.download(heads, run, f"importance_{side}")


if __name__ == "__main__":
    main()
