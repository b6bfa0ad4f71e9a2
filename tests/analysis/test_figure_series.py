"""Curves, bars and dots show the tables' numbers, on paper and interactive."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data, figures, paper
from kernels.errors import MidusError
from tests.analysis.figure_tables import (
    BASE_BLOCKS,
    MIDUS_BLOCKS,
    amplification_table,
    costs_table,
    drawn,
    importance_table,
    slots_table,
    training_log,
    usage_table,
    words,
)


@pytest.fixture
def before() -> pd.DataFrame:
    return importance_table(BASE_BLOCKS, "pico")


@pytest.fixture
def after() -> pd.DataFrame:
    return importance_table(MIDUS_BLOCKS, "pico-midus", seed=1)


@pytest.fixture
def change(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    return amplification_table(before, after)


def own(figure):
    """The traces but for the thin lines of intervals that hold together."""
    return [trace for trace in figure.data if trace.name != "all heads together"]


def test_intervals_that_hold_together_are_the_thin_lines(change, before):
    heads = change.sort_values("score", ascending=False)
    ends = heads[["ci_low_all", "ci_high_all"]].to_numpy().ravel()
    for draw in (figures.amplification, figures.importance_change):
        (thin,) = (t for t in draw(change, top=None).data if t.name == "all heads together")
        np.testing.assert_array_equal([x for x in thin.x if x is not None], ends)
    for draw in (paper.amplification, paper.importance_change):
        lines = draw(change, top=None).axes[-1].collections
        segments = [np.array(c.get_segments()) for c in lines if hasattr(c, "get_segments")]
        assert any(
            part.shape == (len(heads), 2, 2) and np.array_equal(part[:, :, 0].ravel(), ends)
            for part in segments
        )
    (thin,) = (t for t in figures.importance_curves(before).data if t.name == "all heads together")
    assert max(y for y in thin.y if y is not None) == before["ci_high_all"].max()
    older = before.drop(columns=["ci_low_all", "ci_high_all", "unit"])
    older.attrs = before.attrs
    shown = figures.importance_curves(older)
    assert len(own(shown)) == len(shown.data)
    assert "95% bootstrap over documents" in shown.layout.meta["caption"]


def test_curves_are_the_sorted_scores(before, after):
    lines = drawn(paper.importance_curves(before, after), "scores")
    twins = own(figures.importance_curves(before, after))
    for line, twin, table in zip(lines, twins, (before, after), strict=True):
        best_first = np.sort(table["score"])[::-1]
        np.testing.assert_array_equal(line.get_ydata(), best_first)
        np.testing.assert_array_equal(twin.y, best_first)
    half = (after["ci_high"] - after["score"]).to_numpy()[np.argsort(-after["score"].to_numpy())]
    np.testing.assert_allclose(twins[1].error_y.array, half)


def test_curve_scale_follows_the_spread(before):
    def scale(table: pd.DataFrame, **more: str) -> str:
        return paper.importance_curves(table, **more).axes[0].get_yscale()

    tall = importance_table(BASE_BLOCKS, "pico", tower=400.0)
    assert (scale(before), scale(tall)) == ("linear", "symlog")
    assert (scale(before, scale="symlog"), scale(tall, scale="linear")) == ("symlog", "linear")
    assert "logarithmic" in paper.importance_curves(tall).caption
    with pytest.raises(MidusError, match="cubic"):
        paper.importance_curves(before, scale="cubic")


def test_amplification_parts_add_up_and_are_sorted(change):
    wanted = change.loc[change["score"].abs().sort_values(ascending=False).index[:10], "score"]
    wanted = np.sort(wanted)[::-1]
    (dots,) = drawn(paper.amplification(change, top=10), "scores")
    np.testing.assert_array_equal(dots.get_xdata(), wanted)
    *parts, total = own(figures.amplification(change, top=10))
    assert [p.name for p in parts] == ["the head itself", "inserted memory"]
    np.testing.assert_array_equal(total.x, wanted)
    np.testing.assert_allclose(np.sum([p.x for p in parts], axis=0), wanted, atol=1e-15)
    assert [tuple(c) for c in total.customdata][0][1] == "base"


def test_amplification_map_is_the_change(change):
    (mesh,) = drawn(paper.amplification_map(change), "cells")
    np.testing.assert_array_equal(mesh.get_array().ravel(), change["score"])
    twin = figures.amplification_map(change, share=True)
    np.testing.assert_array_equal(twin.data[0].marker.color, change["share_score"])
    assert "0.1" in twin.data[0].hovertext[0] and "change of share" in twin.data[0].hovertext[0]


def test_slot_figures_show_the_usage():
    usage = usage_table(MIDUS_BLOCKS)
    coverage, effective = drawn(paper.slot_usage(usage), "cells")
    np.testing.assert_allclose(coverage.get_array().ravel(), 100 * usage["coverage"])
    np.testing.assert_array_equal(effective.get_array().ravel(), usage["effective_slots"])
    twin = figures.slot_usage(usage)
    np.testing.assert_array_equal(twin.data[1].marker.color, usage["effective_slots"])
    assert list(twin.data[0].customdata[0]) == [2, "memory", 0, 1]
    hits = slots_table().sample(frac=1, random_state=0)
    (line,) = drawn(paper.slot_histogram(hits, slots=4096), "hits")
    np.testing.assert_array_equal(line.get_ydata(), np.sort(hits["hits"])[::-1])
    np.testing.assert_array_equal(
        figures.slot_histogram(hits, slots=4096).data[0].y, line.get_ydata()
    )
    hits.attrs |= {"slots": 4096, "block": 5, "head": 2}
    text = paper.slot_histogram(hits).caption
    assert "block 5, head 2" in text and "2,800 of 4,096 slots hit" in text
    with pytest.raises(MidusError, match="slots=10"):
        paper.slot_histogram(hits, slots=10)


def test_costs_bars_reach_the_total():
    tables = costs_table("pico", 0.0), costs_table("pico-midus", 474e3)
    figure = paper.costs(*tables)
    for ax, column in zip(figure.axes, figure_data.COST_PANELS, strict=False):
        for i, table in enumerate(tables):
            reach = max(p.get_x() + p.get_width() for p in ax.patches if round(p.get_y()) == i)
            total = table.loc[table["component"] == "total", column].item()
            assert reach == pytest.approx(total)
    twin = figures.costs(*tables)
    parameters = np.array([t.x for t in twin.data[:5]]).sum(axis=0)
    np.testing.assert_allclose(parameters, [2827e3, 3301e3])
    assert "latency" in figure.caption and "prefill latency (ms)" in words(figure)
    assert "latency" not in paper.costs(costs_table("pico", 0.0, latency=False)).caption


def test_training_curves_show_every_run():
    logs = {"midus": training_log(1.0), "llama-pro": training_log(2.0)}
    figure = paper.training_curves(logs)
    for line, held, log in zip(
        drawn(figure, "train"), drawn(figure, "eval"), logs.values(), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata(), log["loss"])
        np.testing.assert_array_equal(held.get_ydata(), log["eval_loss"].dropna())
    twin = figures.training_curves(logs)
    np.testing.assert_array_equal(twin.data[3].y, logs["llama-pro"]["loss"])
    assert len(figures.training_curves(logs["midus"]).data) == 3


def test_change_shows_before_after_and_their_difference_on_one_scale(change):
    wanted = change.loc[change["score"].abs().sort_values(ascending=False).index[:12]]
    wanted = wanted.sort_values("score", ascending=False)
    figure, twin = (module.importance_change(change, top=12) for module in (paper, figures))
    left, right = figure.axes
    for column in ("before", "after"):
        (dots,) = drawn(left, column)
        np.testing.assert_allclose(dots.get_xdata(), wanted[column], atol=1e-15)
        (trace,) = (t for t in twin.data if t.name == column)
        np.testing.assert_allclose(trace.x, wanted[column], atol=1e-15)
    shown = np.concatenate([dots.get_xdata() for dots in drawn(right, "scores")])
    np.testing.assert_array_equal(np.sort(shown)[::-1], wanted["score"])
    last = twin.data[-1]
    np.testing.assert_array_equal(last.x, wanted["score"])
    np.testing.assert_allclose(last.error_x.array, wanted["ci_high"] - wanted["score"])
    sure = (wanted["ci_low_all"] > 0) | (wanted["ci_high_all"] < 0)
    assert [s == "diamond" for s in last.marker.symbol] == list(sure)
    assert len(drawn(right, "scores")[0].get_xdata()) == sure.sum()
    figure.canvas.draw()
    inches = [ax.get_window_extent().width / np.diff(ax.get_xlim())[0] for ax in (left, right)]
    assert inches[0] == pytest.approx(inches[1], rel=0.02)
    for text in (figure.caption, twin.layout.meta["caption"]):
        for part in ("paired t over", "for all heads together", "on one scale", "12 of 48"):
            assert part in text, part


def test_a_towering_change_is_written_at_the_edge(change):
    """One head far beyond the rest leaves them room, and its numbers stand in words."""
    change.loc[5, ["before", "after_base", "after", "score"]] = [3.5, 3.9, 3.9, 0.4]
    change.loc[5, ["ci_low", "ci_high"]] = [0.3, 0.5]
    change.loc[5, ["ci_low_all", "ci_high_all"]] = [0.2, 0.6]
    figure, twin = paper.importance_change(change), figures.importance_change(change)
    assert figure.axes[0].get_xlim()[1] < 1
    texts = [a.text for a in twin.layout.annotations]
    for text in ("3.50 → 3.90 ▸", "0.40 [0.30, 0.50] ▸"):
        assert text in words(figure) and text in texts
    assert twin.data[1].x[0] == 3.5
    assert "beyond the axis" in figure.caption
    assert "beyond" not in paper.importance_change(change.drop(index=5)).caption
