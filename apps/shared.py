"""What the explorer's pages share: the runs given, their tables, messages, figures, downloads."""

from __future__ import annotations

import argparse
import contextlib
import html
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

import workbench
from analysis import figure_data, statistics, tables
from midus_model.errors import MidusError, RunError

STUDY = Path(next(iter(workbench.__path__))) / "study"
MAP_WIDTH = 850  # pixels: what a 1280-pixel window leaves beside the sidebar
EMPTY = "—"


@dataclass(frozen=True)
class Run:
    """A run folder that was given to the explorer, and its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        """The run's table of that name; MidusError when it is missing or damaged."""
        path = self.folder / "tables" / f"{name}.parquet"
        if not path.is_file():
            held = ", ".join(sorted(p.stem for p in path.parent.glob("*.parquet"))) or "none"
            raise RunError(
                f"the run {self.name} has no table {name} (its tables: {held}); "
                "finish the run or choose another one in the sidebar"
            )
        return _load_table(str(path), _stamp(path))


# --- runs --------------------------------------------------------------------------------------


def given_runs(arguments: Sequence[str]) -> tuple[dict[str, Path], str]:
    """The runs to choose among, {label: folder}, and a complaint about the arguments or ""."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--run", nargs="+", action="extend", default=[], type=Path)
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        return {"shipped study": STUDY}, f"{error}. {_USAGE}"
    folders = list(dict.fromkeys(folder.expanduser().absolute() for folder in known.run))
    names = [folder.name for folder in folders]
    runs = {
        folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders
    }
    complaint = f"Not understood: {' '.join(unknown)}. {_USAGE}" if unknown else ""
    return {**runs, "shipped study": STUDY}, complaint


_USAGE = "Start it as: streamlit run apps/explorer.py -- --run FOLDER [FOLDER ...]"


def choose_run(runs: dict[str, Path]) -> Run:
    """The sidebar's choice among the runs given; the choice is kept in the page's address."""
    with st.sidebar:
        name = st.selectbox(
            "Run",
            list(runs),
            key="run_name",
            bind="query-params",
            persist_state=True,
            help="The shipped study and the folders given with --run; no other folder is read.",
        )
        run = open_run(name, runs[name])
        _describe(run)
    status = run.manifest.get("status")
    if status != "done":
        st.warning(
            f"The run {run.name} is marked '{status}': its tables may be incomplete. "
            "Reload the page once it has finished."
        )
    return run
