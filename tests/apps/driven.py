"""The real app on a free loopback port, and a headless Chromium in front of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
SECONDS = 40
PATIENCE = 3000  # milliseconds that an open list may take to answer
PROBE = re.compile(r"/\w+/_stcore/(health|host-config)$")
IDLE = (
    "!document.querySelector('[data-testid=stApp]').matches('[data-test-script-state=running]')"
    " && !document.querySelector('[data-testid=stSkeleton]')"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test, or fails it in CI, where there is none."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on the path; install it: apt-get install -y chromium")
        pytest.skip("no chromium on the path (apt-get install -y chromium)")
    with launched() as browser:
        yield browser


@contextmanager
def launched() -> Iterator[Any]:
    """A browser, where there is one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def serving(log: Path, *arguments: object) -> Iterator[str]:
    """The address of the app, started as a user would, with arguments after `--`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # From a folder of its own: the app's settings must not hang on where it is started.
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "apps" / "explorer.py")]
    command += ["--server.port", str(port), "--", *map(str, arguments)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT)
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
            time.sleep(0.1)
    raise RuntimeError(f"the app did not start:\n{log.read_text()}")


class Tab:
    """A page of the app, and everything that the browser complained of."""

    def __init__(self, browser: Any, address: str, scheme: str = "light", width: int = 1280):
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.address, self.complaints = address, list[str]()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        where = message.location.get("url", "")
        # Opened at a page's own address, Streamlit first asks for its server below that page.
        if message.type == "error" and not PROBE.search(where):
            self.complaints.append(f"{message.text} ({where})")

    def _asked(self, request: Any) -> None:
        local = (self.address, self.address.replace("http:", "ws:"), "data:", "blob:")
        if not request.url.startswith(local):
            self.complaints.append(f"asked {request.url}")

    def open(self, path: str = "") -> None:
        """Open a page of the app by its address, and wait until it is drawn."""
        self.page.goto(self.address + path)
        self.page.get_by_test_id("stHeading").first.wait_for()
        self.settle()

    def go(self, title: str) -> None:
        """Another page, by the sidebar."""
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        self.page.get_by_role("heading", name=title, exact=True).wait_for()
        self.settle()

    def choose(self, key: str, option: str) -> None:
        """One option of a list, as a user takes it: once more where a rerun closed the list."""
        from playwright.sync_api import TimeoutError as Late
        from playwright.sync_api import expect

        shown = self.page.locator(f".st-key-{key}").get_by_role("combobox")
        wanted = self.page.get_by_role("option", name=option, exact=True)
        end = time.monotonic() + SECONDS
        while True:
            try:
                self.settle()
                if not wanted.is_visible():
                    shown.click(timeout=PATIENCE)
                wanted.click(timeout=PATIENCE)
                expect(shown).to_have_value(option, timeout=PATIENCE)
                break
            except (Late, AssertionError):
                if time.monotonic() > end:
                    raise
        self.settle()

    def settle(self) -> None:
        """Wait until the script has run to its end."""
        self.page.wait_for_timeout(60)
        self.page.wait_for_function(IDLE)

    def check(self) -> None:
        """No exception, no error, nothing wider than the window, no complaint of the browser."""
        assert self.page.get_by_test_id("stException").count() == 0, "an exception is shown"
        errors = self.page.locator("[data-testid=stAlertContentError]")
        assert errors.count() == 0, errors.all_inner_texts()
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{self.page.url} is {wide} pixels wider than the window"
        assert not self.complaints, self.complaints

    def cell(self, key: str, panel: int, column: int, row: int) -> tuple[float, float]:
        """Where a cell of a map is on the screen; `key` begins the map's key."""
        grid = self.page.locator(f"[class*=st-key-{key}] .grid").first
        grid.scroll_into_view_if_needed()
        self.settle()
        left, top, width, height = json.loads(grid.get_attribute("data-cells"))[panel]
        box = grid.bounding_box()
        assert box is not None
        return box["x"] + left + (column + 0.5) * width, box["y"] + top + (row + 0.5) * height

    def click_cell(self, key: str, panel: int, column: int, row: int) -> None:
        """A real click on a cell of a map."""
        self.page.mouse.click(*self.cell(key, panel, column, row))
        self.settle()

    def close(self) -> None:
        self.context.close()
