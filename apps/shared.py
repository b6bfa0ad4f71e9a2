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

from analysis import figure_data, statistics
from midus_model.errors import MidusError, RunError
from workbench import runs
from workbench.runs import RunFolder

STUDY = Path(runs.__file__).resolve().parent / "study"
MAP_WIDTH = 850  # pixels: what a 1280-pixel window leaves beside the sidebar
EMPTY = "—"


class MissingTable(RunError):
    """A table that this kind of run does not make; nothing is wrong with the run."""


@dataclass(frozen=True)
class Run:
    """A run folder that was given to the explorer, and its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        """The run's table of that name; MidusError when it is missing or damaged."""
        held = list(self.manifest["tables"])
        if name not in held:
            raise MissingTable(
                f"this run has no table {name}, which this view shows (its tables: "
                f"{', '.join(held) or 'none'}); a run of midus demo has every table"
            )
        path = self.folder / "tables" / f"{name}.parquet"
        return _load_table(str(self.folder), name, _stamp(path))


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
    labels = {
        folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders
    }
    complaint = f"Not understood: {' '.join(unknown)}. {_USAGE}" if unknown else ""
    return {**labels, "shipped study": STUDY}, complaint


_USAGE = "Start it as: streamlit run apps/explorer.py -- --run FOLDER [FOLDER ...]"


def choose_run(given: dict[str, Path]) -> Run:
    """The sidebar's choice among the runs given; the choice is kept in the page's address."""
    with st.sidebar:
        name = st.selectbox(
            "Run",
            list(given),
            key="run_name",
            bind="query-params",
            help="The shipped study and the folders given with --run; no other folder is read.",
        )
        run = open_run(name, given[name])
        _describe(run)
    status = run.manifest.get("status")
    if status != "done":
        st.warning(
            f"The run {run.name} is marked '{status}': its tables may be incomplete. "
            "Reload the page once it has finished."
        )
    return run


def open_run(name: str, folder: Path) -> Run:
    """Read a run folder's manifest; RunError says what is wrong with the folder."""
    return Run(name, folder, RunFolder.open(folder).manifest)


def _describe(run: Run) -> None:
    """The run's own account of itself, under the choice."""
    manifest = run.manifest
    lines = [
        f"{manifest.get('kind', 'run')}, {manifest.get('status', 'status not recorded')}",
        str(manifest.get("created", "date not recorded")).replace("T", " ")[:16],
        *(f"{label}: {_last(name)}" for label, name in (manifest.get("models") or {}).items()),
    ]
    st.caption("  \n".join(escape(line) for line in lines))
    with st.expander("How it was made"):
        st.code(" ".join(map(str, manifest.get("command") or ["command not recorded"])),
                language=None, wrap_lines=True)  # fmt: skip
        st.json(
            {key: manifest[key] for key in ("parameters", "versions", "midus") if key in manifest},
            expanded=False,
        )


def _last(name: Any) -> str:
    return Path(str(name)).name or str(name)


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever one of a table's two files does, so that a cached table is never stale."""
    files = (path, path.with_suffix(".json"))
    return tuple(n for f in files if f.exists() for n in (f.stat().st_mtime_ns, f.stat().st_size))


@st.cache_data(show_spinner=False, max_entries=64)
def _load_table(folder: str, name: str, stamp: tuple[int, ...]) -> pd.DataFrame:
    return RunFolder.open(folder).load_table(name)


# --- messages ----------------------------------------------------------------------------------


@contextlib.contextmanager
def messages(what: str) -> Iterator[None]:
    """Anything that goes wrong inside becomes one message on the page; the rest goes on."""
    try:
        yield
    except MissingTable as error:
        st.info(_sentence(error), icon=":material/info:")
    except MidusError as error:
        st.error(_sentence(error), icon=":material/error:")
    except Exception as error:
        logging.getLogger(__name__).exception("%s could not be shown", what)
        st.error(
            escape(
                f"{what} could not be shown ({type(error).__name__}: {error}). The run folder may "
                "be damaged or of another version: make the run again or choose another one."
            ),
            icon=":material/error:",
        )


def _sentence(error: MidusError) -> str:
    text = str(error).rstrip(".")
    return escape(f"{text[:1].upper()}{text[1:]}.")


def escape(text: str) -> str:
    """Text that shows as it is where Streamlit reads Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>$~|:" else c for c in text)


# --- figures -----------------------------------------------------------------------------------


def draw(figure: go.Figure, key: str, *, select: bool = False, stretch: bool = True) -> None:
    """Show a figure of `analysis.figures`, its caption below as text that wraps with the page.

    With `select`, a click runs the page again, and `clicked` has the point. Maps are shown
    unstretched, because their markers have a fixed size.
    """
    caption = str((figure.layout.meta or {}).get("caption", ""))
    inside = [a for a in figure.layout.annotations if _plain(a.text) == caption]
    if inside:
        foot = 14 * len(inside[0].text.split("<br>")) + 16
        figure.layout.annotations = [a for a in figure.layout.annotations if a not in inside]
        figure.layout.margin.b -= foot
        figure.layout.height -= foot
    if not figure.layout.annotations and not any(t.showlegend is None for t in figure.data):
        figure.layout.height -= figure.layout.margin.t - 12
        figure.layout.margin.t = 12
    if select:
        figure.update_traces(unselected={"marker": {"opacity": 1}})
    ink = _INK[st.context.theme.type or "light"]
    figure.update_layout(
        font={"color": ink, "family": _FONT},
        modebar={"bgcolor": _CLEAR, "color": ink},
    )
    st.plotly_chart(
        figure,
        width="stretch" if stretch else "content",
        theme=None,
        key=key,
        on_select="rerun" if select else "ignore",
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": _BUTTONS},
        alt=caption or None,
    )
    if caption:
        st.caption(escape(caption))


def clicked(key: str) -> dict[str, Any] | None:
    """The point last clicked in the figure drawn under `key`; ask before drawing it.

    Streamlit forgets a selection when the figure changes, as it does when the point is marked, so
    it is kept apart.
    """
    state = st.session_state.get(key) or {}
    points = (state.get("selection") or {}).get("points")
    if points:
        st.session_state[f"clicked_{key}"] = dict(points[0])
    return st.session_state.get(f"clicked_{key}")


_CLEAR = "rgba(0,0,0,0)"
_INK = {"light": "#3d454d", "dark": "#c9d0d8"}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', 'Liberation Sans', sans-serif"
_BUTTONS = ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]


def _plain(text: str | None) -> str:
    return html.unescape((text or "").replace("<br>", " "))


# --- tables ------------------------------------------------------------------------------------


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A head table, best first, with `rank`, `inserted`, `share` (of positive scores), `block`."""
    heads = figure_data.sorted_scores(table)
    labels = {(row.layer, row.kind): row.label for row in figure_data.block_rows(table)}
    return heads.assign(
        share=statistics.shares(heads["score"])[0],
        block=[labels[int(b), str(k)] for b, k in zip(heads["layer"], heads["kind"], strict=True)],
    )


def download(table: pd.DataFrame, run: Run, name: str) -> None:
    """A button that saves the table as CSV, without the scores by document."""
    flat = table[[c for c in table.columns if not c.endswith("by_document")]]
    st.download_button(
        "Download CSV",
        flat.to_csv(index=False).encode(),
        file_name=f"{run.folder.name}-{name}.csv",
        mime="text/csv",
        key=f"download_{name}",
        icon=":material/download:",
        on_click="ignore",
    )


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
    return EMPTY if pd.isna(value) else f"{100 * value:.{digits}f} %"


def score_column(label: str, help: str | None = None) -> Any:
    return st.column_config.NumberColumn(label, format="%.5f", help=help)


def percent_column(label: str, help: str | None = None) -> Any:
    return st.column_config.NumberColumn(label, format="%.1f %%", help=help)


def in_percent(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with those fractions as percentages, for `percent_column`."""
    return table.assign(**{name: 100 * table[name] for name in columns})
