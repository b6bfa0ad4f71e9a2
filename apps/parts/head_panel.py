"""One head from near: its numbers, what it looks at and writes, its memory, and its dose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps.parts import drawn, grid, live, page, tables
from apps.parts.access import Run

NEAR = ("attention", "what it writes", "memory", "dose")
MOST_TEXT = 4000  # characters
PATTERN = """
The head's attention pattern on the text, one row a token that looks, one column a token looked at,
computed by the model itself. A memory head's pattern is that of its block's own attention, whose
output is the head's query. A pattern says where a head looks, not what it takes from there.
"""
WRITES = """
The head's output at a token goes through the output projection (or its memory projection) into the
residual stream. Its *direct effect* on a token's logit is that vector, scaled by the final norm of
this very run, times the token's row of the unembedding, less the mean over the vocabulary. Later
blocks may change it: a logit lens, an approximation.
"""
DOSES = """
The head's output is multiplied by a gain: 0 ablates it to zero, 1 leaves it, 2 doubles it. The
change of the loss is against gain 1 on the same documents; the grey band is other heads of the same
layer, drawn at random. Whole documents are resampled.
"""


def show(run: Run, table: pd.DataFrame, side: str, row: pd.Series) -> None:
    """The panel of the head `row` of `table`, which `tables.heads` gave."""
    count = len(table)
    with st.container(border=True, key="head_panel"):
        whose = page.escape(figure_data.model_name(table, side))
        st.markdown(
            f"**{page.escape(row['block'])}, head {row['head']:d}** "
            f"in {whose} (block {row['layer']:d}, {page.escape(row['kind'])})"
        )
        _numbers(row, count, table)
        role = _role(run, side, row)
        if role:
            st.caption(page.escape(role))
    name = page.model_of(run, side)
    if name is None:
        return
    near = page.toggle("Look at the head's", NEAR, "near")
    model = live.ready(name)
    if model is None:
        return
    with page.messages(f"The head's {near}"):
        {
            "attention": _attention,
            "what it writes": _writes,
            "memory": _memory,
            "dose": _dose,
        }[near](run, model, row)


def _numbers(row: pd.Series, count: int, table: pd.DataFrame) -> None:
    score, interval, rank, share, source = st.columns([3, 4, 2, 2, 2])
    score.metric(f"Score ({page.escape(figure_data.unit(table))})", tables.number(row["score"]))
    interval.metric(
        "Interval",
        tables.interval(row["ci_low"], row["ci_high"]),
        help=page.escape(figure_data.interval_words(table)),
    )
    rank.metric("Rank", f"{row['rank']:d} of {count}")
    share.metric("Share", tables.percent(row["share"]), help="of the total of max(score, 0)")
    source.metric("Source layer", int(row["source_layer"]))


def _role(run: Run, side: str, row: pd.Series) -> str:
    """The head's role in the base model, where the run measured roles."""
    if not tables.has(run, "roles") or row["inserted"]:
        return ""
    role = tables.roles(run).get((int(row["source_layer"]), str(row["kind"]), int(row["head"])))
    if role is None:
        return ""
    return "No clear role." if role == "none" else f"Role: {role}."


def text_area(key: str, label: str = "Text") -> str:
    """A text to run the model on, kept in the page's address."""
    return str(
        st.text_area(
            label, live.SAMPLE, key=key, bind="query-params", height=120, max_chars=MOST_TEXT
        )
    )


def _attention(run: Run, model: live.Loadable, row: pd.Series) -> None:
    asked = model, text_area("text"), int(row["layer"]), int(row["head"])
    view = live.head_view(*asked)
    drawn.map(
        lambda: figures.attention_pattern(view),
        "attention_pattern",
        same=asked,
        words=lambda: _pattern_words(view),
        paper=drawn.on_paper("attention_pattern", view),
        table=lambda: _weights(view),
    )
    page.computed(PATTERN)


def _weights(view: pd.DataFrame) -> pd.DataFrame:
    """A row a pair of tokens that a head can join, with its attention weight."""
    pattern = figure_data.pattern_of(view, "attention_pattern")
    at, to = np.tril_indices(len(pattern.tokens))
    tokens = np.array(pattern.tokens)
    return pd.DataFrame(
        {"position": at, "token": tokens[at], "to_position": to, "to_token": tokens[to],
         "weight": pattern.weights[at, to]}
    )  # fmt: skip


def _pattern_words(view: pd.DataFrame) -> grid.Words:
    tokens = figure_data.pattern_of(view, "attention_pattern").tokens
    names = [f"{token} ({at})" for at, token in enumerate(tokens)]
    return grid.Words(names, names, "{row} → {column}\n{value} of its attention")


def _writes(run: Run, model: live.Loadable, row: pd.Series) -> None:
    view = live.head_view(model, text_area("text"), int(row["layer"]), int(row["head"]))
    shown = view.assign(
        promotes=[_words(words) for words in view["promotes"]],
        suppresses=[_words(words) for words in view["suppresses"]],
        token=[repr(token)[1:-1] for token in view["token"]],
    )
    st.dataframe(
        shown,
        column_order=["position", "token", "promotes", "suppresses", "next", "norm", "entropy"],
        column_config={
            "position": "Position",
            "token": "Token",
            "promotes": st.column_config.TextColumn("Raises most", width="large"),
            "suppresses": st.column_config.TextColumn("Lowers most", width="large"),
            "next": st.column_config.NumberColumn(
                "On the next token", format="%.2f", help="direct effect on its logit"
            ),
            "norm": st.column_config.NumberColumn("Norm written", format="%.2f"),
            "entropy": st.column_config.NumberColumn("Entropy (nats)", format="%.2f"),
        },
        hide_index=True,
        height=340,
        key="writes_table",
    )
    drawn.download(shown.drop(columns=["pattern"]), f"head_{row['layer']}_{row['head']}_writes")
    page.computed(WRITES)


def _words(words: list[str]) -> str:
    return "  ".join(repr(word)[1:-1].replace(" ", "␣") for word in words)


def _memory(run: Run, model: live.Loadable, row: pd.Series) -> None:
    usage = tables.table(run, "memory_usage")
    if row["kind"] == "memory":
        mine = usage[(usage["layer"] == row["layer"]) & (usage["head"] == row["head"])]
    else:
        mine = usage[
            (usage["source_layer"] == row["source_layer"]) & (usage["head"] == row["head"])
        ]
    if mine.empty:
        st.info("No inserted block gave this head a memory.", icon=":material/info:")
        return
    for _, found in mine.iterrows():
        use_of_slots(found)
        st.caption(
            f"The memory of head {row['head']:d} in block {int(found['layer'])}, which came from "
            f"layer {int(found['source_layer'])}. The page Memory opens its slots."
        )


def use_of_slots(found: pd.Series) -> None:
    """One memory head's row of the table memory_usage, at a glance."""
    coverage, dead, effective, weight = st.columns(4)
    coverage.metric("Coverage", tables.percent(found["coverage"]))
    dead.metric("Dead slots", f"{int(found['dead']):,} of {int(found['slots']):,}")
    effective.metric("Effective slots", f"{found['effective_slots']:,.0f}")
    weight.metric("Top-1 weight", tables.number(found["top1_weight"], 2))


def _dose(run: Run, model: live.Loadable, row: pd.Series) -> None:
    if not st.toggle("Measure (some seconds)", key="measure_dose", bind="query-params"):
        st.caption("Gains from 0 to 2 over 24 beginnings of held-out documents.")
        return
    found = live.dose(model, int(row["layer"]), int(row["head"]), 24)
    drawn.figure(
        lambda: figures.dose_response(found),
        "dose_response",
        paper=drawn.on_paper("dose_response", found),
        table=found,
    )
    page.computed(DOSES)
