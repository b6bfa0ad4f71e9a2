"""The user's folder for what is made once and kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """MIDUS_CACHE, else midus in the user's cache folder. It need not be there yet."""
    given = os.environ.get("MIDUS_CACHE")
    if given:
        return Path(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "midus"
