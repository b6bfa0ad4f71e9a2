"""The comparison of chosen heads with random heads and all shows the tables' numbers."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import figures, paper
from kernels.errors import MidusError
from tests.analysis.figure_tables import choice_contrast_table, choice_table, drawn, words

MEASURES = ("loss_new", "loss_heldout", "amplification")
ARMS = ("chosen", "random", "all")


def test_every_trained_model_and_the_means_are_there():
    table = choice_table()
    mixed = table.sample(frac=1, random_state=0)
    mixed.attrs = table.attrs
    figure, twin = paper.choice(mixed), figures.choice(mixed)
    assert len(figure.axes) == 3
    for row, (ax, measure) in enumerate(zip(figure.axes, MEASURES, strict=True)):
        traces = twin.data[5 * row : 5 * row + 5]
        for place, (dots, trace, arm) in enumerate(
            zip(drawn(ax, "models"), traces[1:4], ARMS, strict=True)
        ):
            wanted = table.loc[table["arm"] == arm, measure]
            np.testing.assert_array_equal(dots.get_xdata(), wanted)
            np.testing.assert_array_equal(trace.x, wanted)
            assert set(dots.get_ydata()) == set(trace.y) == {place}
            assert list(trace.customdata) == [0, 1, 2]
        means = table.groupby("arm")[measure].mean()[list(ARMS)]
        (marks,) = drawn(ax, "means")
        np.testing.assert_allclose([s[0, 0] for s in marks.get_segments()], means)
        np.testing.assert_allclose(traces[4].x, means)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["chosen heads", "random heads", "all heads"]
    assert list(twin.layout.yaxis.ticktext) == labels
    assert figure.axes[1].get_xlabel() == "loss on held-out text (nats/token)"


def test_lines_join_the_models_of_a_seed():
    table = choice_table(seeds=2)
    joined = figures.choice(table).data[0]
    for seed in range(2):
        wanted = table.loc[table["seed"] == seed, "loss_new"]
        np.testing.assert_array_equal(joined.x[4 * seed : 4 * seed + 3], wanted)
    lines = [line for line in paper.choice(table).axes[0].lines if line.get_gid() != "models"]
    np.testing.assert_array_equal(lines[1].get_xdata(), joined.x[4:7])


def test_differences_have_both_intervals():
    table = choice_table()
    contrast = choice_contrast_table(table)
    figure, twin = paper.choice(table, contrast), figures.choice(table, contrast)
    assert len(figure.axes) == 6
    for row, measure in enumerate(MEASURES):
        part = contrast[contrast["measure"] == measure]
        ax = figure.axes[2 * row + 1]
        (dots,) = drawn(ax, "differences")
        seeds, documents, middle = twin.data[8 * row + 5 : 8 * row + 8]
        np.testing.assert_array_equal(dots.get_xdata(), part["difference"])
        np.testing.assert_array_equal(middle.x, part["difference"])
        for gid, ends, trace in (
            ("seeds", ["seed_low", "seed_high"], seeds),
            ("documents", ["ci_low", "ci_high"], documents),
        ):
            (bars,) = drawn(ax, gid)
            np.testing.assert_array_equal([s[:, 0] for s in bars.get_segments()], part[ends])
            np.testing.assert_array_equal([trace.x[:2], trace.x[3:5]], part[ends])
        thin, thick = (drawn(ax, gid)[0].get_linewidth()[0] for gid in ("seeds", "documents"))
        assert thick > 2 * thin and documents.line.width > 2 * seeds.line.width
        assert [t.get_text() for t in ax.get_yticklabels()] == ["chosen − random", "chosen − all"]
    assert "over seeds" in twin.data[7].hovertext[0]


def test_the_caption_names_data_seeds_and_parameters():
    table = choice_table()
    contrast = choice_contrast_table(table)
    figure, twin = paper.choice(table, contrast), figures.choice(table, contrast)
    assert twin.layout.meta["caption"] == figure.caption
    for part in (
        "3 seeds",
        "473,760 to 474,000 parameters added",
        "new text: data packages (test), 96 excerpts, 24 documents, 12,276 tokens",
        "held-out text: data heldout excerpts, 20 documents",
        "of losses less is better",
        "thin: 95% t interval over seeds",
    ):
        assert part in figure.caption
    assert "t interval" not in paper.choice(table).caption


def test_one_seed_and_missing_measures_are_drawn_as_far_as_they_go(recwarn):
    table = choice_table(seeds=1)
    contrast = choice_contrast_table(table).assign(seed_low=np.nan, seed_high=np.nan)
    for module in (paper, figures):
        module.choice(table, contrast)
    few = table.drop(columns=["loss_heldout", "amplification", "parameters"])
    few.attrs = {}
    figure = paper.choice(few)
    assert len(figure.axes) == 1 and "1 seed," in figure.caption
    assert len(figures.choice(few, contrast).data) == 8
    assert "amplification" not in words(figure) and not recwarn.list


def test_text_is_text_in_a_pdf(tmp_path):
    table = choice_table()
    figure = paper.choice(table, choice_contrast_table(table))
    pdf, svg = paper.save(figure, tmp_path / "choice", formats=("pdf", "svg"))
    assert b"/CIDFontType2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
    assert "chosen − random" in svg.read_text()


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module):
    table = choice_table()
    contrast = choice_contrast_table(table)
    wrong = [
        (lambda: module.choice(contrast), "arm, seed, loss_new"),
        (lambda: module.choice(table.iloc[:0]), "without rows"),
        (lambda: module.choice(table.assign(arm="best")), "the table has best"),
        (lambda: module.choice(table, table), "seed_low"),
        (lambda: module.choice("choice"), "got str"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
