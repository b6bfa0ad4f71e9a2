"""Figures of the memory's use, effects and realisations show the tables' numbers."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data, figures, paper
from analysis.causes import memory_effects
from analysis.memory import memory_usage, memory_view
from kernels.errors import MidusError
from tests.analysis.figure_tables import (
    MIDUS_BLOCKS,
    drawn,
    effects_table,
    hidden,
    key_table,
    plain,
    realisations_table,
    usage_log,
    usage_table,
    view_table,
    with_reads,
    words,
)
from tests.analysis.samples import memory_model, random_texts


@pytest.fixture
def usage() -> pd.DataFrame:
    return with_reads(usage_table(MIDUS_BLOCKS))


# --- the map of use -------------------------------------------------------------------------------


def test_memory_map_is_the_table_in_per_cent(usage):
    wanted = [
        100 * usage["coverage"],
        100 * usage["effective_slots"] / usage["slots"],
        100 * usage["collisions"],
        100 * usage["read_ratio"],
    ]
    figure, twin = paper.memory_map(usage), figures.memory_map(usage)
    for mesh, trace, values in zip(drawn(figure, "cells"), twin.data, wanted, strict=True):
        np.testing.assert_allclose(mesh.get_array().ravel(), values, rtol=1e-12)
        np.testing.assert_allclose(trace.marker.color, values, rtol=1e-12)
    numbers = [text.get_text() for text in drawn(figure, "numbers")]
    assert numbers == [f"{value:.0f}" for values in wanted for value in values]
    assert list(twin.data[2].text) == [f"{value:.0f}" for value in wanted[2]]
    assert list(twin.data[3].customdata[-1]) == [8, "memory", 7, 5]
    for text in (words(figure), " ".join(a.text for a in twin.layout.annotations)):
        assert "effective slots (% of slots)" in text and "shared with other heads" in text


def test_small_numbers_keep_a_decimal(usage):
    small = usage.assign(read_ratio=usage["read_ratio"] / 10)
    small.attrs = usage.attrs
    texts = figures.memory_map(small).data[3].text
    assert list(texts) == [f"{100 * value:.1f}" for value in small["read_ratio"]]


def test_a_table_from_before_these_measures_shows_what_it_has():
    old = usage_table(MIDUS_BLOCKS)
    figure, twin = paper.memory_map(old), figures.memory_map(old)
    assert len(drawn(figure, "cells")) == len(twin.data) == 2
    assert "read ratio" not in figure.caption and "read ratio" not in words(figure)


def test_many_heads_stand_in_one_column_and_very_many_without_numbers():
    def inside(heads: int) -> tuple[int, int]:
        table = with_reads(usage_table([("memory", 0), ("memory", 1)], heads=heads))
        figure = paper.memory_map(table)
        columns = {mesh.axes.get_subplotspec().colspan.start for mesh in drawn(figure, "cells")}
        return len(columns), len(drawn(figure, "numbers"))

    assert [inside(heads) for heads in (8, 32, 64)] == [(2, 64), (1, 256), (1, 0)]


# --- effects --------------------------------------------------------------------------------------


def points(figure: paper.Figure) -> pd.DataFrame:
    """Every dot of a paper figure, top row first."""
    dots = drawn(figure, "scores")
    x, y = (np.concatenate([get(line) for line in dots]) for get in (_x, _y))
    filled = np.concatenate([np.full(len(_x(line)), line.get_mfc() != "white") for line in dots])
    table = pd.DataFrame({"x": x, "y": y, "filled": filled})
    return table.sort_values("y", ignore_index=True)


def _x(line):
    return np.asarray(line.get_xdata(), dtype=float)


def _y(line):
    return np.asarray(line.get_ydata(), dtype=float)


def test_effects_of_heads_are_sorted_within_blocks():
    table = effects_table("heads").sample(frac=1, random_state=0)
    table.attrs = effects_table("heads").attrs
    wanted = table.sort_values(["block", "score"], ascending=[True, False])
    figure, (trace,) = paper.memory_effects(table), figures.memory_effects(table).data
    dots = points(figure)
    np.testing.assert_array_equal(dots["x"], wanted["score"])
    np.testing.assert_array_equal(trace.x, wanted["score"])
    np.testing.assert_array_equal(trace.y, dots["y"])
    np.testing.assert_allclose(trace.error_x.arrayminus, wanted["score"] - wanted["ci_low"])
    sure = (wanted["ci_low"] > 0) | (wanted["ci_high"] < 0)
    assert 0 < sure.sum() < len(sure)
    assert list(dots["filled"]) == list(sure)
    assert [symbol == "circle" for symbol in trace.marker.symbol] == list(sure)
    (bars,) = figure.axes[0].collections
    ends = sorted(tuple(segment[:, 0]) for segment in bars.get_segments())
    assert ends == sorted(zip(wanted["ci_low"], wanted["ci_high"], strict=True))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    best = int(wanted["head"].iloc[0])
    assert labels[:2] == ["block 2 (from 1)", f"head {best}"]
    assert [hidden(text) for text in figures.memory_effects(table).layout.yaxis.ticktext] == labels
    assert list(trace.customdata[0]) == [2, best, None]


def test_a_row_stands_where_its_label_is():
    figure = paper.memory_effects(effects_table("heads"))
    ax = figure.axes[0]
    labels = dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))
    for _, row in effects_table("heads").iterrows():
        (y,) = points(figure).query("x == @row.score")["y"]
        assert labels[y] == f"head {row['head']}"


def test_effects_of_blocks_of_all_and_of_slots():
    blocks = effects_table("blocks")
    np.testing.assert_array_equal(points(paper.memory_effects(blocks))["x"], blocks["score"])
    assert "block 8 (from 7)" in words(paper.memory_effects(blocks))
    whole = effects_table("all")
    assert list(figures.memory_effects(whole).data[0].x) == list(whole["score"])
    assert "all memory" in words(paper.memory_effects(whole))
    slots = effects_table("slots")
    figure = paper.memory_effects(slots)
    largest = slots.loc[slots["score"].abs().nlargest(20).index]
    assert set(points(figure)["x"]) == set(largest["score"])
    assert "the 20 slots of 48 with the largest effects" in figure.caption
    best = largest.loc[largest["score"].idxmax(), "slot"]
    assert f"slot {best}" in words(figure)


def test_effects_say_what_was_switched_and_how_to_read_the_sign():
    table = effects_table("heads")
    figure, twin = paper.memory_effects(table), figures.memory_effects(table)
    for text in (figure.caption, twin.layout.meta["caption"]):
        for part in ("switched off, head by head", "baseline zero", "metric loss, nats/token"):
            assert part in text
        assert "positive: this part of memory helps" in text and "data heldout" in text
    assert "positive: memory helps" in figure.axes[0].get_xlabel()
    assert "positive: memory helps" in twin.layout.xaxis.title.text
    table.attrs["gain"] = 0.5
    assert "scaled to 0.5 of itself" in paper.memory_effects(table).caption


def test_a_table_that_does_not_say_what_it_is_of_is_read_by_its_columns():
    for of in ("heads", "blocks", "all", "slots"):
        table = effects_table(of)
        table.attrs = {}
        assert figure_data.effects_of(table, "x").of == of
        assert "not recorded" in paper.memory_effects(table).caption


def test_a_towering_effect_leaves_the_others_room():
    table = effects_table("heads")
    table.loc[3, ["score", "ci_low", "ci_high"]] = [2.5, 2.25, 2.75]
    figure, twin = paper.memory_effects(table), figures.memory_effects(table)
    assert figure.axes[0].get_xlim()[1] < 0.1
    assert "2.5 [2.2, 2.8] ▸" in words(figure)
    assert any(a.text == "2.5 [2.2, 2.8] ▸" for a in twin.layout.annotations)
    assert "beyond the axis" in figure.caption


def test_of_very_many_heads_only_blocks_are_named():
    figure = paper.memory_effects(effects_table("heads", blocks=8, heads=32))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"block {2 + 3 * i} (from {1 + 3 * i})" for i in range(8)]
    assert len(points(figure)) == 256 and figure.get_size_inches()[1] < 9


# --- the view -------------------------------------------------------------------------------------


def test_the_view_shows_the_heaviest_slot_of_every_head_and_token():
    table = view_table(tokens=12)
    best = table[(table["block"] == 5) & (table["rank"] == 1)]
    best = best.sort_values(["head", "position"])
    shuffled = table.sample(frac=1, random_state=1)
    shuffled.attrs = table.attrs
    figure = paper.memory_view(shuffled, block=5)
    (mesh,) = drawn(figure, "cells")
    np.testing.assert_array_equal(mesh.get_array().ravel(), best["weight"])
    assert [t.get_text() for t in drawn(figure, "slots")] == [str(n) for n in best["slot"]]
    (trace,) = figures.memory_view(shuffled, block=5).data
    np.testing.assert_array_equal(trace.marker.color, best["weight"])
    assert list(trace.text) == [str(n) for n in best["slot"]]
    assert list(trace.customdata[13]) == [5, 1, 1, int(best["slot"].iloc[13])]
    places = zip(trace.x, trace.y, strict=True)
    assert list(places) == list(zip(best["position"], best["head"], strict=True))


def test_tokens_read_as_they_are_written():
    figure, twin = paper.memory_view(view_table()), figures.memory_view(view_table())
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    shown = ["def", "·$f$", "(", "x", "):⏎", "⇥", "return", "·<s>", "x", "∅", "·self.count…"]
    assert labels[:11] == shown
    ticks = twin.layout.xaxis.ticktext
    assert ticks[7] == "·&lt;s&gt;" and html.unescape(ticks[1]) == "·$f$"
    assert "·$f$" in words(figure)
    assert "· space, ⏎ line break" in figure.caption
    unknown = view_table().assign(token=None)
    assert paper.memory_view(unknown).axes[0].get_xticklabels()[3].get_text() == "#3"


def test_a_stretch_of_a_long_text():
    figure = paper.memory_view(view_table(), first=20, tokens=6)
    assert figure.axes[0].get_xlabel() == "tokens 20 to 25"
    assert "tokens 20 to 25 of 30" in figure.caption
    twin = figures.memory_view(view_table(), first=20, tokens=6)
    assert twin.layout.meta["caption"] == figure.caption and len(twin.data[0].x) == 48
    assert "of 30" not in paper.memory_view(view_table(), tokens=30).caption


# --- realisations ---------------------------------------------------------------------------------


def test_realisations_stand_by_block_all_first():
    table = realisations_table((8, 2, "all", 5))
    figure, twin = paper.realisations(table), figures.realisations(table)
    names = list(figure_data.REALISATIONS)
    found = table.set_index(["block", "realisation"])["score"]
    wanted = [found[block, name] for block in ("all", "2", "5", "8") for name in names]
    dots = points(figure)
    np.testing.assert_array_equal(dots["x"], wanted)
    pairs = sorted((y, x) for trace in twin.data for x, y in zip(trace.x, trace.y, strict=True))
    np.testing.assert_array_equal([x for _, x in pairs], wanted)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["all memory blocks", "shared"] and labels[6] == "block 2"
    assert len({trace.marker.symbol[0] for trace in twin.data}) == 5
    assert "KL from clean" in twin.data[0].hovertext[0]
    assert figure.axes[0].get_xlabel() == "loss increase (nats/token)"
    table.attrs |= {"metric": "accuracy", "unit": "accuracy"}
    assert paper.realisations(table).axes[0].get_xlabel() == "cost in accuracy (accuracy)"


# --- through a training, and by key starts --------------------------------------------------------


def test_usage_curves_are_the_log():
    log = usage_log()
    mixed = log.sample(frac=1, random_state=2)
    mixed.attrs = log.attrs
    figure, twin = paper.usage_curves(mixed), figures.usage_curves(mixed)
    for column, factor in (("coverage", 100), ("effective_slots", 1)):
        lines = drawn(figure, column)
        traces = twin.data[:3] if column == "coverage" else twin.data[3:]
        for block, line, trace in zip((2, 5, 8), lines, traces, strict=True):
            part = log[log["block"] == block]
            for x, y in ((line.get_xdata(), line.get_ydata()), (trace.x, trace.y)):
                np.testing.assert_array_equal(x, part["step"])
                np.testing.assert_allclose(y, factor * part[column], rtol=1e-14)
            assert trace.name == f"block {block}"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["block 2", "block 5", "block 8"]
    assert {"coverage (% of slots)", "optimiser step"} <= set(words(figure).split("\n"))


def test_runs_differ_in_dashes_and_many_blocks_in_shade():
    log = usage_log(tuple(range(12)), ("midus", "revived"))
    figure, twin = paper.usage_curves(log), figures.usage_curves(log)
    lines = drawn(figure, "coverage")
    assert [line.get_linestyle() for line in lines] == ["-"] * 12 + ["--"] * 12
    assert len({line.get_color() for line in lines}) == 12
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*(f"block {i}" for i in range(12)), "midus", "revived"]
    assert twin.data[12].name == "block 0, revived" and twin.data[12].line.dash == "dash"
    np.testing.assert_allclose(
        twin.data[12].y, 100 * log.query("run == 'revived' and block == 0")["coverage"]
    )


def test_key_coverage_has_every_head_and_the_means():
    table = key_table()
    figure, twin = paper.key_coverage(table), figures.key_coverage(table)
    for column, factor, ax in (
        ("coverage", 100, figure.axes[0]),
        ("effective_slots", 1, figure.axes[1]),
    ):
        traces = [t for t in twin.data if (t.xaxis == "x2") == (column == "effective_slots")]
        for init, line, trace in zip(
            ("uniform", "k-means", "queries"), drawn(ax, column), traces, strict=False
        ):
            wanted = factor * table.loc[table["init"] == init, column]
            np.testing.assert_allclose(line.get_xdata(), wanted, rtol=1e-14)
            np.testing.assert_allclose(trace.x, wanted, rtol=1e-14)
            np.testing.assert_array_equal(trace.y, line.get_ydata())
        means = factor * table.groupby(["block", "init"], sort=False)[column].mean()
        wanted = [means[b, i] for b in (2, 5, 8) for i in ("uniform", "k-means", "queries")]
        (marks,) = drawn(ax, "means")
        np.testing.assert_allclose([s[0, 0] for s in marks.get_segments()], wanted)
        np.testing.assert_allclose(traces[-1].x, wanted)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:5] == ["block 2", "uniform", "k-means", "queries", "block 5"]
    assert "196,608 tokens counted" in figure.caption


def test_heads_of_a_row_stay_in_it():
    study = figure_data.key_study(key_table(heads=32), "x")
    merged = study.heads.merge(study.rows, on=["block", "init"], suffixes=("", "_row"))
    assert (merged["y"] - merged["y_row"]).abs().max() <= 0.25
    assert merged.groupby(["block", "init"])["y"].nunique().eq(32).all()


# --- real tables, words, wrong input --------------------------------------------------------------


def test_real_tables_can_be_drawn():
    model, texts = memory_model(double=False), random_texts([20] * 3)
    effects = memory_effects(model, texts)
    usage = memory_usage(model, texts)
    view = memory_view(model, texts[0].ids.tolist())
    for module in (paper, figures):
        module.memory_map(usage)
        module.memory_effects(effects)
        module.memory_view(view)
    dots = points(paper.memory_effects(effects))
    assert sorted(dots["x"]) == sorted(effects["score"])
    assert len(drawn(paper.memory_map(usage), "cells")) == 4


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module, usage):
    heads, view, keys = effects_table("heads"), view_table(), key_table()
    other = effects_table("heads")
    other.attrs["of"] = "layers"
    wrong = [
        (lambda: module.memory_map(heads), "coverage"),
        (lambda: module.memory_effects(usage), "block"),
        (lambda: module.memory_effects(heads.drop(columns="head")), "column head"),
        (lambda: module.memory_effects(heads.assign(score=np.nan)), "all missing"),
        (lambda: module.memory_effects(other), "layers"),
        (lambda: module.memory_view(heads), "position"),
        (lambda: module.memory_view(view, block=3), "no block 3; it has 2, 5"),
        (lambda: module.memory_view(view, first=30), "past the last position"),
        (lambda: module.memory_view(view, tokens=0), "tokens"),
        (lambda: module.realisations(heads), "realisation"),
        (lambda: module.realisations(realisations_table().assign(realisation="odd")), "odd"),
        (lambda: module.realisations(realisations_table().iloc[:1]), "but the clean one"),
        (lambda: module.usage_curves([1]), "got list"),
        (lambda: module.usage_curves(pd.concat([usage_log()] * 2)), "more than once"),
        (lambda: module.key_coverage(usage), "init"),
        (lambda: module.key_coverage(pd.concat([keys] * 2)), "stands twice"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_both_kinds_say_the_same_below(usage):
    tables = {
        "memory_map": usage,
        "memory_effects": effects_table("slots"),
        "memory_view": view_table(),
        "realisations": realisations_table(),
        "usage_curves": usage_log(),
        "key_coverage": key_table(),
    }
    for name, table in tables.items():
        figure, twin = getattr(paper, name)(table), getattr(figures, name)(table)
        assert twin.layout.meta["caption"] == figure.caption
        assert plain(twin.layout.annotations[-1].text).startswith(figure.caption[:30])
        assert str(table.attrs["model"]) in figure.caption


def test_text_is_text_in_a_pdf(usage, tmp_path):
    (pdf,) = paper.save(paper.memory_map(usage), tmp_path / "map", formats=("pdf",))
    assert b"/CIDFontType2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
    view = paper.memory_view(view_table(heads=2, tokens=4))
    (svg,) = paper.save(view, tmp_path / "view", formats=("svg",))
    assert ">·$f$<" in svg.read_text() and "weight of the slot" in svg.read_text()
