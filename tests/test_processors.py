"""The same decisions whichever processor's kernels BLAS and PyTorch take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import processors, verify

HASWELL, ZEN, SKYLAKE = ((processors.BLAS, name) for name in ("Haswell", "Zen", "SkylakeX"))
# The core in a few seconds; `make verify` runs every numeric test file under every setting.
QUICK = [(HASWELL,), (ZEN,), (SKYLAKE,), (SKYLAKE, (processors.TORCH, "default"))]


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return json.loads(json.dumps(processors.of_races() | processors.of_tables()))


@pytest.mark.parametrize("settings", QUICK, ids=str)
def test_decisions_are_those_of_other_processors(settings, here):
    if not set(settings) <= set(processors.available()):
        pytest.skip(f"this CPU does not have what {settings} needs")
    found = processors.elsewhere(*settings)
    assert found["wrong"] == []
    assert found["decisions"].items() <= here.items()


def test_a_setting_that_did_not_take_effect_is_noticed():
    assert "Nehalem" in processors.refused((processors.BLAS, "Nehalem"))
    assert "avx1024" in processors.refused((processors.TORCH, "avx1024"))


def test_verify_runs_the_numeric_tests_under_every_setting_there_is():
    assert all((processors.ROOT / name).is_file() for name in processors.NUMERIC)
    names = [name for name in verify.steps() if name.startswith("numbers")]
    assert names == [f"numbers, {a}={b}" for a, b in processors.available()]
