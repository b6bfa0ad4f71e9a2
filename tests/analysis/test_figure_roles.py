"""The role map says each head's role, in colour and in letters, and what it matters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data, figures, paper
from analysis.roles import labels
from kernels.errors import IncomparableTables, MidusError
from tests.analysis.figure_tables import (
    BASE_BLOCKS,
    HEADS,
    MIDUS_BLOCKS,
    drawn,
    hidden,
    importance_table,
    roles_table,
    words,
)

COLUMNS = ["layer", "kind", "head", "source_layer"]


@pytest.fixture
def roles() -> pd.DataFrame:
    return roles_table(MIDUS_BLOCKS)


@pytest.fixture
def importance() -> pd.DataFrame:
    return importance_table(MIDUS_BLOCKS, "pico-midus", model_hash="pico-midus")


def test_every_role_of_the_analysis_has_its_colour_and_letter():
    assert set(figure_data.ROLES) == {*labels.ROLES, *labels.DESCRIPTIONS, labels.NONE}
    styles = figure_data.ROLES.values()
    assert len({style.letter for style in styles}) == len({s.colour for s in styles}) == len(styles)


def test_letters_read_on_their_colours():
    """A contrast of 3 to 1 at least (WCAG 2.1, 1.4.3, large or bold text and graphics)."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for role, style in figure_data.ROLES.items():
        dark, light = sorted((luminance(style.colour), luminance(style.ink)))
        assert (light + 0.05) / (dark + 0.05) > 3, role


def test_paper_map_has_each_heads_role(roles):
    figure = paper.role_map(roles)
    (mesh,) = drawn(figure, "cells")
    grid = figure_data.role_grid(roles, "x")
    shown = np.asarray(mesh.get_array().filled(np.nan)).reshape(9, HEADS)
    got = [grid.present[int(i)] for i in shown.ravel()]
    assert got == list(roles["role"])
    letters = {
        tuple(map(round, text.get_position()))[::-1]: text.get_text()
        for text in figure.axes[0].texts
    }
    for row in roles.to_dict("records"):
        wanted = figure_data.ROLES[row["role"]].letter
        assert letters.get((row["layer"], row["head"]), "") == wanted
    rows = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert rows[2] == "+ memory (from 1)"
    text = words(figure)
    for role, count in roles["role"].value_counts().items():
        assert f"{figure_data.ROLES[role].name} ({count})" in text


def test_plotly_map_has_each_heads_role(roles):
    figure = figures.role_map(roles)
    found = {}
    for trace in figure.data:
        assert trace.marker.symbol == "square"
        for identity in trace.customdata:
            found[tuple(identity)] = trace
    assert len(found) == len(roles)
    for row in roles.to_dict("records"):
        trace, style = found[tuple(row[c] for c in COLUMNS)], figure_data.ROLES[row["role"]]
        assert trace.name == f"{style.letter}  {style.name} ({len(trace.x)})".strip()
        assert set(trace.text) == {style.letter}
        if style.letter:
            assert trace.marker.color == style.colour
    texts = [hidden(t) for t in figure.layout.yaxis.ticktext]
    assert texts == [r.label for r in figure_data.block_rows(roles)]
    clear = found[(0, "attention", 0, 0)].hovertext[0]
    assert "layer 0, head 0" in clear and "induction: score 0.90, lead 0.35" in clear
    none = next(trace for trace in figure.data if trace.name.startswith("no clear role"))
    assert "highest score: confident" in none.hovertext[0]


def test_missing_heads_stay_empty(roles):
    few = roles[(roles["kind"] != "memory") | (roles["head"] < 2)]
    few.attrs = roles.attrs
    (mesh,) = drawn(paper.role_map(few), "cells")
    masked = np.ma.getmaskarray(mesh.get_array()).reshape(9, HEADS)
    assert masked[2, 2:].all() and not masked[2, :2].any() and not masked[3].any()


def test_importance_stands_beside_its_role(roles, importance):
    merged = roles.merge(importance[[*COLUMNS, "score", "ci_low", "ci_high"]], on=COLUMNS)
    figure, twin = paper.role_map(roles, importance), figures.role_map(roles, importance)
    present = figure_data.role_grid(roles, "x").present
    dots = drawn(figure, "points")
    strips = twin.data[len(present) :]
    middles = {round(np.mean(m.get_segments()[0][:, 1])): m for m in drawn(figure, "medians")}
    for row, (role, line, trace) in enumerate(zip(present, dots, strips, strict=True)):
        part = merged[merged["role"] == role]
        near = part["score"][part["score"] < figure.axes[1].get_xlim()[1]]
        assert len(near) >= len(part) - 1  # the rest is named at the edge
        np.testing.assert_array_equal(np.sort(line.get_xdata()), np.sort(near))
        np.testing.assert_array_equal(np.sort(trace.x), np.sort(part["score"]))
        assert (np.abs(np.array(trace.y) - row) < 0.5).all()
        order = [(identity[0], identity[2]) for identity in trace.customdata]
        assert order == sorted(order) and list(trace.y) == sorted(trace.y)
        by_head = part.set_index(["layer", "head"]).loc[order]
        np.testing.assert_allclose(trace.error_x.array, by_head["ci_high"] - by_head["score"])
        assert middles[row].get_segments()[0][0, 0] == pytest.approx(part["score"].median())
    names = [t.get_text() for t in figure.axes[1].get_yticklabels()]
    assert names[0] == f"induction ({(roles['role'] == 'induction').sum()})"
    for text in (figure.caption, twin.layout.meta["caption"]):
        for part in (
            "95% confidence",
            "0.2 ahead",
            "96 constructed sequences",
            "exact ablation",
            "baseline mean",
            "metric loss, nats/token",
            "95% t over documents",
        ):
            assert part in text, part


def test_towering_heads_are_written_at_the_edge(roles, importance):
    importance.loc[0, ["score", "ci_low", "ci_high"]] = [3.5, 3.2, 3.8]
    importance.loc[1, ["score", "ci_low", "ci_high"]] = [-2.5, -2.6, -2.4]
    figure, twin = paper.role_map(roles, importance), figures.role_map(roles, importance)
    assert -1 < figure.axes[1].get_xlim()[0] < figure.axes[1].get_xlim()[1] < 1
    assert tuple(twin.layout.xaxis2.range) == figure.axes[1].get_xlim()
    text, texts = words(figure), [a.text for a in twin.layout.annotations]
    for said in ("layer 0, head 0: 3.50 ▸", "◂ layer 0, head 1: −2.50"):
        assert said in text and said in texts
    assert {3.5, -2.5} <= set(np.concatenate([trace.x for trace in twin.data]))
    assert "beyond the axis" in figure.caption


@pytest.mark.parametrize(("heads", "layers"), [(8, 6), (32, 32)])
def test_plotly_markers_fill_their_cells_without_overlap(heads, layers):
    figure = figures.role_map(roles_table([("attention", i) for i in range(layers)], heads=heads))
    layout, margin = figure.layout, figure.layout.margin
    size = figure.data[0].marker.size
    assert layers * size <= layout.height - margin.t - margin.b
    assert heads * size <= layout.width - margin.l - margin.r


def test_large_maps_keep_their_letters():
    table = roles_table([("attention", i) for i in range(32)], heads=32)
    other = importance_table(
        [("attention", i) for i in range(32)], "m", heads=32, model_hash="pico-midus"
    )
    for figure in (paper.role_map(table), paper.role_map(table, other)):
        letters = [t for t in figure.axes[0].texts if t.get_text()]
        assert len(letters) == (table["role"] != "none").sum()
    wide = roles_table([("attention", 0)], heads=128)
    assert not paper.role_map(wide).axes[0].texts


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module, roles, importance):
    base = importance_table(BASE_BLOCKS, "pico", model_hash="pico-midus")
    wrong = [
        (lambda: module.role_map(importance), r"role, role_score, role_margin.*head_roles"),
        (lambda: module.role_map(roles.assign(role="poet")), "poet"),
        (lambda: module.role_map(roles.iloc[:0]), "without rows"),
        (lambda: module.role_map(roles, roles), r"score.*head_importance"),
        (lambda: module.role_map(roles, base), "56 of 72 heads .* no importance"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    importance.attrs = {**importance.attrs, "model_hash": "other"}
    with pytest.raises(IncomparableTables, match="weights differ"):
        module.role_map(roles, importance)
