"""Page: heads amplified or weakened on a text, with what the model then predicts, live."""

from __future__ import annotations

import json
import shlex

import pandas as pd
import streamlit as st

from analysis import figures
from apps.parts import drawn, head_panel, live, page, tables
from apps.parts.access import Run
from kernels.errors import ModelError

INTRO = (
    "Turn heads up or down and read what the model predicts next. A gain multiplies the head's "
    "output: 0 silences it, 1 leaves it as it is, 2 doubles it."
)
METHOD = """
The model reads the text twice: as it is, and with every chosen head's output multiplied by its
gain, at every position, before heads are mixed (`analysis.amplify`). **Probability** is that of the
next token after the text. **Loss** is the mean of −log p over the tokens of the text itself, in
nats a token. **KL** is of the prediction before from that after, in nats. The baseline of a gain is
zero: gain 0 is zero ablation.
"""
MOST = 8  # heads with a gain each
TOP = 10


def main() -> None:
    run = page.run()
    st.markdown(INTRO)
    with page.messages("The prediction"):
        named = run.manifest.get("models") or {}
        sides = [side for side in ("after", "before") if side in named]
        if not sides:
            raise ModelError("this run names no model; choose another run in the sidebar")
        side = page.toggle("Model", sides, "model")
        name = page.model_of(run, side)
        if name is None:
            return
        text = head_panel.text_area("text", "Text (the model goes on from its end)")
        model = live.ready(name)
        if model is None:
            return
        heads = _heads(run, side)
        chosen = _chosen(heads)
        gains = _gains(chosen, heads)
        _prediction(name, model, text, gains)


def _heads(run: Run, side: str) -> dict[str, tuple[int, int]]:
    """The model's heads by name, the most important first."""
    table = tables.heads(run, f"importance_{side}")
    return {
        f"{row.layer}.{row.head} {row.block}": (int(row.layer), int(row.head))
        for row in table.itertuples()
    }


def _chosen(heads: dict[str, tuple[int, int]]) -> list[str]:
    asked = st.query_params.get_all("heads")
    lost = [name for name in asked if name not in heads]
    if lost:
        text = page.escape(", ".join(lost)[: page.LONGEST])
        st.warning(f"The link asks for heads that are not there: {text}. Choose others below.")
    known = [name for name in st.session_state.get("heads", []) if name in heads]
    if "heads" in st.session_state:
        st.session_state["heads"] = known
    return list(
        st.multiselect(
            "Heads (block.head, the most important first)",
            list(heads),
            default=list(heads)[:3],
            max_selections=MOST,
            key="heads",
            bind="query-params",
        )
    )


def _gains(
    chosen: list[str], heads: dict[str, tuple[int, int]]
) -> tuple[tuple[int, int, float], ...]:
    """A slider a head, four to a line."""
    found = []
    columns = st.columns(4)
    for index, name in enumerate(chosen):
        layer, head = heads[name]
        gain = columns[index % 4].slider(
            f"{layer}.{head}", 0.0, 2.0, 1.0, 0.05,
            key=f"gain_{layer}_{head}", help=name,
            bind=page.bound(f"gain_{layer}_{head}", f"a gain of {layer}.{head}", (0, 2), 1, False),
        )  # fmt: skip
        found.append((layer, head, float(gain)))
    return tuple(found)


def _prediction(
    name: str, model: live.Loadable, text: str, gains: tuple[tuple[int, int, float], ...]
) -> None:
    moved = tuple(g for g in gains if g[2] != 1)
    table = live.next_tokens(model, text, moved, TOP)
    _losses(table)
    drawn.figure(
        lambda: figures.next_tokens(table),
        "next_tokens",
        paper=drawn.on_paper("next_tokens", table),
        table=table,
    )
    with st.expander("Loss of every token of the text"):
        _by_token(table)
    page.computed(METHOD)
    _keep(name, moved)


def _losses(table: pd.DataFrame) -> None:
    before, after = table.attrs["loss_before"], table.attrs["loss_after"]
    loss, best, kl = st.columns(3)
    loss.metric(
        "Loss on this text (nats/token)",
        tables.number(after, 3),
        delta=f"{after - before:+.3f}" if after != before else None,
        delta_color="inverse",
        help=f"before: {before:.3f}",
    )
    top = table.loc[table["probability_after"].idxmax()]
    best.metric(
        "Likeliest next token",
        page.escape(repr(top["token"])),
        delta=f"{100 * top['difference']:+.1f} points" if top["difference"] else None,
        delta_color="off",
        help=f"probability {100 * top['probability_after']:.1f} %",
    )
    kl.metric("KL from the prediction before (nats)", tables.number(table.attrs["kl"], 3))


def _by_token(table: pd.DataFrame) -> None:
    losses = pd.DataFrame(
        {
            "token": [repr(token)[1:-1] for token in table.attrs["tokens"][1:]],
            "before": table.attrs["losses_before"],
            "after": table.attrs["losses_after"],
        }
    )
    losses["change"] = losses["after"] - losses["before"]
    st.dataframe(
        losses,
        column_config={
            "token": "Token",
            "before": st.column_config.NumberColumn("Before (nats)", format="%.3f"),
            "after": st.column_config.NumberColumn("After (nats)", format="%.3f"),
            "change": st.column_config.NumberColumn("Change", format="%+.3f"),
        },
        height=300,
        key="losses_table",
    )
    drawn.download(losses, "losses_by_token")


def _keep(name: str, moved: tuple[tuple[int, int, float], ...]) -> None:
    """How to have the same outside of this page."""
    with st.expander("Keep these gains"):
        if not moved:
            st.caption("Move a gain away from 1 first.")
            return
        heads = [(layer, head) for layer, head, _ in moved]
        st.code(
            f"analysis.amplify({json.dumps(name)}, {heads}, {[g for *_, g in moved]}).save(PATH)",
            language="python",
            wrap_lines=True,
        )
        same = len({gain for *_, gain in moved}) == 1
        if same:
            pairs = ",".join(f"{layer}:{head}" for layer, head in heads)
            st.code(
                f"midus amplify {shlex.quote(name)} --heads {pairs} --gain {moved[0][2]} "
                "--save PATH",
                language="bash",
                wrap_lines=True,
            )


if __name__ == "__main__":
    main()
