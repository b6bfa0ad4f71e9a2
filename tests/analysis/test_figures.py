"""Figures show the tables' numbers, say what they are, and need neither browser nor network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from analysis import figure_data, figures, paper, tables
from midus_model.errors import IncomparableTables, MidusError

HEADS = 8
BASE_BLOCKS = [("attention", i) for i in range(6)]
MIDUS_BLOCKS = [
    ("attention", 0),
    ("attention", 1),
    ("memory", 1),
    ("attention", 2),
    ("attention", 3),
    ("memory", 3),
    ("attention", 4),
    ("attention", 5),
    ("memory", 5),
]
DOCUMENTS = [{"id": f"file{i}.py", "tokens": 500 + i, "sha256": f"{i:064x}"} for i in range(24)]


def importance_table(
    blocks: list[tuple[str, int]],
    model: str,
    *,
    heads: int = HEADS,
    seed: int = 0,
    tower: float = 1.0,
    **attrs: object,
) -> pd.DataFrame:
    """A head-importance table with planted scores: skewed, some negative, known intervals."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer, (kind, source) in enumerate(blocks):
        for head in range(heads):
            score = float(rng.gamma(0.7, 0.02) - 0.006) * (0.6 if kind == "memory" else 1.0)
            spread = 0.001 + 0.15 * abs(score)
            rows.append(
                {
                    "layer": layer,
                    "kind": kind,
                    "head": head,
                    "source_layer": source,
                    "score": score,
                    "stderr": spread / 2,
                    "ci_low": score - spread,
                    "ci_high": score + spread,
                    "by_document": (score + rng.normal(0, spread, len(DOCUMENTS))).tolist(),
                }
            )
    table = pd.DataFrame(rows)
    table.loc[0, ["score", "ci_low", "ci_high"]] *= tower
    table.attrs = {
        "schema": 1,
        "table": "head_importance",
        "method": "ablation",
        "baseline": "mean",
        "metric": "loss",
        "unit": "nats/token",
        "model": model,
        "model_hash": model,
        "data": "heldout",
        "data_hash": "d",
        "documents": DOCUMENTS,
        "bootstrap_unit": "document",
        "clean_loss": 2.0,
        "seed": 0,
        "versions": {},
        **attrs,
    }
    return table


def amplification_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What analysis.amplification() would return for two planted tables."""
    rows = []
    for layer, head, score in before[["layer", "head", "score"]].itertuples(index=False):
        grown = after[(after["source_layer"] == layer) & (after["head"] == head)]
        base = float(grown.loc[grown["kind"] == "attention", "score"].iloc[0])
        memory = float(grown.loc[grown["kind"] == "memory", "score"].sum())
        change = base + memory - score
        rows.append(
            {
                "layer": layer,
                "kind": "base",
                "head": head,
                "source_layer": layer,
                "before": score,
                "after_base": base,
                "after_memory": memory,
                "after_copy": 0.0,
                "after": base + memory,
                "score": change,
                "stderr": 0.002,
                "ci_low": change - 0.004,
                "ci_high": change + 0.004,
                "share_before": score,
                "share_after": base,
                "share_score": base - score,
                "share_ci_low": base - score - 0.1,
                "share_ci_high": base - score + 0.1,
                "ratio": np.nan,
            }
        )
    table = pd.DataFrame(rows)
    table.attrs = {
        **before.attrs,
        "table": "amplification",
        "before_model": before.attrs["model"],
        "after_model": after.attrs["model"],
        "chosen": [[1, 2], [3, 4]],
    }
    return table


def usage_table(blocks: list[tuple[str, int]], heads: int = HEADS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {
            "layer": layer,
            "kind": kind,
            "head": head,
            "source_layer": source,
            "slots": 4096,
            "tokens": 9000,
            "hits": 288000,
            "coverage": rng.uniform(0.2, 0.99),
            "effective_slots": rng.uniform(100, 2800),
        }
        for layer, (kind, source) in enumerate(blocks)
        if kind == "memory"
        for head in range(heads)
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"model": "pico-midus", "data": "heldout", "documents": DOCUMENTS}
    return table


def slots_table() -> pd.DataFrame:
    hits = np.maximum(1, 20000 / np.arange(1, 2801) ** 0.9).astype(int)
    slot = np.random.default_rng(4).permutation(4096)[: len(hits)]
    table = pd.DataFrame(
        {"slot": slot, "row": slot // 64, "col": slot % 64, "hits": hits, "weight": hits / 8}
    )
    table.attrs = {"model": "pico-midus", "data": "heldout", "documents": DOCUMENTS}
    return table


def costs_table(model: str, memory: float, latency: bool = True) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "component": ["embeddings", "attention", "ffn", "memory", "lm_head"],
            "blocks": [1, 6, 6, 3, 1],
            "parameters": [393e3, 664e3, 1770e3, memory, 0.0],
            "flops_per_token": [0.0, 1.7e6, 3.5e6, 1.4 * memory, 0.8e6],
            "weight_bytes_per_token": [768.0, 2.6e6, 7e6, 1.1 * memory, 1.5e6],
            "kv_bytes_per_token": [0.0, 4608.0, 0.0, 0.0048 * memory, 0.0],
        }
    )
    total = table.drop(columns="component").sum().to_frame().T.assign(component="total")
    table = pd.concat([table, total], ignore_index=True)
    times = {"prefill": 41.0 + memory / 1e5, "decode": 3.2, "threads": 2, "device": "cpu"}
    table.attrs = {
        "model": model,
        "context": 256,
        "dtype": "float32",
        "latency_ms": times if latency else None,
    }
    return table


def training_log(gain: float) -> pd.DataFrame:
    step = np.arange(0, 400, 4)
    curve = 2.1 + 0.6 * np.exp(-gain * step / 100)
    noise = np.random.default_rng(5).normal(0, 0.05, len(step))
    return pd.DataFrame(
        {
            "step": step,
            "loss": curve + noise,
            "eval_loss": np.where(step % 40, np.nan, curve),
            "learning_rate": 2e-3 * np.minimum(step / 40, (400 - step) / 360),
        }
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


def drawn(figure: paper.Figure, gid: str) -> list:
    return [a for a in figure.findobj() if a.get_gid() == gid]


def words(figure: paper.Figure) -> str:
    figure.canvas.draw()
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def plain(text: str) -> str:
    return re.sub(r"<br>|\s+", " ", text)


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
    assert len(drawn(paper.importance_map(before), "negative")) == negative
    assert sum(t == "–" for t in figures.importance_map(before).data[0].text) == negative


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


# --- curves and bars ------------------------------------------------------------------------------


def test_curves_are_the_sorted_scores(before, after):
    lines = drawn(paper.importance_curves(before, after), "scores")
    twins = figures.importance_curves(before, after).data
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
    *parts, total = figures.amplification(change, top=10).data
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
    assert "95% bootstrap over documents" in paper.importance_curves(before).caption
    assert "95% paired bootstrap over documents" in paper.amplification(change).caption
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


@pytest.mark.parametrize("name", ["map", "curves", "amplification", "usage", "costs"])
def test_nothing_is_clipped_and_text_is_legible(name, before, after, change):
    figure = {
        "map": lambda: paper.importance_map(before, after),
        "curves": lambda: paper.importance_curves(before, after),
        "amplification": lambda: paper.amplification(change),
        "usage": lambda: paper.slot_usage(usage_table(MIDUS_BLOCKS)),
        "costs": lambda: paper.costs(costs_table("pico", 0.0), costs_table("pico-midus", 474e3)),
    }[name]()
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    used = figure.get_tightbbox()
    assert used.x0 >= -0.01 and used.y0 >= -0.01
    assert used.x1 <= width + 0.01 and used.y1 <= height + 0.01
    note = next(t for t in figure.texts if "\n" in t.get_text() or "; " in t.get_text())
    box = note.get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert all(box.y1 <= ax.get_tightbbox().y0 + 1 for ax in figure.axes if ax.axison)
    assert all(t.get_fontsize() >= 6 for t in figure.findobj(Text))


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

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
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
    paths = [str(Path(paper.__file__).resolve().parent.parent), *(p for p in sys.path if p)]
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
