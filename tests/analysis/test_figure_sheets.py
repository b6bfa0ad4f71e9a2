"""Every figure is legible, and its files are the same bytes each time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from analysis import figure_data as data
from analysis import figures, paper
from tests.analysis.figure_tables import (
    BASE_BLOCKS,
    MIDUS_BLOCKS,
    amplification_table,
    choice_contrast_table,
    choice_table,
    contrast_table,
    costs_table,
    dose_table,
    effects_table,
    evidence_table,
    importance_table,
    key_table,
    plain,
    prune_table,
    realisations_table,
    roles_table,
    slopes_table,
    slots_table,
    training_log,
    usage_log,
    usage_table,
    view_table,
    with_reads,
)
from tests.analysis.text_tables import loss_table, pattern_table, token_table

METHODS = ["ablation", "gradient", "taylor", "integrated_gradients", "fisher", "dla", "shapley"]
BEFORE = importance_table(BASE_BLOCKS, "pico")
AFTER = importance_table(MIDUS_BLOCKS, "pico-midus", seed=1)
CHANGE = amplification_table(BEFORE, AFTER)
LARGE = [("attention", i) for i in range(32)]
TOWER = importance_table(MIDUS_BLOCKS, "pico-midus", tower=200.0, model_hash="pico-midus")
OTHERS = ["packages (test), 96 excerpts", "wiki"]
USAGE = with_reads(usage_table(MIDUS_BLOCKS))
WIDE_USAGE = with_reads(usage_table([("memory", i) for i in range(8)], heads=32))
CHOICE = choice_table()

SHEETS: dict[str, tuple[str, tuple, dict]] = {
    "map": ("importance_map", (BEFORE, AFTER), {}),
    "large map": ("importance_map", (importance_table(LARGE, "m", heads=32),), {}),
    "curves": ("importance_curves", (BEFORE, AFTER), {}),
    "change": ("importance_change", (CHANGE,), {}),
    "amplification": ("amplification", (CHANGE,), {}),
    "amplification map": ("amplification_map", (CHANGE,), {}),
    "usage": ("slot_usage", (usage_table(MIDUS_BLOCKS),), {}),
    "histogram": ("slot_histogram", (slots_table(),), {"slots": 4096}),
    "costs": ("costs", (costs_table("pico", 0.0), costs_table("pico-midus", 474e3)), {}),
    "training": ("training_curves", ({"midus": training_log(1.0)},), {}),
    "prune": ("prune_curves", (prune_table(),), {}),
    "large prune": ("prune_curves", (prune_table(heads=1024),), {}),
    "two methods": ("method_agreement", (evidence_table(METHODS[:2], []),), {}),
    "agreement": ("method_agreement", (evidence_table(METHODS, OTHERS),), {}),
    "roles": ("role_map", (roles_table(MIDUS_BLOCKS),), {}),
    "roles and importance": ("role_map", (roles_table(MIDUS_BLOCKS), TOWER), {}),
    "large roles": ("role_map", (roles_table(LARGE, heads=32),), {}),
    "memory map": ("memory_map", (USAGE,), {}),
    "large memory map": ("memory_map", (WIDE_USAGE,), {}),
    "effects of heads": ("memory_effects", (effects_table("heads"),), {}),
    "effects of slots": ("memory_effects", (effects_table("slots"),), {}),
    "effect of all": ("memory_effects", (effects_table("all"),), {}),
    "large effects": ("memory_effects", (effects_table("heads", blocks=8, heads=32),), {}),
    "view": ("memory_view", (view_table(),), {}),
    "large view": ("memory_view", (view_table(heads=32, tokens=90),), {"tokens": 90}),
    "realisations": ("realisations", (realisations_table(),), {}),
    "dose": ("dose_response", (dose_table(),), {}),
    "slopes": ("role_slopes", (slopes_table(("score",)),), {}),
    "slopes and contrast": ("role_slopes", (slopes_table(), contrast_table()), {}),
    "choice": ("choice", (CHOICE,), {}),
    "choice and contrast": ("choice", (CHOICE, choice_contrast_table(CHOICE)), {}),
    "usage curves": ("usage_curves", (usage_log(),), {}),
    "large usage": ("usage_curves", (usage_log(tuple(range(12)), ("midus", "revived")),), {}),
    "key coverage": ("key_coverage", (key_table(),), {}),
    "pattern": ("attention_pattern", (pattern_table(),), {}),
    "pattern of a short text": ("attention_pattern", (pattern_table(2),), {}),
    "large pattern": ("attention_pattern", (pattern_table(60, "memory"),), {}),
    "slot grid": ("slot_grid", (slots_table(),), {"side": 64}),
    "next tokens": ("next_tokens", (token_table(),), {}),
    "next tokens as they were": ("next_tokens", (token_table(gains=[]),), {}),
    "quality": ("quality_cost", (loss_table(),), {}),
    "quality of one": ("quality_cost", (loss_table(1),), {}),
    "large quality": ("quality_cost", (loss_table(6),), {}),
    "large pattern of positions": ("attention_pattern", (pattern_table(150, cut=90),), {}),
}
# The legend of sorted curves names inserted heads on paper only; their captions differ.
ALIKE = [name for name in SHEETS if name != "curves" and not name.startswith("large")]


def sheet(name: str, module: object) -> object:
    figure, tables, options = SHEETS[name]
    return getattr(module, figure)(*tables, **options)


def test_both_kinds_have_the_same_figures_and_all_are_checked_here():
    helpers = {"COLUMN", "FULL", "Figure", "save", "save_html", "screen_svg"}
    drawn = set(paper.__all__) - helpers
    assert drawn == set(figures.__all__) - helpers == {figure for figure, _, _ in SHEETS.values()}


@pytest.mark.parametrize("name", SHEETS)
def test_nothing_is_clipped_and_no_text_is_small_or_overlaps(name):
    figure = sheet(name, paper)
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    used = figure.get_tightbbox()
    assert used.x0 >= -0.01 and used.y0 >= -0.01
    assert used.x1 <= width + 0.01 and used.y1 <= height + 0.01
    note = next(t for t in figure.texts if "\n" in t.get_text() or "; " in t.get_text())
    box = note.get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert all(box.y1 <= ax.get_tightbbox().y0 + 1 for ax in figure.axes if ax.axison)
    texts = shown(figure)
    assert all(t.get_fontsize() >= 6 for t in texts)
    level = [t for t in texts if t.get_rotation() in (0, 90)]
    assert not overlapping([(t.get_text(), t.get_window_extent().extents) for t in level])


def shown(figure: paper.Figure) -> list[Text]:
    """All text on the sheet; ticks beyond an axis' limits are laid out, but not drawn."""
    beyond: set[int] = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-6 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not ax.axison or not low - room <= tick.get_loc() <= high + room:
                    beyond |= {id(tick.label1), id(tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in beyond
    ]


def overlapping(boxes: list[tuple[str, np.ndarray]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes (left, bottom, right, top) share more than a pixel both ways."""
    corners = np.array([box for _, box in boxes])
    first, second = np.triu_indices(len(boxes), 1)
    low = np.maximum(corners[first, :2], corners[second, :2])
    high = np.minimum(corners[first, 2:], corners[second, 2:])
    both = ((high - low) > 1.0).all(1)
    return [(boxes[i][0], boxes[j][0]) for i, j in zip(first[both], second[both], strict=True)]


@pytest.mark.parametrize("name", ["change", "prune", "agreement", "roles and importance"])
def test_files_are_the_same_bytes_twice(name, tmp_path):
    for twice in ("one", "two"):
        paper.save(sheet(name, paper), tmp_path / twice, formats=("svg",))
    one, two = ((tmp_path / f"{twice}.svg").read_bytes() for twice in ("one", "two"))
    assert one == two
    assert sheet(name, figures).to_json() == sheet(name, figures).to_json()


def test_last_bits_of_a_layout_are_not_seen(monkeypatch, tmp_path):
    """The layout's solver adds in the order of addresses, which differs from run to run."""
    whole = ConstrainedLayoutEngine.execute

    def shaken(self, fig):
        found = whole(self, fig)
        for ax in fig.axes:
            ax._set_position(np.array(ax.get_position().bounds) * (1 + 4e-16))
        return found

    paper.save(sheet("agreement", paper), tmp_path / "still", formats=("svg", "pdf"))
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", shaken)
    paper.save(sheet("agreement", paper), tmp_path / "shaken", formats=("svg", "pdf"))
    for form in ("svg", "pdf"):
        still, moved = ((tmp_path / f"{name}.{form}").read_bytes() for name in ("still", "shaken"))
        assert still == moved, form


@pytest.mark.parametrize("name", ALIKE)
def test_both_say_the_same_below(name):
    figure, twin = sheet(name, paper), sheet(name, figures)
    assert twin.layout.meta["caption"] == figure.caption
    below = [a.text for a in twin.layout.annotations if plain(a.text).endswith(".")]
    assert len(below) == 1


@pytest.mark.parametrize("name", SHEETS)
def test_interactive_figures_sit_on_a_light_and_on_a_dark_page(name):
    """No ground of their own, and no text so dark or so light that one of the pages swallows it."""
    layout = sheet(name, figures).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color is None and layout.template.layout.font.color is None


def test_dark_colours_begin_at_the_ground_and_grow_alike_on_both_sides():
    stops = [colour for _, colour in data.diverging_stops(dark=True)]
    light = [sum(int(c[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.59), (5, 0.11)))
             for c in stops]  # fmt: skip
    middle = len(stops) // 2
    assert light[middle] < 50
    assert all(np.diff(light[middle:]) > 0) and all(np.diff(light[: middle + 1]) < 0)
    assert abs(light[0] - light[-1]) < 20


def test_signs_on_coloured_cells_stay_as_they_are_on_a_dark_page():
    sign = "<path[^>]*fill: none; stroke: #ffffff; stroke-width: 0.8"  # cells' edges are thinner
    count = [len(re.findall(sign, paper.screen_svg(sheet("amplification map", paper), dark=dark)))
             for dark in (False, True)]  # fmt: skip
    assert count[0] == count[1] > 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["change", "quality", "roles and importance", "slot grid"])
def test_figures_for_print_sit_on_both_pages_as_pictures(name, dark):
    """The page has the caption below; ink that reads on its ground, and no ground of its own."""
    figure = sheet(name, paper)
    wide, high = figure.get_size_inches()
    picture = ElementTree.fromstring(paper.screen_svg(figure, dark=dark))
    assert float(picture.get("width").removesuffix("pt")) == pytest.approx(72 * wide, rel=1e-3)
    assert float(picture.get("height").removesuffix("pt")) < 72 * high - 10
    texts = picture.findall(".//{*}text")
    words = " ".join("".join(text.itertext()) for text in texts)
    assert words and figure.caption.split(";")[0] not in words
    ink = {colour for t in texts for colour in re.findall("#[0-9a-f]{6}", t.get("style", ""))}
    assert not ink & ({"#000000", "#404040"} if dark else {"#c9d0d8"})
    assert picture.get("fill") == ("#c9d0d8" if dark else "#000000")
    ground = picture.find(".//{*}g[@id='patch_1']/{*}path")
    assert ground is None or re.search("fill: none|opacity: 0", ground.get("style"))
