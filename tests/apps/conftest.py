"""What holds for every test of the explorer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.parts import live


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """The thread that loads the shipped models ends with the test: loading changes all of torch."""
    yield
    for thread in live._warmed:
        thread.cancel()
        thread.join()
