"""Page: two runs side by side, heads and quality against cost."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analysis import figure_data, figures
from apps.parts import access, drawn, page, tables
from apps.parts.access import Run
from kernels.errors import IncomparableTables

INTRO = (
    "Any two measurements beside each other: the run in the sidebar, and another one. Scores are "
    "set against each other only where metric, baseline, documents and token counts agree. The "
    "page Choose measures any model; its measurement is then a run to choose here."
)
METHOD = """
Both maps share one colour scale. **Difference**: the second score minus the first, head by head of
the base model, with a 95% interval by resampling documents for both at once. **Loss** against
parameters added: every model that either run evaluated, one training each.
"""
SIDES = {
    "importance_before": "before",
    "importance_after": "after",
    "importance_baseline": "baseline",
    "ranking": "ranking",
}


def main() -> None:
    run = page.run()
    st.markdown(INTRO)
    with page.messages("The comparison"):
        runs = access.given().all_runs()
        others = [name for name in runs if name != run.name]
        other_name = page.choose("Compare with the run", [run.name, *others], "with", what="run")
        other = run if other_name == run.name else access.open_run(other_name, runs[other_name])
        with page.messages("The heads"):
            _heads(run, other)
        st.subheader("Quality against cost")
        with page.messages("Quality and cost"):
            _quality(run, other)
        with page.messages("The costs"):
            _costs(run, other)
        page.computed(METHOD)


def _heads(run: Run, other: Run) -> None:
    left, right = st.columns(2)
    first = _measurement(run, left, "first", 0)
    second = _measurement(other, right, "second", 1 if other is run else 0)
    if first is None or second is None:
        st.info("One of the two runs measured no heads; midus importance MODEL does.")
        return
    st.caption(
        f"First: {page.escape(tables.measured(first))}.  \n"
        f"Second: {page.escape(tables.measured(second))}."
    )
    pair = (*_key(run, other), *(str(st.session_state[side]) for side in ("first", "second")))
    try:
        figure_data.require_pair(first, second, "the comparison")
        change = _paired(first, second, pair)
    except IncomparableTables as error:
        why = page.escape(str(error).removesuffix(", or pass force=True"))
        st.warning(
            f"{why[:1].upper()}{why[1:]}. Choose another pair above.", icon=":material/warning:"
        )
        return
    drawn.map(
        lambda: figures.importance_map(first, second, width=drawn.MAP_WIDTH),
        "compare_map",
        same=pair,
        paper=drawn.on_paper("importance_map", first, second),
        table={"first": first, "second": second},
    )
    drawn.figure(
        lambda: figures.importance_change(change, 20),
        "compare_change",
        same=pair,
        paper=drawn.on_paper("importance_change", change, 20),
        table=change,
    )


def _key(run: Run, other: Run) -> tuple[str, ...]:
    """What tells two runs from others."""
    return (str(run.folder), run.stamp, str(other.folder), other.stamp)


def _measurement(run: Run, place: object, key: str, default: int) -> pd.DataFrame | None:
    held = [name for name in SIDES if tables.has(run, name)]
    if not held:
        return None
    words = [SIDES[name] for name in held]
    chosen = page.choose(
        f"{key.capitalize()}: measurement of {page.escape(run.name)}", words, key, place=place,
        default=min(default, len(words) - 1), what="a measurement",
    )  # fmt: skip
    return tables.table(run, held[words.index(chosen)])


@st.cache_data(show_spinner="Pairing the two", max_entries=16)
def _paired(_first: pd.DataFrame, _second: pd.DataFrame, key: tuple[str, ...]) -> pd.DataFrame:
    """The paired differences; `key` names the two tables, which take long to be told apart."""
    from analysis import amplification

    return amplification(_first, _second)


def _losses(run: Run) -> pd.DataFrame | None:
    if not tables.has(run, "losses"):
        return None
    return tables.table(run, "losses").assign(run=run.name)


def _quality(run: Run, other: Run) -> None:
    found = [_losses(run), _losses(other) if other is not run else None]
    held = [table for table in found if table is not None]
    if not held:
        raise page.MissingTable("neither run evaluated losses; midus demo does")
    for table in held:
        table.attrs = {}
    joined = pd.concat(held, ignore_index=True)
    drawn.picture(drawn.Picture("quality_cost", (joined,), _key(run, other)), "compare_quality")


def _costs(run: Run, other: Run) -> None:
    names = ("costs_before", "costs_after", "costs_baseline")
    sides = [run] if other is run else [run, other]
    unique: dict[str, pd.DataFrame] = {}
    for side in sides:
        for name in names:
            if tables.has(side, name):
                table = tables.table(side, name)
                label = figure_data.model_name(table)
                if label in unique and not unique[label].equals(table):
                    label = f"{label} ({side.name})"
                    table = table.copy(deep=False)
                    table.attrs = {**table.attrs, "model": label}
                unique.setdefault(label, table)
    if not unique:
        return
    chosen = list(unique.values())
    together = pd.concat([table.assign(model=name) for name, table in _plain(unique).items()])
    drawn.picture(
        drawn.Picture("costs", tuple(chosen), _key(run, other), together), "compare_costs"
    )


def _plain(found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables without their attrs, which pandas refuses to join."""
    out = {}
    for name, table in found.items():
        out[name] = table.copy()
        out[name].attrs = {}
    return out


if __name__ == "__main__":
    main()
