"""Page: rank a model's heads, select those worth amplifying, and take the choice elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from analysis.ranking_words import summary
from apps.parts import access, drawn, job_panel, live, page, ranking_form, tables
from apps.parts.access import Run
from kernels.errors import ModelError
from workbench import selection

INTRO = (
    "Rank the heads, select the ones to amplify, and export them with the command that gives them "
    "memory. A ranking says how sure it is: each head's chance of belonging to the top set."
)
METHOD = """
**Exact** scores: windows on which the head was really ablated. The race stops when the top set is
settled at the confidence asked, when the budget is spent, or when documents run out; *stopped* says
which. **Chance** (p_top): the chance of the head, given what was measured, to be in the top set of
these documents; 1 or 0 once every window was measured. **Interval**: a confidence sequence, valid
whenever the race stops, corrected over heads; exact where the metric is bounded, asymptotic
elsewhere. **Tied**: other documents of this kind may turn the head and the next.

Measured elsewhere, the heads may rank otherwise: choose on other documents than you measure on.
"""
RULES = ("the top set", "a number", "a chance", "a role", "a parameter budget", "by hand")


def main() -> None:
    run = page.run()
    st.markdown(INTRO)
    with page.messages("The form"), st.expander("Rank heads", icon=":material/leaderboard:"):
        ranking_form.show(run)
    with page.messages("The jobs"):
        job_panel.show(access.given().workspace)
    with page.messages("The ranking"):
        _ranking(run)


def _ranking(run: Run) -> None:
    if not tables.has(run, "ranking"):
        st.info(
            "The run in the sidebar holds no ranking. Rank heads above, or choose another run: a "
            "finished ranking opens from its line among the jobs.",
            icon=":material/info:",
        )
        return
    ranking = tables.table(run, "ranking")
    attrs = ranking.attrs
    st.subheader(f"Heads of {page.escape(figure_data.model_name(ranking))}")
    st.caption(page.escape(tables.measured(ranking)))
    stopped, spent, top, sure = st.columns(4)
    stopped.metric("Stopped", page.escape(str(attrs.get("stopped", "not recorded"))))
    spent.metric("Exact evaluations", f"{attrs.get('evaluations', 0):,}",
                 help=f"of {attrs.get('exhaustive', 0):,} in all")  # fmt: skip
    top.metric("Top set", int(attrs.get("top", 0)))
    sure.metric("Confidence asked", tables.percent(attrs.get("confidence"), 0))
    sizes = _sizes()
    st.caption(page.escape(summary(ranking)))
    chosen = _select(run, ranking, sizes)
    _map(run, ranking, chosen)
    _table(ranking, chosen)
    page.computed(METHOD)
    _export(run, ranking, chosen, sizes)


# ---------------------------------------------------------------- selecting


def _select(run: Run, ranking: pd.DataFrame, sizes: dict[str, int]) -> list[selection.Head]:
    rules = [rule for rule in RULES if rule != "a role" or tables.has(run, "roles")]
    rule = page.choose("Select heads by", rules, "rule")
    if rule == "a number":
        if st.session_state.get("count", 1) > len(ranking):  # of a larger model
            st.session_state.pop("count")
        usual = min(len(ranking), int(ranking.attrs.get("top") or 8))
        bind = page.bound("count", "a number of heads", (1, len(ranking)), usual)
        count = st.slider("Heads", 1, len(ranking), usual, key="count", bind=bind)
        return selection.top_heads(ranking, count)
    if rule == "a chance":
        label = "Chance of belonging to the top set, at least"
        bind = page.bound("chance", "a chance", (0, 1), 0.9, whole=False)
        chance = st.slider(label, 0.0, 1.0, 0.9, 0.01, key="chance", bind=bind)
        return selection.sure_heads(ranking, chance)
    if rule == "a role":
        roles = tables.table(run, "roles")
        names = sorted(set(roles["role"]) - {"none"})
        return selection.heads_of_role(ranking, roles, page.choose("Role", names, "role"))
    if rule == "a parameter budget":
        return _within(run, ranking, sizes)
    if rule == "by hand":
        return _by_hand(ranking)
    return selection.top_heads(ranking, int(ranking.attrs.get("top") or 8))


def _sizes() -> dict[str, int]:
    """The memory's sizes, as the exported command has them."""
    columns = st.columns(3)
    given = (
        ("num_keys", "Sub-keys a half, n", 64, "n × n slots a block"),
        ("top_k", "Slots a head reads, k", 8, "a token"),
        ("latent_dim", "Width of the bank, r", 64, "numbers a slot"),
    )
    return {
        name: int(
            column.number_input(
                label, 1, 4096, usual, key=name, help=help,
                bind=page.bound(name, label, (1, 4096), usual),
            )
        )
        for column, (name, label, usual, help) in zip(columns, given, strict=True)
    }  # fmt: skip


def _within(run: Run, ranking: pd.DataFrame, sizes: dict[str, int]) -> list[selection.Head]:
    config = _config(run)
    million = st.number_input(
        "Parameters to add at most (millions)", 0.01, 1e6, 0.5, 0.1, key="millions",
        bind=page.bound("millions", "millions of parameters", (0.01, 1e6), 0.5, whole=False),
    )  # fmt: skip
    return selection.heads_within(
        ranking, config, int(1e6 * million), sizes["num_keys"], sizes["latent_dim"]
    )


def _by_hand(ranking: pd.DataFrame) -> list[selection.Head]:
    names = {f"{row.layer}.{row.head}": (row.layer, row.head) for row in ranking.itertuples()}
    known = [name for name in st.session_state.get("hand", []) if name in names]
    if "hand" in st.session_state:
        st.session_state["hand"] = known
    picked = st.multiselect(
        "Heads (layer.head); a click on the map adds or removes one",
        list(names),
        key="hand",
        bind="query-params",
    )
    return [(int(names[name][0]), int(names[name][1])) for name in picked]


def _click(point: dict[str, Any]) -> None:
    """Add a clicked head to those chosen by hand, or take it out."""
    layer, _, head, _ = point["customdata"]
    name = f"{layer}.{head}"
    held = list(st.session_state.get("hand", []))
    if st.session_state.get("rule") != "by hand":
        held = []
    st.session_state["hand"] = [h for h in held if h != name] if name in held else [*held, name]
    st.session_state["rule"] = "by hand"


# ---------------------------------------------------------------- showing


def _map(run: Run, ranking: pd.DataFrame, chosen: list[selection.Head]) -> None:
    rows = [row.layer for row in tables.blocks(run, "ranking")]
    drawn.map(
        lambda: figures.importance_map(ranking, width=drawn.MAP_WIDTH),
        "ranking_map",
        same=tables.key(run, "ranking"),
        marks=[(0, head, rows.index(layer)) for layer, head in chosen],
        clicked=_click,
        paper=drawn.on_paper("importance_map", ranking),
        table=ranking,
    )


def _table(ranking: pd.DataFrame, chosen: list[selection.Head]) -> None:
    heads = ranking.assign(
        rank=range(1, len(ranking) + 1),
        chosen=[
            (int(layer), int(head)) in chosen
            for layer, head in zip(ranking["layer"], ranking["head"], strict=True)
        ],
        chance=100 * ranking["p_top"],
    )
    st.dataframe(
        heads,
        column_order=[
            "rank", "chosen", "layer", "head", "score", "ci_low", "ci_high", "chance", "exact",
            "tied_with_next",
        ],
        column_config={
            "rank": "Rank",
            "chosen": st.column_config.CheckboxColumn("Chosen"),
            "layer": "Layer",
            "head": "Head",
            "score": tables.score_column("Score", figure_data.unit(ranking)),
            "ci_low": tables.score_column("Interval from", figure_data.interval_words(ranking)),
            "ci_high": tables.score_column("to"),
            "chance": tables.percent_column("Chance", "of being in the top set of these documents"),
            "exact": tables.whole_column("Exact windows"),
            "tied_with_next": st.column_config.CheckboxColumn("Tied with next"),
        },
        hide_index=True,
        height=300,
        key="ranking_table",
    )  # fmt: skip
    drawn.download(ranking, "ranking")


def _config(run: Run) -> Any:
    name = run.model("before")
    if name is None:
        raise ModelError("this run names no model, so parameters cannot be counted")
    return live.config(name)


def _export(
    run: Run, ranking: pd.DataFrame, chosen: list[selection.Head], sizes: dict[str, int]
) -> None:
    st.subheader("Take it with you")
    if not chosen:
        st.warning("No head is chosen.")
        return
    with page.messages("The number of parameters"):
        added = selection.added_parameters(
            _config(run), chosen, sizes["num_keys"], sizes["latent_dim"]
        )
        blocks = len({layer for layer, _ in chosen})
        st.markdown(
            f"Heads: **{len(chosen)}**, inserted blocks: **{blocks}**, one after each layer with a "
            f"chosen head; parameters added: **{added:,}**."
        )
    st.download_button(
        "ranking.json",
        json.dumps(selection.ranking_json(ranking, chosen), indent=1).encode(),
        file_name="ranking.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
    )
    st.code(
        selection.upscale_command(
            access.usable(run, "before") or "MODEL", "ranking.json", "runs/deeper", **sizes
        ),
        language="bash",
        wrap_lines=True,
    )


if __name__ == "__main__":
    main()
