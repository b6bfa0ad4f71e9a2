"""Pictures of every page, light and dark: `python -m tests.apps.screenshots FOLDER`.

`--readme` writes the three of the README into docs/images instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.apps.driven import ROOT, Tab, launched, serving

PAGES = ("Overview", "Heads", "Choose", "Amplify", "Memory", "Compare", "Report")
README = {  # picture -> address, height in pixels
    "heads": ("heads?block=7%3A+layer+5&head=1", 1500),
    "memory": ("memory", 1500),
    "amplify": ("amplify?gain_0_0=0.3&gain_7_1=1.5", 1500),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/screenshots"))
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, launched() as opened:
        words = ("--runs", Path(folder) / "runs")
        with serving(Path(folder) / "log.txt", *words) as address:
            if given.readme:
                _readme(Tab(opened, address), ROOT / "docs" / "images")
            else:
                given.folder.mkdir(parents=True, exist_ok=True)
                for scheme in ("light", "dark"):
                    _pages(Tab(opened, address, scheme), given.folder, scheme)
    return 0


def _pages(tab: Tab, folder: Path, scheme: str) -> None:
    tab.open()
    for title in PAGES:
        tab.go(title)
        _picture(tab, folder / f"{title.lower()}-{scheme}.png")
    tab.close()


def _readme(tab: Tab, folder: Path) -> None:
    for name, (address, height) in README.items():
        tab.open(address)
        _picture(tab, folder / f"{name}.png", height)
    tab.close()


def _picture(tab: Tab, path: Path, height: int = 4000) -> None:
    """The whole page, as far down as `height` pixels."""
    tab.page.wait_for_timeout(3000)
    tab.settle()
    inside = "document.querySelector('[data-testid=stMain]').scrollHeight"
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    whole = min(int(tab.page.evaluate(inside)) + 20, height)
    tab.page.set_viewport_size({"width": 1280, "height": whole})
    tab.page.wait_for_timeout(1500)
    tab.settle()
    tab.page.screenshot(path=path)
    tab.page.set_viewport_size({"width": 1280, "height": 800})


if __name__ == "__main__":
    sys.exit(main())
