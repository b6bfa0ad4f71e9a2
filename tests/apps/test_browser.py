"""The explorer in a real browser, on the shipped study: pages, clicks, links, downloads, a job."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis import amplify, tables
from midus_model import load, load_tokenizer
from tests.apps.driven import SECONDS, Tab, chromium, serving
from tests.apps.planted import plant_run

PAGES = ("Overview", "Heads", "Choose", "Amplify", "Memory", "Compare", "Report")
STUDY = Path(__file__).parents[2] / "workbench" / "study" / "tables"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "streamlit.txt"
    with serving(log, "--runs", workspace) as running:
        yield running


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    opened = Tab(browser, address)
    yield opened
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_without_a_complaint(browser: Any, address: str, scheme: str) -> None:
    tab = Tab(browser, address, scheme)
    tab.open()
    for title in PAGES:
        tab.go(title)
        tab.check()
    tab.close()


def test_a_click_on_a_cell_opens_that_head_and_its_link_shows_it_again(
    browser: Any, address: str, tab: Tab
) -> None:
    table = tables.load(STUDY / "importance_after")
    index = int(table.index[table["kind"] == "memory"][10])
    row = table.loc[index]
    tab.open("heads")
    panel = tab.page.locator(".st-key-head_panel")
    name = f"+ memory (from {row['source_layer']}), head {row['head']}"
    assert name not in panel.inner_text()
    tab.click_cell("importance_map", 1, int(row["head"]), int(row["layer"]))
    panel.get_by_text(name).wait_for()
    said = panel.inner_text()
    assert f"{row['score']:.4f}" in said
    assert f"{row['ci_low']:.4f} to {row['ci_high']:.4f}" in said
    tab.check()
    other = Tab(browser, address)
    other.open(tab.page.url.removeprefix(address))
    other.page.locator(".st-key-head_panel").get_by_text(name).wait_for()
    other.check()
    other.close()


def test_the_map_is_walked_by_keys(tab: Tab) -> None:
    tab.open("heads?side=before&block=0%3A+layer+0&head=0")
    grid = tab.page.locator("[class*=st-key-importance_map] .grid").first
    grid.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft"):
        grid.press(key)  # the first one only steps onto the framed cell
    score = tables.load(STUDY / "importance_before").set_index(["layer", "head"])["score"][1, 1]
    said = grid.locator(".spoken").inner_text()
    assert "layer 1, head 1" in said and f"{score:.4g} nats/token" in said
    grid.press("Enter")
    tab.page.locator(".st-key-head_panel").get_by_text("layer 1, head 1").wait_for()
    assert "head=1" in tab.page.url
    tab.check()


def slots_in_view() -> pd.DataFrame:
    """The slots of the head that the page Memory opens with."""
    usage = tables.load(STUDY / "memory_usage").iloc[0]
    slots = tables.load(STUDY / "memory_slots")
    return slots[(slots["block"] == usage["layer"]) & (slots["head"] == usage["head"])]


def test_a_click_on_the_grid_of_slots_opens_that_slot(tab: Tab) -> None:
    tab.open("memory")
    mine = slots_in_view()
    slot, row, column = map(int, mine.nlargest(5, "hits")[["slot", "row", "col"]].iloc[4])
    tab.click_cell("slot_grid", 0, column, row)
    panel = tab.page.locator(".st-key-slot_panel")
    panel.get_by_text(re.compile(rf"^Slot {slot}\b")).first.wait_for()
    assert f"slot={slot}" in tab.page.url
    tab.check()


def test_a_click_on_a_slot_opens_its_contexts(tab: Tab) -> None:
    tab.open("memory")
    mine = slots_in_view()
    wanted = int(mine.sort_values(["hits", "slot"], ascending=[False, True])["slot"].iloc[2])
    table = tab.page.get_by_test_id("stDataFrame").first
    table.scroll_into_view_if_needed()
    tab.settle()
    box = table.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + 18, box["y"] + 35 * 3 + 18)  # the third row's box
    panel = tab.page.locator(".st-key-slot_panel")
    panel.get_by_text(re.compile(f"^Slot {wanted}")).first.wait_for()
    tab.settle()
    assert panel.get_by_test_id("stDataFrame").count() >= 2
    assert f"slot={wanted}" in tab.page.url
    tab.check()


def test_a_gate_changes_the_probabilities_as_amplify_says(tab: Tab) -> None:
    best = tables.load(STUDY / "importance_after").nlargest(1, "score").iloc[0]
    layer, head = int(best["layer"]), int(best["head"])
    tab.open("amplify")
    text = tab.page.locator("textarea").first.input_value()
    thumb = tab.page.locator(f".st-key-gain_{layer}_{head} input[type=range]")
    thumb.focus()
    for _ in range(4):
        thumb.press("ArrowLeft")  # 0.05 a press
    tab.page.wait_for_url(re.compile(f"gain_{layer}_{head}=0.8"))
    (loss, after), (was, before) = (amplified(text, layer, head, gain) for gain in (0.8, 1.0))
    assert f"{loss:.3f}" != f"{was:.3f}"
    tab.page.get_by_test_id("stMetricValue").first.get_by_text(f"{loss:.3f}").wait_for()
    tab.settle()
    bars = tab.page.locator(".st-key-next_tokens .js-plotly-plot").evaluate(
        "figure => figure._fullData.map(trace => Array.from(trace.x))"
    )
    assert max(bars[1]) == pytest.approx(100 * after.max(), abs=1e-3)
    assert np.abs(np.subtract(*bars)).max() > 0.1  # the gate moved what is shown
    for old, new in zip(*bars, strict=True):  # each pair of bars is a token's
        error = np.maximum(abs(100 * before - old), abs(100 * after - new))
        assert error.min() < 1e-3
    tab.check()


def amplified(text: str, layer: int, head: int, gain: float) -> tuple[float, np.ndarray]:
    """Hugging Face's loss on the text and probabilities after it, one head of pico-midus scaled."""
    model, tokenizer = load("pico-midus"), load_tokenizer("pico")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with amplify(model, [(layer, head)], gain) as changed, torch.no_grad():
        out = changed.model(input_ids=ids, labels=ids)
    return float(out.loss), out.logits[0, -1].double().softmax(-1).numpy()


def test_a_ranking_is_started_cancelled_started_again_and_finished(
    tab: Tab, workspace: Path
) -> None:
    tab.open("choose")
    tab.page.get_by_text("Rank heads", exact=True).click()
    limit = tab.page.locator(".st-key-limit_False input")
    limit.fill("1")
    limit.press("Enter")
    tab.settle()
    tab.page.get_by_role("button", name="Start", exact=True).click()
    job = tab.page.locator("[class*=st-key-job_rank-pico]").first
    job.get_by_role("button", name="Cancel").click()
    job.get_by_text("cancelled").wait_for()
    tab.page.reload()  # a job outlives its page
    job.get_by_role("button", name="Start again").click()
    job.get_by_text("running").wait_for()
    tab.page.wait_for_timeout(500)
    job.get_by_role("button", name="Open").wait_for(timeout=1000 * 4 * SECONDS)
    job.get_by_role("button", name="Open").click()
    found = tables.load(workspace / "rank-pico" / "tables" / "ranking")
    tab.page.get_by_text(f"{found.attrs['evaluations']:,}", exact=True).wait_for()
    tab.settle()
    tab.check()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="ranking.json").click()
    heads = json.loads(Path(saved.value.path()).read_text())["heads"]
    best = found.head(int(found.attrs["top"]))
    assert heads == [[int(r.layer), int(r.head)] for r in best.itertuples()]


def test_a_task_of_the_user_s_own_is_measured(tab: Tab, workspace: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"for i in range({n}", "answer": ")", "foil": " ("} for n in (2, 5, 9)]
    file = tmp_path / "brackets.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tab.open("choose")
    tab.page.get_by_text("Rank heads", exact=True).click()
    tab.choose("work", "measure every head")
    tab.choose("form_data", "a file of mine")
    tab.page.locator(".st-key-form_file input[type=file]").set_input_files(file)
    tab.page.get_by_text("brackets.jsonl").first.wait_for()
    tab.choose("form--metric", "logit_difference")
    tab.page.get_by_role("button", name="Start", exact=True).click()
    job = tab.page.locator("[class*=st-key-job_importance-pico]").first
    job.get_by_role("button", name="Open").wait_for(timeout=1000 * 4 * SECONDS)
    for _ in range(5):  # a click on a button that is just drawn anew is lost
        job.get_by_role("button", name="Open").click()
        tab.settle()
        if "run_name=importance-pico" in tab.page.url:
            break
    found = tables.load(workspace / "importance-pico" / "tables" / "importance_before")
    assert found.attrs["metric"] == "logit_difference" and len(found.attrs["documents"]) == 3
    tab.go("Heads")
    tab.page.get_by_text("metric logit difference").first.wait_for()
    tab.check()


def test_an_option_is_chosen_although_the_page_runs_again(tab: Tab) -> None:
    """A slow browser, and a rerun before every list is opened, which may close it again."""
    tab.open("choose")
    tab.page.get_by_text("Rank heads", exact=True).click()
    slow = tab.context.new_cdp_session(tab.page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    limit = tab.page.locator("[class*=st-key-limit_] input").first
    for turn, work in enumerate(("measure every head", "rank the heads", "measure every head")):
        limit.fill(str(1 + turn))
        limit.press("Enter")
        tab.choose("work", work)
        assert tab.page.locator(".st-key-work").get_by_role("combobox").input_value() == work
    tab.check()


def test_a_figure_s_menu_saves_it_and_its_numbers(tab: Tab) -> None:
    tab.open("heads")
    tab.page.locator(".st-key-menu_importance_map button:visible").click()

    def saved(label: str) -> bytes:
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name=label, exact=True).click()
        return Path(download.value.path()).read_bytes()

    for side in ("before", "after"):
        want = tables.load(STUDY / f"importance_{side}").drop(columns="by_document")
        got = pd.read_csv(io.BytesIO(saved(f"CSV, {side}")))
        pd.testing.assert_frame_equal(got, want, check_dtype=False)
    page = saved("HTML, interactive").decode()
    assert page.startswith("<!DOCTYPE html>") and page.count("layer 0, head 0") == 2
    assert saved("SVG").lstrip().startswith(b"<?xml")
    tab.check()


def test_downloads_open(tab: Tab) -> None:
    tab.open("report?figure=importance_map")

    def saved(label: str) -> bytes:
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name=label, exact=True).click()
        return Path(download.value.path()).read_bytes()

    pdf = saved("PDF")
    assert pdf.startswith(b"%PDF") and b"/Font" in pdf
    image = Image.open(io.BytesIO(saved("PNG")))
    assert image.size[0] > 1000 and len(image.convert("L").getcolors() or []) > 10
    want = tables.load(STUDY / "importance_before").drop(columns="by_document")
    got = pd.read_csv(io.BytesIO(saved("CSV, the numbers")))
    pd.testing.assert_frame_equal(got, want, check_dtype=False)
    tab.check()


def test_a_link_to_a_head_that_is_not_there_says_so_and_the_page_goes_on(tab: Tab) -> None:
    tab.open("heads?head=99")
    tab.page.get_by_text("The link asks for head 99").wait_for()
    assert tab.page.locator(".st-key-head_panel").count() == 1
    tab.check()


@pytest.mark.verify
def test_two_tabs_do_not_disturb_each_other(browser: Any, address: str) -> None:
    one, two = Tab(browser, address), Tab(browser, address)
    for tab, gain in ((one, "0"), (two, "2")):
        tab.open(f"amplify?gain_0_0={gain}.0")
    shown = []
    for tab, gain in ((one, 0.0), (two, 2.0)):
        tab.page.reload()
        tab.page.get_by_test_id("stMetricValue").first.wait_for()
        tab.settle()
        text = tab.page.locator("textarea").first.input_value()
        shown.append(float(tab.page.get_by_test_id("stMetricValue").first.inner_text()))
        assert shown[-1] == pytest.approx(amplified(text, 0, 0, gain)[0], abs=6e-4)
        tab.check()
        tab.close()
    assert shown[0] != shown[1]


@pytest.mark.verify
@pytest.mark.parametrize("width", [1024, 1440])
def test_pages_fit_other_windows(browser: Any, address: str, width: int) -> None:
    tab = Tab(browser, address, width=width)
    tab.open()
    for title in PAGES:
        tab.go(title)
        tab.check()
    tab.close()


@pytest.mark.verify
def test_a_large_model_opens(browser: Any, tmp_path: Path) -> None:
    run = plant_run(tmp_path / "large", layers=32, heads=32, side=256, documents=24)
    with serving(tmp_path / "log.txt", "--run", run, "--runs", tmp_path / "runs") as address:
        tab = Tab(browser, address)
        tab.open()
        for title in ("Overview", "Heads", "Memory", "Compare", "Report"):
            tab.go(title)
            tab.check()
        tab.close()
