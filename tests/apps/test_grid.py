"""What a map says once it is taken from its figure: every cell, where it stands, what it is."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from analysis import figure_data, figures, tables
from apps.parts import drawn, grid
from apps.parts.grid.spec import plain
from tests.apps.planted import plant_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("runs") / "planted") / "tables"


def test_every_head_is_a_cell_in_its_place(run: Path) -> None:
    before, after = (tables.load(run / f"importance_{side}") for side in ("before", "after"))
    figure = figures.importance_map(before, after, width=850)
    spec = grid.of(figure)
    old, new = spec.drawing["panels"]
    assert [len(old["x"]), len(new["x"])] == [len(before), len(after)]
    labels = [row.label for row in figure_data.block_rows(after)]
    assert [tick["text"] for tick in old["down"]] == labels and not new["down"]
    assert [tick["bold"] for tick in old["down"]] == [label.startswith("+") for label in labels]
    for panel, table in ((old, before), (new, after)):
        assert panel["value"] == table["score"].tolist()
        assert panel["x"] == table["head"].tolist()
        assert [labels[y].startswith("+") for y in panel["y"]] == (
            table["kind"] == "memory"
        ).tolist()
        assert panel["width"] / panel["columns"] == pytest.approx(panel["height"] / panel["rows"])
    assert old["left"] + old["width"] < new["left"] < spec.drawing["width"]
    assert [note["text"] for note in spec.drawing["notes"]][:2] == ["small", "small-midus"]
    (bar,) = spec.drawing["bars"]
    assert bar["title"] == "importance (nats/token)" and bar["left"] > new["left"] + new["width"]
    assert bar["scale"]["high"] == -bar["scale"]["low"] == figure.layout.coloraxis.cmax


def test_a_cell_that_is_clicked_is_the_head_of_the_table(run: Path) -> None:
    after = tables.load(run / "importance_after")
    spec = grid.of(figures.importance_map(after))
    row = after.iloc[9]
    want = {"panel": 0, "customdata": [row["layer"], row["kind"], row["head"], row["source_layer"]]}
    assert spec.point({"panel": 0, "cell": 9}) == want


def test_a_heat_map_need_not_be_square() -> None:
    figure = go.Figure(go.Heatmap(z=[[0.0, 1, 2], [3, 4, 5]], colorscale="Greys"))
    figure.update_layout(height=200, width=300, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    words = grid.Words(["a", "b"], ["x", "y", "z"], "{row}{column} {value}")
    spec = grid.of(figure, words)
    (panel,) = spec.drawing["panels"]
    assert (panel["rows"], panel["columns"]) == (2, 3)
    assert spec.point({"panel": 0, "cell": 5}) == {"panel": 0, "row": 1, "column": 2}
    assert spec.point({"panel": 0, "cell": 6}) is spec.point({"panel": 0, "cell": -1}) is None


@pytest.mark.parametrize(
    "asked",
    [None, {}, {"panel": 7, "cell": 0}, {"panel": 0, "cell": 10**6}, {"panel": 0, "cell": -1},
     {"panel": "0", "cell": "0"}, "0", {"panel": -1, "cell": 0}],
)  # fmt: skip
def test_what_is_no_cell_is_nothing(run: Path, asked: object) -> None:
    assert (
        grid.of(figures.importance_map(tables.load(run / "importance_before"))).point(asked) is None
    )


def test_a_heat_map_is_sent_as_numbers_and_words(run: Path) -> None:
    slots = tables.load(run / "memory_slots")
    slots = slots[(slots["block"] == 2) & (slots["head"] == 1)]
    side = 8
    hits = figure_data.slot_square(slots, side, "slot_grid")
    names = [f"key {i}" for i in range(side)]
    words = grid.Words(names, names, "{row}, {column}: {value}", hits)
    spec = grid.of(figures.slot_grid(slots, side=side), words)
    (panel,) = spec.drawing["panels"]
    drawn = np.frombuffer(base64.b64decode(panel["matrix"]), "<f4").reshape(side, side)
    shown = np.frombuffer(base64.b64decode(panel["shown"]), "<f4").reshape(side, side)
    np.testing.assert_allclose(drawn, np.log1p(hits), rtol=1e-6)
    np.testing.assert_array_equal(shown, hits.astype(np.float32))
    assert panel["width"] == panel["height"] and panel["columns"] == panel["rows"] == side
    assert spec.point({"panel": 0, "cell": 2 * side + 5}) == {"panel": 0, "row": 2, "column": 5}


def test_maps_of_memory_have_a_panel_and_a_colour_bar_each(run: Path) -> None:
    usage = tables.load(run / "memory_usage")
    spec = grid.of(figures.memory_map(usage, width=850))
    panels, bars = spec.drawing["panels"], spec.drawing["bars"]
    assert len(panels) == len(bars) == 2  # collisions and the read ratio are not planted
    for panel, bar in zip(panels, bars, strict=True):
        assert len(panel["x"]) == len(usage)
        assert bar["left"] > panel["left"] + panel["width"] and bar["ticks"] is None
        assert bar["scale"] == panel["scale"]


def test_signs_read_on_every_colour_of_a_dark_page() -> None:
    for _, colour in figure_data.diverging_stops(65, dark=True):
        cell = rgb(colour)
        assert contrast(cell, rgb(figure_data.ink_on(np.divide(cell, 255)))) > 3.9


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_read_on_their_cells(run: Path, theme: str) -> None:
    usage = tables.load(run / "memory_usage")
    spec = grid.of(drawn._prepared(figures.memory_map(usage, width=850), theme).figure)
    for panel in spec.drawing["panels"]:
        assert all(panel["text"])
        at, colours = zip(*panel["scale"]["stops"], strict=True)
        shares = np.array(panel["value"]) / panel["scale"]["high"]
        cells = [np.interp(shares, at, channel) for channel in np.transpose([*map(rgb, colours)])]
        for cell, ink in zip(np.transpose(cells), panel["textInk"], strict=True):
            assert contrast(cell, rgb(ink)) > 3  # WCAG's least for graphics


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrast(one: Iterable[float], other: Iterable[float]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(channels: Iterable[float]) -> float:
    """Relative luminance of sRGB channels in 0..255 (WCAG 2)."""
    share = np.array([*channels]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_words_are_words_and_no_tags() -> None:
    assert plain("<b>a &lt; b</b><br>2") == "a < b\n2"
    assert plain("&lt;img src=x&gt;") == "<img src=x>"  # shown as it stands, as text
    assert plain(None) == ""
