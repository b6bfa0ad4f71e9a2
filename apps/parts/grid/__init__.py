"""Maps of cells, drawn light: one canvas, words as SVG, and every cell within reach of the keys.

A map of `analysis.figures` is drawn by plotly elsewhere. In the app that costs the browser half a
second a map and offers nothing to the keyboard, so the same figure is sent as what it says: where
its cells stand, their colours and their words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps.parts.grid.spec import Spec, Words, of

__all__ = ["ALL", "Mark", "Spec", "Words", "of", "show"]

HERE = Path(__file__).parent
ALL = -1
Mark = tuple[int, int, int]  # panel (or ALL), column, row


@functools.cache
def _component() -> Any:
    return st.components.v2.component(
        "midus_grid",
        html='<div class="grid" role="application" tabindex="0"></div>',
        css=(HERE / "grid.css").read_text(encoding="utf-8"),
        js=(HERE / "grid.js").read_text(encoding="utf-8"),
    )


def show(
    spec: Spec,
    key: str,
    *,
    label: str,
    marks: Sequence[Mark] = (),
    clicked: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Draw a map; `clicked` is called with a cell's `customdata` and `panel` before the next run.

    label: what the map is, for who cannot see it; marks: cells with a frame around them.
    """

    def picked() -> None:
        asked = (st.session_state.get(key) or {}).get("picked")
        point = spec.point(asked)
        if point is not None and clicked is not None:
            clicked(point)

    _component()(
        key=key,
        data={
            **spec.drawing,
            "label": label,
            "marks": [list(mark) for mark in marks],
            "clickable": clicked is not None,
        },
        on_picked_change=picked if clicked else lambda: None,
    )
