"""What `make verify` has tried before on exactly these files, so that it goes on where it was."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests import verify

FOLDER = verify.KEPT / "faults"


@cache
def _files() -> str:
    return verify.state_of_tree()[1]


def known(harness: str, case: str) -> dict[str, Any]:
    """What was found for this case on these files, if nothing was wrong; else empty."""
    try:
        found = json.loads(_place(harness, case).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if found.get("files") == _files() and not found["faults"] else {}


def keep(harness: str, case: str, points: int, states: int, faults: list[str]) -> None:
    """Enter a result."""
    found = {"points": points, "states": states, "faults": faults}
    verify.write_json(_place(harness, case), {"files": _files(), **found})


def _place(harness: str, case: str) -> Path:
    return FOLDER / harness / f"{case.replace(' ', '-')}.json"
