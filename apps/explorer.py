"""The explorer: heads, memory and what up-scaling changed, in a browser on this machine.

    streamlit run apps/explorer.py
    streamlit run apps/explorer.py -- --run runs/demo --runs runs --models checkpoints

Opens on the shipped study. Reads the run folders given with --run, the runs under --runs (where
it writes its own) and the checkpoints under --models; no other folder.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import streamlit as st

# Streamlit puts this script's folder first on the path; the packages lie one folder up.
HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))


@contextlib.asynccontextmanager
async def ready(app: st.App) -> AsyncIterator[None]:
    """Import and draw what the first page needs before the server answers: nobody waits yet."""
    import apps.parts.sidebar  # noqa: F401
    from apps.parts import access
    from apps.views import overview

    given, _ = access.given_folders(sys.argv[1:])
    access.set_given(given)
    with contextlib.suppress(Exception):  # the page itself says what is wrong with a run
        overview.ahead(access.open_run(*next(iter(given.all_runs().items()))))
    yield


app = st.App(HERE / "main.py", lifespan=ready)
