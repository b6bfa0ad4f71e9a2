"""The explorer in a real browser: every page draws, nothing complains, a click shows a head."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import tables
from tests.apps.planted import plant_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
PAGES = {"Head importance": 3, "Memory slots": 3, "Amplification": 2}  # and how many figures
SECONDS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on the path; install it: apt-get install -y chromium")
        pytest.skip("no chromium on the path (apt-get install -y chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def address(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real app on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "streamlit.txt"
    command = [
        sys.executable, "-m", "streamlit", "run", "apps/explorer.py", "--server.port", str(port),
        "--", "--run", str(run),
    ]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(f"http://127.0.0.1:{port}/_stcore/health", server, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(timeout=SECONDS)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the app did not start:\n{log.read_text()}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_draw_and_a_click_shows_a_head(
    browser: sync_api.Browser, address: str, run: Path, tmp_path: Path, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if _local(r.url, address) else complaints.append(r.url))
    page.goto(address)
    for title, figures in PAGES.items():
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        page.get_by_role("heading", name=title, exact=True).wait_for()
        page.locator(".js-plotly-plot").nth(figures - 1).wait_for()
        _settle(page)
        page.screenshot(path=tmp_path / f"{title}-{scheme}.png")
        assert page.get_by_test_id("stException").count() == 0
        assert page.get_by_test_id("stAlert").count() == 0
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{title} is {wide} pixels wider than the window"
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Head importance").click()
    _click_a_memory_head(page, run)
    page.screenshot(path=tmp_path / f"clicked-{scheme}.png")
    assert not complaints
    context.close()


def _local(url: str, address: str) -> bool:
    websocket = address.replace("http:", "ws:")
    return url.startswith((address, websocket, "data:", "blob:"))


def _settle(page: sync_api.Page) -> None:
    page.wait_for_function(
        "!document.querySelector('[data-testid=stApp]').matches('[data-test-script-state=running]')"
    )


def _click_a_memory_head(page: sync_api.Page, run: Path) -> None:
    """Click the cell of a memory head in the map after; its numbers must be the table's."""
    table = tables.load(run / "tables" / "importance_after")
    index = int(table.index[table["kind"] == "memory"][2])
    row = table.loc[index]
    cells = page.locator(".js-plotly-plot").first.locator("g.trace").nth(1).locator("path.point")
    panel = page.locator(".st-key-head_panel")
    name = f"+ memory (from {row['source_layer']}), head {row['head']}"
    cells.nth(index).wait_for()
    _settle(page)
    assert name not in panel.inner_text()
    # A real click at the place, since plotly's drag layer lies above the markers.
    box = cells.nth(index).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    panel.get_by_text(name).wait_for()
    said = panel.inner_text()
    assert f"{row['score']:.4f}" in said
    assert f"{row['ci_low']:.4f} to {row['ci_high']:.4f}" in said
