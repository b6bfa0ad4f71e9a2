"""Dose and response, and amplification by role, show the tables' numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import figure_data, figures, paper
from kernels.errors import MidusError
from tests.analysis.figure_tables import (
    contrast_table,
    dose_table,
    drawn,
    hidden,
    slopes_table,
    words,
)


def test_dose_curves_are_the_table():
    table = dose_table()
    mixed = table.sample(frac=1, random_state=0)
    mixed.attrs = table.attrs
    figure, twin = paper.dose_response(mixed), figures.dose_response(mixed)
    lines = drawn(figure, "change")
    traces = [trace for trace in twin.data if trace.mode == "lines+markers"]
    bands = [trace for trace in twin.data if trace.name == "interval"]
    names = ["chosen heads", "random heads", "random direction, same norm"]
    assert [line.get_label() for line in lines] == names == [trace.name for trace in traces]
    areas = [part for part in figure.axes[0].collections if part.get_paths()]
    for i, arm in enumerate(("chosen", "random", "matched_norm")):
        part = table[table["arm"] == arm]
        for x, y in ((lines[i].get_xdata(), lines[i].get_ydata()), (traces[i].x, traces[i].y)):
            np.testing.assert_array_equal(x, part["gain"])
            np.testing.assert_array_equal(y, part["change"])
        np.testing.assert_array_equal(bands[i].y[: len(part)], part["ci_high"])
        np.testing.assert_array_equal(bands[i].y[len(part) :], part["ci_low"][::-1])
        assert areas[i].get_paths()[0].vertices[:, 1].max() == part["ci_high"].max()
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines})


def test_clean_and_ablated_are_marked():
    figure, twin = paper.dose_response(dose_table()), figures.dose_response(dose_table())
    marks = {0.0: "ablated", 1.0: "clean"}
    upright = {line.get_xdata()[0] for line in figure.axes[0].lines if line.get_ls() == "--"}
    assert upright == set(marks) == {shape.x0 for shape in twin.layout.shapes}
    notes = {note.xy[0]: note.get_text() for note in figure.axes[0].texts}
    assert notes == marks
    assert {a.x: a.text for a in twin.layout.annotations[:2]} == marks
    for label in (figure.axes[0].get_ylabel(), twin.layout.yaxis.title.text):
        assert label == "change of loss (nats/token)"
    for part in ("baseline zero", "4 chosen heads", "mean over 8 draws", "same norm:"):
        assert part in figure.caption
    alone = dose_table().query("arm == 'chosen'")
    assert "draws" not in paper.dose_response(alone).caption
    assert "same norm" not in paper.dose_response(alone).caption


def slopes_of(figure: paper.Figure, column: int) -> pd.Series:
    """Role -> slope as a panel shows it, from the top."""
    ax = figure.axes[0]
    names = dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))
    found = [
        (y, x)
        for line in drawn(figure.axes[column], "scores")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]
    return pd.Series({names[y]: x for y, x in sorted(found)})


def test_slopes_are_sorted_by_the_first_measure_on_shared_rows():
    table = slopes_table()
    figure, twin = paper.role_slopes(table), figures.role_slopes(table)
    for column, measure in enumerate(("score", "share_score")):
        part = table[table["measure"] == measure].dropna(subset=["slope"])
        wanted = part.assign(name=[figure_data.ROLES[r].name for r in part["role"]])
        wanted = wanted.set_index("name")
        shown = slopes_of(figure, column)
        assert len(shown) == 9 and "retrieval" not in shown
        np.testing.assert_array_equal(shown, wanted["slope"][shown.index])
        trace = twin.data[column]
        np.testing.assert_array_equal(trace.x, shown)
        low = (wanted["slope"] - wanted["ci_low"])[shown.index]
        np.testing.assert_allclose(trace.error_x.arrayminus, low)
    assert (np.diff(slopes_of(figure, 0)) <= 0).all()
    ticks = [hidden(text) for text in twin.layout.yaxis.ticktext]
    assert ticks == list(slopes_of(figure, 0).index)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["slope (nats/token per SD)", "slope (share per SD)"]


def test_the_contrast_stands_below():
    figure = paper.role_slopes(slopes_table(), contrast_table())
    twin = figures.role_slopes(slopes_table(), contrast_table())
    for index, row in contrast_table().iterrows():
        ax = figure.axes[2 + index]
        shown = sorted(
            (y, x)
            for line in drawn(ax, "scores")
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        )
        wanted = [row["chosen"], row["controls"], row["difference"]]
        np.testing.assert_allclose([x for _, x in shown], wanted)
        traces = twin.data[2 + 3 * index : 5 + 3 * index]
        np.testing.assert_allclose([trace.x[0] for trace in traces], wanted)
        error = traces[2].error_x
        assert error.array[0] == pytest.approx(row["ci_high"] - row["difference"])
        whole = row["ci_low"] > 0 or row["ci_high"] < 0
        assert (traces[2].marker.symbol[0] == "diamond") == whole
        face = [line for line in drawn(ax, "scores") if line.get_marker() == "D"][0].get_mfc()
        assert (face == "black") == whole
    for text in (words(figure), " ".join(a.text for a in twin.layout.annotations)):
        assert "p < 0.001" in text and "p = 0.43" in text
    assert "controls, the nearest in importance before" in figure.caption
    assert "permutation within layers, which does not hold where these differ" in figure.caption
    assert "below" not in paper.role_slopes(slopes_table()).caption
    assert "pico → pico-midus" in figure.caption


def test_a_matched_contrast_says_its_balance_and_its_least_p():
    contrast = contrast_table().assign(
        p_least=[0.25, 0.25], p=[0.25, 0.43], smd=0.12, before_chosen=0.0512, before_controls=0.0485
    )
    contrast.attrs = {**contrast_table().attrs, "caliper": 0.4}
    figure = paper.role_slopes(slopes_table(), contrast)
    twin = figures.role_slopes(slopes_table(), contrast)
    for text in (words(figure), " ".join(a.text for a in twin.layout.annotations)):
        assert "p = 0.25, at least 0.25" in text and "p = 0.43, at least 0.25" in text
    said = "within 0.4 SD (0.0512 and 0.0485, standardised difference 0.12), and the difference,"
    assert said in figure.caption and "smallest p that these can give" in figure.caption


def test_roles_are_picked_out_by_intervals_that_hold_together():
    table = slopes_table()
    low, high = table["slope"] - 0.02, table["slope"] + 0.02  # wider than each alone
    table = table.assign(ci_low_all=low, ci_high_all=high, vif=1.5, left_out="")
    table.loc[table["role"] == "retrieval", ["vif", "left_out"]] = [35.5, "its VIF is above 10"]
    table.attrs = slopes_table().attrs
    figure, twin = paper.role_slopes(table), figures.role_slopes(table)
    np.testing.assert_allclose(twin.data[0].error_x.array, 0.02)
    assert "95% for all roles of a panel together (max-t)" in figure.caption
    assert "left out for a variance inflation above 10: retrieval" in figure.caption
    assert "by Student's t" in paper.role_slopes(slopes_table()).caption


def test_other_names_of_measures_and_controls_are_understood():
    slopes = slopes_table(("score",)).drop(columns=["measure", "unit"])
    contrast = contrast_table().rename(columns={"controls": "control"}).drop(columns="unit")
    contrast["measure"] = ["nats", "shares"]
    figure = paper.role_slopes(slopes, contrast)
    labels = [ax.get_xlabel() for ax in figure.axes if ax.axison]
    assert labels == [
        "slope (nats/token per SD)",
        "amplification (nats/token)",
        "amplification (share)",
    ]
    assert len(figures.role_slopes(slopes, contrast).data) == 7


def test_a_role_of_another_name_is_shown_by_it():
    table = slopes_table(("score",)).replace({"role": {"induction": "my_own_role"}})
    assert "my own role" in words(paper.role_slopes(table))


@pytest.mark.parametrize("module", [paper, figures])
def test_wrong_tables_get_one_clear_line(module):
    dose, slopes, contrast = dose_table(), slopes_table(), contrast_table()
    wrong = [
        (lambda: module.dose_response(slopes), "gain"),
        (lambda: module.dose_response(dose.assign(arm="none")), "knows the arms chosen"),
        (lambda: module.dose_response(pd.concat([dose, dose])), "more than once"),
        (lambda: module.dose_response({}), "got dict"),
        (lambda: module.role_slopes(dose), "role, slope"),
        (lambda: module.role_slopes(slopes.assign(slope=np.nan)), "all missing"),
        (lambda: module.role_slopes(pd.concat([slopes, slopes])), "more than one slope"),
        (lambda: module.role_slopes(slopes, dose), "measure"),
        (lambda: module.role_slopes(slopes, contrast.drop(columns="controls")), "controls"),
    ]
    for call, message in wrong:
        with pytest.raises(MidusError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_both_kinds_say_the_same_and_text_is_text(tmp_path):
    for name, tables in {
        "dose_response": (dose_table(),),
        "role_slopes": (slopes_table(), contrast_table()),
    }.items():
        figure, twin = getattr(paper, name)(*tables), getattr(figures, name)(*tables)
        assert twin.layout.meta["caption"] == figure.caption
        pdf, svg = paper.save(figure, tmp_path / name, formats=("pdf", "svg"))
        assert b"/CIDFontType2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
        assert "(nats/token" in svg.read_text()
