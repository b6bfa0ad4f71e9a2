"""Prune curves and agreement show the numbers of `prune_curve` and `evidence`, real ones too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import figure_data, figures, paper
from kernels.errors import MidusError
from tests.analysis.figure_tables import drawn, evidence_table, hidden, prune_table, words
from tests.analysis.samples import memory_model, random_texts

METHODS = ["ablation", "gradient", "taylor", "shapley"]
OTHERS = ["packages", "a/long/path/to/some/documents.jsonl"]


@pytest.fixture
def evidence() -> pd.DataFrame:
    return evidence_table(METHODS, OTHERS)


# --- prune curves ---------------------------------------------------------------------------------


def test_prune_curves_are_the_tables_points():
    table = prune_table()
    lines = {line.get_label(): line for line in drawn(paper.prune_curves(table), "scores")}
    traces = figures.prune_curves(table).data
    twins = {trace.name: trace for trace in traces if trace.showlegend is None}
    assert list(lines) == ["best first, 4.14", "random, 2.35", "worst first, 0.99"] == list(twins)
    for name, line in lines.items():
        part = table[table["order"] == name.split(",")[0]]
        mean = part.groupby("removed")["score"].mean()
        for x, y in ((line.get_xdata(), line.get_ydata()), (twins[name].x, twins[name].y)):
            np.testing.assert_array_equal(x, mean.index)
            np.testing.assert_allclose(y, mean, rtol=1e-14)


def test_random_orders_show_one_by_one_and_single_ones_their_interval():
    table = prune_table(draws=4)
    draws = table[table["order"] == "random"]["score"].to_numpy().reshape(4, -1)
    figure, twin = paper.prune_curves(table), figures.prune_curves(table)
    np.testing.assert_array_equal([line.get_ydata() for line in drawn(figure, "draws")], draws)
    np.testing.assert_array_equal([t.y for t in twin.data if t.name == "draw"], draws)
    best = table[table["order"] == "best first"]
    outline = next(t for t in twin.data if t.name == "interval")
    np.testing.assert_array_equal(outline.y[: len(best)], best["ci_high"])
    np.testing.assert_array_equal(outline.y[len(best) :], best["ci_low"][::-1])
    bands = [c.get_paths()[0].vertices[:, 1] for c in figure.axes[0].collections]
    assert len(bands) == 2 and bands[0].max() == best["ci_high"].max()
    (mean,) = (t for t in twin.data if t.name.startswith("random"))
    assert "mean of 4 orders" in figure.caption and "4 orders" in mean.hovertext[3]


def test_prune_axis_counts_heads_and_their_share():
    figure, twin = paper.prune_curves(prune_table()), figures.prune_curves(prune_table())
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels[:3] == ["0\n0%", "6\n12%", "12\n25%"] and labels[-1] == "48\n100%"
    assert [t.replace("<br>", "\n") for t in twin.layout.xaxis.ticktext] == labels
    places, _ = figure_data.prune_ticks(figure_data.curves_of(prune_table(heads=1024), "x"))
    assert len(places) <= 9 and places[-1] == 1024


def test_prune_curves_of_another_metric():
    table = prune_table(metric="accuracy", unit="accuracy", better="higher", baseline="zero")
    figure = paper.prune_curves(table)
    assert figure.axes[0].get_ylabel() == "accuracy"
    assert "metric accuracy; " in figure.caption and "fall below its start" in figure.caption
    assert "baseline zero" in figure.caption
    table.attrs.pop("areas")
    assert "area" not in paper.prune_curves(table).caption
    assert figures.prune_curves(table).data[1].name == "best first"


# --- agreement ------------------------------------------------------------------------------------


def test_cells_are_the_tables_correlations_and_overlaps(evidence):
    """Whatever the order in which the table names two methods."""
    turned = evidence["kind"] == "method"
    shuffled = evidence.sample(frac=1, random_state=1)
    shuffled.loc[turned, ["first", "second"]] = shuffled.loc[turned, ["second", "first"]].to_numpy()
    for table in (evidence, shuffled):
        figure, twin = paper.method_agreement(table), figures.method_agreement(table)
        (mesh,) = drawn(figure, "cells")
        shown = np.asarray(mesh.get_array().filled(np.nan)).reshape(4, 4)
        np.testing.assert_array_equal(shown, twin.data[0].z)
        assert np.isfinite(shown).sum() == 7  # six pairs and one reliability
        text = words(figure)
        for row in evidence[evidence["kind"] == "method"].to_dict("records"):
            low, high = sorted((METHODS.index(row["first"]), METHODS.index(row["second"])))
            assert shown[high, low] == row["spearman"]
            said = f"{row['spearman']:.2f}".replace("-", "−") + f"\n{16 * row['overlap']:.0f}/16"
            assert said in text
            assert twin.data[0].text[high][low] == said.replace("\n", "<br>")
        assert shown[0, 0] == 0.93 and twin.data[0].text[0][0] == "0.93<br>13.8/16"
        assert twin.data[0].text[1][1] == "" and text.split("\n").count("–") == 3


def test_other_data_stand_below_with_their_intervals(evidence):
    rows = evidence[evidence["kind"] == "data"]
    figure, twin = paper.method_agreement(evidence), figures.method_agreement(evidence)
    (dots,) = drawn(figure, "data")
    np.testing.assert_array_equal(dots.get_xdata(), rows["spearman"])
    np.testing.assert_array_equal(twin.data[1].x, rows["spearman"])
    np.testing.assert_allclose(twin.data[1].error_x.array, rows["ci_high"] - rows["spearman"])
    labels = [t.get_text() for t in figure.axes[1].get_yticklabels()]
    assert labels == list(twin.data[1].y)
    assert labels[0] == f"packages, {16 * rows['overlap'].iloc[0]:.0f}/16"
    assert "…" in labels[1] and labels[1].split(",")[0].endswith(".jsonl")
    assert list(twin.data[1].customdata) == OTHERS
    alone = evidence_table(METHODS, [])
    assert len(figures.method_agreement(alone).data) == 1
    assert not drawn(paper.method_agreement(alone), "data")


def test_agreement_captions_say_what_the_numbers_are(evidence):
    for text in (
        paper.method_agreement(evidence).caption,
        figures.method_agreement(evidence).layout.meta["caption"],
    ):
        for part in (
            "how many of the top 16 heads are shared",
            "diagonal: split-half reliability",
            "ablation on other data",
            "area 3.15 nats/token, random at 0.43 of it",
            "baseline mean",
            "metric loss, nats/token",
            "data heldout, 24 documents",
            "model pico",
        ):
            assert part in text, part


# --- real tables ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*one document, so intervals")
def test_tables_of_a_real_model_draw():
    model, data = memory_model(), random_texts([12, 17, 20])
    table = analysis.prune_curve(model, data=data, steps=4, draws=2)
    (line, *_) = drawn(paper.prune_curves(table), "scores")
    best = table[table["order"] == "best first"]
    np.testing.assert_array_equal(line.get_ydata(), best["score"])
    area = float(line.get_label().split(", ")[1])
    assert area == pytest.approx(table.attrs["areas"]["best first"], rel=0.05)
    found = analysis.evidence(
        model, data, methods=("ablation", "taylor"), top=3, others={"more": random_texts([19, 15])}
    )
    twin = figures.method_agreement(found)
    rows = found.set_index("kind")
    assert twin.data[0].z[1][0] == rows.loc["method", "spearman"]
    for place, reliability in enumerate(rows.loc["split half", "spearman"]):
        assert twin.data[0].z[place][place] == reliability
    assert twin.data[1].x[0] == rows.loc["data", "spearman"]
    assert [hidden(t) for t in twin.layout.yaxis.ticktext] == ["ablation", "Taylor"]


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module, evidence):
    prune = prune_table()
    uneven = prune.drop(index=prune[prune["order"] == "random"].index[2])
    named = evidence.copy()
    named.attrs = {**evidence.attrs, "methods": ["ablation", "fisher"]}
    wrong = [
        (lambda: module.prune_curves(evidence), r"analysis\.prune_curve"),
        (lambda: module.prune_curves(prune.assign(order="upwards")), "upwards"),
        (lambda: module.prune_curves(uneven), "different points"),
        (lambda: module.prune_curves(prune.iloc[:0]), "without rows"),
        (lambda: module.method_agreement(prune), r"analysis\.evidence"),
        (lambda: module.method_agreement(evidence[evidence["kind"] != "method"]), "two methods"),
        (lambda: module.method_agreement(named), "names the methods ablation, fisher"),
        (lambda: module.method_agreement([0.9]), "got list"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
