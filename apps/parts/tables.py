"""A run's tables, cached as long as their files stay as they are, and numbers for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from analysis import figure_data, statistics
from analysis.agreement_words import agreement_words
from analysis.ranking_words import counted
from apps.parts.access import Run, given
from apps.parts.page import MissingTable
from kernels.errors import RunError
from workbench.runs import RunFolder

EMPTY = "—"


def table(run: Run, name: str) -> pd.DataFrame:
    """The run's table of that name; all pages share it, so nobody changes it.

    Raises MissingTable where the run has none, DataError where it is damaged.
    """
    return _load(*_place(run, name))


def heads(run: Run, name: str) -> pd.DataFrame:
    """The run's table of that name as `ranked` gives it; errors as `table`."""
    return _ranked(*_place(run, name))


def blocks(run: Run, name: str) -> list[figure_data.Row]:
    """The blocks of a table of heads in the model's order; errors as `table`."""
    return _blocks(*_place(run, name))


def has(run: Run, name: str) -> bool:
    """Whether the run holds a table of that name."""
    return name in run.tables and _file(run, name).is_file()


def roles(run: Run) -> dict[tuple[int, str, int], str]:
    """The role of every head by (source_layer, kind, head); errors as `table`."""
    return _roles(*_place(run, "roles"))


def head_slots(run: Run, block: int, head: int) -> pd.DataFrame:
    """The slots that one memory head hit, most hit first: a part of the table memory_slots."""
    if "memory_slots" not in run.tables:
        raise MissingTable("this run has no table memory_slots; midus memory MODEL makes one")
    path = _file(run, "memory_slots")
    return _slots(str(path), block, head, stamp(path))


def key(run: Run, *names: str) -> tuple[Any, ...]:
    """What figures of these tables depend on."""
    return (str(run.folder), *(stamp(_file(run, name)) for name in names))


def stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever a table's file does, so that a cached table is never stale.

    Tables of earlier versions have a second file.
    """
    files = (path, path.with_suffix(".json"))
    return tuple(n for f in files if f.exists() for n in (f.stat().st_mtime_ns, f.stat().st_size))


def _place(run: Run, name: str) -> tuple[str, str, tuple[int, ...]]:
    """What a cached table is kept under; raises MissingTable where the run has none."""
    if name not in run.tables:
        raise MissingTable(
            f"this run has no table {name}, which this view shows (its tables: "
            f"{', '.join(run.tables) or 'none'}); a run of midus demo has every table"
        )
    return str(run.folder), name, stamp(_file(run, name))


def _file(run: Run, name: str) -> Path:
    path = run.folder / "tables" / f"{name}.parquet"
    if not given().allows(path):
        raise RunError(f"the table {name} lies outside the folders given to the explorer")
    return path


@st.cache_resource(show_spinner=False, max_entries=64)
def _load(folder: str, name: str, stamp: tuple[int, ...]) -> pd.DataFrame:
    return RunFolder.open(folder).load_table(name)


@st.cache_resource(show_spinner=False, max_entries=64)
def _ranked(folder: str, name: str, stamp: tuple[int, ...]) -> pd.DataFrame:
    return ranked(_load(folder, name, stamp))


@st.cache_resource(show_spinner=False, max_entries=16)
def _roles(folder: str, name: str, stamp: tuple[int, ...]) -> dict[tuple[int, str, int], str]:
    found: dict[tuple[int, str, int], str] = {}
    for row in _load(folder, name, stamp).itertuples():
        # The first of a source layer is the base's own head; copies of it come after.
        found.setdefault((int(row.source_layer), str(row.kind), int(row.head)), str(row.role))
    return found


@st.cache_resource(show_spinner=False, max_entries=64)
def _blocks(folder: str, name: str, stamp: tuple[int, ...]) -> list[figure_data.Row]:
    return figure_data.block_rows(_load(folder, name, stamp))


@st.cache_resource(show_spinner=False, max_entries=64)
def _slots(path: str, block: int, head: int, stamp: tuple[int, ...]) -> pd.DataFrame:
    from analysis import tables

    found = tables.load_rows(path, {"block": block, "head": head})
    attrs = found.attrs
    found = found.sort_values(["hits", "slot"], ascending=[False, True], ignore_index=True)
    found.attrs = attrs
    return found


# ---------------------------------------------------------------- for reading


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A head table, best first, with `rank`, `inserted`, `share` (of positive scores), `block`."""
    heads = figure_data.sorted_scores(table)
    labels = {(row.layer, row.kind): row.label for row in figure_data.block_rows(table)}
    return heads.assign(
        share=statistics.shares(heads["score"])[0],
        block=[labels[int(b), str(k)] for b, k in zip(heads["layer"], heads["kind"], strict=True)],
    )


def measured(table: pd.DataFrame) -> str:
    """How a head table was measured, in one line: metric, baseline, data, how far to trust it."""
    attrs = table.attrs
    parts = [
        f"metric {attrs.get('metric', 'not recorded')} ({attrs.get('unit', 'unit not recorded')})",
        f"method {attrs.get('method', 'not recorded')}",
        f"baseline {attrs.get('baseline') or 'none'}",
        f"data {attrs.get('data', 'not recorded')}, {counted(attrs)}",
    ]
    more = [agreement_words(attrs)]
    if attrs.get("conditional"):
        more.append(f"conditional {attrs['conditional']}")
    return "; ".join([", ".join(parts), *filter(None, more)])


def number(value: Any, digits: int = 4, sign: bool = False) -> str:
    """A score for reading: fixed digits, a dash where it is missing."""
    if value is None or pd.isna(value):
        return EMPTY
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(low: Any, high: Any, digits: int = 4) -> str:
    if pd.isna(low) or pd.isna(high):
        return EMPTY
    return f"{low:.{digits}f} to {high:.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    return EMPTY if value is None or pd.isna(value) else f"{100 * value:.{digits}f} %"


def score_column(label: str, help: str | None = None) -> Any:
    return st.column_config.NumberColumn(label, format="%.5f", help=help)


def percent_column(label: str, help: str | None = None) -> Any:
    return st.column_config.NumberColumn(label, format="%.1f %%", help=help)


def whole_column(label: str, help: str | None = None) -> Any:
    return st.column_config.NumberColumn(label, format="localized", help=help)


def in_percent(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with those fractions as percentages, for `percent_column`."""
    return table.assign(**{name: 100 * table[name] for name in columns})
