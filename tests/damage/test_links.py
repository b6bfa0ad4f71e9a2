"""Damaged links: whatever the page's address asks for, a page comes without a traceback."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.apps.planted import plant_run

APP = Path(__file__).parents[2] / "apps" / "main.py"
KEYS = ("run_name", "heads", "slot", "block", "side", "layer", "head", "metric", "text", "unknown")
PAGES = ("views/overview.py", "views/heads.py", "views/memory.py", "views/amplify.py")
VALUES = (
    "", "0", "-1", "00", "1e9", "1.5", "²", "٣", "9" * 400, "nan", "inf", "true", "null", "\0",
    "x" * 100_000, "../..", "/etc/passwd", "$\\frac{1}{0}$", "[red]x[/red]", "<script>1</script>",
    "%00", "1.2 memory", "{" * 1000, "\u202e", "a\nb", "`x`", "'; drop table heads; --",
)  # fmt: skip
ASKED = (
    ("views/memory.py", "slot"),
    ("views/amplify.py", "heads"),
    ("views/overview.py", "run_name"),
)
DRAWN = 20


def links() -> list[tuple[str, dict[str, str]]]:
    """Pages and what their addresses ask for: every value of what is read, and some drawn."""
    found = [(page, {key: value}) for page, key in ASKED for value in VALUES]
    rng = random.Random("links")
    for _ in range(DRAWN):
        keys = rng.sample(KEYS, 3)
        found.append((rng.choice(PAGES), {key: rng.choice(VALUES) for key in keys}))
    return found


@pytest.mark.verify
@pytest.mark.parametrize("number", range(len(links())))
def test_a_link(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, query = links()[number]
    run = plant_run(tmp_path / "planted")
    line = [str(APP), "--runs", str(tmp_path / "workspace"), "--run", str(run)]
    monkeypatch.setattr(sys, "argv", line)
    app = AppTest.from_file(str(APP), default_timeout=120)
    app.run()
    if page != PAGES[0]:
        app.switch_page(page)
    for name, value in query.items():  # not before: another page has an address of its own
        app.query_params[name] = value
    app.run()
    assert not app.exception, (page, query, app.exception[0].message)
    shown = [error.value for error in app.error if "could not be shown" in error.value]
    assert not shown, (page, query, shown[0])
