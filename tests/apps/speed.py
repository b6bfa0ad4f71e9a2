"""How long the explorer takes in a real browser.

`python -m tests.apps.speed --markdown docs/explorer.md` starts the app, drives headless Chromium,
and gives the median and 95th percentile of 50 of each: the first useful view after the server is up
(a new server each), moving between pages, a cached interaction, a gate moved on pico-midus;
first on the shipped study, then on a planted run of 32 layers x 32 heads and 65,536 slots a block.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from midus_model.bench.report import fill_in, machine_of
from tests.apps.driven import Tab, launched, serving
from tests.apps.planted import plant_run

LIMITS = {"first view": 3.0, "another page": 1.0, "cached interaction": 0.3, "live gate": 1.0}
COUNT = 50
MAPS = {"Heads": "importance_map", "Memory": "memory_map"}  # a page's first figure, by its key
DRAWN = "[...document.querySelectorAll('[data-testid=stMain] img')].some(i => i.naturalWidth > 9)"
SHIPPED, LARGE = "shipped study", "32 x 32 heads, 65,536 slots"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--servers", type=int, default=COUNT, help="first views")
    parser.add_argument("--runs", nargs="+", choices=[SHIPPED, LARGE], default=[SHIPPED, LARGE])
    parser.add_argument("--out", type=Path, default=Path("runs/explorer-speed.json"))
    parser.add_argument("--markdown", type=Path, help="page whose table is filled in")
    given = parser.parse_args(arguments)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    found["machine"] = machine_of("cpu")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, launched() as opened:
        for name in given.runs:
            run: list[Any] = []
            if name == LARGE:
                run = ["--run", plant_run(Path(folder) / "large", layers=32, heads=32, side=256)]
            found[name] = measured(opened, Path(folder), run, given.count, given.servers)
            given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    table = markdown(found)
    if given.markdown:
        fill_in(given.markdown, "speed", table)
    print(table)
    return 0


def measured(
    opened: Any, folder: Path, run: list[Any], count: int, servers: int
) -> dict[str, list[float]]:
    """Seconds of every repetition, by what was done."""
    found: dict[str, list[float]] = {}
    words = ["--runs", folder / "runs", *run]
    found["first view"] = []
    for _ in range(servers):
        with serving(folder / "log.txt", *words) as address:
            found["first view"].append(first_view(opened, address))
    with serving(folder / "log.txt", *words) as address:
        tab = Tab(opened, address)
        tab.open()
        titles = ["Heads", "Memory", "Report", "Overview"]
        for title in titles:  # each page's libraries and tables once
            tab.go(title)
            tab.page.wait_for_timeout(4000)
        found["another page"] = [timed(tab, page_of(tab, titles[i % 4])) for i in range(count)]
        tab.go("Heads")
        for i in range(4):  # both heads computed and drawn
            other_head(tab, i)()
            tab.page.wait_for_timeout(2000)
        found["cached interaction"] = [timed(tab, other_head(tab, i)) for i in range(count)]
        if not run:
            tab.go("Amplify")
            tab.page.wait_for_timeout(3000)
            found["live gate"] = [timed(tab, gate(tab, i)) for i in range(count)]
        tab.close()
    return found


def first_view(opened: Any, address: str) -> float:
    """From the server's first healthy answer to numbers and a figure on the first page."""
    start = time.perf_counter()
    tab = Tab(opened, address)
    tab.page.goto(address)
    tab.page.get_by_text(re.compile("was up-scaled to")).wait_for()
    tab.page.wait_for_function(DRAWN)
    seconds = time.perf_counter() - start
    tab.close()
    return seconds


def timed(tab: Tab, action: Callable[[], None]) -> float:
    """Seconds until what the action asks for is on the page."""
    start = time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    tab.settle()
    return seconds


def page_of(tab: Tab, title: str) -> Callable[[], None]:
    """To another page: its heading, and its own first figure."""

    def go() -> None:
        tab.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        tab.page.get_by_role("heading", name=title, exact=True).wait_for()
        if title in MAPS:
            tab.page.locator(f"[class*=st-key-{MAPS[title]}] .grid svg text").first.wait_for()
        else:
            tab.page.wait_for_function(DRAWN)

    return go


def other_head(tab: Tab, index: int) -> Callable[[], None]:
    """A click on a cell of the importance map; seen twice, everything about it is cached."""
    head = 1 + index % 2
    place = tab.cell("importance_map", 0, head, 0)
    panel = tab.page.locator(".st-key-head_panel")

    def click() -> None:
        tab.page.mouse.click(*place)
        panel.get_by_text(f", head {head}").first.wait_for()

    return click


def gate(tab: Tab, index: int) -> Callable[[], None]:
    """The first gate by one key press; the caption of the new figure names the new gain."""
    thumb = tab.page.locator("[class*=st-key-gain_] input[type=range]").first
    was = tab.page.get_by_text("gains (block.head):").first.inner_text()

    def press() -> None:
        thumb.press("ArrowLeft" if index % 20 < 10 else "ArrowRight")
        tab.page.wait_for_function(
            "was => [...document.querySelectorAll('[data-testid=stCaptionContainer]')]"
            ".some(e => e.innerText.includes('gains (block.head)') && e.innerText !== was)",
            arg=was,
        )

    return press


def markdown(found: dict[str, Any]) -> str:
    """The table of docs/explorer.md."""
    machine = found["machine"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads; headless Chromium.",
        "",
        "| run | what | times | median, s | 95th percentile, s | at most, s |",
        "|---|---|---|---|---|---|",
    ]
    for run, rows in found.items():
        if run == "machine":
            continue
        for what, seconds in rows.items():
            middle, high = np.quantile(seconds, [0.5, 0.95])
            limit = LIMITS[what]
            word = "yes" if high <= limit else "no"
            lines.append(
                f"| {run} | {what} | {len(seconds)} | {middle:.2f} | {high:.2f} | "
                f"{limit:g}: {word} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
