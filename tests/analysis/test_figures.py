"""Figures show the tables' numbers, say what they are, and need neither browser nor network."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data, figures, paper, tables
from analysis.figure_data.amplification import change_axes
from kernels.errors import IncomparableTables, MidusError, RunError
from tests.analysis.figure_tables import (
    BASE_BLOCKS,
    HEADS,
    MIDUS_BLOCKS,
    amplification_table,
    drawn,
    importance_table,
    plain,
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


# --- maps -----------------------------------------------------------------------------------------


def test_rows_put_inserted_blocks_where_they_stand(after):
    labels = [r.label for r in figure_data.block_rows(after)]
    assert labels == [
        "layer 0",
        "layer 1",
        "+ memory (from 1)",
        "layer 2",
        "layer 3",
        "+ memory (from 3)",
        "layer 4",
        "layer 5",
        "+ memory (from 5)",
    ]


def test_copied_layers_are_labelled_copies():
    blocks = [("attention", 0), ("attention", 1), ("attention", 1), ("attention", 2)]
    rows = figure_data.block_rows(importance_table(blocks, "pro"))
    assert [r.label for r in rows] == ["layer 0", "layer 1", "+ copy (from 1)", "layer 2"]
    assert [r.inserted for r in rows] == [False, False, True, False]
    told = importance_table(blocks, "pro", inserted_layers=[1])
    assert [r.inserted for r in figure_data.block_rows(told)] == [False, True, False, False]


def test_paper_map_shows_the_tables_numbers_on_one_scale(before, after):
    figure = paper.importance_map(before, after)
    old, new = drawn(figure, "cells")
    got = np.asarray(new.get_array().filled(np.nan)).reshape(9, HEADS)
    np.testing.assert_array_equal(got, after["score"].to_numpy().reshape(9, HEADS))
    got = np.asarray(old.get_array().filled(np.nan)).reshape(9, HEADS)
    kept = [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(got[kept], before["score"].to_numpy().reshape(6, HEADS))
    assert np.isnan(got[[2, 5, 8]]).all()
    assert old.norm is new.norm
    assert new.norm.vmin == -new.norm.vmax


def test_plotly_map_shows_the_tables_numbers_on_one_scale(before, after):
    figure = figures.importance_map(before, after)
    old, new = figure.data
    assert {t.type for t in figure.data} == {"scatter"}
    for trace, table in ((old, before), (new, after)):
        np.testing.assert_array_equal(np.array(trace.marker.color), table["score"])
        identity = [tuple(row) for row in trace.customdata]
        columns = ["layer", "kind", "head", "source_layer"]
        assert identity == list(table[columns].itertuples(index=False, name=None))
        assert trace.marker.symbol == "square"
        assert trace.marker.coloraxis == "coloraxis"
    axis = figure.layout.coloraxis
    largest = max(before["score"].abs().max(), after["score"].abs().max())
    assert (axis.cmin, axis.cmax) == (-largest, largest)
    labels = [re.sub("</?b>", "", t) for t in figure.layout.yaxis.ticktext]
    assert labels == [r.label for r in figure_data.block_rows(after)]
    assert labels[old.y[2 * HEADS]] == "layer 2"


def test_plotly_hover_gives_score_interval_and_unit(before):
    figure = figures.importance_map(before)
    row = before.iloc[11]
    text = figure.data[0].hovertext[11]
    assert "layer 1, head 3" in text and "nats/token" in text
    assert f"{row.score:.4g}" in text and f"{row.ci_low:.4g} to {row.ci_high:.4g}" in text


@pytest.mark.parametrize(("heads", "layers"), [(8, 6), (32, 32), (64, 80)])
def test_plotly_markers_fill_their_cells_without_overlap(heads, layers):
    table = importance_table([("attention", i) for i in range(layers)], "m", heads=heads)
    figure = figures.importance_map(table)
    layout, margin = figure.layout, figure.layout.margin
    pitch = (layout.height - margin.t - margin.b) / layers
    size = figure.data[0].marker.size
    assert 0.8 * pitch < size <= pitch
    assert heads * size <= layout.width - margin.l - margin.r


def test_negative_cells_carry_a_sign_in_both(before):
    limit = before["score"].abs().max()
    negative = int((before["score"] < -figure_data.MARK_FROM * limit).sum())
    assert negative > 0
    (signs,) = drawn(paper.importance_map(before), "negative")
    assert len(signs.get_segments()) == negative
    assert sum(t == "–" for t in figures.importance_map(before).data[0].text) == negative


def test_scores_within_the_noise_carry_a_cross_in_both(before, after):
    """A cross in place of a minus sign, because the sign of noise says nothing."""
    for table, size in ((before, 0.003), (after, 0.002)):
        table["below_noise"] = table["score"].abs() < size
        noise = {"median": size / 4, "p95": size, "unit": "nats/token"}
        table.attrs |= {"dtype": "bfloat16", "dtype_noise": noise}
    limit = max(before["score"].abs().max(), after["score"].abs().max())
    figure, twin = paper.importance_map(before, after), figures.importance_map(before, after)
    for i, table in enumerate((before, after)):
        below = table["below_noise"].to_numpy()
        minus = ~below & (table["score"] < -figure_data.MARK_FROM * limit).to_numpy()
        assert 0 < below.sum() < len(table) and minus.any()
        marks = np.where(below, "×", np.where(minus, "–", ""))
        assert list(twin.data[i].text) == list(marks)
        crosses = drawn(figure.axes[i], "noise")[0].get_segments()
        assert len(crosses) == 2 * below.sum()
        assert len(drawn(figure.axes[i], "negative")[0].get_segments()) == minus.sum()
        shown = figure_data.block_rows(after)
        rows = [place for place, row in enumerate(shown) if i or not row.inserted]
        wanted = table[below]
        places = {(rows[b], h) for b, h in zip(wanted["layer"], wanted["head"], strict=True)}
        middles = np.mean(crosses, axis=1).round().astype(int)  # head, row
        assert {(row, head) for head, row in middles.tolist()} == places
    note = "× marks scores within the noise of bfloat16 (95th percentile of the difference from "
    assert note + "fp32: 0.003 nats/token and 0.002 nats/token)" in figure.caption
    assert twin.layout.meta["caption"] == figure.caption
    inside = before["below_noise"].to_numpy().nonzero()[0][0]
    assert "within the noise" in twin.data[0].hovertext[inside]


def test_without_the_column_nothing_is_said_of_noise(before):
    assert "×" not in paper.importance_map(before).caption
    assert not drawn(paper.importance_map(before), "noise")
    assert "×" not in figures.importance_map(before).data[0].text


def test_a_towering_head_does_not_hide_the_others():
    table = importance_table(BASE_BLOCKS, "pico", tower=200.0)
    colours = figure_data.colour_range(figure_data.grid(table))
    assert colours.limit < colours.largest / 4 and colours.beyond >= 1
    assert "beyond" in paper.importance_map(table).caption
    assert figures.importance_map(table).data[0].marker.color[0] == table.loc[0, "score"]


def test_missing_heads_stay_empty(after):
    few = after[(after["kind"] != "memory") | (after["head"] < 2)]
    few.attrs = after.attrs
    (mesh,) = drawn(paper.importance_map(few), "cells")
    masked = np.ma.getmaskarray(mesh.get_array()).reshape(9, HEADS)
    assert masked[2, 2:].all() and not masked[2, :2].any() and not masked[3].any()


def test_equal_sizes_are_equally_dark():
    grey = np.array([0.2126, 0.7152, 0.0722])
    steps = np.linspace(0, 1, 11)
    helps = np.array([figure_data.diverging(t) for t in steps]) @ grey
    hurts = np.array([figure_data.diverging(-t) for t in steps]) @ grey
    assert (np.diff(helps) < 0).all() and (np.diff(hurts) < 0).all()
    np.testing.assert_allclose(helps, hurts, atol=0.06)


# --- words ----------------------------------------------------------------------------------------


def test_captions_name_what_was_measured(before, after, change):
    for module in (paper, figures):
        for draw in (module.importance_map, module.importance_curves):
            figure = draw(before, after)
            text = figure.caption if module is paper else figure.layout.meta["caption"]
            for part in (
                "exact ablation",
                "baseline mean",
                "metric loss, nats/token",
                "data heldout",
                "24 documents",
                "12,276 tokens",
                "pico → pico-midus",
            ):
                assert part in text, (draw, part)
    assert "95% t over documents" in paper.importance_curves(before).caption
    assert "thin or pale: all heads together" in paper.importance_curves(before).caption
    assert "95% paired t over documents" in paper.amplification(change).caption
    assert "bold: chosen for memory (" in paper.amplification(change).caption
    before.attrs.update(table="ranking", confidence=0.9, interval="confidence sequence")
    assert "90% confidence sequence" in paper.importance_curves(before).caption
    whole = before.assign(ci_low=before["score"], ci_high=before["score"])
    assert "every window was measured" in paper.importance_curves(whole).caption
    shown = figures.importance_curves(before).layout.annotations[-1].text
    assert "90% confidence sequence" in plain(shown)


def test_what_was_not_recorded_is_said(before):
    before.attrs = {}
    assert "baseline not recorded" in paper.importance_map(before).caption
    assert "method not recorded" in paper.importance_map(before).caption


def test_every_axis_and_colour_bar_is_named(before, after, change):
    drawings = {
        paper.importance_map(before, after): ["head", "importance (nats/token)"],
        paper.importance_curves(before): ["head rank", "importance (nats/token)"],
        paper.amplification(change): ["change (nats/token)"],
        paper.slot_usage(usage_table(MIDUS_BLOCKS)): ["coverage (% of slots)", "head"],
        paper.training_curves(training_log(1.0)): ["loss (nats/token)", "optimiser step"],
    }
    for figure, labels in drawings.items():
        text = words(figure)
        assert all(label in text for label in labels)


def test_captions_name_other_metrics_baselines_and_units_of_ablation(before):
    before.attrs |= {
        "metric": "logit_difference",
        "unit": "logits/task",
        "baseline": "resample",
        "heads_are": "kv groups",
        "stage": "query",
    }
    for module in (paper, figures):
        figure = module.importance_map(before)
        text = figure.caption if module is paper else figure.layout.meta["caption"]
        assert "metric logit difference, logits/task" in text
        assert "baseline resample (the same position of another document)" in text
        assert "KV group" in text and "gate on queries" in text
    shown = words(paper.importance_map(before))
    assert "KV group" in shown.split("\n") and "importance (logits/task)" in shown
    twin = figures.importance_map(before)
    assert twin.layout.xaxis.title.text == "KV group" and "KV group 3" in twin.data[0].hovertext[3]
    assert paper.importance_curves(before).axes[0].get_xlabel() == "KV group rank"
    before.attrs |= {"metric": "accuracy", "unit": "accuracy", "normalise": "michel"}
    text = paper.importance_map(before).caption
    assert "metric accuracy;" in text and "convention michel" in text
    before.attrs["interval"] = "sampled orders, 95%"
    before[["ci_low_all", "ci_high_all"]] = np.nan
    assert paper.importance_curves(before).caption.endswith("intervals: sampled orders, 95%.")


# --- files ----------------------------------------------------------------------------------------


def test_files_hold_real_text_and_the_same_bytes_twice(before, after, tmp_path, monkeypatch):
    first = paper.save(paper.importance_map(before, after), tmp_path / "a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    second = paper.save(paper.importance_map(before, after), tmp_path / "b.pdf")
    assert [p.name for p in second] == ["b.pdf", "b.svg", "b.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.suffix
    pdf, svg, png = (p.read_bytes() for p in first)
    assert pdf.startswith(b"%PDF") and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    for text in ("+ memory (from 3)", "layer 5", "importance (nats/token)", "pico-midus"):
        assert text in svg.decode()
    assert png.startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{n}.{f}" for n in "ab" for f in ("pdf", "svg", "png")
    )


def test_a_failed_save_leaves_nothing(before, tmp_path, monkeypatch):
    figure = paper.importance_map(before)
    with pytest.raises(MidusError, match="bmp"):
        paper.save(figure, tmp_path / "x", formats=("bmp",))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:  # within matplotlib it would become another error
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(RunError, match="No space left"):
            paper.save(figure, tmp_path / "x", formats=("pdf",))
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match="disk full"):
        paper.save(figure, tmp_path / "x", formats=("svg",))
    assert list(tmp_path.iterdir()) == []


def test_html_is_one_page_that_needs_no_network(before, tmp_path):
    path = figures.save_html(figures.importance_map(before), tmp_path / "map")
    page = path.read_text(encoding="utf-8")
    assert path.name == "map.html" and page.startswith("<!DOCTYPE html>")
    assert "Plotly.newPlot" in page and len(page) > 1e6
    assert not re.search(r"<script[^>]+src=", page)
    again = figures.save_html(figures.importance_map(before), tmp_path / "again.html")
    assert again.read_bytes() == path.read_bytes()


def test_paper_needs_no_browser_and_no_pyplot(before, tmp_path):
    tables.save(before, tmp_path / "table")
    script = (
        "import sys\nfrom analysis import paper, tables\n"
        "paper.save(paper.importance_map(tables.load('table')), 'out')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    paths = [str(Path(paper.__file__).resolve().parents[2]), *(p for p in sys.path if p)]
    env = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"out.{f}").stat().st_size > 1000 for f in ("pdf", "svg", "png"))


def test_a_figure_shows_itself_in_a_notebook(before):
    assert paper.importance_map(before)._repr_png_().startswith(b"\x89PNG")


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module, before, after, change):
    wrong = [
        (lambda: module.importance_map(before.drop(columns=["score"])), "column score"),
        (lambda: module.importance_map([1, 2]), "got list"),
        (lambda: module.importance_map(before.iloc[:0]), "without rows"),
        (lambda: module.importance_curves(before.assign(score=np.nan)), "all missing"),
        (lambda: module.importance_map(after, before), "lacks \\+ memory"),
        (lambda: module.amplification(before), "after_memory"),
        (lambda: module.amplification(change, top=0), "top"),
        (lambda: module.slot_usage(before), "coverage"),
        (lambda: module.slot_histogram(before), "hits"),
        (lambda: module.costs(), "at least one"),
        (lambda: module.costs(before), "component"),
        (lambda: module.training_curves([]), "got list"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [paper, figures])
def test_tables_of_different_kind_are_refused_unless_forced(module, before, after):
    after.attrs = {**after.attrs, "baseline": "zero"}
    with pytest.raises(IncomparableTables):
        module.importance_map(before, after)
    with pytest.raises(IncomparableTables):
        module.importance_curves(before, after)
    module.importance_map(before, after, force=True)


def test_a_change_of_nothing_leaves_the_scores_their_scale(before):
    """As of a model that was made deeper and not trained."""
    small = before.assign(**{name: before[name] / 1000 for name in ("score", "ci_low", "ci_high")})
    heads = pd.DataFrame({"before": small["score"], "after": small["score"]})
    heads = heads.assign(score=0.0, ci_low=0.0, ci_high=0.0, ci_low_all=0.0, ci_high_all=0.0)
    axes = change_axes(heads)
    low, high = axes.values
    assert high - low < 2 * np.ptp(np.append(heads["before"], 0.0))
    assert axes.change[1] - axes.change[0] == pytest.approx(0.45 * (high - low))
    both = change_axes(heads.assign(before=0.0, after=0.0))
    assert both.values == both.change  # there is nothing to have a scale
