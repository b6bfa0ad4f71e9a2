"""Page: which models these are, what changed, and what it cost, at a glance."""

from __future__ import annotations

from typing import Any

import streamlit as st

from apps.parts import access, drawn, page, tables
from apps.parts.access import Run

NEXT = (
    ("views/heads.py", "Which heads matter, and which changed", ":material/grid_on:"),
    ("views/choose.py", "Choose heads to amplify", ":material/checklist:"),
    ("views/amplify.py", "Turn heads up and down on a text", ":material/tune:"),
    ("views/memory.py", "What the memory holds", ":material/memory:"),
    ("views/compare.py", "Compare with another run", ":material/compare:"),
    ("views/report.py", "Figures for a paper", ":material/article:"),
)
METHOD = """
**Loss** is the next-token loss in nats per token, token-weighted; lower is better. *New text* is
what the up-scaled models were trained on (documents kept out of training); *held-out text* is the
base model's own, and a rise there is what was forgotten. **FLOPs** are counted by PyTorch, a
multiplication and an addition each, for one token in a context as long as the costs table says.
**Heads amplified**: those whose importance, with all that was inserted from them, rose by a
test over documents, one in twenty of those named being expected to be wrong (false discovery rate).
"""


def main() -> None:
    run = page.run()
    with page.messages("The overview"):
        _models(run)
        _numbers(run)
        left, right = st.columns([3, 2], gap="large")
        with left, page.messages("What changed"):
            _changed(run)
        with right:
            st.subheader("Go on")
            for path, words, icon in NEXT:
                st.page_link(path, label=words, icon=icon)
            with page.messages("Memory"):
                _memory(run)
        with page.messages("Quality and cost"):
            _quality(run)
        with page.messages("The choice of heads"):
            _choice(run)
        page.computed(METHOD)


def _models(run: Run) -> None:
    """One sentence: from which model to which."""
    labels = run.manifest.get("models") or {}
    summary = run.manifest.get("summary") or {}
    before, after = (access.short(labels.get(side)) for side in ("before", "after"))
    if not before:
        st.markdown("This run names no model. Its tables are shown where a page knows them.")
        return
    if not after:
        st.markdown(f"The model **{page.escape(before)}**, measured as it is.")
        return
    text = f"**{page.escape(before)}** was up-scaled to **{page.escape(after)}**"
    added, had = summary.get("parameters_added"), summary.get("parameters_before")
    if added and had:
        text += f": {added:,} parameters more ({100 * added / had:.0f} %)"
    steps = summary.get("steps")
    st.markdown(f"{text}, and trained on for {steps:,} steps." if steps else f"{text}.")


def _numbers(run: Run) -> None:
    """Losses and costs, before and after."""
    summary = run.manifest.get("summary") or {}
    shown = (
        ("New text (nats/token)", "loss_new", 3, 1),
        ("Held-out text (nats/token)", "loss_heldout", 3, 1),
        ("Parameters (M)", "parameters", 2, 1e6),
        ("FLOPs a token (M)", "flops_per_token", 2, 1e6),
    )
    known = [row for row in shown if f"{row[1]}_before" in summary]
    if not known:
        _clean(summary)
        return
    for column, (label, name, digits, unit) in zip(st.columns(len(known)), known, strict=True):
        old, new = summary[f"{name}_before"] / unit, summary.get(f"{name}_after")
        if new is None:
            column.metric(label, f"{old:.{digits}f}")
            continue
        new = new / unit
        column.metric(
            label, f"{new:.{digits}f}", delta=f"{new - old:+.{digits}f}", delta_color="inverse",
            help=f"before: {old:.{digits}f}",
        )  # fmt: skip


def _clean(summary: dict[str, Any]) -> None:
    plain = {key: value for key, value in summary.items() if isinstance(value, int | float | str)}
    for column, (key, value) in zip(st.columns(4), list(plain.items())[:4], strict=False):
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        column.metric(page.escape(key.replace("_", " ").capitalize()), page.escape(text))


def _changed(run: Run) -> None:
    picture = _heads_picture(run)
    if picture.name == "importance_change":
        table = picture.tables[0]
        st.subheader("Heads that changed most")
        if "changed" in table.columns:
            sure = [(table["changed"] == name).sum() for name in ("amplified", "weakened")]
            how = "one in twenty of these is expected to be neither (false discovery rate)."
        else:  # of an older version
            sure = [(table["ci_low"] > 0).sum(), (table["ci_high"] < 0).sum()]
            how = "these 95% intervals leave out zero, each for itself."
        counts = f"{sure[0]} of {len(table)} heads were amplified and {sure[1]} weakened"
        st.markdown(page.escape(f"{counts}; {how}"))
    else:
        st.subheader("Heads that matter most")
    drawn.picture(picture, "overview_heads")


def _heads_picture(run: Run) -> drawn.Picture:
    """The heads that changed; where the run compared no two models, the heads of its one."""
    if tables.has(run, "amplification"):
        table = tables.table(run, "amplification")
        return drawn.Picture("importance_change", (table, 8), tables.key(run, "amplification"))
    name = "ranking" if tables.has(run, "ranking") else "importance_before"
    return drawn.Picture("importance_map", (tables.table(run, name),), tables.key(run, name))


def _memory(run: Run) -> None:
    """A line a memory block: how many of its slots are ever read."""
    if not tables.has(run, "memory_usage"):
        return
    usage = tables.table(run, "memory_usage")
    labels = {row.layer: row.label for row in tables.blocks(run, "memory_usage")}
    by_block = usage.groupby("layer").agg(coverage=("coverage", "mean"), slots=("slots", "max"))
    st.subheader("Memory in use")
    lines = [
        f"| {page.escape(labels[int(layer)])} | {tables.percent(row.coverage)} | {row.slots:,.0f} |"
        for layer, row in by_block.iterrows()
    ]
    st.markdown("\n".join(["| Block | Slots read | Slots |", "|:--|--:|--:|", *lines]))
    st.caption("Slots that at least one token read: the mean over the block's heads.")


def _quality(run: Run) -> None:
    picture = _quality_picture(run)
    if picture:
        st.subheader("Quality against cost")
        drawn.picture(picture, "overview_quality")


def _quality_picture(run: Run) -> drawn.Picture | None:
    if not tables.has(run, "losses"):
        return None
    losses = tables.table(run, "losses")
    return drawn.Picture("quality_cost", (losses,), tables.key(run, "losses"))


def _choice(run: Run) -> None:
    picture = _choice_picture(run)
    if picture:
        st.subheader("Did choosing heads pay?")
        drawn.picture(picture, "overview_choice")


def _choice_picture(run: Run) -> drawn.Picture | None:
    names = [name for name in ("choice", "choice_contrast") if tables.has(run, name)]
    if "choice" not in names:
        return None
    held = [tables.table(run, name) for name in names]
    parts = dict(zip(("arms", "contrasts"), held, strict=False))
    return drawn.Picture("choice", tuple(held), tables.key(run, *names), parts)


def ahead(run: Run) -> None:
    """Draw the page's pictures before it is asked for."""
    for picture in (_heads_picture(run), _quality_picture(run), _choice_picture(run)):
        if picture:
            drawn.ahead(picture)


if __name__ == "__main__":
    main()
