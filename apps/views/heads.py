"""Page: which heads matter before and after up-scaling, what changed, and one head from near."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps.parts import drawn, grid, head_panel, page, tables
from apps.parts.access import Run

INTRO = (
    "How much worse the model predicts when one head is ablated. Blue heads help, orange heads "
    "hurt; both models share one colour scale, and blocks inserted by up-scaling stand as rows of "
    "their own, marked +. Click a cell to look at that head."
)
METHOD = """
**Score.** The head's output is replaced, before heads are mixed, by the *baseline* named in the
caption (its mean output over the evaluated documents, or zero). The score of an exact ablation is
the loss after that minus the loss before, in nats per token, weighted by tokens; a positive score
means that the head helps. Other methods estimate the same quantity; the caption names the one used
and, where it was measured, how far it agrees with exact ablation on a sample of heads.

**Interval.** Student's t over documents (the unit the caption names): the tokens of one document
are not independent. Each head has one for itself and one that holds for all heads together: read
the second where you pick heads out.

**Share.** max(score, 0) over its sum across all heads of that model.

**Comparison.** Two models are set side by side only if metric, baseline, documents and token counts
agree.
"""
CHANGE = """
**Amplification** of a head: importance after minus importance before, where *after* is the head's
own importance in the grown model plus that of every inserted head that came from it (memory or
copied attention). A positive value means that the head and its descendants matter more than it did.

**Interval.** Student's t over documents of the difference on each, so it is paired; one for each
head itself, and one that holds for all heads together. **Expected** is the change less what is
likely luck, the largest of many measured changes being largest partly by luck. Heads are called
amplified or weakened by false discovery rate: one in twenty of those named is expected to be
neither.

**Share.** Importance as a whole may grow or shrink; shares say whether a head gained on the others.
**Ratio.** Share after over share before, only where the share before is distinguishable from zero.

**Gini** is 0 when all heads matter alike and near 1 when one head is all; **effective heads** is
exp(entropy of the shares): the number of equally important heads with that entropy.

**Chosen heads** are those that were given memory on purpose. A head chosen for its high score tends
to score lower when measured again, so heads should be chosen on other documents than they are
measured on.
"""
CHANGED = "by false discovery rate: one in twenty of those named is expected to be neither"
_TOGETHER = {
    "ci_low_all": tables.score_column("All heads from", "95%, holds for all heads together"),
    "ci_high_all": tables.score_column("to"),
}
VIEWS = ("importance", "change", "curves", "roles", "table")


def main() -> None:
    st.markdown(INTRO)
    _body(page.run())


@st.fragment
def _body(run: Run) -> None:
    """All that a click changes: it is drawn again without the rest of the page."""
    with page.messages("Head importance"):
        before = tables.table(run, "importance_before")
        after = _after(run)
        picked = _picked(run, after is not None)
        view = page.toggle("Show", VIEWS, "show")
        with page.messages(f"The view {view}"):
            _VIEWS[view](run, before, after, picked)
        with page.messages("The head"):
            head_panel.show(run, picked.heads, picked.side, picked.row)


# ---------------------------------------------------------------- the head in view


class Picked(NamedTuple):
    """The head in view: its `side` of the pair of models, all `heads` there, and its `row`."""

    side: str
    heads: pd.DataFrame
    row: pd.Series


def _picked(run: Run, grown: bool) -> Picked:
    """The head that the address or a click names; at first the most important one."""
    sides = ["after", "before"] if grown else ["before"]
    left, middle, right = st.columns([2, 3, 2])
    side = page.choose("Model", sides, "side", place=left, what="a model")
    heads = tables.heads(run, f"importance_{side}")
    first = heads.iloc[0]
    names = _blocks(run, side)
    block = page.choose(
        "Block", list(names), "block", place=middle, what="block",
        default=list(names.values()).index((int(first["layer"]), str(first["kind"]))),
    )  # fmt: skip
    layer, kind = names[block]
    here = heads[(heads["layer"] == layer) & (heads["kind"] == kind)]
    options = [str(head) for head in sorted(here["head"])]
    best = options.index(str(here.iloc[0]["head"]))
    head = page.choose("Head", options, "head", place=right, what="head", default=best)
    return Picked(side, heads, here[here["head"] == int(head)].iloc[0])


def _blocks(run: Run, side: str) -> dict[str, tuple[int, str]]:
    """Name of a block, as the address has it -> (layer, kind), in the model's order."""
    rows = tables.blocks(run, f"importance_{side}")
    return {f"{row.layer}: {row.label}": (row.layer, row.kind) for row in rows}


def _pick(run: Run, point: dict[str, Any]) -> None:
    """Make a clicked cell the head in view."""
    layer, kind, head, _ = point["customdata"]
    side = "after" if point["panel"] == 1 else "before"
    names = {place: name for name, place in _blocks(run, side).items()}
    st.session_state["side"] = side
    st.session_state["block"] = names[int(layer), str(kind)]
    st.session_state["head"] = str(head)


def _after(run: Run) -> pd.DataFrame | None:
    """The table after up-scaling; None, with a message, when the run has none that can be read."""
    with page.messages("Importance after up-scaling"):
        return tables.table(run, "importance_after")
    return None


# ---------------------------------------------------------------- the views


def _importance(run: Run, before: pd.DataFrame, after: pd.DataFrame | None, picked: Picked) -> None:
    drawn.map(
        lambda: figures.importance_map(before, after, width=drawn.MAP_WIDTH),
        "importance_map",
        same=tables.key(run, "importance_before", "importance_after"),
        marks=_marks(run, after is not None, picked),
        clicked=lambda point: _pick(run, point),
        paper=drawn.on_paper("importance_map", before, after),
        table=_sides(before, after),
    )
    page.computed(METHOD)


def _sides(before: pd.DataFrame, after: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    return {"before": before} if after is None else {"before": before, "after": after}


def _marks(run: Run, grown: bool, picked: Picked) -> list[grid.Mark]:
    """A frame around the head in view."""
    rows = tables.blocks(run, f"importance_{'after' if grown else 'before'}")
    labels = [row.label for row in rows]
    if picked.row["block"] not in labels:
        return []
    panel = int(picked.side == "after" and grown)
    return [(panel, int(picked.row["head"]), labels.index(picked.row["block"]))]


def _change(run: Run, before: pd.DataFrame, after: pd.DataFrame | None, picked: Picked) -> None:
    table = tables.table(run, "amplification")
    _concentration(table)
    what = page.toggle("Change of", ("importance", "share"), "of")
    share = what == "share"
    drawn.map(
        lambda: figures.amplification_map(table, share=share, width=drawn.MAP_WIDTH),
        f"amplification_map_{what}",
        same=(*tables.key(run, "amplification"), what),
        paper=drawn.on_paper("amplification_map", table, share=share),
        table=table,
    )
    top = page.toggle("Heads shown", ("20 most changed", "10 most changed", "all"), "top")
    count = None if top == "all" else int(top.split()[0])
    drawn.figure(
        lambda: figures.amplification(table, count),
        "amplification_bars",
        same=(*tables.key(run, "amplification"), count),
        paper=drawn.on_paper("amplification", table, count),
        table=table,
    )
    page.computed(CHANGE)
    with page.messages("The table of changes"):
        _changes(run, table)


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
        column.metric(label, f"{tables.number(old, digits)} → {tables.number(new, digits)}")
    columns[2].metric(
        "Chosen heads", f"{len(chosen)} of {len(table)}" if chosen else "none: all heads alike"
    )


def _changes(run: Run, table: pd.DataFrame) -> None:
    heads = figure_data.amplified(table, None, "the table of heads")
    unit = figure_data.unit(table)
    columns = [
        "name", "is_chosen", "before", "after", "score", "ci_low", "ci_high", "own", "memory",
        "copy", "share_before", "share_after", "share_score", "ratio",
    ]  # fmt: skip
    columns[7:7] = [n for n in ("ci_low_all", "ci_high_all", "shrunk", "changed") if n in heads]
    if "copy" not in figure_data.shown_parts(heads):
        columns.remove("copy")
    st.dataframe(
        tables.in_percent(heads, "share_before", "share_after", "share_score"),
        column_order=columns,
        column_config={
            "name": "Head",
            "is_chosen": st.column_config.CheckboxColumn("Chosen"),
            "before": tables.score_column("Before", unit),
            "after": tables.score_column("After", unit),
            "score": tables.score_column("Change", f"after minus before, {unit}"),
            "ci_low": tables.score_column("Interval from", figure_data.interval_words(table)),
            "ci_high": tables.score_column("to"),
            **_TOGETHER,
            "shrunk": tables.score_column("Expected", "the change less what is likely luck"),
            "changed": st.column_config.TextColumn("Changed", help=CHANGED),
            "own": tables.score_column("Head itself", f"the base head's own change, {unit}"),
            "memory": tables.score_column("Inserted memory", f"the dose, {unit}"),
            "copy": tables.score_column("Copied attention", unit),
            "share_before": tables.percent_column("Share before"),
            "share_after": tables.percent_column("Share after"),
            "share_score": tables.percent_column("Change of share"),
            "ratio": st.column_config.NumberColumn("Ratio of shares", format="%.2f"),
        },
        hide_index=True,
        height=320,
        key="amplification_table",
    )
    drawn.download(heads, f"{run.folder.name}-amplification")


def _curves(run: Run, before: pd.DataFrame, after: pd.DataFrame | None, picked: Picked) -> None:
    st.markdown("All heads from the most to the least important: how few carry the model.")
    drawn.figure(
        lambda: figures.importance_curves(before, after),
        "importance_curves",
        same=tables.key(run, "importance_before", "importance_after"),
        paper=drawn.on_paper("importance_curves", before, after),
        table=_sides(before, after),
    )
    page.computed(METHOD)


def _roles(run: Run, before: pd.DataFrame, after: pd.DataFrame | None, picked: Picked) -> None:
    roles = tables.table(run, "roles")
    st.markdown("What each head does, where the evidence is clear; most heads have no clear role.")
    drawn.figure(
        lambda: figures.role_map(roles, before),
        "role_map",
        same=tables.key(run, "roles", "importance_before"),
        stretch=False,
        paper=drawn.on_paper("role_map", roles, before),
        table={"roles": roles, "importance": before},
    )
    page.computed(
        "Roles are scored on attention patterns over probe sequences and over text, and on what "
        "the head writes; a label needs an interval that lies wholly above its threshold. The "
        "table `roles` has every score."
    )


def _table(run: Run, before: pd.DataFrame, after: pd.DataFrame | None, picked: Picked) -> None:
    heads = picked.heads
    columns = ["rank", "block", "head", "kind", "score", "ci_low", "ci_high", "stderr", "share"]
    columns[7:7] = [name for name in _TOGETHER if name in heads]
    st.dataframe(
        tables.in_percent(heads, "share"),
        column_order=[*columns, "layer", "source_layer"],
        column_config={
            "rank": "Rank",
            "block": "Block",
            "head": "Head",
            "kind": "Kind",
            "score": tables.score_column("Score", figure_data.unit(heads)),
            "ci_low": tables.score_column("Interval from", figure_data.interval_words(heads)),
            "ci_high": tables.score_column("to"),
            **_TOGETHER,
            "stderr": tables.score_column("Std. error"),
            "share": tables.percent_column("Share", "of the total of max(score, 0)"),
            "layer": "Block number",
            "source_layer": "Source layer",
        },
        hide_index=True,
        height=380,
        key="heads_table",
    )
    drawn.download(heads, f"{run.folder.name}-importance_{picked.side}")
    st.caption(page.escape(tables.measured(heads)))


_VIEWS = dict(zip(VIEWS, (_importance, _change, _curves, _roles, _table), strict=True))


if __name__ == "__main__":
    main()
