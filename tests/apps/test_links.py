"""Links as anybody may write them: every page, every parameter, one message and no exception."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.apps.planted import plant_run

ROOT = Path(__file__).resolve().parents[2] / "apps"
PAGES = ("overview", "heads", "choose", "amplify", "memory", "compare", "report")
# One of each kind: digits that int() refuses or that no integer type holds, numbers out of range
# and none at all, markup, what is repeated, text beyond any length.
VALUES = {
    "superscript": "²", "nines": "9" * 400, "negative": "-1", "nan": "NaN", "infinite": "1e999",
    "empty": "", "markup": "$x$ :red[y] <b>", "repeated": ["1", "2"], "control": "a\x1b\nb\u202e",
    "long": "w" * 5000, "arabic": "٣", "path": "../../etc/passwd",
}  # fmt: skip
OFTEN = ("nines",)


def parameters() -> list[str]:
    """Every key that the pages keep in an address, from the code."""
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"""key="(\w+)",[^)]*?\s*bind="query-params\"""", text))
        found |= set(re.findall(r"""page\.bound\("(\w+)\"""", text))
        found |= set(re.findall(r'page\.(?:choose|toggle)\([^"]*?"[^"]*", [^"]*?"(\w+)"', text))
        found |= set(re.findall(r'text_area\("(\w+)"', text))
    return sorted(found | {"run_name", "num_keys", "top_k", "latent_dim", "gain_0_0"})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: Any) -> Path:
    return plant_run(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture
def opened(planted: Path, monkeypatch: Any, tmp_path: Path) -> Any:
    def start(page: str, query: dict[str, Any], *runs: Path) -> AppTest:
        given = ["--run", *map(str, runs)] if runs else []
        line = [str(ROOT / "main.py"), "--runs", str(tmp_path / "w"), *given]
        monkeypatch.setattr(sys, "argv", line)
        app = AppTest.from_file(str(ROOT / "main.py"), default_timeout=120)
        if page != "overview":
            app.switch_page(f"views/{page}.py")
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    return start


def test_the_parameters_are_those_of_the_pages() -> None:
    found = parameters()
    assert {"slot", "block", "head", "rule", "count", "with", "heads", "text", "figure"} <= set(
        found
    )
    assert len(found) >= 24, found


TEXT = re.compile(r"given is too short|The text has [\d,]+ tokens")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "kind",
    [k if k in OFTEN else pytest.param(k, marks=pytest.mark.verify) for k in VALUES],
)
def test_a_strange_link_is_a_message(opened: Any, page: str, kind: str) -> None:
    """All parameters at once, so that each meets the others' strange values too."""
    app = opened(page, dict.fromkeys(parameters(), VALUES[kind]))
    assert not app.exception, [e.value for e in app.exception]
    # A text that a link brings may be none that the model can read: said in the product's words.
    assert not [e.value for e in app.error if not TEXT.search(e.value)]
    for message in [*app.warning, *app.error]:
        assert not re.search(r"(?<!\\)[$<]|(?<!\\):\w+\[|\x1b", message.value), message.value
    said = [message.value for message in app.warning]
    assert len(said) == len(set(said))


@pytest.mark.parametrize(
    "value",
    ["²", *(pytest.param(v, marks=pytest.mark.verify) for v in VALUES.values() if v and v != "²")],
)
def test_a_slot_that_is_none_is_said_once(opened: Any, planted: Path, value: Any) -> None:
    app = opened("memory", {"slot": value}, planted)
    assert not app.exception and not app.error
    assert sum("asks for slot" in message.value for message in app.warning) == 1


@pytest.mark.verify
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", VALUES)
def test_a_strange_parameter_alone_is_a_message(opened: Any, page: str, kind: str) -> None:
    for name in parameters():
        app = opened(page, {name: VALUES[kind]})
        assert not app.exception and not app.error, name
